"""The topology that the kernel reports, of this machine or of a captured tree.

A tree is a directory with ``sys/devices/system/cpu``, ``sys/devices/system/node`` and ``proc/meminfo``
in it, as in /. What a guest's kernel may lack is not required: NUMA nodes (then there is node 0),
caches, cache ids, cpufreq. Format: https://docs.kernel.org/admin-guide/cputopology.html and
Documentation/ABI/testing/sysfs-devices-system-cpu.
"""

from __future__ import annotations

import re
from pathlib import Path

from core.cpuset import HIGHEST_CPU
from core.topology import NO_CACHE, Cpu, Topology, TopologyError
from vmstackd.topology_source.base import HIGHEST_NODE, LONGEST_NAME, SourceError, cpus_in, read_file, read_start

LARGEST_FILE = 65536
_CACHE_TYPES = {"Data": "d", "Instruction": "i", "Unified": ""}
_CACHE_ORDER = "di"


def load_sysfs(root: str) -> Topology:
    """The online CPUs under root, in ascending order; host_cpus counts the offline ones too.

    Raises SourceError.
    """
    top = Path(root or "/")
    where = top / "sys/devices/system/cpu"
    if not where.is_dir():
        raise SourceError(where, "is not a directory; sysfs:ROOT is a directory with sys/ and proc/ in it")
    present, online = _present_and_online(where)
    nodes, node_distances, node_of = _nodes(top / "sys/devices/system/node")
    found = {cpu: _caches(where / f"cpu{cpu}", cpu) for cpu in online}
    cache_names = sorted({name for caches in found.values() for name in caches}, key=_inside_out)
    cpus = [
        Cpu(
            id=cpu,
            package=_package(where / f"cpu{cpu}"),
            node=_node(where / f"cpu{cpu}", cpu, nodes, node_of),
            core=_core(where / f"cpu{cpu}", cpu),
            caches=tuple(caches.get(name, NO_CACHE) for name in cache_names),
        )
        for cpu, caches in found.items()
    ]
    try:
        return Topology(
            name=_model(top / "proc/cpuinfo"),
            cpus=cpus,
            cache_names=cache_names,
            nodes=nodes,
            node_distances=node_distances,
            memory_mib=_memory_mib(top / "proc/meminfo"),
            host_cpus=len(present.union(online)),
        )
    except SourceError:
        raise
    except TopologyError as error:
        raise SourceError(top, str(error)) from error


def _present_and_online(where: Path) -> tuple[set[int], list[int]]:
    directories = _numbered(where, "cpu", HIGHEST_CPU)
    present = _cpu_list(where / "present")
    online = _cpu_list(where / "online")
    if online is None:
        online = tuple(cpu for cpu in directories if _text(where / f"cpu{cpu}/online") in {None, "1"})
    for cpu in online:
        if cpu not in directories:
            raise SourceError(where / "online", f"CPU {cpu} is online, but there is no directory cpu{cpu}")
    return set(directories if present is None else present), sorted(online)


def _caches(where: Path, cpu: int) -> dict[str, int]:
    """Instance of each cache of a CPU, by name: the lowest CPU that shares it (ids may be missing)."""
    caches = {}
    for index in _numbered(where / "cache", "index", 99):
        entry = where / f"cache/index{index}"
        level, kind = _number(entry / "level"), _text(entry / "type")
        shared = _cpu_list(entry / "shared_cpu_list")
        if level is None or kind is None or not shared:
            continue  # a cache of which the hypervisor does not say what it is, or whose
        if level < 1:
            raise SourceError(entry / "level", f"{level} is not a cache level")
        if kind not in _CACHE_TYPES:
            raise SourceError(entry / "type", f"{kind[:40]!r} is not one of {', '.join(_CACHE_TYPES)}")
        caches[f"L{level}{_CACHE_TYPES[kind]}"] = min(cpu, *shared)
    return caches


