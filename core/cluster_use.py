"""What of a cluster is used while VMs come and go: at its peak, and over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from core.course import Course, Moment
from core.host_policy import HostPolicy
from core.packing import Packing
from core.workload import Accounting

POINTS = 500
"""Most moments of a series over time, the peak not counted."""


class Use(msgspec.Struct, frozen=True):
    """What is used at a moment. time in seconds; vms: that are there.

    cpus: as the accounting counts them. vcpus: (level, sold vCPUs), ascending.
    """

    time: float
    vms: int
    cpus: int
    memory_mib: int
    vcpus: tuple[tuple[int, int], ...]


class ClusterUse(msgspec.Struct, frozen=True):
    """Servers with so many CPUs and so much memory in all, and what of them is used.

    peak: at the moment when most is sold (``Course.peak``). course: over time, the peak among it; empty if nobody
    asked for it.
    """

    servers: int
    cpus: int
    memory_mib: int
    peak: Use
    course: tuple[Use, ...] = ()

    @property
    def unused_cpus(self) -> int:
        """At the peak. Under the paper's accounting what servers owe after departures counts against it."""
        return self.cpus - self.peak.cpus

    @property
    def unused_mib(self) -> int:
        """At the peak."""
        return self.memory_mib - self.peak.memory_mib

    @property
    def saturated(self) -> Literal["cpu", "memory"]:
        """Of which the larger share is used at the peak; of equals, CPUs."""
        return "cpu" if self.peak.cpus * self.memory_mib >= self.peak.memory_mib * self.cpus else "memory"


def cluster_use(
    course: Course,
    servers: Sequence[tuple[int, int]],
    policy: HostPolicy,
    *,
    critical_size: int = 2,
    accounting: Accounting = "host",
    over_time: bool = False,
) -> ClusterUse:
    """What is used of servers, (CPUs, MiB) each, that are enough for at least one VM; ValueError if they are not.

    over_time: not only at the peak.
    """
    cpus = sum([cpus for cpus, _ in servers])
    memory_mib = sum([memory_mib for _, memory_mib in servers])
    peak = course.peak(cpus, memory_mib)
    if peak is None:
        raise ValueError("there is no VM")
    moments = _spread(course.moments, peak) if over_time else [peak]
    packing = Packing(servers, policy, critical_size=critical_size, accounting=accounting)
    uses = _uses(course, packing, moments)
    at_peak = uses[moments.index(peak)]
    return ClusterUse(len(servers), cpus, memory_mib, at_peak, tuple(uses) if over_time else ())


def _spread(moments: Sequence[Moment], peak: Moment) -> list[Moment]:
    """At most POINTS, evenly, the first and the last among them; and the peak."""
    if len(moments) <= POINTS:
        return list(moments)
    chosen = {number * (len(moments) - 1) // (POINTS - 1) for number in range(POINTS)}
    return [moment for number, moment in enumerate(moments) if number in chosen or moment is peak]


def _uses(course: Course, packing: Packing, moments: Sequence[Moment]) -> list[Use]:
    found: list[Use] = []
    places: list[int] = []
    left = 0
    for moment in moments:
        for vm in course.vms[len(places) : moment.arrived]:
            while left < len(course.leaving) and course.vms[course.leaving[left]].departure < vm.arrival:
                number = course.leaving[left]
                gone = course.vms[number]
                packing.remove(places[number], gone.level, gone.vcpus, gone.memory_mib)
                left += 1
            server = packing.place(vm.level, vm.vcpus, vm.memory_mib)
            if server < 0:
                raise ValueError(f"the servers are not enough: none takes VM {len(places)}")
            places.append(server)
        cpus, memory_mib, levels = packing.used()
        vcpus = tuple([(level, sold) for level, (sold, _) in levels.items()])
        found.append(Use(moment.time, moment.vms, cpus, memory_mib, vcpus))
    return found
