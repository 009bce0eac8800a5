"""CPU lists as the kernel writes them ("0-3,128-131"), here with the order kept.

Format: https://docs.kernel.org/admin-guide/cputopology.html and cpusets(7), "List format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HIGHEST_CPU = 8191
"""The largest CPU id accepted: the kernel's own limit on x86 (NR_CPUS 8192)."""

_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


class CpuListError(ValueError):
    """A text that is not a CPU list."""


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPU ids in the order of the text; an empty text is an empty list.

    Raises CpuListError for anything but ranges of ids, a falling range, an id named twice,
    or an id above HIGHEST_CPU.
    """
    cpus: list[int] = []
    seen: set[int] = set()
    if not text.strip():
        return ()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise CpuListError(f"{part.strip()[:40]!r} is not a CPU id or a range such as 0-3")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise CpuListError(f"the range {part.strip()} falls")
        if last > HIGHEST_CPU:
            raise CpuListError(f"CPU {last} is above the highest id, {HIGHEST_CPU}")
        for cpu in range(first, last + 1):
            if cpu in seen:
                raise CpuListError(f"CPU {cpu} is named twice")
            seen.add(cpu)
            cpus.append(cpu)
    return tuple(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Write ids in their order, each consecutive ascending run as "first-last"."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
