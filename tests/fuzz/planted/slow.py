"""Takes ever longer for larger numbers."""

from __future__ import annotations

from tests.fuzz.target import Target


def take(data: bytes) -> None:
    """Adds them all."""
    if len(data) > 8 and data.isdigit():
        sum(range(min(int(data), 200_000_000)))


TARGET = Target(take, words=("999999999",), longest=16)
