"""Raises what nobody promised, four comparisons deep: guessing would take some billion inputs."""

from __future__ import annotations

from tests.fuzz.target import Target


def take(data: bytes) -> None:
    """Raises IndexError for what begins with "cpu", a colon, and no number."""
    if data[:1] == b"c":  # noqa: SIM102  one step after another is what coverage can follow
        if data[1:2] == b"p":  # noqa: SIM102
            if data[2:3] == b"u":  # noqa: SIM102
                if data[3:4] == b":" and not data[4:].isdigit():
                    data.split(b",")[1 + len(data)]


TARGET = Target(take, longest=64)
