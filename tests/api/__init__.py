"""Tests of requests, replies and errors."""
