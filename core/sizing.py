"""How many servers VMs need that come and go: at least, in one cluster for all levels, and in one for each level.

A kind of servers is a ``core.workload.ServerKind``. Kinds make a list of servers: those with a count first, in order,
then the last kind without end, if it has no count. "n servers" are the first n of this list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from core.capacity import cpus_needed
from core.cluster_use import ClusterUse, cluster_use
from core.course import Course
from core.host_policy import HostPolicy
from core.packing import Packing
from core.workload import Accounting, ServerKind

ONE_BY_ONE = 16
"""Servers above the bound up to which every number is tried."""


class LevelCluster(msgspec.Struct, frozen=True):
    """The servers of one level alone. use: None if there are too few for it."""

    level: int
    use: ClusterUse | None


def checked(kinds: Sequence[ServerKind]) -> tuple[ServerKind, ...]:
    """The kinds; ValueError if one has nothing, or if one that is not the last has no count."""
    for place, kind in enumerate(kinds):
        if kind.cpus < 1 or kind.memory_mib < 1 or (kind.count is not None and kind.count < 1):
            raise ValueError(f"a kind of servers has {kind.cpus} CPUs, {kind.memory_mib} MiB, count {kind.count}")
        if kind.count is None and place < len(kinds) - 1:
            raise ValueError("only the last kind of servers may be without a count")
    return tuple(kinds)


def servers_of(kinds: Sequence[ServerKind], number: int) -> list[tuple[int, int]]:
    """The first servers of the list, (CPUs, MiB) each; fewer if there are not so many."""
    found: list[tuple[int, int]] = []
    for kind in checked(kinds):
        left = number - len(found)
        found += [(kind.cpus, kind.memory_mib)] * (left if kind.count is None else min(left, kind.count))
    return found


def without_first(kinds: Sequence[ServerKind], number: int) -> tuple[ServerKind, ...]:
    """The kinds that are left when so many servers have been taken from the beginning of the list."""
    left: list[ServerKind] = []
    for kind in checked(kinds):
        if kind.count is None:
            left.append(kind)
            continue
        taken = min(number, kind.count)
        number -= taken
        if taken < kind.count:
            left.append(ServerKind(kind.cpus, kind.memory_mib, kind.count - taken))
    return tuple(left)


def lower_bound(course: Course, kinds: Sequence[ServerKind], accounting: Accounting = "host") -> int | None:
    """Fewer servers are not enough under any policy, even one that knows what comes and moves VMs at will.

    The smallest number of servers that have at all moments what is sold then, of CPUs and of memory, where a VM is
    sold its vCPUs divided by its level, and of which one at least is large enough for each VM: on a host it needs a
    CPU for each vCPU, under the paper's accounting it may come to have no more than it is sold. None if all servers
    are not enough.
    """
    cpu_parts = max([moment.cpu_parts for moment in course.moments], default=0)
    memory_mib = max([moment.memory_mib for moment in course.moments], default=0)
    least = 0
    for level, vcpus, size in {(vm.level, vm.vcpus, vm.memory_mib) for vm in course.vms}:
        first = _first_for(kinds, cpus_needed(level, vcpus, 0 if accounting == "paper" else vcpus), size)
        if first is None:
            return None
        least = max(least, first)
    number = 0
    for kind in checked(kinds):
        missing = max(-(-cpu_parts // (kind.cpus * course.parts)), -(-memory_mib // kind.memory_mib), least - number, 0)
        if kind.count is None or missing <= kind.count:
            return number + missing
        number += kind.count
        cpu_parts -= kind.count * kind.cpus * course.parts
        memory_mib -= kind.count * kind.memory_mib
    return None if kinds else 0


def smallest(
    course: Course,
    kinds: Sequence[ServerKind],
    policy: HostPolicy,
    *,
    critical_size: int = 2,
    accounting: Accounting = "host",
    tried: Callable[[int], None] | None = None,
) -> int | None:
    """The smallest number of servers with which no VM is refused; None if all servers are not enough.

    Every number is tried from the lower bound on. Where more than ONE_BY_ONE above it are needed, steps double until
    a number is enough, and what lies between is halved: of the numbers that are enough next to one that is not, that
    is the one found, should fewer servers ever do where more do not. tried: called with each number before its run.
    """
    bound = lower_bound(course, kinds, accounting)
    if bound is None:
        return None

    def enough(number: int) -> bool:
        if tried is not None:
            tried(number)
        packing = Packing(servers_of(kinds, number), policy, critical_size=critical_size, accounting=accounting)
        return packing.run(course.events) < 0

    most = max(bound, _most(course, kinds))
    refused = bound - 1
    number, step = bound, 1
    while not enough(number):
        if number == most:
            return None
        refused = number
        if number >= bound + ONE_BY_ONE:
            step *= 2
        number = min(number + step, most)
    while number - refused > 1:
        middle = (refused + number) // 2
        if enough(middle):
            number = middle
        else:
            refused = middle
    return number


def dedicated(
    levels: Mapping[int, Course],
    kinds: Sequence[ServerKind],
    policy: HostPolicy,
    *,
    critical_size: int = 2,
    accounting: Accounting = "host",
    tried: Callable[[int], None] | None = None,
) -> tuple[LevelCluster, ...]:
    """A cluster for each level alone, as small as ``smallest`` finds it.

    levels: as ``core.course.by_level`` makes them. The levels take their servers one after the other, ascending: where
    kinds have counts, each from what those before have left. One for which that is not enough takes none.
    """
    found: list[LevelCluster] = []
    for level, course in levels.items():
        number = smallest(course, kinds, policy, critical_size=critical_size, accounting=accounting, tried=tried)
        if number is None:
            found.append(LevelCluster(level, None))
            continue
        servers = servers_of(kinds, number)
        use = cluster_use(course, servers, policy, critical_size=critical_size, accounting=accounting)
        found.append(LevelCluster(level, use))
        kinds = without_first(kinds, number)
    return tuple(found)


def _first_for(kinds: Sequence[ServerKind], cpus: int, memory_mib: int) -> int | None:
    """How many servers there must be, so that the last one has so much."""
    number = 0
    for kind in kinds:
        if cpus <= kind.cpus and memory_mib <= kind.memory_mib:
            return number + 1
        number += kind.count or 0
    return None


def _most(course: Course, kinds: Sequence[ServerKind]) -> int:
    """No more servers need be tried: these are all, or then one of the endless kind is empty for whoever arrives."""
    counted = sum([kind.count for kind in kinds if kind.count is not None])
    endless = bool(kinds) and kinds[-1].count is None
    return counted + (max([moment.vms for moment in course.moments], default=0) if endless else 0)
