"""How many servers each host policy needs, for many workloads: ``python -m benchmarks.sizing``, or ``make sizing``.

The published experiment, with servers of 32 CPUs and 128 GiB that are found by ``core.sizing``. Sets of workloads:

given: the files of the experiment, if they are beside the project. seeds: weeks by the same rules with other seeds.
The others: variants (``benchmarks.workloads.variants``) of the given files, or where these are not there of the weeks
of the same seed; large and turnover of a few, pooled of all in one, these three with the first seed only.

saved: servers, against a cluster for each level with first fit, the mean of all workloads. gap: servers above the lower
bound. above progress: the most on one workload, and on how many it is more than one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from benchmarks.table import aligned
from benchmarks.workloads.batches import DATASETS
from benchmarks.workloads.table import PACKED
from benchmarks.workloads.variants import VARIANTS, pooled, vary
from benchmarks.workloads.week import MIXES, Mix, generate, name_of
from core.course import Course, by_level
from core.host_policy import HOST_POLICIES
from core.packing import ACCOUNTINGS
from core.sizing import dedicated, lower_bound, smallest
from core.workload import Accounting, ServerKind, Workload
from vmstackctl.plan.source import read_workload

GIVEN = Path(__file__).resolve().parents[2] / "shared" / "workloads"
GIVEN_SEED = 1
SERVERS = (ServerKind(32, 128 * 1024),)
OF_DEDICATED = "first-fit"
COMPARED = "progress"
SETS = ("given", "seeds", "shuffled", "steady", "churn", "wide", "large", "turnover", "pooled")
ONCE = frozenset({"given", "large", "turnover", "pooled"})
"""Sets that are not made for every seed."""
LARGE = (
    ("azure2017", (50, 25, 25)),
    ("ovhcloud2023", (0, 75, 25)),
    ("ovhcloud2023", (25, 25, 50)),
    ("ovhcloud2023", (50, 0, 50)),
)
"""Weeks that are made large: where both resources are short, and where most is to be saved."""
TARGETS = {"given": 0.4, "seeds": 0.4, "shuffled": 1.5, "steady": 3.0, "churn": 3.0, "large": 0.5, "turnover": 0.5}
"""Percent: the mean gap of the best policy."""
COLUMNS = ["policy", "servers", "saved", "gap", "target", "worst", "of workload", "above progress", "more than 1"]


class Case(msgspec.Struct, frozen=True):
    """A workload to be made. weeks: of which datasets and mixes it is made."""

    of: str
    seed: int
    weeks: tuple[tuple[str, Mix], ...]
    accounting: Accounting
    policies: tuple[str, ...]
    critical_size: int


class Judged(msgspec.Struct, frozen=True):
    """What was found. servers: in the order of the case's policies."""

    name: str
    lower_bound: int
    dedicated: int
    servers: tuple[int, ...]

    def gap(self, place: int) -> float:
        """Percent above the lower bound, of the policy at this place."""
        return 100 * (self.servers[place] / self.lower_bound - 1)

    def saved(self, place: int) -> float:
        """Percent of the servers of dedicated clusters."""
        return 100 * (1 - self.servers[place] / self.dedicated)


def judge(case: Case) -> Judged:
    """Make the workload and find its servers."""
    name, workload = _made(case)
    course = Course(workload.vms)
    bound = lower_bound(course, SERVERS)
    apart = dedicated(
        by_level(workload.vms),
        SERVERS,
        HOST_POLICIES[OF_DEDICATED],
        critical_size=case.critical_size,
        accounting=case.accounting,
    )
    servers = [_smallest(course, case, policy) for policy in case.policies]
    uses = [cluster.use for cluster in apart]
    assert bound is not None
    assert None not in uses
    return Judged(name, bound, sum(use.servers for use in uses if use is not None), tuple(servers))


def _smallest(course: Course, case: Case, policy: str) -> int:
    found = smallest(
        course, SERVERS, HOST_POLICIES[policy], critical_size=case.critical_size, accounting=case.accounting
    )
    assert found is not None, "there is no end of servers, and each is large enough for every VM"
    return found


def _made(case: Case) -> tuple[str, Workload]:
    weeks = dict(_week(case, dataset, mix) for dataset, mix in case.weeks)
    if case.of == "pooled":
        return "all", pooled(weeks)
    name, workload = next(iter(weeks.items()))
    return (name, vary(case.of, name, workload, case.seed)) if case.of in VARIANTS else (name, workload)


def _week(case: Case, dataset: str, mix: Mix) -> tuple[str, Workload]:
    if case.of == "seeds" or not GIVEN.is_dir():
        return name_of(dataset, mix, case.seed), generate(dataset, mix, case.seed)
    name = name_of(dataset, mix, GIVEN_SEED)
    return name, read_workload(GIVEN / (name + PACKED))


def cases(
    of: str, seeds: Sequence[int], accounting: Accounting, policies: Sequence[str], critical_size: int
) -> list[Case]:
    """All workloads of one of SETS."""
    weeks = [(dataset, mix) for dataset in DATASETS for mix in MIXES]
    parts = (
        [tuple(weeks)] if of == "pooled" else [(week,) for week in (LARGE if of in {"large", "turnover"} else weeks)]
    )
    return [
        Case(of, seed, part, accounting, tuple(policies), critical_size)
        for seed in (seeds[:1] if of in ONCE else seeds)
        for part in parts
    ]


