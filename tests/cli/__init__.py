"""Tests of the command line, with the daemon as a process."""
