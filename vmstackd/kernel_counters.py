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
_NODE = re.compile(r"node(\d+)")
_MEMORY = re.compile(rb"([\w()]+):\s+(\d+) kB")
_NODE_AVAILABLE = (b"MemFree", b"Active(file)", b"Inactive(file)", b"SReclaimable")


class KernelError(Exception):
    """A file of the kernel that cannot be read or understood: which, and why."""


def kernel_counters(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> HostCounters:
    """Each file read once. CPUs that are offline are not there. Raises KernelError.

    Memory that holds copies of files counts as free, because whoever needs it gets it: of the host as the kernel
    estimates that (MemAvailable); of a NUMA node, where it does not, all of these copies.
    """
    at = time.monotonic()
    cpus = _cpus(proc / "stat")
    total, used = _memory(proc / "meminfo", (b"MemAvailable",))
    nodes = []
    for path in (sys / "devices/system/node").glob("node*"):
        if name := _NODE.fullmatch(path.name):
            node_total, node_used = _memory(path / "meminfo", _NODE_AVAILABLE)
            nodes.append(NodeMemory(node=int(name[1]), memory_mib=node_total, used_mib=node_used))
    nodes.sort(key=lambda node: node.node)
    return HostCounters(at=at, cpus=cpus, memory_mib=total, used_mib=used, nodes=tuple(nodes))


def _cpus(path: Path) -> dict[int, float]:
    cpus: dict[int, float] = {}
    try:
        # The lines of the CPUs come first: what follows may be long, and is not looked at.
        for line in _read(path).partition(b"\nintr ")[0].splitlines():
            name, *counts = line.split()
            if name.startswith(b"cpu") and name != b"cpu":
                cpus[int(name[3:])] = sum([int(counts[index]) for index in _BUSY]) * _TICK_S
    except (ValueError, IndexError) as error:
        raise KernelError(f"{path} is not understood: {error}") from None
    if not cpus:
        raise KernelError(f"{path} is not understood: it has no CPUs")
    return cpus


def _memory(path: Path, available: tuple[bytes, ...]) -> tuple[int, int]:
    """All of it, and what is not available, in MiB."""
    found = {name: int(kib) for name, kib in _MEMORY.findall(_read(path))}
    try:
        total, free = found[b"MemTotal"], sum([found[name] for name in available])
    except KeyError as error:
        raise KernelError(f"{path} is not understood: it has no {error.args[0].decode()}") from None
    return total // 1024, max(0, total - free) // 1024


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KernelError(f"{path} cannot be read: {error.strerror}") from None
