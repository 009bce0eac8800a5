"""Tests on whole machines: throw-away boxes with a systemd of their own."""
