"""Workloads of our own: drawn by the rules of the given files, always the same for a seed, and varied as they say."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from hashlib import sha256
from math import inf
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.workloads import __main__ as command
from benchmarks.workloads.batches import DATASETS, Size, sizes_of
from benchmarks.workloads.table import file_stem, write_csv
from benchmarks.workloads.variants import (
    CHURN_LIFETIMES,
    CHURN_VMS,
    LARGE_TIMES,
    MEAN_S,
    STEADY_LIFETIMES,
    STEADY_VMS,
    TURNOVER_ARRIVALS,
    TURNOVER_VMS,
    VARIANTS,
    WIDE_VCPUS,
    pooled,
    vary,
)
from benchmarks.workloads.week import CAP_MIB, END_S, HOUR_S, LEVELS, MIXES, Mix, generate, name_of
from core.course import Course
from core.level import UNIT
from core.workload import Workload, WorkloadVm
from core.workload_parser import parse_workload
from core.workload_table import VM_COLUMNS
from tests.running import ROOT
from vmstackctl.plan.source import read_workload

GIVEN = ROOT.parent / "shared" / "workloads"
DAY_S = 24 * HOUR_S
WEEKS = [(dataset, mix) for dataset in DATASETS for mix in MIXES]

needs_given = pytest.mark.skipif(
    not GIVEN.is_dir(), reason="the given workloads (../shared/workloads) are not beside this checkout"
)


def batches(workload: Workload, count: int) -> list[list[WorkloadVm]]:
    """The VMs by number: 500 first, then those of each day."""
    vms = sorted(workload.vms, key=lambda vm: int(vm.name))
    return [vms[:500], *(vms[start : start + count] for start in range(500, len(vms), count))]


def size(vm: WorkloadVm) -> Size:
    return vm.vcpus, vm.memory_mib


def as_placed(sizes: list[Size], level: int) -> list[Size]:
    return [(vcpus, memory_mib if level == UNIT else min(memory_mib, CAP_MIB)) for vcpus, memory_mib in sizes]


def check_week(workload: Workload, dataset: str, mix: Mix) -> None:
    """What holds for each week, given or our own."""
    daily = sizes_of(DATASETS[dataset].daily)
    found = batches(workload, len(daily))
    assert [len(batch) for batch in found] == [500, *[len(daily)] * 6]
    for day, batch in enumerate(found):
        drawn = daily if day else sizes_of(DATASETS[dataset].first)
        for vm, of_vm in zip(batch, drawn, strict=True):
            assert [size(vm)] == as_placed([of_vm], vm.level)
            assert vm.arrival % HOUR_S == vm.departure % HOUR_S == 0
            assert vm.departure == END_S or HOUR_S <= vm.departure - vm.arrival <= DAY_S
            assert (day * DAY_S <= vm.arrival < (day + 1) * DAY_S) if day else vm.arrival == 0
        levels = Counter(vm.level for vm in batch)
        for level, percent in zip(LEVELS, mix, strict=True):
            share = len(batch) * percent / 100
            assert share - 2 < levels[level] < share + 1


@needs_given
@pytest.mark.parametrize(("dataset", "mix"), WEEKS)
def test_the_given_files_follow_the_same_rules(dataset: str, mix: Mix) -> None:
    given_week = read_workload(GIVEN / f"{name_of(dataset, mix, 1)}.csv.gz")
    check_week(given_week, dataset, mix)


@needs_given
@pytest.mark.parametrize(("dataset", "mix"), WEEKS)
def test_rows_of_a_moment_stand_as_in_the_given_files(dataset: str, mix: Mix) -> None:
    given_week = read_workload(GIVEN / f"{name_of(dataset, mix, 1)}.csv.gz")
    first = [vm.name for vm in given_week.vms if vm.arrival == 0]
    assert [vm.name for vm in generate(dataset, mix, 1).vms if vm.arrival == 0] == first
    # At other moments other VMs arrive there, so the order is compared for every two that arrive together in both.
    ours = {vm.name: place for place, vm in enumerate(generate(dataset, (100, 0, 0), 1).vms)}
    hours = {vm.name: vm.arrival for vm in generate(dataset, (100, 0, 0), 1).vms}
    compared = 0
    for before, after in zip(given_week.vms, given_week.vms[1:], strict=False):
        if 0 < before.arrival == after.arrival and hours[before.name] == hours[after.name]:
            assert ours[before.name] < ours[after.name]
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(("dataset", "mix"), WEEKS)
def test_a_week_follows_the_rules(dataset: str, mix: Mix) -> None:
    week = generate(dataset, mix, 11)
    check_week(week, dataset, mix)
    assert [vm.arrival for vm in week.vms] == sorted(vm.arrival for vm in week.vms)


def test_most_stay_and_the_cluster_grows() -> None:
    weeks = [generate(dataset, mix, seed) for dataset, mix in WEEKS for seed in range(3)]
    stay = [sum(vm.departure == END_S for vm in week.vms) / len(week.vms) for week in weeks]
    assert 0.58 < sum(stay) / len(stay) < 0.64
    peaks = [max(moment.vms for moment in Course(week.vms).moments) for week in weeks]
    assert all(1000 < peak < 1200 for peak in peaks)


def test_arrivals_come_in_bursts() -> None:
    """Were all 24 hours equally likely, the busiest would have some 8 % of a day; it has twice that."""
    week = generate("azure2017", (50, 0, 50), 11)
    busiest = []
    for day in range(1, 7):
        hours = Counter(vm.arrival for vm in week.vms if day * DAY_S <= vm.arrival < (day + 1) * DAY_S)
        busiest.append(max(hours.values()) / hours.total())
    assert 0.10 < sum(busiest) / 6 < 0.30


def test_weeks_follow_from_their_seeds_alone() -> None:
    week = generate("azure2017", (50, 0, 50), 11)
    assert generate("azure2017", (50, 0, 50), 11) == week
    others = [generate("azure2017", (50, 0, 50), 12), generate("azure2017", (50, 25, 25), 11)]
    assert week not in others
    assert others[0] != others[1]


def test_this_week_is_always_the_same(tmp_path: Path) -> None:
    """Chance must not change with Python or with us, or figures of a seed could not be compared."""
    write_csv(tmp_path / "week.csv", generate("ovhcloud2023", (25, 25, 50), 11))
    assert (tmp_path / "week.csv").read_text().startswith(f"{','.join(VM_COLUMNS)}\n330,4,8,2,0,6120\n")
    assert sha256((tmp_path / "week.csv").read_bytes()).hexdigest()[:16] == "66d44ad6c01784d8"


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_follow_from_the_name_and_the_seed(variant: str) -> None:
    week = Workload(generate("azure2017", (50, 0, 50), 11).vms[:600])
    made = vary(variant, "a", week, 1)
    assert vary(variant, "a", week, 1) == made
    assert vary(variant, "b", week, 1) != made
    assert vary(variant, "a", week, 2) != made
    arrivals = [vm.arrival for vm in made.vms]
    assert arrivals == sorted(arrivals)
    assert len({vm.name for vm in made.vms}) == len(made.vms)
    Course(made.vms)  # which refuses departures before arrivals


def test_shuffled_changes_memory_alone() -> None:
    week = generate("ovhcloud2023", (50, 0, 50), 11)
    made = vary("shuffled", "a", week, 1)
    assert Counter(vm.memory_mib for vm in made.vms) == Counter(vm.memory_mib for vm in week.vms)
    without = [(vm.name, vm.level, vm.vcpus, vm.arrival, vm.departure) for vm in week.vms]
    assert [(vm.name, vm.level, vm.vcpus, vm.arrival, vm.departure) for vm in made.vms] == without
    assert sum(vm.memory_mib != old.memory_mib for vm, old in zip(made.vms, week.vms, strict=True)) > len(week.vms) / 2


@pytest.mark.parametrize(
    ("variant", "alive", "lifetimes"),
    [("steady", STEADY_VMS, STEADY_LIFETIMES), ("churn", CHURN_VMS, CHURN_LIFETIMES)],
)
def test_as_many_come_as_go(variant: str, alive: int, lifetimes: int) -> None:
    week = generate("ovhcloud2023", (25, 25, 50), 11)
    made = vary(variant, "a", week, 1)
    counts = [moment.vms for moment in Course(made.vms).moments]
    assert counts[0] == alive
    if variant == "churn":
        assert max(counts) == alive
        assert min(counts) > alive - 5, "some leave in the moment until another is replaced"
    else:
        assert all(abs(count - alive) < 0.2 * alive for count in counts), "5 standard deviations of a Poisson process"
    assert len(made.vms) == pytest.approx(alive * (1 + lifetimes), rel=0.1)
    later = [vm.departure - vm.arrival for vm in made.vms if vm.arrival > 0]
    assert sum(later) / len(later) == pytest.approx(MEAN_S, rel=0.05)
    assert {(size(vm), vm.level) for vm in made.vms} <= {(size(vm), vm.level) for vm in week.vms}
    if variant == "steady":
        assert HOUR_S <= min(later) < max(later) <= DAY_S
        rest = [vm.departure for vm in made.vms if vm.arrival == 0]
        assert sum(rest) / len(rest) == pytest.approx(8.17 * HOUR_S, rel=0.1), "E(T^2) / 2 E(T) of 1 to 24 hours"


def test_wide_ones_are_few_and_sold_as_such() -> None:
    week = generate("azure2017", (50, 0, 50), 11)
    made = vary("wide", "a", week, 1)
    widened = [(vm, old) for vm, old in zip(made.vms, week.vms, strict=True) if vm != old]
    assert 0.015 < len(widened) / len(week.vms) < 0.045
    assert {vm.vcpus for vm, _ in widened} == set(WIDE_VCPUS)
    for vm, old in widened:
        assert (vm.name, vm.level, vm.arrival, vm.departure) == (old.name, old.level, old.arrival, old.departure)
        assert vm.memory_mib == CAP_MIB if vm.level > UNIT else vm.memory_mib in (2048 * vm.vcpus, 4096 * vm.vcpus)


def test_large_is_the_week_many_times() -> None:
    week = generate("ovhcloud2023", (50, 0, 50), 11)
    made = vary("large", "a", week, 1)
    assert len(made.vms) == LARGE_TIMES * len(week.vms)
    assert 48_000 < max(moment.vms for moment in Course(made.vms).moments) < 54_000
    for part in (True, False):
        shapes = Counter((size(vm), vm.level) for vm in made.vms if (vm.arrival == 0) is part)
        once = Counter((size(vm), vm.level) for vm in week.vms if (vm.arrival == 0) is part)
        assert shapes == Counter({shape: LARGE_TIMES * count for shape, count in once.items()})
    spans = Counter((vm.arrival, vm.departure) for vm in made.vms)
    once_spans = Counter((vm.arrival, vm.departure) for vm in week.vms)
    assert spans == Counter({span: LARGE_TIMES * count for span, count in once_spans.items()})


def test_turnover_has_the_lifetimes_of_the_week() -> None:
    week = generate("ovhcloud2023", (50, 0, 50), 11)
    made = vary("turnover", "a", week, 1)
    assert len(made.vms) == TURNOVER_ARRIVALS
    counts = [moment.vms for moment in Course(made.vms).moments]
    assert all(0.97 * TURNOVER_VMS < count < 1.03 * TURNOVER_VMS for count in counts)
    later = [vm.departure - vm.arrival for vm in made.vms if vm.arrival > 0]
    lives = [vm.departure - vm.arrival for vm in week.vms]
    assert sum(later) / len(later) == pytest.approx(sum(lives) / len(lives), rel=0.02)
    assert max(later) == pytest.approx(max(lives))
    stays = Workload(tuple(msgspec.structs.replace(vm, departure=inf) for vm in week.vms))
    with pytest.raises(ValueError, match="unknown how long VMs stay"):
        vary("turnover", "a", stays, 1)


def test_pooled_has_all_by_their_arrival() -> None:
    weeks = {"a": generate("azure2017", (50, 0, 50), 1), "b": generate("ovhcloud2023", (0, 50, 50), 1)}
    made = pooled(weeks).vms
    assert Counter(vm.name for vm in made) == Counter(f"{name}-{vm.name}" for name in weeks for vm in weeks[name].vms)
    assert [vm.arrival for vm in made] == sorted(vm.arrival for vm in made)
    assert [vm.name for vm in made[:500]] == [f"a-{vm.name}" for vm in weeks["a"].vms[:500]]


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Zs", "Cc"]), min_size=1, max_size=20)
TIMES = st.floats(0, 1e9)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    arrivals = sorted(draw(TIMES) for _ in names)
    vms = [
        WorkloadVm(
            name,
            draw(st.integers(UNIT, 64 * UNIT)),
            draw(st.integers(1, 4096)),
            draw(st.integers(1, 1 << 30)),
            arrival,
            arrival + draw(TIMES | st.just(inf)),
        )
        for name, arrival in zip(names, arrivals, strict=True)
    ]
    return Workload(tuple(vms))


@given(workload=workloads())
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, name: str, workload: Workload) -> None:
    path = tmp_path_factory.mktemp("written") / name
    write_csv(path, workload)
    assert read_workload(path) == workload
    assert file_stem(path) == "a"


@needs_given
def test_files_are_written_as_the_given_ones_are(tmp_path: Path) -> None:
    path = GIVEN / f"{name_of('azure2017', (50, 25, 25), 1)}.csv.gz"
    write_csv(tmp_path / "a.csv", read_workload(path))
    rows = [line.split(",") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    drawn = rows[0].index("mem_generated_gb")
    assert [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()] == [
        row[:drawn] + row[drawn + 1 :] for row in rows
    ]


def test_the_command_writes_all_weeks_of_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "new"), "--seed", "12"]) == 0
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == sorted(f"{name_of(dataset, mix, 12)}.csv.gz" for dataset, mix in WEEKS)
    assert capsys.readouterr().out == f"seed 12, weeks: 30 workloads with 51,270 VMs in {tmp_path / 'new'}\n"
    assert read_workload(tmp_path / "new" / files[0]) == generate("azure2017", (0, 0, 100), 12)


def test_the_command_makes_variants_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    week = generate("azure2017", (50, 0, 50), 12)
    write_csv(tmp_path / "week.csv", week)
    arguments = [str(tmp_path), "--seed", "3", "--plain", "--of", str(tmp_path / "week.csv"), "--variant"]
    assert command.main([*arguments, "shuffled"]) == command.main([*arguments, "pooled"]) == 0
    made = parse_workload((tmp_path / "week_shuffled-s3.csv").read_text())
    assert made == vary("shuffled", "week", week, 3)
    assert len(parse_workload((tmp_path / "pooled_s3.csv").read_text()).vms) == len(week.vms)
    assert capsys.readouterr().out.splitlines()[0] == f"seed 3, shuffled: 1 workload with 1,706 VMs in {tmp_path}"


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.csv").write_text("vm_id,vcpus,mem_gb,level,arrival_s,departure_s\na,0,1,1,0,1\n")
    arguments = [str(tmp_path / "new"), "--seed", "3", "--variant", "wide", "--of", str(tmp_path / "bad.csv")]
    assert command.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'bad.csv'}: line 2, column vcpus: ")
    (tmp_path / "new").write_text("")
    assert command.main([str(tmp_path / "new"), "--seed", "3"]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'new'}: cannot be written: File exists\n"
    (tmp_path / "bad.csv").write_text("vm_id,vcpus,mem_gb,level,arrival_s,departure_s\na,1,1,1,0,\n")
    arguments = [str(tmp_path / "never"), "--seed", "3", "--variant", "turnover", "--of", str(tmp_path / "bad.csv")]
    assert command.main(arguments) == 1
    assert capsys.readouterr().err == (
        f"{tmp_path / 'never'}: nothing written: no VM leaves, so it is unknown how long VMs stay\n"
    )
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--seed", "3", "--of", "a.csv"])
    assert "--of needs --variant" in capsys.readouterr().err


def test_chance_that_is_given_is_used() -> None:
    """A variant takes nothing from the global generator of chance."""
    before = random.getstate()
    for variant in VARIANTS:
        vary(variant, "a", Workload(generate("azure2017", (50, 0, 50), 11).vms[:50]), 1)
    assert random.getstate() == before
