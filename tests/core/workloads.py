"""Workloads for tests of core: at random, and the plain oracle of what a server admits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from core.workload import WorkloadVm

LEVELS = (1000, 2000, 3000)
"""Those that both accountings know."""


def vm(
    name: object, arrival: float = 0, departure: float = math.inf, level: int = 1000, vcpus: int = 1, memory: int = 1
) -> WorkloadVm:
    return WorkloadVm(str(name), level, vcpus, memory, arrival, departure)


@st.composite
def workloads(draw: st.DrawFn, most: int = 40, levels: Sequence[int] = LEVELS) -> tuple[WorkloadVm, ...]:
    """VMs of at most 8 vCPUs and 16 MiB that come and go; moments are often the same."""
    vms: list[WorkloadVm] = []
    now = 0
    for number in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from((0, 0, 1, 3)))
        life = draw(st.sampled_from((0, 1, 2, 6, math.inf)))
        vms.append(
            vm(
                number,
                now,
                now + life,
                draw(st.sampled_from(levels)),
                draw(st.integers(1, 8)),
                draw(st.sampled_from((1, 2, 3, 8, 16))),
            )
        )
    return tuple(vms)


class PlainServer:
    """A server of a plan, slow and plain. owned: CPUs by level; under the paper's rule there are none."""

    def __init__(self, cpus: int, memory_mib: int, critical_size: int, accounting: str) -> None:
        self.cpus = cpus
        self.memory_mib = memory_mib
        self.critical_size = critical_size
        self.paper = accounting == "paper"
        self.vms: list[tuple[int, int, int]] = []
        self.owned: dict[int, int] = {}

    def widths(self, level: int) -> list[int]:
        return [vcpus for its, vcpus, _ in self.vms if its == level]

    def need(self, level: int) -> int:
        """CPUs for the VMs of a level, as a host needs them."""
        widths = self.widths(level)
        ratio = level if len(widths) >= self.critical_size else 1000
        return max(*widths, math.ceil(sum(widths) * 1000 / ratio), 0) if widths else 0

    def alone(self, levels: tuple[int, ...], ratio: int) -> int:
        """CPUs for the VMs of levels at one ratio, as the paper's simulator counts."""
        widths = [width for level in levels for width in self.widths(level)]
        return math.ceil(sum(widths) / (ratio if len(widths) >= self.critical_size else 1))

    def used(self) -> int:
        if self.paper:
            apart = self.alone((2000,), 2) + self.alone((3000,), 3)
            return sum(self.widths(1000)) + min(apart, self.alone((2000, 3000), 2))
        return sum(self.owned.values())

    def sold_mib(self) -> int:
        return sum(memory for _, _, memory in self.vms)

    def _grow(self, level: int) -> None:
        if not self.paper:
            self.owned[level] = max(self.owned.get(level, 0), self.need(level))

    def admit(self, level: int, vcpus: int, memory_mib: int) -> bool:
        """Take the VM if it fits."""
        before = dict(self.owned)
        self.vms.append((level, vcpus, memory_mib))
        self._grow(level)
        if self.used() <= self.cpus and self.sold_mib() <= self.memory_mib:
            return True
        self.vms.pop()
        self.owned = before
        return False

    def release(self, level: int, vcpus: int, memory_mib: int) -> None:
        self.vms.remove((level, vcpus, memory_mib))
        if self.paper:
            return
        widths = self.widths(level)
        if not widths:
            del self.owned[level]
            return
        # What is not needed any more is given back; what is owed is not taken.
        self.owned[level] = min(self.owned[level], self.need(level))
