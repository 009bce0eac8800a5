"""Memory, levels, addresses and names: as people type them, and as they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from core.cpuset import format_cpu_list
from core.level import UNIT, LevelError, parse_level
from vmstackd import client
from vmstackd.api.errors import InvalidRequest

MIB_PER_GIB = 1024

_MEMORY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(?:([MGT])(?:i?B)?)?", re.IGNORECASE)
_MIB = {"m": 1, "g": MIB_PER_GIB, "t": MIB_PER_GIB * MIB_PER_GIB}


def parse_memory(text: str) -> int:
    """Read "512M", "1.5G", "2T" or "2" as MiB. Units are powers of 1024; without one it is GiB, as over HTTP.

    Raises ValueError with what is allowed.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{printable(text[:40])!r} is not a size; write it as 512M, 1.5G, 2T, or 2 for 2 GiB")
    mib = Fraction(match[1]) * _MIB[(match[2] or "G").lower()]
    if mib.denominator != 1 or mib < 1:
        raise ValueError(f"{text.strip()} is not a whole number of MiB; the nearest is {max(1, round(mib))}M")
    return int(mib)


def parse_ratio(text: str) -> int:
    """Read "2", "1.5" or "2:1" as thousandths. Raises ValueError with what is allowed."""
    try:
        return parse_level(text.strip().removesuffix(":1"))
    except LevelError as error:
        raise ValueError(f"{error}, as 2, 1.5 or 2:1") from error


def parse_name(text: str) -> str:
    """The name of a VM. Raises ValueError if it cannot be sent; what else is allowed the daemon knows."""
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError(f"{printable(text[:80])!r} is not UTF-8")
    return text


def parse_host(text: str) -> str:
    """The name of a host, its UUID or its address. Raises ValueError if it cannot be sent."""
    if not text:
        raise ValueError("it is empty")
    return parse_name(text)


def parse_address(text: str) -> str:
    """An address, as the client takes it. Raises ValueError with what is allowed."""
    try:
        client.parse_address(text)
    except InvalidRequest as error:
        raise ValueError(printable(error.message)) from error
    return text


def printable(text: str) -> str:
    """The text with everything escaped that could move a terminal's cursor, end a line or reverse its direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ratio(thousandths: int) -> str:
    """A level as "2:1" or "1.5:1"."""
    return number(thousandths) + ":1"


def number(thousandths: int) -> str:
    """Thousandths without needless decimals, perhaps negative: 1500 as "1.5", 2000 as "2"."""
    whole, rest = divmod(abs(thousandths), UNIT)
    decimals = f".{rest:03d}".rstrip("0") if rest else ""
    return f"{'-' if thousandths < 0 else ''}{whole}{decimals}"


def memory(mib: int) -> str:
    """MiB in the unit that reads best, with at most one decimal: "512 MiB", "1.5 GiB"."""
    if abs(mib) < MIB_PER_GIB:
        return f"{mib} MiB"
    tenths = round(mib * 10 / MIB_PER_GIB)
    return f"{tenths // 10}.{tenths % 10} GiB" if tenths % 10 else f"{tenths // 10} GiB"


def busy(cpus: float | None) -> str:
    """CPUs kept busy on average, with one decimal; "-" if not known."""
    return "-" if cpus is None else f"{cpus:.1f}"


def percent(share: float) -> str:
    """A share of 0 to 1 in percent without the sign, in at most three digits: "0.3", "12", "100"."""
    text = f"{100 * share:.1f}"
    return text if len(text) < 4 else f"{100 * share:.0f}"


def gib(mib: int) -> str:
    """MiB as a number of GiB, with at most one decimal."""
    return f"{mib / MIB_PER_GIB:.1f}".removesuffix(".0")


def ago(seconds: float) -> str:
    """A time span in the largest unit that it fills: "7s", "3m", "2h", "5d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(0, seconds))}s"


def cpu_list(cpus: Iterable[int]) -> str:
    """CPUs in ascending order as "0-3,64-67"."""
    return format_cpu_list(sorted(cpus))


def count(amount: int, one: str, many: str = "") -> str:
    """Write "1 VM", "2 VMs"."""
    return f"{amount} {one if amount == 1 else many or one + 's'}"
