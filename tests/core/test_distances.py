from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.distances import CpuPool, DistanceSums, farthest, nearest, nearest_one_by_one
from core.topology import Topology
from tests.core.hosts import build, epyc, i7, topologies
from tests.oracle import host_of


@st.composite
def split_hosts(draw: st.DrawFn) -> tuple[Topology, tuple[int, ...], tuple[int, ...]]:
    """A host, some of its CPUs as members of a set, and some of the others as a pool; in list order."""
    topology = draw(topologies())
    marks = draw(st.lists(st.sampled_from("mp-"), min_size=len(topology.cpu_ids), max_size=len(topology.cpu_ids)))
    named = list(zip(topology.cpu_ids, marks, strict=True))
    return topology, tuple(c for c, mark in named if mark == "m"), tuple(c for c, mark in named if mark == "p")


@given(split_hosts())
def test_pools_are_sets_in_list_order(split: tuple[Topology, tuple[int, ...], tuple[int, ...]]) -> None:
    topology, members, pool = split
    made = topology.distances.pool(reversed(pool))
    assert made.ids() == tuple(made) == pool
    assert made.count == len(made) == len(pool)
    assert [cpu for cpu in topology.cpu_ids if cpu in made] == list(pool)
    both = made.plus(members)
    assert set(both) == {*pool, *members}
    assert both.minus(members) == made
    assert hash(both.minus(members)) == hash(made)
    assert made.ids() == pool  # unchanged by what was made of it


def test_a_pool_refuses_what_it_cannot_do() -> None:
    pool = i7().distances.pool([1, 2])
    with pytest.raises(ValueError, match="CPU 1 is already in the pool"):
        pool.plus((0, 1))
    with pytest.raises(ValueError, match="CPU 3 is already in the pool"):
        pool.plus((3, 3))
    with pytest.raises(ValueError, match="CPU 0 is not in the pool"):
        pool.minus((1, 0))
    for stranger in (-1, 8):
        assert stranger not in pool
        with pytest.raises(KeyError):
            pool.plus((stranger,))
    assert pool.ids() == (1, 2)
    assert pool != object()
    assert repr(pool) == "CpuPool((1, 2))"


def test_pools_of_a_host_with_one_cpu_do_not_share_memory() -> None:
    topology = build(cores=1, smt=1)
    full, other = topology.distances.pool(), topology.distances.pool([])
    assert (full.ids(), other.ids()) == ((0,), ())
    assert full.minus((0,)).ids() == ()
    assert full.ids() == (0,)


@given(split_hosts())
def test_sums_follow_their_set(split: tuple[Topology, tuple[int, ...], tuple[int, ...]]) -> None:
    topology, members, pool = split
    sums = topology.distances.sums(members)
    more = sums.plus(pool)
    assert more == topology.distances.sums(tuple(reversed((*members, *pool))))
    assert more.minus(pool) == sums
    assert hash(more.minus(pool)) == hash(sums)
    assert (more == sums) == (not pool)
    assert sums != object()


@given(split_hosts(), st.data())
def test_choices_are_the_plain_ones(
    split: tuple[Topology, tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    topology, members, free = split
    if not free:
        return
    plain = host_of(topology)
    pool = topology.distances.pool(free)
    sums = topology.distances.sums(members)
    count = data.draw(st.integers(0, len(free)))

    assert farthest(pool, [sums]) == max(free, key=lambda cpu: plain.mean_distance(list(members), cpu))
    start = data.draw(st.sampled_from(free))
    near = sorted((cpu for cpu in free if cpu != start), key=lambda cpu: plain.distance(start, cpu))
    assert nearest(pool, start, min(count, len(near))) == tuple(near[:count])
    chosen: list[int] = []
    for _ in range(count):
        rest = [cpu for cpu in free if cpu not in chosen]
        chosen.append(min(rest, key=lambda cpu: plain.mean_distance([*members, *chosen], cpu)))
    assert nearest_one_by_one(pool, sums, count) == tuple(chosen)
    assert pool.ids() == free
    assert sums == topology.distances.sums(members)


def test_sums_of_several_sets_count_together() -> None:
    distances = epyc().distances
    pool = distances.pool().minus((0, 64))
    assert farthest(pool, []) == 1
    assert farthest(pool, [distances.sums((0,))]) == 65
    assert farthest(pool, [distances.sums((0,)), distances.sums((64,))]) == 4


def test_too_few_cpus_are_refused() -> None:
    distances = i7().distances
    pool = distances.pool([0, 1])
    with pytest.raises(ValueError, match="too few"):
        nearest(pool, 0, 2)
    with pytest.raises(ValueError, match="too few"):
        nearest_one_by_one(pool, distances.sums(), 3)
    with pytest.raises(ValueError, match="empty"):
        farthest(distances.pool([]), [])


def test_hosts_are_not_mixed() -> None:
    small, large = i7().distances, epyc().distances
    with pytest.raises(ValueError, match="another host"):
        nearest_one_by_one(large.pool(), small.sums(), 1)
    with pytest.raises(ValueError, match="another host"):
        farthest(large.pool(), [large.sums(), small.sums()])
    no_sums: Any = b"no sums"
    with pytest.raises(TypeError):
        farthest(large.pool(), [no_sums])


def test_values_cannot_be_made_without_a_host() -> None:
    for kind in (CpuPool, DistanceSums):
        with pytest.raises(TypeError, match="are made by Distances"):
            kind()
