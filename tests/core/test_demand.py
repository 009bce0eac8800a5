"""What arrivals teach: counts, popular shapes, the scarcer resource, and when it is looked at anew."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.demand import EPOCH, POPULAR, REMEMBERED, Demand, Shape, Supply

SUPPLY = Supply(
    servers=2, cpus=64, memory_mib=4000, most_cpus=48, most_mib=3000, sold=((1000, 8), (3000, 24)), sold_mib=500
)
WISHES = st.tuples(st.sampled_from((1000, 2000, 3000)), st.integers(1, 4), st.sampled_from((512, 1024, 2048)))


def looks(demand: Demand, wishes: list[tuple[int, int, int]]) -> list[int]:
    """At which of these arrivals the cluster is looked at."""
    found = []
    for number, wish in enumerate(wishes):
        if demand.arrived(*wish):
            demand.look(SUPPLY)
            found.append(number)
    return found


def test_the_first_arrival_is_looked_at_then_ever_fewer() -> None:
    found = looks(Demand(), [(1000, 1, 1)] * 2000)
    assert found[:6] == [0, 64, 128, 192, 256, 320]
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert all(gap == max(EPOCH, earlier // 4) for gap, earlier in zip(gaps, found, strict=False))


def test_until_there_is_a_cluster_a_look_stays_due() -> None:
    demand = Demand()
    assert demand.arrived(1000, 1, 1)
    assert demand.arrived(1000, 1, 1)
    demand.look(SUPPLY)
    assert not demand.arrived(1000, 1, 1)


@given(st.lists(WISHES, min_size=1, max_size=200))
def test_popular_shapes_are_those_that_came_most_often(wishes: list[tuple[int, int, int]]) -> None:
    demand = Demand()
    for wish in wishes:
        demand.arrived(*wish)
    shapes = demand.look(SUPPLY).shapes
    assert len(shapes) == min(POPULAR, len(set(wishes)))
    for shape in shapes:
        assert wishes.count((shape.level, shape.vcpus, shape.memory_mib)) == shape.count
    least = min(shape.count for shape in shapes)
    left_out = set(wishes) - {(shape.level, shape.vcpus, shape.memory_mib) for shape in shapes}
    assert all(wishes.count(wish) <= least for wish in left_out)
    order = [(-shape.count, wishes.index((shape.level, shape.vcpus, shape.memory_mib))) for shape in shapes]
    assert order == sorted(order)


def test_the_scarcer_resource_counts_in_full() -> None:
    demand = Demand()
    demand.arrived(1000, 1, 1)
    market = demand.look(SUPPLY)
    assert (market.cpus, market.memory_mib, market.most_cpus, market.most_mib) == (32, 2000, 48, 3000)
    # 8 + 24 / 3 = 16 CPUs of 32 a server, and 500 MiB of 2000
    assert (market.cpu_use, market.memory_use) == (1.0, 0.5)


def test_an_empty_cluster_lacks_both_alike() -> None:
    demand = Demand()
    demand.arrived(1000, 1, 1)
    market = demand.look(Supply(1, 4, 0, 4, 0, (), 0))
    assert (market.cpu_use, market.memory_use) == (1.0, 1.0)


@given(st.lists(WISHES, max_size=150), st.lists(WISHES, max_size=150))
def test_a_lesson_is_gone_on_from(before: list[tuple[int, int, int]], after: list[tuple[int, int, int]]) -> None:
    one = Demand()
    looks(one, before)
    other = Demand(one.lesson())
    assert looks(one, after) == looks(other, after)
    assert one.lesson() == other.lesson()


@pytest.mark.parametrize("rare", [1, 2])
def test_what_was_popular_long_ago_is_forgotten(rare: int) -> None:
    demand = Demand()
    looks(demand, [(3000, 1, 1)] * rare + [(1000, 1, 1)] * REMEMBERED + [(2000, 1, 1)] * REMEMBERED)
    counts = {shape.level: shape.count for shape in demand.lesson().shapes}
    assert sum(counts.values()) <= REMEMBERED * 3 // 2
    assert counts[2000] > counts[1000]
    assert 3000 not in counts
    assert all(isinstance(shape, Shape) for shape in demand.lesson().shapes)
