"""How many more VMs a cluster takes, as it is and with hosts lost: its inventory in, figures with names out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from core.level import UNIT
from core.spare import Fit, Size, SpareHost, Vms, spare
from vmstackctl.saved_inventory import SavedHost, SavedInventory
from vmstackctl.values import parse_memory, parse_ratio, printable
from vmstackd.api.requests import MAX_MEMORY_MIB, MAX_VCPUS

MOST_SIZES = 8
"""That are looked at where nobody says which."""
USUAL_SIZES = ((1, 2048), (2, 4096), (4, 16384))
"""vCPUs and MiB, where nothing is known of what is asked for."""
USUAL_LEVELS = (UNIT, 2 * UNIT, 3 * UNIT)

Source = Literal["given", "arrivals", "vms", "usual"]
"""Where sizes are from: the caller, VMs that were asked for, VMs that there are, or USUAL_SIZES."""


class Shape(msgspec.Struct, frozen=True):
    """A size to sell, at one level or at each."""

    vcpus: int
    memory_mib: int
    level: int | None = None


class ShapeFits(msgspec.Struct, frozen=True):
    """How many VMs of a shape fit, if no others come: as ``core.spare.Fit``, with names of hosts."""

    level: int
    vcpus: int
    memory_mib: int
    now: int
    by_cpu: int
    by_memory: int
    short: Literal["cpu", "memory"]
    after: int | None
    worst: tuple[str, ...]


class LossUncovered(msgspec.Struct, frozen=True):
    """So many VMs would be without a place if these hosts were lost together."""

    hosts: tuple[str, ...]
    vms: int


class Capacity(msgspec.Struct, frozen=True):
    """What a cluster has room for.

    hosts: in all; open: that take VMs; closed: how many do not, by reason. reserve: hosts that may be lost together;
    tried: which, each loss that was looked at. presumed: lost hosts whose VMs are not known (``core.spare.presumed``).
    """

    hosts: int
    open: int
    closed: dict[str, int]
    reserve: int
    tried: tuple[tuple[str, ...], ...]
    sizes_from: Source
    shapes: tuple[ShapeFits, ...]
    uncovered: tuple[LossUncovered, ...]
    presumed: tuple[str, ...]


def parse_shape(text: str) -> Shape:
    """Read "2:8G" or "2:8G@3". Raises ValueError with what is allowed."""
    size, at, level = text.strip().partition("@")
    vcpus, _, memory = size.partition(":")
    if not (vcpus.isascii() and vcpus.isdigit() and memory and bool(level) == bool(at)):
        raise ValueError(
            f"{printable(text[:40])!r} is no shape; write vCPUs:memory or vCPUs:memory@level, as 2:8G or 2:8G@3"
        )
    if len(vcpus) > len(str(MAX_VCPUS)) or not 1 <= int(vcpus) <= MAX_VCPUS:
        raise ValueError(f"{vcpus[:40]} vCPUs: must be 1 to {MAX_VCPUS}")
    memory_mib = parse_memory(memory)
    if memory_mib > MAX_MEMORY_MIB:
        raise ValueError(f"{memory[:40]} of memory: must be at most {MAX_MEMORY_MIB}M")
    return Shape(int(vcpus), memory_mib, parse_ratio(level) if at else None)


def capacity(
    inventory: SavedInventory, shapes: Sequence[Shape] = (), levels: Sequence[int] = (), reserve: int | None = None
) -> Capacity:
    """What fits. shapes, levels: those of the cluster if empty. reserve: None for 1, and 0 where there is one host."""
    source: Source = "given"
    if not shapes:
        source, sizes = _sizes(inventory)
        shapes = [Shape(*size) for size in sizes]
    found = [(host, host.status) for host in inventory.hosts if host.status is not None]
    every_level = sorted({*levels} or {one.level for _, status in found for one in status.levels} or USUAL_LEVELS)
    wanted: dict[Size, None] = {}
    for shape in shapes:
        for level in every_level if shape.level is None else (shape.level,):
            wanted[level, shape.vcpus, shape.memory_mib] = None
    hosts = [SpareHost(status, not host.closed, _vms(host)) for host, status in found]
    lost = min(1, max(0, len(hosts) - 1)) if reserve is None else reserve
    room = spare(hosts, [*wanted], lost)
    names = [host.name for host, _ in found]
    closed = Counter(host.closed for host in inventory.hosts if host.closed)
    return Capacity(
        hosts=len(inventory.hosts),
        open=len(inventory.hosts) - closed.total(),
        closed=dict(closed),
        reserve=lost,
        tried=tuple(_named(names, gone) for gone in room.lost),
        sizes_from=source,
        shapes=tuple(_shape_fits(fit, _named(names, fit.worst)) for fit in room.fits),
        uncovered=tuple(LossUncovered(_named(names, loss.hosts), loss.vms) for loss in room.uncovered),
        presumed=_named(names, room.presumed),
    )


def _shape_fits(fit: Fit, worst: tuple[str, ...]) -> ShapeFits:
    return ShapeFits(
        level=fit.level,
        vcpus=fit.vcpus,
        memory_mib=fit.memory_mib,
        now=fit.now,
        by_cpu=fit.by_cpu,
        by_memory=fit.by_memory,
        short=fit.short,
        after=fit.after,
        worst=worst,
    )


def _named(names: Sequence[str], hosts: Sequence[int]) -> tuple[str, ...]:
    return tuple(names[host] for host in hosts)


def _vms(host: SavedHost) -> tuple[Vms, ...] | None:
    if host.vms is None:
        return None
    return tuple((alike.level, alike.vcpus, alike.memory_mib, alike.count) for alike in host.vms)


def _sizes(inventory: SavedInventory) -> tuple[Source, Sequence[tuple[int, int]]]:
    """(vCPUs, MiB), the most frequent first."""
    arrived: Counter[tuple[int, int]] = Counter()
    for shape in inventory.lesson.shapes:
        arrived[shape.vcpus, shape.memory_mib] += shape.count
    if arrived:
        return "arrivals", _most(arrived)
    present: Counter[tuple[int, int]] = Counter()
    for host in inventory.hosts:
        for alike in host.vms or ():
            present[alike.vcpus, alike.memory_mib] += alike.count
    return ("vms", _most(present)) if present else ("usual", USUAL_SIZES)


def _most(counts: Counter[tuple[int, int]]) -> list[tuple[int, int]]:
    return [size for size, _ in counts.most_common(MOST_SIZES)]
