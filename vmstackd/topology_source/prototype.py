"""Topology files of the prototype, as they are (SEMANTICS 15).

The distances stored in them are ignored: they may be stale, and everything needed to compute them
is there. Of ``memset`` the smaller figure counts: the prototype confuses ``total`` and ``allowed``,
and memory that is not allowed is not for VMs.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from core.cpuset import HIGHEST_CPU
from core.topology import NO_CACHE, Cpu, Topology, TopologyError
from vmstackd.topology_source.base import HIGHEST_NODE
from vmstackd.topology_source.json_text import JsonText
from vmstackd.topology_source.synthetic import MOST_MEMORY_MIB

CpuId = Annotated[int, Meta(ge=0, le=HIGHEST_CPU)]
NodeId = Annotated[int, Meta(ge=0, le=HIGHEST_NODE)]
CacheId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
NodeDistance = Annotated[int, Meta(ge=0, le=255)]
Mib = Annotated[int, Meta(ge=1, le=MOST_MEMORY_MIB)]

_MOST_CACHES = 16
_FIRST_CACHES = ("L1d", "L1i", "L2", "L3")


class _Cpu(msgspec.Struct):
    cpu_id: CpuId
    numa_node: NodeId
    sib_smt: list[CpuId]
    sib_cpu: list[CpuId]
    cache_level: dict[str, CacheId]


class _CpuSet(msgspec.Struct):
    host_count: Annotated[int, Meta(ge=1, le=HIGHEST_CPU + 1)]
    cpu_list: list[_Cpu]
    numa_distances: dict[str, list[NodeDistance]]


class _MemSet(msgspec.Struct):
    total: Mib
    allowed: Mib


class _Document(msgspec.Struct):
    cpuset: _CpuSet
    memset: _MemSet


def read_prototype(document: JsonText, name: str) -> Topology:
    """The topology, CPUs in the order of ``cpu_list``. Raises SourceError."""
    parts = document.decode(_Document)
    cpus = parts.cpuset.cpu_list
    nodes, distances = _nodes(document, parts.cpuset.numa_distances)
    depth = _cache_depth(document, cpus)
    packages = _groups(document, cpus, "sib_cpu")
    cores = _groups(document, cpus, "sib_smt")
    numbers = {first: number for number, first in enumerate(sorted(set(packages)))}
    known = set(nodes)
    for index, cpu in enumerate(cpus):
        if cpu.numa_node not in known:
            where = ("cpuset", "cpu_list", index, "numa_node")
            raise document.error(where, f"node {cpu.numa_node} is not in numa_distances")
    try:
        return Topology(
            name=name,
            cpus=[
                Cpu(
                    id=cpu.cpu_id,
                    package=numbers[package],
                    node=cpu.numa_node,
                    core=core,
                    caches=tuple([cpu.cache_level.get(str(level), NO_CACHE) for level in range(depth)]),
                )
                for cpu, core, package in zip(cpus, cores, packages, strict=True)
            ],
            cache_names=[*_FIRST_CACHES, *(f"L{level}" for level in range(4, _MOST_CACHES))][:depth],
            nodes=nodes,
            node_distances=distances,
            memory_mib=min(parts.memset.total, parts.memset.allowed),
            host_cpus=parts.cpuset.host_count,
        )
    except TopologyError as error:
        field = "host_count" if error.field == "host_cpus" else "cpu_list"
        raise document.error(("cpuset", field), str(error).removeprefix(f"{error.field}: ")) from error


def _nodes(document: JsonText, rows: dict[str, list[int]]) -> tuple[list[int], list[list[int]]]:
    where = ("cpuset", "numa_distances")
    by_node = {}
    for key, row in rows.items():
        if not (key.isascii() and key.isdigit() and key == str(int(key[:5])) and int(key) <= HIGHEST_NODE):
            raise document.error((*where, key), f"a NUMA node is a number from 0 to {HIGHEST_NODE}")
        if len(row) != len(rows):
            raise document.error((*where, key), f"must be {len(rows)} distances, one per node, not {len(row)}")
        by_node[int(key)] = row
    nodes = sorted(by_node)
    return nodes, [by_node[node] for node in nodes]


def _cache_depth(document: JsonText, cpus: list[_Cpu]) -> int:
    """How many cache levels there are. The keys are positions in the order of walking."""
    allowed = {str(level): level for level in range(_MOST_CACHES)}
    depth = 0
    for index, cpu in enumerate(cpus):
        for key in cpu.cache_level:
            if key not in allowed:
                where = ("cpuset", "cpu_list", index, "cache_level", key)
                raise document.error(where, f"a cache level is a number from 0 to {_MOST_CACHES - 1}")
            depth = max(depth, allowed[key] + 1)
    return depth


def _groups(document: JsonText, cpus: list[_Cpu], field: str) -> list[int]:
    """For each CPU the lowest one of its group; CPUs of one group must name each other."""
    grouped: set[int] = set()
    known: set[frozenset[int]] = set()
    lowest = []
    for index, cpu in enumerate(cpus):
        group = frozenset((cpu.cpu_id, *getattr(cpu, field)))
        if group not in known:
            known.add(group)
            for other in group:
                if other in grouped:
                    where = ("cpuset", "cpu_list", index, field)
                    raise document.error(where, f"names other CPUs than the field of CPU {other} or of one beside it")
            grouped |= group
        lowest.append(min(group))
    return lowest
