"""The values that decisions are made of. All are unchangeable; a decision returns new ones.

Values that hold only numbers and texts are not the garbage collector's business (gc=False): a host
has many of them, and they cannot be part of a cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from core.distances import CpuPool, DistanceSums
from core.level import UNIT
from core.topology import Topology


class Vm(msgspec.Struct, frozen=True, gc=False):
    """What a VM asks for. level is in thousandths."""

    name: str
    vcpus: int
    memory_mib: int
    level: int


class Rules(msgspec.Struct, frozen=True):
    """When a subset begins to oversubscribe.

    critical_size: with at least so many VMs a subset serves its level, below it 1:1 (0 = always its
    level). critical_sizes: exceptions by level in thousandths.
    """

    critical_size: int = 6
    critical_sizes: Mapping[int, int] = {}

    def ratio(self, level: int, vm_count: int) -> int:
        """vCPUs that one CPU of the subset may serve, in thousandths (SEMANTICS 2)."""
        return level if vm_count >= self.critical_sizes.get(level, self.critical_size) else UNIT


class Subset(msgspec.Struct, frozen=True, eq=False):
    """The CPUs of one level and the VMs on them.

    cpus: in attribution order, the oldest first. vms: by name, in order of arrival. vcpus: their sum.
    widths: how many VMs have so many vCPUs. sums: distances from the subset to every CPU.
    """

    level: int
    cpus: tuple[int, ...]
    vms: dict[str, Vm]
    vcpus: int
    widths: dict[int, int]
    sums: DistanceSums

    @property
    def widest(self) -> int:
        """vCPUs of the widest VM."""
        return max(self.widths)


class HostState(msgspec.Struct, frozen=True, eq=False):
    """Everything decided about one host.

    subsets: in order of creation. free: CPUs that a subset may take. held: ids of CPUs that are
    neither owned nor free, because something outside the subsets may still run there, ascending.
    memory_mib: usable memory. allocated_mib: sold to the VMs of the subsets. held_mib: used by VMs
    that are in no subset. generation: counts the decisions.
    """

    topology: Topology
    rules: Rules
    memory_mib: int
    subsets: tuple[Subset, ...]
    free: CpuPool
    held: tuple[int, ...] = ()
    allocated_mib: int = 0
    held_mib: int = 0
    generation: int = 0

    @property
    def free_mib(self) -> int:
        """Memory that a new VM may take; never negative."""
        return max(0, self.memory_mib - self.allocated_mib - self.held_mib)

    def subset(self, level: int) -> Subset | None:
        """The subset of a level, or None if the level has no VM."""
        for subset in self.subsets:
            if subset.level == level:
                return subset
        return None

    def subset_of(self, name: str) -> Subset | None:
        """The subset that a VM is in, or None if no subset has it."""
        for subset in self.subsets:
            if name in subset.vms:
                return subset
        return None

    def vm(self, name: str) -> Vm | None:
        """The VM of this name, or None."""
        subset = self.subset_of(name)
        return None if subset is None else subset.vms[name]


class Pin(msgspec.Struct, frozen=True, gc=False):
    """Every vCPU of each of these VMs is to be allowed on exactly these CPUs."""

    vms: tuple[str, ...]
    cpus: tuple[int, ...]


class Plan(msgspec.Struct, frozen=True, eq=False):
    """A decision: the state after it, and what changes on the way there.

    taken: CPUs that the subset gains, in order. released: CPUs that leave it; in ``state`` they are
    held, and become free with ``allocator.free_cpus`` once no VM is pinned to them any more.
    pins: only the VMs whose pinning changes.
    """

    before: HostState
    state: HostState
    vm: Vm
    taken: tuple[int, ...]
    released: tuple[int, ...]
    pins: tuple[Pin, ...]


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a VM does not fit. Nothing has changed.

    resource: what is short; ``name`` means that the name is taken. needed and free are CPUs for
    ``cpu`` and MiB for ``memory``. largest_vcpus and largest_mib: the largest request at this level
    that would fit, each taken alone.
    """

    resource: Literal["cpu", "memory", "name"]
    level: int
    needed: int
    free: int
    largest_vcpus: int
    largest_mib: int
