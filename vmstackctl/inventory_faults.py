"""What cannot be true of an inventory that somebody saved, or that a daemon told."""

from __future__ import annotations

from collections.abc import Iterator

from core.admission import MAX_CPUS, MAX_GENERATION, MAX_MEMORY_MIB, MAX_VCPUS, fault
from core.demand import POPULAR, Lesson, Market, Shape
from core.inventory import MAX_HOSTS
from core.level import HIGHEST, LOWEST
from vmstackctl.saved_inventory import SavedHost, SavedInventory
from vmstackd.api.replies import HOST_STATES, UP, closed

LATEST = 253402300799
"""Seconds since 1970: the last that have a date."""
MOST_VMS = 1 << 16
"""Of one host, as globald believes it."""


def fault_of(inventory: SavedInventory) -> str:
    """What is wrong and where, as "hosts[3].state: ..."; empty if an inventory may be so."""
    return next(_faults(inventory), "")


def _faults(inventory: SavedInventory) -> Iterator[str]:
    if not 0 <= inventory.time <= LATEST:
        yield f"time: {inventory.time}, expected seconds since 1970"
    yield from _lesson_faults(inventory.lesson)
    if len(inventory.hosts) > MAX_HOSTS:
        yield f"hosts: {len(inventory.hosts)} of them, expected at most {MAX_HOSTS}"
    for place, host in enumerate(inventory.hosts):
        for why in _host_faults(host):
            yield f"hosts[{place}]{why}"


def _host_faults(host: SavedHost) -> Iterator[str]:
    if host.state not in HOST_STATES:
        yield f".state: {host.state[:40]!r}, expected one of {', '.join(HOST_STATES)}"
    elif host.closed != (expected := closed(host.state)):
        yield f".closed: {host.closed[:40]!r}, expected {expected!r} of a host that is {host.state}"
    if host.status is None:
        if host.state == UP:
            yield ".status: none, expected the figures of a host that is up"
    elif why := fault(host.status):
        yield f".status: {why}"
    if (vms := sum(shape.count for shape in host.vms or ())) > MOST_VMS:
        yield f".vms: {vms} VMs, expected at most {MOST_VMS}"
    for place, shape in enumerate(host.vms or ()):
        for why in _shape_faults(shape):
            yield f".vms[{place}]{why}"


def _lesson_faults(lesson: Lesson) -> Iterator[str]:
    yield from _shapes_faults("lesson.shapes", lesson.shapes)
    for name, value in (("seen", lesson.seen), ("due", lesson.due)):
        yield from _outside(f"lesson.{name}", value, 0, MAX_GENERATION)
    if lesson.market is not None:
        for why in _market_faults(lesson.market):
            yield f"lesson.market{why}"


def _market_faults(market: Market) -> Iterator[str]:
    if not 1 <= len(market.shapes) <= POPULAR:
        yield f".shapes: {len(market.shapes)} of them, expected 1 to {POPULAR}"
    yield from _shapes_faults(".shapes", market.shapes)
    yield from _outside(".most_cpus", market.most_cpus, 1, MAX_CPUS)
    yield from _outside(".most_mib", market.most_mib, 0, MAX_MEMORY_MIB)
    yield from _outside(".cpus", market.cpus, 1, market.most_cpus)
    if market.memory_mib:
        yield from _outside(".memory_mib", market.memory_mib, 1 / MAX_HOSTS, market.most_mib)
    yield from _outside(".cpu_use", market.cpu_use, 0, 1)
    yield from _outside(".memory_use", market.memory_use, 0, 1)
    if max(market.cpu_use, market.memory_use) != 1:
        yield f".cpu_use: {market.cpu_use}, with a memory_use of {market.memory_use}; expected one of them to be 1"


def _shapes_faults(where: str, shapes: tuple[Shape, ...]) -> Iterator[str]:
    for place, shape in enumerate(shapes):
        for why in _shape_faults(shape):
            yield f"{where}[{place}]{why}"


def _shape_faults(shape: Shape) -> Iterator[str]:
    yield from _outside(".level", shape.level, LOWEST, HIGHEST)
    yield from _outside(".vcpus", shape.vcpus, 1, MAX_VCPUS)
    yield from _outside(".memory_mib", shape.memory_mib, 1, MAX_MEMORY_MIB)
    yield from _outside(".count", shape.count, 1, MAX_VCPUS)


def _outside(name: str, value: float, least: float, most: float) -> Iterator[str]:
    if not least <= value <= most:  # nor if it is no number
        yield f"{name}: {value}, expected {least} to {most}"