def table(of: str, policies: Sequence[str], found: Sequence[Judged]) -> str:
    """A row for each policy, above it the bound; a target is that of the policy with the smallest gap."""
    gaps = [[judged.gap(place) for judged in found] for place in range(len(policies))]
    means = [sum(of_policy) / len(of_policy) for of_policy in gaps]
    bound = sum(judged.lower_bound for judged in found)
    saved = sum(100 * (1 - judged.lower_bound / judged.dedicated) for judged in found) / len(found)
    rows = [["lower bound", f"{bound:,}", f"{saved:.2f} %", "", "", "", "", "", ""]]
    for place, policy in enumerate(policies):
        worst = max(range(len(found)), key=gaps[place].__getitem__)
        target = TARGETS.get(of) if means[place] == min(means) else None
        rows.append(
            [
                policy,
                f"{sum(judged.servers[place] for judged in found):,}",
                f"{sum(judged.saved(place) for judged in found) / len(found):.2f} %",
                f"{'!' if target is not None and means[place] > target else ''}{means[place]:.3f} %",
                "" if target is None else f"<= {target} %",
                f"{gaps[place][worst]:.1f} %",
                found[worst].name,
                *_above(policies, place, found),
            ]
        )
    return aligned(COLUMNS, rows)


def _above(policies: Sequence[str], place: int, found: Sequence[Judged]) -> list[str]:
    if COMPARED not in policies or policies[place] == COMPARED:
        return ["", ""]
    compared = policies.index(COMPARED)
    above = [judged.servers[place] - judged.servers[compared] for judged in found]
    return [f"{max(above):+}", str(sum(more > 1 for more in above))]


def by_mix(policies: Sequence[str], found: Sequence[Judged]) -> str:
    """A row for each dataset and mix: means over its workloads, whatever their seed."""
    mixes: dict[str, list[Judged]] = {}
    for judged in found:
        mixes.setdefault(judged.name.rpartition("_")[0], []).append(judged)
    columns = ["", "dedicated", "bound"]
    for policy in policies:
        columns += [policy, "saved"]
    rows = []
    for mix, alike in mixes.items():
        row = [mix, _mean([judged.dedicated for judged in alike]), _mean([judged.lower_bound for judged in alike])]
        for place in range(len(policies)):
            row.append(_mean([judged.servers[place] for judged in alike]))
            row.append(f"{_mean([judged.saved(place) for judged in alike])} %")
        rows.append(row)
    return aligned(columns, rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}"


def judge_all(every: Sequence[Sequence[Case]]) -> Iterator[list[Judged]]:
    """What was found for each list of cases, in this order, on all CPUs that this process may use."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
        running = [[pool.submit(judge, case) for case in cases] for cases in every]
        for futures in running:
            yield [future.result() for future in futures]


def parse_seeds(text: str) -> list[int]:
    """Read "11-20" or "3,5,11-20". Raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"{part!r} is neither a seed nor seeds from one to another, as 11-20")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seeds


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return text.split(",")

    return parse


def _seeds(text: str) -> list[int]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, and print a table for each accounting and set; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizing",
        description="Finds how many servers host policies need for many workloads.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("--seeds", type=_seeds, default="11-20", help="of weeks and variants, as 3,11-20 (default: 11-20)")
    option("--sets", type=_names(SETS), default=",".join(SETS), help=f"some of {', '.join(SETS)} (default: all)")
    option("--policies", type=_names(list(HOST_POLICIES)), default=",".join(HOST_POLICIES), help="default: all")
    option("--accountings", type=_names(ACCOUNTINGS), default=",".join(ACCOUNTINGS), help="default: both")
    option("--critical-size", type=int, default=2, help="from how many VMs on a level is oversubscribed (default: 2)")
    option("--by-mix", action="store_true", help="tell of each dataset and mix, too")
    given = parser.parse_args(arguments)
    sets, has_given = given.sets, GIVEN.is_dir()
    if not has_given and "given" in sets:
        print(f"left out the given files: they are not in {GIVEN.parent.name}/{GIVEN.name} beside the project")
        sets = [of for of in sets if of != "given"]
    made_of = "the given files" if has_given else "weeks"
    print(f"Seeds {', '.join(map(str, given.seeds))}; variants of {made_of}; critical size {given.critical_size}")
    print("'!' marks a mean gap above its target, where no policy reaches it")
    asked = [
        (accounting, of, cases(of, given.seeds, accounting, given.policies, given.critical_size))
        for of in sets
        for accounting in given.accountings
    ]
    for (accounting, of, listed), found in zip(asked, judge_all([listed for _, _, listed in asked]), strict=True):
        print(f"\n{of}, {accounting} accounting: {len(listed)} workloads\n")
        print(table(of, given.policies, found), flush=True)
        if given.by_mix:
            print(f"\n{by_mix(given.policies, found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
