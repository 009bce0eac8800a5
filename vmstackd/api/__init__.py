"""Requests, replies and errors: the same for every transport. Importable without libvirt or sdbus."""
