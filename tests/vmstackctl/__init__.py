"""vmstackctl: what it reads and draws, and the command itself against a real daemon."""
