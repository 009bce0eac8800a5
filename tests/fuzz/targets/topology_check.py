"""What must be so of every topology that was decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core import cpuset
from core.topology import Topology
from vmstackd.topology_source import dump_topology, synthetic
from vmstackd.topology_source.file import load_file

MOST_CPUS = 256
"""The largest hosts that are allowed take a third of a second each; too long for so many inputs."""


@contextmanager
def only_small_hosts() -> Iterator[None]:
    """Within it, nothing of more than MOST_CPUS is decoded."""
    before = cpuset.HIGHEST_CPU, synthetic.MOST_CPUS
    cpuset.HIGHEST_CPU, synthetic.MOST_CPUS = MOST_CPUS - 1, MOST_CPUS
    try:
        yield
    finally:
        cpuset.HIGHEST_CPU, synthetic.MOST_CPUS = before


def check(topology: Topology, file: Path) -> None:
    """It can be written and read again, and is then the same but for the numbers of groups. file: to be written."""
    topology._check()
    text = dump_topology(topology)
    file.write_text(text, encoding="utf-8")
    again = load_file(str(file))
    assert dump_topology(again) == text
    assert (again.name, again.memory_mib, again.host_cpus) == (topology.name, topology.memory_mib, topology.host_cpus)
    assert (again.cpu_ids, again.nodes) == (topology.cpu_ids, topology.nodes)
    for first, second in zip(topology.cpu_ids[:16], topology.cpu_ids[1:17], strict=False):
        assert again.distance(first, second) == topology.distance(first, second)
    half = topology.without(topology.cpu_ids[1::2])
    assert half.cpu_ids == topology.cpu_ids[::2]
