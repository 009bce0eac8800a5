"""What the kernel of this machine counts: busy time of each CPU, and memory (proc_stat(5), proc_meminfo(5))."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from core.usage import HostCounters, NodeMemory

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6)
"""user, nice, system, irq, softirq. Guests are in user; idle, iowait, and what other hypervisors stole are not busy."""


class KernelError(Exception):
    """A file of the kernel that cannot be read or understood: which, and why."""


def kernel_counters(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> HostCounters:
    """Each file read once. Raises KernelError."""
    at = time.monotonic()
    cpus = _cpus(proc / "stat")
    total, used = _memory(proc / "meminfo", "MemAvailable")
    nodes = []
    for path in (sys / "devices/system/node").glob("node[0-9]*"):
        node_total, node_used = _memory(path / "meminfo", "MemFree")
        nodes.append(NodeMemory(node=int(path.name.removeprefix("node")), memory_mib=node_total, used_mib=node_used))
    nodes.sort(key=lambda node: node.node)
    return HostCounters(at=at, cpus=cpus, memory_mib=total, used_mib=used, nodes=tuple(nodes))


def _cpus(path: Path) -> dict[int, float]:
    cpus: dict[int, float] = {}
    try:
        for line in _read(path).splitlines():
            if line.startswith("cpu") and line[3] != " ":
                name, *counts = line.split()
                cpus[int(name[3:])] = sum(int(counts[index]) for index in _BUSY) * _TICK_S
    except (ValueError, IndexError) as error:
        raise KernelError(f"{path} is not understood: {error}") from None
    return cpus


def _memory(path: Path, free: str) -> tuple[int, int]:
    """All of it, and what is not free, in MiB."""
    found = dict(re.findall(r"(\w+):\s+(\d+) kB", _read(path)))
    try:
        total, unused = int(found["MemTotal"]), int(found[free])
    except KeyError as error:
        raise KernelError(f"{path} is not understood: it has no {error.args[0]}") from None
    return total // 1024, (total - unused) // 1024


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KernelError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
