"""What the Makefile runs besides vmstackd itself."""
