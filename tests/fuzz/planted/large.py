"""Believes how many there are before it has seen them."""

from __future__ import annotations

from tests.fuzz.target import Target


def take(data: bytes) -> None:
    """The first byte says for how much there must be room, of which the least is too much."""
    if data:
        b"x" * (1 + data[0] % 4 << 26)


TARGET = Target(take, longest=16)
