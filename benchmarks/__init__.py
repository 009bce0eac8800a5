"""Figures: how fast, how large."""
