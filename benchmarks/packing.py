"""How long a plan takes: finding the servers of a week, and placing VMs on thousands of servers.

Through the Python API, on one core, host accounting. week: all runs until the smallest number of servers is found, for
500 VMs at first and some 1,700 in all; the workload is in memory, and prepared anew each time. arrival: one run of a
week a hundred times as large, per arriving VM, departures included; nothing that earlier runs have learnt is kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import perf_counter

from benchmarks.sizing import SERVERS
from benchmarks.table import aligned, median
from benchmarks.workloads.batches import DATASETS
from benchmarks.workloads.variants import large
from benchmarks.workloads.week import MIXES, generate
from core.course import Course
from core.host_policy import HOST_POLICIES
from core.packing import Events, Packing
from core.sizing import lower_bound, servers_of, smallest

SEED = 11
TIMES = 100
LARGE_OF = ("ovhcloud2023", (25, 75, 0))
"""The week that needs some 7,000 servers, if it is TIMES as large."""
SPARE_PERCENT = 5
"""Servers above the lower bound, so that no policy refuses a VM."""
ROUNDS = 5
WEEK_LIMIT_MS = 300.0
ARRIVAL_LIMIT_US = 25.0
COLUMNS = ["", "target", "least", "median", "most", "measured"]


def _taken(call: Callable[[], object]) -> float:
    """Seconds."""
    start = perf_counter()
    call()
    return perf_counter() - start


def _row(name: str, limit: float, taken: list[float]) -> list[str]:
    middle = median(taken)
    return [
        name,
        f"<= {limit:.0f}",
        f"{min(taken):.2f}",
        f"{'!' if middle > limit else ''}{middle:.2f}",
        f"{max(taken):.2f}",
        f"{len(taken)} times",
    ]


def _weeks() -> list[list[str]]:
    weeks = [generate(dataset, mix, SEED).vms for dataset in DATASETS for mix in MIXES]
    return [
        _row(
            f"{name}, a week, ms",
            WEEK_LIMIT_MS,
            [1000 * _taken(lambda: smallest(Course(vms), SERVERS, policy)) for vms in weeks],  # noqa: B023  called now
        )
        for name, policy in HOST_POLICIES.items()
    ]


def _arrivals() -> tuple[str, list[list[str]]]:
    """What was placed, in words; and a row for each policy."""
    vms = large(generate(*LARGE_OF, SEED), random.Random(SEED), TIMES).vms
    bound = lower_bound(Course(vms), SERVERS)
    assert bound is not None
    servers = servers_of(SERVERS, bound * (100 + SPARE_PERCENT) // 100)
    rows = []
    for name, policy in HOST_POLICIES.items():
        taken = []
        for _ in range(ROUNDS):
            events, packing = Events(vms), Packing(servers, policy)
            start = perf_counter()
            refused = packing.run(events)
            taken.append((perf_counter() - start) * 1e6 / len(vms))
            assert refused < 0, f"{name} refuses VM {refused}"
        rows.append(_row(f"{name}, an arrival, us", ARRIVAL_LIMIT_US, taken))
    return f"{len(vms):,} arrivals over {len(servers):,} servers", rows


def main() -> None:
    """Measure and print."""
    placed, arrivals = _arrivals()
    print(f"Planning: weeks of seed {SEED}, one for each dataset and mix; {placed}")
    print("'!' marks a median above its target\n")
    print(aligned(COLUMNS, [*_weeks(), *arrivals]))
