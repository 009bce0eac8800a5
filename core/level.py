"""Oversubscription levels: how many vCPUs one CPU of a subset may serve.

A level is an exact integer in thousandths (1000 = 1:1, 1500 = 1.5:1), so that no rounding of binary
fractions decides where a VM goes (SEMANTICS 4.1, "rounding").
"""

from __future__ import annotations

import re

UNIT = 1000
"""Thousandths in one whole: the level at which nothing is oversubscribed."""

LOWEST = 1 * UNIT
HIGHEST = 64 * UNIT

_TEXT = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,15}))?")


class LevelError(ValueError):
    """A level that is not a number from 1 to 64 with at most three decimals."""


def parse_level(value: str | int | float) -> int:
    """Read "2", "1.5" or 2.0 as thousandths.

    Floats are read by their shortest decimal text, so 1.1 is 1100.
    Raises LevelError when the value is not a level.
    """
    text = value if isinstance(value, str) else repr(value)
    match = _TEXT.fullmatch(text)
    if match is not None:
        decimals = (match[2] or "").rstrip("0")
        if len(decimals) <= 3:
            level = int(match[1]) * UNIT + int(decimals.ljust(3, "0"))
            if LOWEST <= level <= HIGHEST:
                return level
    raise LevelError(
        f"{text[:40]!r} is not an oversubscription level: "
        f"a number from {format_level(LOWEST)} to {format_level(HIGHEST)} with at most 3 decimals"
    )


def format_level(level: int) -> str:
    """Write thousandths as the shortest text with at least one decimal: 1000 as "1.0"."""
    whole, rest = divmod(level, UNIT)
    return f"{whole}." + (f"{rest:03d}".rstrip("0") or "0")
