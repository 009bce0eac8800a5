"""Tests of the topology sources."""
