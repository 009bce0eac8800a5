"""Tests of core, one file per module of it."""
