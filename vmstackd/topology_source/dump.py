"""Any topology as a file of the compact format (``topologies/README.md``)."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping

from core.cpuset import format_cpu_list
from core.topology import NO_CACHE, Topology
from vmstackd.topology_source.file import MARK, VERSION


def dump_topology(topology: Topology) -> str:
    """The topology as a file of the compact format, ending in a newline.

    CPUs that it does not use are not in the file, only counted in host_cpus. Cores and caches are
    written as groups: their numbers become those of their lowest CPU when read again.
    """
    packages = _grouped({cpu.id: cpu.package for cpu in topology.cpus})
    nodes = _grouped({cpu.id: cpu.node for cpu in topology.cpus})
    cores = _grouped({cpu.id: cpu.core for cpu in topology.cpus})
    named = {"cores": cores, "packages": packages, "nodes": nodes}
    caches = {}
    for position, name in enumerate(topology.cache_names):
        instances = {cpu.id: cpu.caches[position] for cpu in topology.cpus if cpu.caches[position] != NO_CACHE}
        groups = _grouped(instances)
        same = [word for word, others in named.items() if sorted(others.values()) == sorted(groups.values())]
        caches[name] = json.dumps(same[0]) if same else _wrapped(groups.values(), 4)
    described = {
        str(node): json.dumps({"cpus": format_cpu_list(nodes.get(node, ())), "distances": list(row)})
        for node, row in zip(topology.nodes, topology.node_distances, strict=True)
    }
    in_packages = {str(package): json.dumps(format_cpu_list(packages[package])) for package in sorted(packages)}
    members = {
        MARK: str(VERSION),
        "name": json.dumps(topology.name, ensure_ascii=False),
        "memory_mib": str(topology.memory_mib),
        "host_cpus": str(topology.host_cpus),
        "cpus": json.dumps(format_cpu_list(topology.cpu_ids)),
        "packages": _object(in_packages, 4),
        "nodes": _object(described, 4),
        "cores": _wrapped(cores.values(), 2),
        "caches": _object(caches, 4),
    }
    return _object(members, 2) + "\n"


def _grouped(group_of: Mapping[int, int]) -> dict[int, list[int]]:
    """Members of each group in ascending order, groups by their lowest member."""
    groups: dict[int, list[int]] = {}
    for cpu in sorted(group_of):
        groups.setdefault(group_of[cpu], []).append(cpu)
    return groups


def _object(members: Mapping[str, str], indent: int) -> str:
    if not members:
        return "{}"
    lines = ",\n".join(f"{' ' * indent}{json.dumps(key)}: {value}" for key, value in members.items())
    return f"{{\n{lines}\n{' ' * (indent - 2)}}}"


def _wrapped(groups: Iterable[list[int]], indent: int) -> str:
    """An array of CPU lists, several on a line."""
    text = ", ".join(f'"{format_cpu_list(group)}"' for group in groups)
    margin = " " * (indent + 2)
    filled = textwrap.fill(
        text, 100, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )
    return f"[\n{filled}\n{' ' * indent}]" if len(text) > 80 else f"[{text}]"
