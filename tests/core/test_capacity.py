import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.capacity import cpus_needed, growth, largest_vcpus, subset_need, surplus
from core.model import Rules
from tests.core.hosts import LEVELS, empty, epyc, filled, i7, restored


@pytest.mark.parametrize(
    ("ratio", "vcpus", "widest", "cpus"),
    [
        (1000, 7, 3, 7),
        (2000, 7, 3, 4),
        (2000, 8, 3, 4),
        (2000, 9, 8, 8),  # no VM is oversubscribed with itself
        (1200, 6, 4, 5),
        (1400, 63, 8, 45),  # 45 * 1.4 is exactly 63
        (1400, 64, 8, 46),
        (2800, 126, 16, 45),
        (3300, 33, 1, 10),
        (1001, 1001, 1, 1000),
    ],
)
def test_cpus_needed_is_exact(ratio: int, vcpus: int, widest: int, cpus: int) -> None:
    assert cpus_needed(ratio, vcpus, widest) == cpus


@pytest.mark.parametrize("level", LEVELS)
def test_a_new_level_needs_the_width_of_its_vm(level: int) -> None:
    assert growth(Rules(0), None, level, 5) == 5


@pytest.mark.parametrize(
    ("critical", "level", "cpus", "widths", "vcpus", "extra"),
    [
        (6, 3000, 20, [4] * 5, 4, 0),  # "over": the sixth VM needs nothing, 24 / 3 = 8
        (6, 3000, 16, [4] * 4, 4, 4),  # still 1:1
        (3, 2000, 3, [2, 1], 2, 0),  # "overref"
        (6, 3000, 8, [4] * 4, 4, 12),  # "under": the debt is paid by the next VM
        (0, 1200, 3, [1, 1], 4, 2),  # "rounding"
        (0, 1400, 45, [5] * 11, 8, 0),
        (0, 2800, 45, [10] * 11, 16, 0),
        (0, 3000, 4, [4, 4, 4], 1, 1),
        (0, 3000, 4, [4, 4, 4], 12, 8),  # width: 12 CPUs, though 24 / 3 = 8
        (0, 3000, 8, [4], 8, 0),
    ],
)
def test_growth(critical: int, level: int, cpus: int, widths: list[int], vcpus: int, extra: int) -> None:
    state = restored(empty(epyc(), critical), level, cpus, widths)
    assert growth(state.rules, state.subset(level), level, vcpus) == extra


@pytest.mark.parametrize(
    ("critical", "level", "cpus", "widths", "need", "spare"),
    [
        (0, 3000, 4, [1, 2], 2, 2),
        (0, 3000, 4, [1, 4], 4, 0),
        (0, 1500, 4, [1, 1, 1], 2, 2),
        (3, 3000, 4, [1, 2], 3, 1),
        (6, 3000, 8, [4] * 4, 16, 0),  # owes eight, has nothing to give
        (0, 3300, 1, [1], 1, 0),
    ],
)
def test_need_and_surplus(critical: int, level: int, cpus: int, widths: list[int], need: int, spare: int) -> None:
    state = restored(empty(epyc(), critical), level, cpus, widths)
    subset = state.subset(level)
    assert subset is not None
    assert subset_need(state.rules, subset) == need
    assert surplus(state.rules, subset) == spare


@given(st.integers(0, 4), st.sampled_from(LEVELS), st.integers(1, 8), st.lists(st.integers(1, 4), min_size=1))
def test_surplus_is_what_the_need_leaves(critical: int, level: int, cpus: int, widths: list[int]) -> None:
    state = restored(empty(i7(), critical), level, cpus, widths)
    subset = state.subset(level)
    assert subset is not None
    assert surplus(state.rules, subset) == max(0, cpus - subset_need(state.rules, subset))


@pytest.mark.parametrize(
    ("critical", "level", "cpus", "widths", "largest"),
    [
        (0, 2000, 2, [2, 2], 8),  # bounded by the 8 CPUs of the host
        (0, 2000, 8, [4, 4, 4], 4),
        (0, 2000, 8, [8, 8], 0),
        (6, 2000, 4, [2, 2], 4),
        (3, 2000, 4, [2, 2], 8),
        (6, 2000, 1, [3, 3, 3], 0),  # owes more than the host has
        (0, 2000, 8, [9], 0),  # a VM wider than the host, found so
    ],
)
def test_largest_vcpus(critical: int, level: int, cpus: int, widths: list[int], largest: int) -> None:
    state = restored(empty(i7(), critical), level, cpus, widths)
    assert largest_vcpus(state, level) == largest


def test_largest_vcpus_of_a_new_level_is_what_is_free() -> None:
    assert largest_vcpus(filled(empty(i7()), "a", 3, 1, 1000), 2000) == 5
