"""Topology files: the project's compact format (``topologies/README.md``); ``dump`` writes it.

CPU lists are the kernel's. Everything but the CPUs themselves is a list of groups, because a host is
groups of CPUs that share something. The prototype's files are recognised by their ``cpuset``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta, Raw

from core.cpuset import HIGHEST_CPU, CpuListError, parse_cpu_list
from core.topology import NO_CACHE, Cpu, Topology, TopologyError
from vmstackd.topology_source.base import HIGHEST_NODE, LONGEST_NAME, SourceError, check_name, read_file
from vmstackd.topology_source.json_text import JsonText, Where, shown
from vmstackd.topology_source.prototype import Mib, NodeDistance, read_prototype

VERSION = 1
MARK = "vmstack_topology"
"""The field that tells the format and its version."""
LARGEST_FILE = 16 * 2**20
"""Bytes; the prototype's files hold a number for every pair of CPUs."""
LARGEST_OWN_FILE = 2**20

_MOST_CACHES = 16
_CACHE_NAME = re.compile("L[1-9][0-9]?[di]?")
_GROUPS_OR_WORD: Any = str | list[str]
_GROUP_ID = re.compile("0|[1-9][0-9]{0,8}")


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    vmstack_topology: int
    name: str
    memory_mib: Mib
    cpus: str
    host_cpus: Annotated[int, Meta(ge=1, le=HIGHEST_CPU + 1)] = 0
    excluded: str = ""
    packages: dict[str, Raw] = {}
    nodes: dict[str, Raw] = {}
    cores: list[str] = []
    caches: dict[str, Raw] = {}


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    cpus: str
    distances: list[NodeDistance]


def load_file(path: str) -> Topology:
    """The topology in a file, ours or the prototype's. Raises SourceError."""
    where = Path(path)
    document = JsonText(where, read_file(where, LARGEST_FILE))
    fields = document.fields()
    if "cpuset" in fields:
        stem = "".join(c for c in where.stem.removeprefix("topology_") if c.isprintable())
        return read_prototype(document, stem[:LONGEST_NAME] or "host")
    if MARK not in fields:
        message = f'is not a topology file: it has neither "{MARK}" (ours) nor "cpuset" (the prototype\'s)'
        raise SourceError(where, message)
    if len(document.text) > LARGEST_OWN_FILE:
        raise SourceError(where, f"is larger than {LARGEST_OWN_FILE} bytes")
    version = document.decode(int, fields[MARK], (MARK,))
    if version != VERSION:
        raise document.error((MARK,), f"this program reads version {VERSION}, not {version}")
    document.check_no_key_twice()
    return _Reader(document).topology()


