"""The host daemon: carries out what ``core`` decides, and answers requests."""
