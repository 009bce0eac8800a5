from typing import Any

import pytest
from hypothesis import given

from core.topology import NO_CACHE, Cpu, Topology, TopologyError
from tests.core.hosts import build, epyc, i7, topologies
from tests.oracle import host_of


@pytest.mark.parametrize(
    ("topology", "first", "second", "distance"),
    [
        (epyc(), 0, 128, 10),  # SMT sibling
        (epyc(), 0, 3, 40),  # same L3
        (epyc(), 0, 4, 50),  # same socket
        (epyc(), 0, 64, 72),  # other socket
        (i7(), 0, 4, 10),
        (i7(), 0, 1, 40),
        (build(nodes=2, cores=1, distances=[[10, 12], [12, 10]]), 0, 1, 52),  # two nodes of one socket
        (build(sockets=2, cores=1, distances=[[10, 21], [30, 10]]), 0, 1, 61),  # lopsided: from the first
        (build(sockets=2, cores=1, distances=[[10, 21], [30, 10]]), 1, 0, 70),
        (build(cores=2, smt=1, without_l3=frozenset({0, 1})), 0, 1, 50),  # what both lack is not shared
        (build(cores=2, smt=1, without_l3=frozenset({1})), 0, 1, 50),
    ],
)
def test_distance(topology: Topology, first: int, second: int, distance: int) -> None:
    assert topology.distance(first, second) == distance


@given(topologies())
def test_every_distance_is_the_plain_one(topology: Topology) -> None:
    plain = host_of(topology)
    pairs = [(a, b) for a in topology.cpu_ids for b in topology.cpu_ids if a != b]
    assert [topology.distance(*pair) for pair in pairs] == [plain.distance(*pair) for pair in pairs]


def test_a_cpu_has_no_distance_to_itself_or_to_a_stranger() -> None:
    with pytest.raises(ValueError, match="CPU 3 has no distance to itself"):
        i7().distance(3, 3)
    for stranger in (-1, 8, 8192, 2**40):
        with pytest.raises(KeyError):
            i7().distance(0, stranger)


def _parts(**changed: object) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "name": "two",
        "cpus": [Cpu(0, 0, 0, 0, (0,)), Cpu(1, 0, 0, 1, (1,))],
        "cache_names": ["L1"],
        "nodes": [0],
        "node_distances": [[10]],
        "memory_mib": 100,
        "host_cpus": 2,
    }
    return {**parts, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cpus": []}, "cpus: there is no usable CPU"),
        ({"cpus": [Cpu(1, 0, 0, 0, (0,)), Cpu(1, 0, 0, 1, (1,))]}, "cpus: CPU 1 is listed twice"),
        ({"cpus": [Cpu(-1, 0, 0, 0, (0,))]}, "cpus: CPU -1 is not an id from 0 to 8191"),
        ({"cpus": [Cpu(8192, 0, 0, 0, (0,))]}, "cpus: CPU 8192 is not an id from 0 to 8191"),
        ({"cpus": [Cpu(0, 0, 7, 0, (0,))]}, "cpus: CPU 0 is in NUMA node 7, which is not described"),
        ({"cpus": [Cpu(0, 0, 0, 0, (0, 0))]}, "cpus: CPU 0 has 2 cache levels, not 1"),
        ({"host_cpus": 1}, "host_cpus: 1 is less than the 2 CPUs listed"),
        ({"memory_mib": 0}, "memory_mib: 0 MiB is not a host's memory"),
        ({"nodes": [1, 0]}, "nodes: NUMA node ids must ascend without repetition"),
        ({"nodes": [0, 0]}, "nodes: NUMA node ids must ascend without repetition"),
        ({"nodes": [0, 1]}, "node_distances: must be 2 rows of 2 numbers"),
        ({"node_distances": [[10, 20]]}, "node_distances: must be 1 rows of 1 numbers"),
        ({"node_distances": [[256]]}, "node_distances: a distance is a number from 0 to 255"),
    ],
)
def test_a_contradiction_is_refused_with_its_field(changed: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Topology(**_parts(**changed))
    assert str(caught.value) == message
    assert caught.value.field == message.partition(":")[0]


def test_nodes_need_not_be_numbered_from_zero() -> None:
    cpus = [Cpu(4, 0, 2, 0, (NO_CACHE,)), Cpu(9, 1, 8, 1, (NO_CACHE,))]
    topology = Topology(**_parts(cpus=cpus, nodes=[2, 8], node_distances=[[10, 15], [16, 10]], host_cpus=12))
    assert (topology.distance(4, 9), topology.distance(9, 4)) == (25, 26)


def test_excluded_cpus_are_gone_and_the_others_keep_their_distances() -> None:
    whole = epyc()
    part = whole.without([*range(12), *range(128, 140), 999])
    assert part.cpu_ids == (*range(12, 128), *range(140, 256))
    assert part.host_cpus == 256
    assert part.memory_mib == whole.memory_mib
    assert [part.distance(12, cpu) for cpu in (140, 13, 16, 64)] == [10, 40, 50, 72]


def test_excluding_nothing_is_the_same_host_and_everything_is_refused() -> None:
    topology = i7()
    assert topology.without([8, 9]) is topology
    with pytest.raises(TopologyError, match="every CPU of the host is excluded"):
        topology.without(range(8))


def test_repr_is_short() -> None:
    assert repr(epyc()) == "Topology('built', CPUs 0-255, 1031752 MiB)"
