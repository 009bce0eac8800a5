"""The shape of a host: its CPUs, the caches they share, its NUMA nodes and its memory.

Where a topology comes from (sysfs, a file, a formula) is the business of ``vmstackd.topology_source``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from core.cpuset import HIGHEST_CPU, format_cpu_list
from core.distances import Distances

NO_CACHE = -1
"""Cache instance of a CPU that lacks a cache level others have (an efficiency core without L3)."""


class TopologyError(ValueError):
    """A topology that contradicts itself. ``field`` says where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Cpu(msgspec.Struct, frozen=True):
    """One logical CPU. core, package and caches are identifiers unique within the host."""

    id: int
    """The kernel's number."""
    package: int
    node: int
    """NUMA node, as the kernel says, never derived from the package (SEMANTICS 3)."""
    core: int
    """CPUs of one core are SMT siblings."""
    caches: tuple[int, ...]
    """The instance of each cache level of ``Topology.cache_names``; NO_CACHE where there is none."""


class Topology:
    """The CPUs that vmstack may use on one host, in list order, and how far apart they are.

    host_cpus: all CPUs of the host, the unusable ones included. memory_mib: all memory of the host.
    cache_names: cache levels from the inside out ("L1d", "L1i", "L2", "L3").
    nodes: NUMA node ids, ascending. node_distances: one row per entry of nodes, as in the ACPI SLIT;
    rows are "from", columns "to".

    Raises TopologyError when the parts contradict each other.
    """

    __slots__ = (
        "cache_names",
        "cpu_ids",
        "cpus",
        "distances",
        "host_cpus",
        "memory_mib",
        "name",
        "node_distances",
        "nodes",
    )

    def __init__(
        self,
        *,
        name: str,
        cpus: Sequence[Cpu],
        cache_names: Sequence[str],
        nodes: Sequence[int],
        node_distances: Sequence[Sequence[int]],
        memory_mib: int,
        host_cpus: int,
    ) -> None:
        self.name = name
        self.cpus = tuple(cpus)
        self.cpu_ids = tuple(cpu.id for cpu in self.cpus)
        self.cache_names = tuple(cache_names)
        self.nodes = tuple(nodes)
        self.node_distances = tuple(tuple(row) for row in node_distances)
        self.memory_mib = memory_mib
        self.host_cpus = host_cpus
        self._check()
        row_of_node = {node: row for row, node in enumerate(self.nodes)}
        self.distances = Distances(
            self.cpu_ids,
            [cpu.caches for cpu in self.cpus],
            [row_of_node[cpu.node] for cpu in self.cpus],
            list(self.node_distances),
        )

    def _check(self) -> None:
        if not self.cpus:
            raise TopologyError("cpus", "there is no usable CPU")
        beyond = [cpu for cpu in self.cpu_ids if not 0 <= cpu <= HIGHEST_CPU]
        if beyond:
            raise TopologyError("cpus", f"CPU {beyond[0]} is not an id from 0 to {HIGHEST_CPU}")
        if len(set(self.cpu_ids)) != len(self.cpu_ids):
            twice = next(cpu for cpu in self.cpu_ids if self.cpu_ids.count(cpu) > 1)
            raise TopologyError("cpus", f"CPU {twice} is listed twice")
        if self.host_cpus < len(self.cpus):
            raise TopologyError("host_cpus", f"{self.host_cpus} is less than the {len(self.cpus)} CPUs listed")
        if self.memory_mib < 1:
            raise TopologyError("memory_mib", f"{self.memory_mib} MiB is not a host's memory")
        if list(self.nodes) != sorted(set(self.nodes)):
            raise TopologyError("nodes", "NUMA node ids must ascend without repetition")
        if len(self.node_distances) != len(self.nodes) or any(
            len(row) != len(self.nodes) for row in self.node_distances
        ):
            raise TopologyError("node_distances", f"must be {len(self.nodes)} rows of {len(self.nodes)} numbers")
        if any(not 0 <= distance <= 255 for row in self.node_distances for distance in row):
            raise TopologyError("node_distances", "a distance is a number from 0 to 255")
        nodes = set(self.nodes)
        depth = len(self.cache_names)
        for cpu in self.cpus:
            if cpu.node not in nodes:
                raise TopologyError("cpus", f"CPU {cpu.id} is in NUMA node {cpu.node}, which is not described")
            if len(cpu.caches) != depth:
                raise TopologyError("cpus", f"CPU {cpu.id} has {len(cpu.caches)} cache levels, not {depth}")

    def without(self, excluded: Iterable[int]) -> Topology:
        """The same host with fewer usable CPUs; ids that it does not have are ignored.

        Raises TopologyError if no CPU is left.
        """
        gone = frozenset(excluded)
        cpus = [cpu for cpu in self.cpus if cpu.id not in gone]
        if not cpus:
            raise TopologyError("exclude", "every CPU of the host is excluded")
        if len(cpus) == len(self.cpus):
            return self
        return Topology(
            name=self.name,
            cpus=cpus,
            cache_names=self.cache_names,
            nodes=self.nodes,
            node_distances=self.node_distances,
            memory_mib=self.memory_mib,
            host_cpus=self.host_cpus,
        )

    def distance(self, first: int, second: int) -> int:
        """Distance between two different CPUs, by their ids (SEMANTICS 3).

        Every cache level walked costs 10, up to the first shared one; without one the NUMA distance
        is added. Raises ValueError for a CPU and itself, KeyError for an unknown id.
        """
        if first == second:
            raise ValueError(f"CPU {first} has no distance to itself")
        return self.distances.between(first, second)

    def __repr__(self) -> str:
        return f"Topology({self.name!r}, CPUs {format_cpu_list(self.cpu_ids)}, {self.memory_mib} MiB)"
