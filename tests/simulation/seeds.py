"""Many seeds at once: on all CPUs, each the same story wherever it is told."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from itertools import islice

import msgspec

from tests.simulation.mistakes import planted
from tests.simulation.story import Ending, tell
from vmstackctl.plan.parallel import die_with_parent

CHUNK = 20
"""Seeds that a process is given at once."""
MOST_SEEDS = 1000
"""Within which each mistake must be found."""


def endings(first: int, count: int, mistake: str = "", *, until_found: bool = False) -> list[Ending]:
    """Of these seeds, without their stories. until_found: end with the first that has a fault."""
    found: list[Ending] = []
    with planted(mistake) if mistake else nullcontext():
        for seed in range(first, first + count):
            found.append(msgspec.structs.replace(tell(seed), story=()))
            if until_found and found[-1].faults:
                break
    return found


def workers() -> ProcessPoolExecutor:
    """One for each CPU. The order of sets is the same in all, so that a seed is the same story everywhere."""
    os.environ["PYTHONHASHSEED"] = "0"
    return ProcessPoolExecutor(
        len(os.sched_getaffinity(0)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=die_with_parent,
    )


def simulated(pool: ProcessPoolExecutor, first: int, count: int) -> Iterator[list[Ending]]:
    """Of that many seeds, in their order, some at a time."""
    chunks = ((start, min(CHUNK, first + count - start)) for start in range(first, first + count, CHUNK))
    waiting: list[Future[list[Ending]]] = [pool.submit(endings, *chunk) for chunk in islice(chunks, 8)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(endings, *chunk) for chunk in islice(chunks, 1)]