class _Reader:
    def __init__(self, document: JsonText) -> None:
        self._document = document
        self._parts = document.decode(_Document)
        self._cpus = self._list(("cpus",), self._parts.cpus)
        self._known = frozenset(self._cpus)

    def topology(self) -> Topology:
        parts = self._parts
        if wrong := check_name(parts.name):
            self._refuse(("name",), wrong)
        excluded = frozenset(self._members(("excluded",), parts.excluded))
        packages = self._packages()
        node_of, nodes, distances = self._nodes()
        core_of = self._groups(("cores",), enumerate(parts.cores)) if parts.cores else {cpu: cpu for cpu in self._cpus}
        self._check_all(("cores",), core_of)
        caches = self._caches({"packages": packages, "nodes": node_of, "cores": core_of})
        columns = list(caches.values())
        cpus = [
            Cpu(
                id=cpu,
                package=packages[cpu],
                node=node_of[cpu],
                core=core_of[cpu],
                caches=tuple([column.get(cpu, NO_CACHE) for column in columns]),
            )
            for cpu in self._cpus
            if cpu not in excluded
        ]
        host_cpus = self._host_cpus()
        try:
            return Topology(
                name=parts.name,
                cpus=cpus,
                cache_names=tuple(caches),
                nodes=nodes,
                node_distances=distances,
                memory_mib=parts.memory_mib,
                host_cpus=host_cpus,
            )
        except TopologyError as error:
            self._refuse((error.field,), str(error).removeprefix(f"{error.field}: "))

    def _host_cpus(self) -> int:
        if not self._parts.host_cpus:
            return len(self._cpus)
        if self._parts.host_cpus < len(self._cpus):
            self._refuse(("host_cpus",), f"{self._parts.host_cpus} is less than the {len(self._cpus)} CPUs of cpus")
        return self._parts.host_cpus

    def _packages(self) -> dict[int, int]:
        if not self._parts.packages:
            return dict.fromkeys(self._cpus, 0)
        texts = {}
        for key, raw in self._parts.packages.items():
            where = ("packages", key)
            texts[self._id(where, 10**9 - 1)] = self._document.decode(str, raw, where)
        package_of = self._group_ids(("packages",), texts)
        self._check_all(("packages",), package_of)
        return package_of

    def _nodes(self) -> tuple[dict[int, int], list[int], list[list[int]]]:
        if not self._parts.nodes:
            return dict.fromkeys(self._cpus, 0), [0], [[10]]
        found = {}
        for key, raw in self._parts.nodes.items():
            where = ("nodes", key)
            node = self._document.decode(_Node, raw, where)
            count = len(self._parts.nodes)
            if len(node.distances) != count:
                self._refuse((*where, "distances"), f"must be {count} numbers, one per node, not {len(node.distances)}")
            found[self._id(where, HIGHEST_NODE)] = node
        node_of = self._group_ids(("nodes",), {key: node.cpus for key, node in found.items()}, "cpus")
        self._check_all(("nodes",), node_of)
        nodes = sorted(found)
        return node_of, nodes, [found[node].distances for node in nodes]

    def _caches(self, named: Mapping[str, dict[int, int]]) -> dict[str, dict[int, int]]:
        if len(self._parts.caches) > _MOST_CACHES:
            self._refuse(("caches",), f"more than {_MOST_CACHES} levels")
        caches = {}
        for name, raw in self._parts.caches.items():
            where = ("caches", name)
            if not _CACHE_NAME.fullmatch(name):
                self._refuse(where, "a cache is named like L1d, L1i or L2")
            value: str | list[str] = self._document.decode(_GROUPS_OR_WORD, raw, where)
            if isinstance(value, str):
                if value not in named:
                    self._refuse(where, f"{value[:40]!r} is neither a list of CPU lists nor one of {', '.join(named)}")
                caches[name] = _by_lowest(named[value])
            else:
                caches[name] = self._groups(where, enumerate(value))
        return caches

    def _groups(self, where: Where, texts: Iterable[tuple[int, str]]) -> dict[int, int]:
        """For each CPU named the lowest CPU of its group."""
        groups = dict(texts)
        for index, text in groups.items():
            if not text.strip():
                self._refuse((*where, index), "names no CPU")
        return _by_lowest(self._group_ids(where, groups))

    def _group_ids(self, where: Where, texts: Mapping[int, str], inner: str = "") -> dict[int, int]:
        """For each CPU named the id of its group; no CPU is in two."""
        group_of: dict[int, int] = {}

        def place_of(group: int) -> Where:
            step = str(group) if where[0] in {"packages", "nodes"} else group
            return (*where, step, inner) if inner else (*where, step)

        for group, text in texts.items():
            place = place_of(group)
            for cpu in self._members(place, text):
                if cpu in group_of:
                    self._refuse(place, f"CPU {cpu} is in {shown(place_of(group_of[cpu]))} too")
                group_of[cpu] = group
        return group_of

    def _members(self, where: Where, text: str) -> tuple[int, ...]:
        cpus = self._list(where, text)
        for cpu in cpus:
            if cpu not in self._known:
                self._refuse(where, f"CPU {cpu} is not one of cpus")
        return cpus

    def _list(self, where: Where, text: str) -> tuple[int, ...]:
        try:
            return parse_cpu_list(text)
        except CpuListError as error:
            self._refuse(where, str(error))

    def _id(self, where: Where, highest: int) -> int:
        key = str(where[-1])
        if not _GROUP_ID.fullmatch(key) or int(key) > highest:
            self._refuse(where, f"{key[:40]!r} is not a number from 0 to {highest}")
        return int(key)

    def _check_all(self, where: Where, group_of: Mapping[int, int]) -> None:
        for cpu in self._cpus:
            if cpu not in group_of:
                self._refuse(where, f"CPU {cpu} is in no group")

    def _refuse(self, where: Where, message: str) -> NoReturn:
        raise self._document.error(where, message)


def _by_lowest(group_of: Mapping[int, int]) -> dict[int, int]:
    """Groups renamed after their lowest CPU."""
    lowest: dict[int, int] = {}
    for cpu in sorted(group_of):
        lowest.setdefault(group_of[cpu], cpu)
    return {cpu: lowest[group] for cpu, group in group_of.items()}
