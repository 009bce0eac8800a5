"""How VMs come and go: who is there at which moment, and how much of what is sold then.

VMs that leave before a moment are gone when its first VM arrives; those that leave at it are there (``core.workload``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, lcm

import msgspec

from core.level import UNIT
from core.packing import Events
from core.workload import WorkloadVm


class Moment(msgspec.Struct, frozen=True, gc=False):
    """A time at which VMs arrive, when all of its VMs have. Seconds.

    arrived: VMs of the workload so far, those that have left too. vms: that are there. cpu_parts: what they are sold
    of CPUs, vCPUs divided by levels, in parts of a CPU that ``Course.parts`` tells, so that it is exact.
    """

    time: float
    arrived: int
    vms: int
    cpu_parts: int
    memory_mib: int


class Course:
    """VMs in order of arrival, prepared for many runs. ValueError if arrivals go back or a departure is before its own.

    parts: into how many a CPU is divided. moments: in order.
    """

    def __init__(self, vms: Sequence[WorkloadVm]) -> None:
        self.vms = tuple(vms)
        self.events = Events(self.vms)
        self.leaving = departures(self.vms)
        self.parts = lcm(*{vm.level for vm in self.vms})
        self.moments = self._moments()

    def _moments(self) -> tuple[Moment, ...]:
        found: list[Moment] = []
        parts = {level: self.parts * UNIT // level for level in {vm.level for vm in self.vms}}
        cpu_parts = memory_mib = left = 0
        last = len(self.vms) - 1
        for number, vm in enumerate(self.vms):
            while left < len(self.leaving) and self.vms[self.leaving[left]].departure < vm.arrival:
                gone = self.vms[self.leaving[left]]
                cpu_parts -= gone.vcpus * parts[gone.level]
                memory_mib -= gone.memory_mib
                left += 1
            cpu_parts += vm.vcpus * parts[vm.level]
            memory_mib += vm.memory_mib
            if number == last or self.vms[number + 1].arrival > vm.arrival:
                found.append(Moment(vm.arrival, number + 1, number + 1 - left, cpu_parts, memory_mib))
        return tuple(found)

    def peak(self, cpus: int, memory_mib: int) -> Moment | None:
        """When the largest share of this much is sold, be it of CPUs or of memory; the first such moment.

        None without VMs.
        """
        best: Moment | None = None
        most = -1
        for moment in self.moments:
            share = max(moment.cpu_parts * memory_mib, moment.memory_mib * self.parts * cpus)
            if share > most:
                best, most = moment, share
        return best


def departures(vms: Sequence[WorkloadVm]) -> list[int]:
    """Numbers of the VMs that leave, in that order; of one moment, in order of arrival."""
    return sorted([number for number, vm in enumerate(vms) if vm.departure != inf], key=lambda n: vms[n].departure)


def by_level(vms: Sequence[WorkloadVm]) -> dict[int, Course]:
    """The course of the VMs of each level alone, levels ascending."""
    levels: dict[int, list[WorkloadVm]] = {}
    for vm in vms:
        levels.setdefault(vm.level, []).append(vm)
    return {level: Course(levels[level]) for level in sorted(levels)}
