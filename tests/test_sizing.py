"""The published experiment: counts of the given files, which were found by another program, to the server."""

from __future__ import annotations

import csv
import subprocess
import sys

import msgspec
import pytest

from benchmarks import sizing
from benchmarks.sizing import SERVERS, TARGETS, Judged, by_mix, cases, judge, main, parse_seeds, table
from core.course import Course, by_level
from core.host_policy import HOST_POLICIES
from core.packing import ACCOUNTINGS
from core.sizing import dedicated, lower_bound, smallest
from core.workload import Accounting
from tests.running import PATIENCE, ROOT, clean_environment
from vmstackctl.plan.source import read_workload

GIVEN = ROOT.parent / "shared" / "workloads"
BASELINES = GIVEN / "baselines.csv"
POLICIES = ("worth", "progress", "first-fit")

needs_given = pytest.mark.skipif(
    not GIVEN.is_dir(), reason="the given workloads (../shared/workloads) are not beside this checkout"
)


def baselines() -> list[dict[str, str]]:
    """Nothing where they are not: the test is skipped then."""
    if not BASELINES.is_file():
        return [{"file": "none"}]
    with BASELINES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def apart(levels: dict[int, Course], policy: str) -> dict[int, int]:
    """Servers of the dedicated clusters, by level."""
    found = dedicated(levels, SERVERS, HOST_POLICIES[policy], critical_size=2, accounting="paper")
    return {cluster.level: 0 if cluster.use is None else cluster.use.servers for cluster in found}


@needs_given
def test_all_given_files_have_a_baseline() -> None:
    assert sorted(row["file"] for row in baselines()) == sorted(path.name for path in GIVEN.glob("*.csv.gz"))
    assert len(baselines()) == 30


@needs_given
@pytest.mark.parametrize("row", baselines(), ids=lambda row: row["file"].removesuffix(".csv.gz"))
def test_counts_are_those_of_the_baseline(row: dict[str, str]) -> None:
    workload = read_workload(GIVEN / row["file"])
    course, levels = Course(workload.vms), by_level(workload.vms)
    first_fit = apart(levels, "first-fit")
    peak_cpus = max(moment.cpu_parts for moment in course.moments) / course.parts
    peak_mib = max(moment.memory_mib for moment in course.moments)
    found = {
        "vms": len(workload.vms),
        "peak_cpus": f"{peak_cpus:.2f}",
        "peak_mem_gb": f"{peak_mib / 1024:.2f}",
        "lower_bound": lower_bound(course, SERVERS),
        "shared_first_fit": smallest(course, SERVERS, HOST_POLICIES["first-fit"], accounting="paper"),
        "shared_progress": smallest(course, SERVERS, HOST_POLICIES["progress"], accounting="paper"),
        "dedicated_first_fit": sum(first_fit.values()),
        "ded_ff_oc1": first_fit.get(1000, 0),
        "ded_ff_oc2": first_fit.get(2000, 0),
        "ded_ff_oc3": first_fit.get(3000, 0),
        "dedicated_progress": sum(apart(levels, "progress").values()),
    }
    expected = {name: f"{float(row[name]):.2f}" if name.startswith("peak") else int(row[name]) for name in found}
    assert found == expected


def judged(of: str, accounting: Accounting, seed: int) -> list[Judged]:
    return [judge(case) for case in cases(of, [seed], accounting, POLICIES, 2)]


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("of", ["seeds", "shuffled", "steady"])
def test_worth_is_what_it_promises(of: str, accounting: Accounting) -> None:
    """With a seed that nobody has looked at before."""
    found = judged(of, accounting, 21)
    assert sum(one.gap(0) for one in found) / len(found) <= TARGETS[of]
    assert all(one.lower_bound <= min(one.servers) for one in found)
    if of == "seeds":
        assert all(one.servers[0] <= one.servers[1] + 1 for one in found), "never much worse than progress"
        assert sum(one.servers[0] for one in found) < sum(one.servers[1] for one in found)


def test_without_the_given_files_variants_are_made_of_weeks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizing, "GIVEN", ROOT / "nowhere" / "workloads")
    case = cases("wide", [12], "host", POLICIES, 2)[0]
    found = judge(case)
    assert found.name == "azure2017_0-0-100_s12"
    assert found != judge(msgspec.structs.replace(case, of="seeds"))
    assert main(["--sets", "given", "--seeds", "12"]) == 0
    assert capsys.readouterr().out.startswith("left out the given files: they are not in nowhere/workloads beside")


def test_a_table_tells_of_the_worst_and_of_what_is_above_progress() -> None:
    found = [Judged("a", 10, 20, (12, 10)), Judged("b", 20, 20, (20, 20)), Judged("c", 10, 11, (11, 10))]
    lines = table("seeds", ("worth", "progress"), found).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["lower", "bound", "40", "19.70", "%"],
        ["worth", "43", "13.33", "%", "10.000", "%", "20.0", "%", "a", "+2", "1"],
        ["progress", "40", "19.70", "%", "0.000", "%", "<=", "0.4", "%", "0.0", "%", "a"],
    ]
    assert "!3.3" in table("steady", ("worth",), [Judged("a", 30, 40, (31,))])


def test_mixes_are_told_by_their_means() -> None:
    found = [Judged("a_s1", 10, 20, (12,)), Judged("a_s2", 11, 20, (15,)), Judged("b_s1", 10, 10, (10,))]
    lines = by_mix(("worth",), found).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["a", "20.0", "10.5", "13.5", "32.5", "%"],
        ["b", "10.0", "10.0", "10.0", "0.0", "%"],
    ]


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("11-13", [11, 12, 13]), ("3,5-6", [3, 5, 6])])
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "5-3", "-3", "3,,4"])
def test_what_is_no_seed_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--seeds={text}"])
    assert caught.value.code == 2
    assert "is neither a seed nor seeds from one to another, as 11-20" in capsys.readouterr().err


def test_what_is_no_set_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--sets", "seeds,narrow"])
    assert "'narrow' is none of given, seeds, shuffled" in capsys.readouterr().err


@needs_given
def test_the_command_prints_the_published_sums() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sizing", "--sets=given", "--accountings=paper"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split("  ")[0]: line.split("  ")[1:] for line in done.stdout.splitlines()}
    sums = {
        name: next(cell.strip() for cell in rows[name] if cell) for name in ("lower bound", "progress", "first-fit")
    }
    assert sums == {"lower bound": "1,780", "progress": "1,803", "first-fit": "1,804"}
