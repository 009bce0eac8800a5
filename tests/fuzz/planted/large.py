"""Believes how many there are before it has seen them."""

from __future__ import annotations

from tests.fuzz.target import Target


def take(data: bytes) -> None:
    """The first three bytes say for how much there must be room."""
    b"x" * (int.from_bytes(data[:3], "big") * 16)


TARGET = Target(take, longest=16)
