"""Where a host's topology comes from: the running kernel, a captured tree, a file, or a formula.

One file per source; a new one is a function from the text behind its scheme to a Topology, and one
line in SOURCES. ``dump_topology`` writes any topology in the project's own file format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

from core.topology import Topology
from vmstackd.topology_source.base import SourceError
from vmstackd.topology_source.dump import dump_topology
from vmstackd.topology_source.file import load_file
from vmstackd.topology_source.synthetic import load_synthetic
from vmstackd.topology_source.sysfs import load_sysfs

__all__ = ["ALLOWED", "SOURCES", "SourceError", "dump_topology", "load_topology"]

SOURCES: MappingProxyType[str, Callable[[str], Topology]] = MappingProxyType(
    {"file": load_file, "synthetic": load_synthetic, "sysfs": load_sysfs}
)
"""Scheme to loader; the loader gets what follows the colon."""

ALLOWED = "sysfs, sysfs:ROOT, file:PATH, PATH or synthetic:sockets=2,numa=1,l3=16,cores=4,smt=2"
"""What a topology specification may be, for help texts."""


def load_topology(spec: str, exclude: Iterable[int] = ()) -> Topology:
    """The topology that a specification names, without the CPUs to exclude.

    A specification without a known scheme is the path of a file. Ids to exclude that the host does not
    have are ignored. Raises TopologyError, mostly SourceError, whatever is wrong with the input.
    """
    scheme, colon, rest = spec.partition(":")
    if not spec:
        raise SourceError("topology", f"nothing is named; allowed: {ALLOWED}")
    if colon and scheme in SOURCES:
        topology = SOURCES[scheme](rest)
    elif spec == "sysfs":
        topology = load_sysfs("/")
    else:
        topology = load_file(spec)
    return topology.without(exclude)
