"""The rules of placement once more, in plain Python: what core is compared with.

Written from the description of the rules alone, for being obviously right, not for speed: fractions,
lists and dicts; mean distances are averaged anew for each choice; the largest fit is found by trying.
Levels are fractions (3/2), memory is MiB, CPU lists are in attribution order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from core.topology import Topology

NO_CACHE = -1


class OracleCpu(NamedTuple):
    id: int
    node: int
    caches: tuple[int, ...]


class OracleHost:
    """CPUs in list order; node_distances[a][b] is the NUMA distance from node a to node b."""

    def __init__(self, cpus: list[OracleCpu], node_distances: dict[int, dict[int, int]], memory: int) -> None:
        self.cpus = {cpu.id: cpu for cpu in cpus}
        self.node_distances = node_distances
        self.memory = memory
        self._known: dict[tuple[int, int], int] = {}

    def distance(self, first: int, second: int) -> int:
        if (first, second) not in self._known:
            self._known[first, second] = self._walk(self.cpus[first], self.cpus[second])
        return self._known[first, second]

    def _walk(self, first: OracleCpu, second: OracleCpu) -> int:
        assert first.id != second.id
        assert len(first.caches) == len(second.caches)
        walked = 0
        for mine, other in zip(first.caches, second.caches, strict=True):
            walked += 10
            if mine == other != NO_CACHE:
                return walked
        return walked + self.node_distances[first.node][second.node]

    def mean_distance(self, members: list[int], candidate: int) -> Fraction:
        if not members:
            return Fraction(0)
        return Fraction(sum(self.distance(member, candidate) for member in members), len(members))


def host_of(topology: Topology, memory: int | None = None) -> OracleHost:
    """The plain facts of a topology; its own distances are not looked at."""
    return OracleHost(
        [OracleCpu(cpu.id, cpu.node, cpu.caches) for cpu in topology.cpus],
        {
            node: dict(zip(topology.nodes, row, strict=True))
            for node, row in zip(topology.nodes, topology.node_distances, strict=True)
        },
        topology.memory_mib if memory is None else memory,
    )


class OracleVm(NamedTuple):
    name: str
    vcpus: int
    memory: int


@dataclass
class OracleSubset:
    cpus: list[int] = field(default_factory=list)
    vms: list[OracleVm] = field(default_factory=list)

    @property
    def alloc(self) -> int:
        return sum(vm.vcpus for vm in self.vms)

    @property
    def big(self) -> int:
        return max((vm.vcpus for vm in self.vms), default=0)


class Refused(NamedTuple):
    resource: str
    needed: int
    free: int
    largest_vcpus: int
    largest_memory: int


class LevelFigures(NamedTuple):
    """available and potential: vCPUs; needed: CPUs that the VMs need."""

    cpus: tuple[int, ...]
    alloc: int
    vms: int
    needed: int
    available: Fraction
    potential: Fraction


class Oracle:
    """A host that changes in place. critical: the critical size; critical_of: exceptions by level."""

    def __init__(self, host: OracleHost, critical: int, critical_of: dict[Fraction, int] | None = None) -> None:
        self.host = host
        self.critical = critical
        self.critical_of = critical_of or {}
        self.free = list(host.cpus)
        self.held_memory = 0
        self.subsets: dict[Fraction, OracleSubset] = {}

    @property
    def sold_memory(self) -> int:
        return sum(vm.memory for subset in self.subsets.values() for vm in subset.vms)

    @property
    def free_memory(self) -> int:
        return max(0, self.host.memory - self.sold_memory - self.held_memory)

    def load(self, level: Fraction, cpus: list[int], vms: list[OracleVm]) -> None:
        """Put a level in as it is."""
        self.subsets[level] = OracleSubset(list(cpus), list(vms))
        self.free = [cpu for cpu in self.free if cpu not in cpus]

    def ratio(self, level: Fraction, count: int) -> Fraction:
        return level if count >= self.critical_of.get(level, self.critical) else Fraction(1)

    def need(self, level: Fraction, vms: list[OracleVm]) -> int:
        """CPUs for these VMs at a level: as the level says, and no VM oversubscribed with itself."""
        alloc = sum(vm.vcpus for vm in vms)
        return max(*(vm.vcpus for vm in vms), ceil(alloc / self.ratio(level, len(vms))))

    def extra(self, level: Fraction, vcpus: int) -> int:
        """CPUs that one more VM would cost."""
        if level not in self.subsets:
            return vcpus
        subset = self.subsets[level]
        return max(0, self.need(level, [*subset.vms, OracleVm("", vcpus, 0)]) - len(subset.cpus))

    def largest_fit(self, level: Fraction) -> int:
        """The widest VM for which the CPUs suffice, by trying every width."""
        widths = range(1, len(self.host.cpus) + 1)
        return max((width for width in widths if self.extra(level, width) <= len(self.free)), default=0)

    def deploy(self, name: str, vcpus: int, memory: int, level: Fraction) -> Refused | None:
        extra = self.extra(level, vcpus)
        if any(vm.name == name for subset in self.subsets.values() for vm in subset.vms):
            return self._refused("name", 1, 0, level)
        if extra > len(self.free):
            return self._refused("cpu", extra, len(self.free), level)
        if memory > self.free_memory:
            return self._refused("memory", memory, self.free_memory, level)
        if level in self.subsets:
            subset = self.subsets[level]
            self._grow(subset, extra)
        else:
            subset = OracleSubset(self._first_cpus(extra))
            self.subsets[level] = subset
        subset.vms.append(OracleVm(name, vcpus, memory))
        return None

    def _refused(self, resource: str, needed: int, free: int, level: Fraction) -> Refused:
        return Refused(resource, needed, free, self.largest_fit(level), self.free_memory)

    def _first_cpus(self, count: int) -> list[int]:
        owned = [cpu for subset in self.subsets.values() for cpu in subset.cpus]
        # max and sorted keep the first of equals, and free is in list order.
        start = max(self.free, key=lambda cpu: self.host.mean_distance(owned, cpu))
        others = sorted((cpu for cpu in self.free if cpu != start), key=lambda cpu: self.host.distance(start, cpu))
        taken = [start, *others[: count - 1]]
        self.free = [cpu for cpu in self.free if cpu not in taken]
        return taken

    def _grow(self, subset: OracleSubset, count: int) -> None:
        for _ in range(count):
            cpu = min(self.free, key=lambda candidate: self.host.mean_distance(subset.cpus, candidate))
            self.free.remove(cpu)
            subset.cpus.append(cpu)

    def remove(self, name: str) -> list[int]:
        """Take a VM out; returns the CPUs that became free. KeyError for an unknown name."""
        for level, subset in self.subsets.items():
            for vm in subset.vms:
                if vm.name == name:
                    subset.vms.remove(vm)
                    return self._shrink(level, subset)
        raise KeyError(name)

    def _shrink(self, level: Fraction, subset: OracleSubset) -> list[int]:
        cap = len(subset.cpus)
        if subset.vms:
            ratio = self.ratio(level, len(subset.vms))
            unused = max(0, floor((cap * ratio - subset.alloc) / ratio))
            if cap - unused < subset.big:
                unused = max(0, cap - subset.big)
        else:
            unused = cap
            del self.subsets[level]
        released = subset.cpus[cap - unused :]
        subset.cpus = subset.cpus[: cap - unused]
        self.free = [cpu for cpu in self.host.cpus if cpu in self.free or cpu in released]
        return released

    def progress(self, level: Fraction, vcpus: int, memory: int) -> float:
        used = sum(len(subset.cpus) for subset in self.subsets.values())
        sold = self.sold_memory
        optimal = Fraction(self.host.memory, len(self.host.cpus))
        current = Fraction(sold, used) if used else optimal
        after = Fraction(sold + memory, used + self.extra(level, vcpus))
        gain = abs(current - optimal) - abs(after - optimal)
        if gain < 0:
            gain *= 1 + Fraction(used, len(self.host.cpus))
        return float(gain)

    def owing(self) -> set[Fraction]:
        """Levels with fewer CPUs than their VMs need."""
        return {level for level, subset in self.subsets.items() if self.need(level, subset.vms) > len(subset.cpus)}

    def figures(self) -> dict[Fraction, LevelFigures]:
        """Every level in order of creation."""
        found = {}
        for level, subset in self.subsets.items():
            following = self.ratio(level, len(subset.vms) + 1)
            found[level] = LevelFigures(
                cpus=tuple(subset.cpus),
                alloc=subset.alloc,
                vms=len(subset.vms),
                needed=self.need(level, subset.vms),
                available=len(subset.cpus) * following - subset.alloc,
                potential=len(self.free) * following,
            )
        return found
