"""The policy worth: its figures are those of its rule, and it does what it is for."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.admission import refusal_on
from core.demand import Market, Shape
from core.host_policy import HOST_POLICIES
from core.level import UNIT
from core.model import HostState
from core.packing import Packing
from core.status import host_status
from core.worth import Worth
from tests.cluster_oracle import plain
from tests.core.test_admission import lived
from tests.worth_oracle import WorthOracle

LEVEL = st.sampled_from((1000, 1500, 2000, 3000))
SOLD = st.builds(Shape, level=LEVEL, vcpus=st.integers(1, 6), memory_mib=st.integers(2, 9), count=st.integers(1, 9))
USES = st.sampled_from([(1.0, 1.0), (1.0, 0.98), (0.97, 1.0), (1.0, 0.0), (0.3, 1.0)])


def market(shapes: list[Shape], uses: tuple[float, float] = (1.0, 1.0), most: tuple[int, int] = (8, 64)) -> Market:
    return Market(
        shapes=tuple(shapes),
        cpus=6.5,
        memory_mib=24.5,
        most_cpus=most[0],
        most_mib=most[1],
        cpu_use=uses[0],
        memory_use=uses[1],
    )


def oracle_of(found: Market) -> WorthOracle:
    sold = [(Fraction(s.level, UNIT), s.vcpus, s.memory_mib, s.count) for s in found.shapes]
    return WorthOracle(sold, found.cpus, found.memory_mib, (found.cpu_use, found.memory_use))


@settings(deadline=None)
@given(
    state=lived(),
    shapes=st.lists(SOLD, min_size=1, max_size=4),
    uses=USES,
    level=LEVEL,
    vcpus=st.integers(1, 6),
    memory=st.integers(1, 9),
)
def test_the_score_is_that_of_the_rule(
    state: HostState, shapes: list[Shape], uses: tuple[float, float], level: int, vcpus: int, memory: int
) -> None:
    status = host_status(state)
    if refusal_on(status, level, vcpus, memory) is not None:
        return
    found = market([*shapes, Shape(1000, 1, 1, 1)], uses, (status.cpus, status.memory_mib))
    expected = oracle_of(found).cost(plain(state), Fraction(level, UNIT), vcpus, memory)
    assert -HOST_POLICIES["worth"].score(status, level, vcpus, memory, found) == pytest.approx(expected, abs=1e-8)


@settings(deadline=None)
@given(st.lists(SOLD, min_size=1, max_size=5), USES, st.integers(0, 24), st.integers(0, 24))
def test_worth_is_the_best_filling(shapes: list[Shape], uses: tuple[float, float], thirds: int, memory: int) -> None:
    found = market([*shapes, Shape(1000, 1, 1, 1)], uses)
    cpus = Fraction(thirds, 3)
    assert Worth(found).of(float(cpus), memory) == pytest.approx(oracle_of(found).worth(cpus, memory), abs=1e-9)


def test_before_the_first_arrival_nothing_is_worth_anything() -> None:
    assert Worth(None).of(32, 131072) == 0


@given(st.lists(SOLD, min_size=1, max_size=5), st.integers(1, 1 << 20), st.integers(1, 1 << 40))
@settings(deadline=None, max_examples=30)
def test_servers_of_any_size(shapes: list[Shape], cpus: int, memory: int) -> None:
    """Their table is coarser; more room is never worth less, and what is beyond the largest is that."""
    table = Worth(market(shapes, most=(cpus, memory)))
    full = table.of(cpus, memory)
    assert 0 <= table.of(cpus / 2, memory) <= full
    assert table.of(cpus, memory // 2) <= full == table.of(2 * cpus, 2 * memory)
    assert table.of(-1, memory) == 0


def test_with_many_levels_a_decision_takes_no_longer() -> None:
    """There are hundreds of sets of shapes that hosts refuse: their tables are coarse. Finer ones took seconds."""
    rnd = random.Random(4)
    sizes = [
        (level, vcpus, 512 * rnd.randint(1, 4 * vcpus))
        for level in (1000, 1250, 1500, 2000, 2500, 3000)
        for vcpus in (1, 2, 4, 8)
    ]
    packing = Packing([(128, 1 << 20)] * 200, HOST_POLICIES["worth"], critical_size=6)
    placed = [(packing.place(*size), size) for size in rnd.choices(sizes, k=4000)]
    for server, size in rnd.sample([one for one in placed if one[0] >= 0], 2000):
        packing.remove(server, *size)
    assert all(packing.place(*size) >= 0 for size in rnd.choices(sizes, k=500))


def test_too_many_shapes_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="25 shapes"):
        Worth(market([Shape(1000, n + 1, 1, 1) for n in range(25)]))
