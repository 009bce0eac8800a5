"""One module for each decoder, with what it must not do."""
