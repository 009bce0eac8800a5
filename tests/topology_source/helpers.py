"""What the tests of the sources share: captured trees to order, distances computed plainly, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from core.cpuset import format_cpu_list
from core.topology import NO_CACHE, Topology
from vmstackd.topology_source import SourceError, load_topology

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGIES = ROOT / "topologies"
PROTOTYPE_FILES = ROOT.parent / "shared" / "reference" / "topologies"

needs_prototype_files = pytest.mark.skipif(
    not PROTOTYPE_FILES.is_dir(),
    reason="the prototype's topology files (../shared/reference/topologies) are not beside this checkout",
)


class Cache(msgspec.Struct, frozen=True):
    """One cache as sysfs shows it: shared by these CPUs."""

    level: int
    kind: str
    shared: tuple[int, ...]


class Tree(msgspec.Struct):
    """A captured tree to write: for each online CPU its package, the CPUs of its core, its caches."""

    package: Mapping[int, int]
    core: Mapping[int, Sequence[int]]
    caches: Mapping[int, Sequence[Cache]]
    nodes: Mapping[int, Sequence[int]]
    distances: Sequence[Sequence[int]]
    offline: Sequence[int] = ()
    memory_kib: int = 8 * 2**20
    cache_ids: bool = True

    def write(self, root: Path) -> str:
        """Write the tree; returns its specification."""
        cpus = root / "sys/devices/system/cpu"
        put(cpus / "online", format_cpu_list(sorted(self.package)))
        put(cpus / "present", format_cpu_list(sorted((*self.package, *self.offline))))
        for cpu in self.offline:
            put(cpus / f"cpu{cpu}/online", "0")
        for cpu, package in self.package.items():
            put(cpus / f"cpu{cpu}/topology/physical_package_id", str(package))
            put(cpus / f"cpu{cpu}/topology/core_cpus_list", format_cpu_list(self.core[cpu]))
            for index, cache in enumerate(self.caches[cpu]):
                entry = cpus / f"cpu{cpu}/cache/index{index}"
                put(entry / "level", str(cache.level))
                put(entry / "type", cache.kind)
                put(entry / "shared_cpu_list", format_cpu_list(cache.shared))
                if self.cache_ids:
                    put(entry / "id", str(index))
        for (node, members), row in zip(self.nodes.items(), self.distances, strict=True):
            where = root / f"sys/devices/system/node/node{node}"
            put(where / "cpulist", format_cpu_list(members))
            put(where / "distance", " ".join(map(str, row)))
        put(root / "proc/meminfo", f"MemTotal:       {self.memory_kib} kB\nMemFree:        1 kB")
        return f"sysfs:{root}"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def own_caches(core: Sequence[int]) -> list[Cache]:
    """L1 and L2 of one core."""
    return [Cache(1, "Data", tuple(core)), Cache(1, "Instruction", tuple(core)), Cache(2, "Unified", tuple(core))]


def refusal(spec: str | Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        load_topology(str(spec))
    return caught.value


def plain_distance(
    caches: Mapping[int, Sequence[int]], node_of: Mapping[int, int], between: Callable[[int, int], int]
) -> Callable[[int, int], int]:
    """SEMANTICS 3 word for word: 10 per level walked, up to the first shared one, else the NUMA distance too."""

    def distance(first: int, second: int) -> int:
        walked = 0
        for mine, theirs in zip(caches[first], caches[second], strict=True):
            walked += 10
            if mine == theirs and mine != NO_CACHE:
                return walked
        return walked + between(node_of[first], node_of[second])

    return distance


def table(topology: Topology) -> dict[tuple[int, int], int]:
    ids = topology.cpu_ids
    return {(a, b): topology.distance(a, b) for a in ids for b in ids if a != b}


def shape(topology: Topology) -> dict[str, object]:
    """All that a topology says, but for the numbers by which cores and caches are told apart."""

    def groups(pairs: Iterable[tuple[int, Hashable]]) -> set[frozenset[int]]:
        found: dict[Hashable, set[int]] = {}
        for cpu, group in pairs:
            found.setdefault(group, set()).add(cpu)
        return {frozenset(members) for members in found.values()}

    caches = {
        name: groups((cpu.id, cpu.caches[k]) for cpu in topology.cpus if cpu.caches[k] != NO_CACHE)
        for k, name in enumerate(topology.cache_names)
    }
    return {
        "name": topology.name,
        "order": topology.cpu_ids,
        "package": {cpu.id: cpu.package for cpu in topology.cpus},
        "node": {cpu.id: cpu.node for cpu in topology.cpus},
        "cores": groups((cpu.id, cpu.core) for cpu in topology.cpus),
        "cache_names": topology.cache_names,
        "caches": caches,
        "nodes": (topology.nodes, topology.node_distances),
        "memory_mib": topology.memory_mib,
        "host_cpus": topology.host_cpus,
    }
