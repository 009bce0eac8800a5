"""Hostile input for everything that decodes: targets, guided by what they cover, and their corpora.

``python -m tests.fuzz`` runs all of them; ``targets`` has one module for each decoder; ``corpus`` has a folder for each
with inputs that once led somewhere new.
"""
