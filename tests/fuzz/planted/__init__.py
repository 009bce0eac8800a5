"""Decoders with mistakes, one in each module, to see that they are found."""
