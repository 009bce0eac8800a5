"""The policy worth once more, from its rule alone and as slow as it likes: what the compiled one is compared with.

A server is a list of VMs; how many copies of a shape it takes is found by putting them on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from fractions import Fraction
from functools import cache

from tests.cluster_oracle import PlainHost, PlainLevel

Sold = tuple[Fraction, int, int, int]
"""Level, vCPUs, MiB, how many have arrived."""


class WorthOracle:
    """popular: shapes. cpus, memory: of a server on average. uses: of CPU and memory; the larger is 1.

    Memory is so little that the table's grain is one MiB, and levels divide 60 parts of a CPU.
    """

    def __init__(self, popular: Sequence[Sold], cpus: float, memory: float, uses: tuple[float, float]) -> None:
        self.popular = popular
        self.cpus, self.memory = cpus, memory
        self.cpu_use, self.memory_use = uses

    def value(self, shape: Sold) -> float:
        """Its share of a server."""
        level, vcpus, memory, _ = shape
        cpu, mem = self.cpu_use**64, self.memory_use**64
        return float(cpu * float(vcpus / level) / self.cpus + mem * memory / self.memory) / (cpu + mem)

    def worth_on(self, host: PlainHost) -> float:
        """Of its room, with shapes that it would take; those at 1:1 are not asked about."""
        taken = [one for one in self.popular if one[0] == 1 or host.extra(one[0], one[1]) <= host.free]
        return WorthOracle(taken, self.cpus, self.memory, (self.cpu_use, self.memory_use)).worth(
            unsold(host), host.free_memory
        )

    def worth(self, cpus: Fraction, memory: int) -> float:
        """The most value in such a room, by trying every next VM."""

        @cache
        def most(cpus: Fraction, memory: int) -> float:
            found = 0.0
            for level, vcpus, mib, _ in self.popular:
                if vcpus / level <= cpus and mib <= memory:
                    found = max(found, most(cpus - vcpus / level, memory - mib) + self.value((level, vcpus, mib, 0)))
            return found

        return most(max(Fraction(0), cpus), memory)

    def waste(self, host: PlainHost) -> float:
        """What stays free, on average, in shares of a server."""
        waste = 0.0
        arrivals = sum(count for *_, count in self.popular)
        for level, vcpus, memory, count in self.popular:
            full = deepcopy(host)
            cpus, idle = max(Fraction(0), unsold(host)), host.free_memory
            while not full.refusal(level, vcpus, memory):
                put(full, level, vcpus, memory)
                cpus, idle = cpus - vcpus / level, idle - memory
            idle_cpus = max(Fraction(0), cpus)
            shares = self.cpu_use * float(idle_cpus) / self.cpus + self.memory_use * idle / self.memory
            waste += shares * count / arrivals
        return waste

    def cost(self, host: PlainHost, level: Fraction, vcpus: int, memory: int) -> float:
        """Of a VM that fits."""
        after = deepcopy(host)
        put(after, level, vcpus, memory)
        lost = self.worth_on(host) - self.worth_on(after)
        cpus, mib = float(max(Fraction(0), unsold(after))) / host.cpus, after.free_memory / host.memory
        packed = self.cpu_use * cpus + self.memory_use * mib
        return lost + 0.05 * (self.waste(after) - self.waste(host)) + 0.005 * packed


def unsold(host: PlainHost) -> Fraction:
    """CPUs that no VM has bought; held ones are neither."""
    owned = sum(here.cpus for here in host.levels.values())
    sold = sum((sum(here.widths) / level for level, here in host.levels.items()), Fraction(0))
    return host.free + owned - sold


def put(host: PlainHost, level: Fraction, vcpus: int, memory: int) -> None:
    """Give it a VM that fits."""
    extra = host.extra(level, vcpus)
    here = host.levels.setdefault(level, PlainLevel(0, []))
    here.cpus += extra
    here.widths.append(vcpus)
    host.free -= extra
    host.free_memory -= memory
    host.sold += memory
