"""Some hundred stories, always the same ones; and whether the simulation would see what it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.__main__ import again
from tests.simulation.mistakes import MISTAKES
from tests.simulation.seeds import MOST_SEEDS, endings, simulated, workers

SEEDS = 500


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with workers() as found:
        yield found


def test_whatever_happens_nothing_is_lost_and_no_two_levels_share_a_cpu(pool: ProcessPoolExecutor) -> None:
    found = [ending for some in simulated(pool, 0, SEEDS) for ending in some]
    assert [ending.seed for ending in found] == list(range(SEEDS))
    assert [f"{ending.faults[0]}: {again(ending.seed)}" for ending in found if ending.faults] == []


def test_a_seed_is_always_the_same_story(pool: ProcessPoolExecutor) -> None:
    forward = pool.submit(endings, 0, 40)
    backward = [pool.submit(endings, seed, 1) for seed in reversed(range(40))]
    digests = [ending.digest for ending in forward.result()]
    assert digests == [found.result()[0].digest for found in reversed(backward)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(pool: ProcessPoolExecutor, mistake: str) -> None:
    found = pool.submit(endings, 0, MOST_SEEDS, mistake, until_found=True).result()
    assert found[-1].faults, f"{mistake} was not found within {MOST_SEEDS} seeds"
