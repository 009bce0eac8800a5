"""Decision traces of the prototype (SEMANTICS 16), read and checked, in core's units."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from core.cpuset import format_cpu_list, parse_cpu_list
from core.level import parse_level
from core.model import Vm
from core.topology import Topology
from vmstackd.topology_source import load_topology

REPOSITORY = Path(__file__).resolve().parent.parent
REASONS = {
    None: None,
    "offline": None,
    "Not enough space on res cpu": "cpu",
    "Not enough space on res mem": "memory",
    "does not exist": "unknown",
}
"""The prototype's texts: what was short, as core says it; None for a success."""

LARGEST = 1 << 40
"""MiB and vCPUs: far beyond any machine, and far below what a float cannot hold."""


class Unusable(Exception):
    """A file that cannot be checked: which line, and why."""


class RawHeader(msgspec.Struct, frozen=True):
    topology: str
    usable_cpus: int
    mem_mb: int
    strategy: Literal["guarantee", "best-effort"]
    critical_size: int
    probes: tuple[tuple[int, float, float], ...]
    ops: int
    first_quirk_op: int | None


class RawEntry(msgspec.Struct, frozen=True):
    l: float  # noqa: E741 (the format's name)
    cpus: str
    cap: int
    alloc: int
    n: int
    vavail: float
    vpot: float


class Memory(msgspec.Struct, frozen=True):
    """In MiB. Without a VM so far only avail is recorded."""

    avail: int
    cap: int = 0
    alloc: int = 0
    vavail: float = 0
    vpot: float | None = None


class RawLine(msgspec.Struct, frozen=True):
    i: int
    op: Literal["deploy", "remove"]
    name: str
    ok: bool
    why: str | None
    sub: tuple[RawEntry, ...]
    free: int
    mem: Memory
    prog: tuple[float, ...]
    cpu: int | None = None
    mem_gb: float | None = None
    oc: float | None = None
    q: tuple[str, ...] = ()


class Deploy(NamedTuple):
    name: str
    vm: Vm


class Remove(NamedTuple):
    name: str


class Entry(NamedTuple):
    """One level after the operation; cpus in attribution order."""

    level: int
    cpus: tuple[int, ...]
    cap: int
    alloc: int
    n: int
    vavail: float
    vpot: float


class Line(NamedTuple):
    """One operation and the state after it. number: of the line in the file."""

    number: int
    op: Deploy | Remove
    ok: bool
    reason: str | None
    marks: frozenset[str]
    entries: tuple[Entry, ...]
    free: int
    memory: Memory
    progress: tuple[float, ...]


class Trace(NamedTuple):
    """critical_size: 0 for the strategy that always oversubscribes. agreed: lines before the first bug."""

    topology: Topology
    memory_mib: int
    critical_size: int
    probes: tuple[Vm, ...]
    agreed: int
    lines: tuple[Line, ...]


def read_trace(path: Path) -> Trace:
    """Read a file. Raises Unusable for anything that is not such a trace."""
    try:
        texts = path.read_text(encoding="utf-8").rstrip().split("\n")
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Unusable(f"{path}: {error}") from error
    number = 1
    try:
        header = msgspec.json.decode(texts[0], type=RawHeader)
        _check(header)
        topology = _topology(path, header)
        usable = frozenset(topology.cpu_ids)
        probes = tuple(_vm("probe", *probe) for probe in header.probes)
        lines: list[Line] = []
        for number, text in enumerate(texts[1:], start=2):
            raw = msgspec.json.decode(text, type=RawLine)
            _require(raw.i == len(lines), f"i is {raw.i} where {len(lines)} follows")
            _require(len(raw.prog) == len(probes), f"{len(raw.prog)} values of progress for {len(probes)} probes")
            lines.append(_line(number, raw, usable))
        _require(header.ops == len(lines), f"the file ends here, after {len(lines)} of {header.ops} operations")
    except (ValueError, OSError, RecursionError) as error:
        raise Unusable(f"{path}:{number}: {error}") from error
    return Trace(
        topology=topology,
        memory_mib=header.mem_mb,
        critical_size=0 if header.strategy == "best-effort" else header.critical_size,
        probes=probes,
        agreed=len(lines) if header.first_quirk_op is None else header.first_quirk_op,
        lines=tuple(lines),
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check(header: RawHeader) -> None:
    _require(0 < header.mem_mb <= LARGEST, f"mem_mb is {header.mem_mb}; no host has so much memory, or so little")
    _require(header.critical_size >= 0, f"critical_size is {header.critical_size}; it cannot be negative")
    first = header.first_quirk_op
    _require(first is None or 0 <= first <= header.ops, f"first_quirk_op is {first}, not null or 0 to {header.ops}")


def _line(number: int, raw: RawLine, usable: frozenset[int]) -> Line:
    if raw.why not in REASONS:
        raise ValueError(f"the reason {raw.why!r} is none that core can give")
    if raw.op == "remove":
        op: Deploy | Remove = Remove(raw.name)
    elif raw.cpu is None or raw.mem_gb is None or raw.oc is None:
        raise ValueError("a deploy needs cpu, mem_gb and oc")
    else:
        op = Deploy(raw.name, _vm(raw.name, raw.cpu, raw.mem_gb, raw.oc))
    return Line(
        number=number,
        op=op,
        ok=raw.ok,
        reason=REASONS[raw.why],
        marks=frozenset(raw.q),
        entries=tuple(_entry(entry, usable) for entry in raw.sub),
        free=raw.free,
        memory=raw.mem,
        progress=raw.prog,
    )


def _entry(raw: RawEntry, usable: frozenset[int]) -> Entry:
    cpus = parse_cpu_list(raw.cpus)
    strangers = sorted(set(cpus) - usable)
    _require(not strangers, f"level {raw.l}: CPUs {format_cpu_list(strangers)} are not in the topology")
    return Entry(parse_level(raw.l), cpus, raw.cap, raw.alloc, raw.n, raw.vavail, raw.vpot)


def _vm(name: str, vcpus: int, gigabytes: float, level: float) -> Vm:
    """The prototype's units: gigabytes become whole KiB, these whole MiB."""
    memory = int(Fraction(gigabytes) * 1024**2) // 1024
    if not (1 <= vcpus <= LARGEST and 1 <= memory <= LARGEST):
        raise ValueError(f"{vcpus} vCPUs and {gigabytes} GB are no VM")
    return Vm(name, vcpus, memory, parse_level(level))


def _topology(path: Path, header: RawHeader) -> Topology:
    """The topology that a header names: beside the trace, else the repository's own."""
    name = Path(header.topology).name
    places = [path.parent / "topologies" / name, REPOSITORY / "topologies" / name]
    places.append(REPOSITORY / "topologies" / name.removeprefix("topology_"))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"the topology {name!r} is in none of {', '.join(str(place.parent) for place in places[:2])}")
    topology = load_topology(f"file:{found}")
    if len(topology.cpu_ids) != header.usable_cpus:
        raise ValueError(f"{found} has {len(topology.cpu_ids)} CPUs, not {header.usable_cpus}")
    return topology
