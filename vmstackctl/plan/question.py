"""What is asked of a plan, as people type it."""

from __future__ import annotations

import re

import msgspec

from core.host_policy import HOST_POLICIES
from core.workload import Accounting, ServerKind
from vmstackctl.plan.mix import Mix
from vmstackctl.values import count, memory, parse_memory, printable

MOST_CPUS = 65536
"""Of a server."""
MOST_SERVERS = 1_000_000
"""Of a kind that is counted."""
ALL = "all"

_KIND = re.compile(r"([0-9]{1,9}):([^x]+)(?:x([0-9]{1,9}))?", re.IGNORECASE)
_EXAMPLE = "write CPUs and memory of a server, as 32:128 or 32:128G, and how many there are, as 32:128x20"


class Question(msgspec.Struct, frozen=True):
    """policies: names. mix: other levels for the VMs, dealt with this seed. memory_cap_mib: for VMs above 1:1.

    over_time: whether to tell what is used not only at the peak.
    """

    kinds: tuple[ServerKind, ...]
    policies: tuple[str, ...]
    critical_size: int
    accounting: Accounting
    mix: Mix | None = None
    seed: int = 0
    memory_cap_mib: int | None = None
    leave_out_too_large: bool = False
    over_time: bool = False


def parse_kind(text: str) -> ServerKind:
    """Read "32:128", "32:128G" or "32:128x20". Raises ValueError with what is allowed."""
    match = _KIND.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{printable(text[:40])!r} is no server; {_EXAMPLE}")
    cpus, memory_mib = int(match[1]), parse_memory(match[2])
    if not 1 <= cpus <= MOST_CPUS:
        raise ValueError(f"a server has 1 to {MOST_CPUS} CPUs, not {cpus}; {_EXAMPLE}")
    if match[3] is None:
        return ServerKind(cpus, memory_mib)
    number = int(match[3])
    if not 1 <= number <= MOST_SERVERS:
        raise ValueError(f"there are 1 to {MOST_SERVERS} servers of a kind, not {number}; {_EXAMPLE}")
    return ServerKind(cpus, memory_mib, number)


def parse_policies(text: str) -> tuple[str, ...]:
    """Read names with commas between, or "all". Raises ValueError with what is allowed."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == (ALL,):
        return tuple(HOST_POLICIES)
    for name in names:
        if name not in HOST_POLICIES:
            raise ValueError(f"{printable(name[:40])!r} is no policy; they are {', '.join(HOST_POLICIES)}, or {ALL}")
    return names


def told(kind: ServerKind) -> str:
    """A kind of servers in words."""
    size = f"{count(kind.cpus, 'CPU')} and {memory(kind.memory_mib)}"
    return f"servers of {size}" if kind.count is None else f"{count(kind.count, 'server')} of {size}"