def _inside_out(name: str) -> tuple[int, int]:
    """Sort key of a cache name: L1d, L1i, L1, L2, ..."""
    kind = name[-1]
    return int(name.strip("Ldi")), _CACHE_ORDER.index(kind) if kind in _CACHE_ORDER else len(_CACHE_ORDER)


def _package(where: Path) -> int:
    """The package; 0 where the kernel does not know it (it then says -1)."""
    return max(_number(where / "topology/physical_package_id") or 0, 0)


def _core(where: Path, cpu: int) -> int:
    """The lowest CPU of the core (the kernel's core_id repeats in every package)."""
    siblings = _cpu_list(where / "topology/core_cpus_list") or _cpu_list(where / "topology/thread_siblings_list")
    return min((cpu, *(siblings or ())))


def _nodes(where: Path) -> tuple[list[int], list[list[int]], dict[int, int]]:
    """Node ids, their distances, and the node of each CPU that a node lists."""
    nodes = _numbered(where, "node", HIGHEST_NODE)
    if not nodes:
        return [0], [[10]], {}
    distances = []
    node_of: dict[int, int] = {}
    for node in nodes:
        path = where / f"node{node}/distance"
        words = (_text(path) or "").split()
        if len(words) != len(nodes) or not all(re.fullmatch("[0-9]{1,3}", word) for word in words):
            raise SourceError(path, f"must be {len(nodes)} distances, one per node")
        distances.append([int(word) for word in words])
        for cpu in _cpu_list(where / f"node{node}/cpulist") or ():
            if node_of.setdefault(cpu, node) != node:
                message = f"CPU {cpu} is in node{node_of[cpu]} too"
                raise SourceError(where / f"node{node}/cpulist", message)
    return nodes, distances, node_of


def _node(where: Path, cpu: int, nodes: list[int], node_of: dict[int, int]) -> int:
    if cpu in node_of:
        return node_of[cpu]
    links = _numbered(where, "node", HIGHEST_NODE)
    if len(links) == 1:
        return links[0]
    if len(nodes) == 1 and not node_of:
        return nodes[0]
    raise SourceError(where, f"CPU {cpu} is in no NUMA node")


def _memory_mib(path: Path) -> int:
    text = read_file(path, LARGEST_FILE).decode("ascii", "replace")
    found = re.search(r"^MemTotal:\s*([0-9]{1,15}) kB$", text, re.MULTILINE)
    if found is None:
        raise SourceError(path, "a line 'MemTotal: NUMBER kB' is missing", field="MemTotal")
    return int(found[1]) // 1024


def _model(path: Path) -> str:
    """The processor's name, only to show."""
    try:
        text = read_start(path, LARGEST_FILE).decode("utf-8", "replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
    words = "".join(c for c in found[1] if c.isprintable()).split() if found else []
    return " ".join(words)[:LONGEST_NAME] or "host"


def _text(path: Path) -> str | None:
    """The text of a small file, None where there is none."""
    try:
        data = read_start(path, LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(path, f"cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise SourceError(path, f"is larger than {LARGEST_FILE} bytes")
    return data.decode("ascii", "replace").strip()


def _number(path: Path) -> int | None:
    text = _text(path)
    if text is None:
        return None
    if not re.fullmatch("-?[0-9]{1,9}", text):
        raise SourceError(path, f"{text[:40]!r} is not a whole number")
    return int(text)


def _cpu_list(path: Path) -> tuple[int, ...] | None:
    text = _text(path)
    return None if text is None else cpus_in(text, path)


def _numbered(where: Path, prefix: str, highest: int) -> list[int]:
    """The numbers of the entries prefixNUMBER of a directory, ascending; none if it does not exist."""
    try:
        names = [entry.name for entry in where.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SourceError(where, f"cannot be read: {error.strerror}") from error
    numbers = []
    for name in names:
        digits = name.removeprefix(prefix)
        if name.startswith(prefix) and re.fullmatch("[0-9]+", digits):
            if len(digits) > 9 or int(digits) > highest:
                raise SourceError(where / name, f"its number is above the highest one, {highest}")
            numbers.append(int(digits))
    return sorted(numbers)
