"""Hosts by formula."""

from __future__ import annotations

from tests.fuzz.target import Target, scratch, words
from tests.fuzz.targets.topology_check import check, only_small_hosts
from vmstackd.topology_source import SourceError, load_topology

_FOLDER = scratch()


@only_small_hosts()
def take(data: bytes) -> None:
    """What follows the colon."""
    try:
        topology = load_topology("synthetic:" + data.decode(errors="surrogateescape"))
    except SourceError:
        return
    check(topology, _FOLDER / "again.json")


_WORDS = """
sockets=
numa=
l3=
cores=
smt=
memory=
distance=
near=
name=
,
2
16
"""
TARGET = Target(
    take,
    words=words(_WORDS),
    longest=256,
    runs=50_000,
)
