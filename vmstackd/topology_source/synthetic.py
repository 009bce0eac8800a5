"""Regular hosts by formula: ``synthetic:sockets=2,numa=1,l3=16,cores=4,smt=2``.

Each key says how many of a thing the next larger one holds: numa = nodes per socket, l3 = L3 caches
per node, cores = cores per L3, smt = CPUs per core; left out, it is 1. CPUs are numbered as Linux does
on x86: the first CPU of every core, then the second of every core, and so on.
"""

from __future__ import annotations

from core.cpuset import HIGHEST_CPU
from core.topology import Cpu, Topology
from vmstackd.topology_source.base import HIGHEST_NODE, SourceError, check_name

MOST_CPUS = HIGHEST_CPU + 1
MEMORY_PER_CPU_MIB = 4096
MOST_MEMORY_MIB = 2**40

_BOUNDS = {
    "sockets": (1, MOST_CPUS, 1),
    "numa": (1, MOST_CPUS, 1),
    "l3": (1, MOST_CPUS, 1),
    "cores": (1, MOST_CPUS, 1),
    "smt": (1, MOST_CPUS, 1),
    "memory": (1, MOST_MEMORY_MIB, 0),
    "distance": (10, 255, 32),
    "near": (10, 255, 12),
}
"""Key: smallest and largest value allowed, and the value where the key is left out."""


def load_synthetic(text: str) -> Topology:
    """The host that the keys describe.

    Also: memory (MiB of the host), distance (between NUMA nodes of different sockets), near (between
    nodes of one socket), name. Raises SourceError.
    """
    numbers, name = _parse(text)
    sockets, numa, l3, cores, smt = (numbers[key] for key in ("sockets", "numa", "l3", "cores", "smt"))
    total = sockets * numa * l3 * cores * smt
    if total > MOST_CPUS:
        raise SourceError("synthetic", f"{total} CPUs are more than {MOST_CPUS}")
    nodes = range(sockets * numa)
    if len(nodes) > HIGHEST_NODE + 1:
        raise SourceError("synthetic", f"{len(nodes)} NUMA nodes are more than {HIGHEST_NODE + 1}", field="numa")
    all_cores = total // smt
    cpus = []
    for cpu in range(total):
        core = cpu % all_cores
        first_of_l3 = core - core % cores
        node = core // (l3 * cores)
        caches = (core, core, core, first_of_l3)
        cpus.append(Cpu(id=cpu, package=node // numa, node=node, core=core, caches=caches))
    return Topology(
        name=name or f"{sockets}x{numa}x{l3}x{cores}x{smt}",
        cpus=cpus,
        cache_names=("L1d", "L1i", "L2", "L3"),
        nodes=nodes,
        node_distances=[
            [10 if a == b else numbers["near"] if a // numa == b // numa else numbers["distance"] for b in nodes]
            for a in nodes
        ],
        memory_mib=numbers["memory"] or total * MEMORY_PER_CPU_MIB,
        host_cpus=total,
    )


def _parse(text: str) -> tuple[dict[str, int], str]:
    numbers = {key: default for key, (_, _, default) in _BOUNDS.items()}
    name = ""
    seen = set()
    for part in text.split(",") if text else ():
        key, _, value = part.partition("=")
        if key not in _BOUNDS and key != "name":
            raise SourceError("synthetic", f"{key[:40]!r} is not a key; allowed: {', '.join((*_BOUNDS, 'name'))}")
        if key in seen:
            raise SourceError("synthetic", "is given twice", field=key)
        seen.add(key)
        if key == "name":
            if wrong := check_name(value):
                raise SourceError("synthetic", wrong, field=key)
            name = value
            continue
        lowest, highest, _ = _BOUNDS[key]
        plain = value.isascii() and value.isdigit() and len(value) <= 15
        if not plain or not lowest <= int(value) <= highest:
            message = f"{value[:40]!r} is not a whole number from {lowest} to {highest}"
            raise SourceError("synthetic", message, field=key)
        numbers[key] = int(value)
    return numbers, name
