"""vmstackctl plan: what it says of workloads, in which form, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.running import PATIENCE, ROOT
from tests.vmstackctl.command import environment, run, words
from tests.vmstackctl.test_commands import failed
from tests.vmstackctl.test_start import SLOW, imported

SHARED = ROOT.parent / "shared" / "workloads"
POLICIES = ["worth", "progress", "first-fit"]

# Of a server of 32 CPUs and 128 GiB, four of "wide" take all CPUs, four of "heavy" all memory; three of each fit
# beside each other, and nothing better does.
WIDE, HEAVY = "8,4,1", "3,32,3"
LONG = "vcpus,mem_gb,level,count\n17,1,1,150000\n"
"""A server for each VM, so that some twenty runs of seconds are needed."""


def table(*shapes: str) -> str:
    rows = (f"vm{number},{shape},{number},\n" for number, shape in enumerate(shapes))
    return "vm_id,vcpus,mem_gb,level,arrival_s,departure_s\n" + "".join(rows)


@pytest.fixture
def week(tmp_path: Path) -> str:
    file = tmp_path / "week.csv"
    file.write_text(table(*[WIDE, HEAVY] * 20))
    return str(file)


def told(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = run("plan", *arguments, "--output", "json")
    assert done.code == code, done.err
    return [json.loads(line) for line in done.out.splitlines()]


# What is told


def test_people_get_a_table_of_clusters(week: str) -> None:
    done = run("plan", week, "--policy", "all")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "week.csv: 40 VMs on servers of 32 CPUs and 128 GiB"
    assert [re.split(r"  +", line.strip()) for line in lines[2:10]] == [
        ["CLUSTER", "SERVERS", "SAVED", "GAP", "CPUS LEFT", "MEMORY LEFT", "SHORT OF"],
        ["dedicated, first-fit", "10", "140 43.8 %", "560 GiB 43.8 %"],
        ["1:1", "5", "0", "0.0 %", "560 GiB 87.5 %", "CPU"],
        ["3:1", "5", "140 87.5 %", "0 MiB", "0.0 %", "memory"],
        ["shared, worth", "7", "30.0 %", "16.7 %", "43 19.2 %", "176 GiB 19.6 %", "CPU"],
        ["shared, progress", "7", "30.0 %", "16.7 %", "43 19.2 %", "176 GiB 19.6 %", "CPU"],
        ["shared, first-fit", "7", "30.0 %", "16.7 %", "43 19.2 %", "176 GiB 19.6 %", "CPU"],
        ["lower bound", "6"],
    ]


def test_programs_get_an_object_for_each_policy(week: str) -> None:
    found = told(week, "--policy", "all")
    assert [one["policy"] for one in found] == POLICIES
    dedicated = {"memory_mib": 5 * 131072, "cpus": 160, "servers": 5, "peak_s": 38.0, "peak_vms": 20}
    assert found[0] == {
        "workload": "week.csv",
        "policy": "worth",
        "servers": 7,
        "dedicated": 10,
        "lower_bound": 6,
        "saved_percent": pytest.approx(30),
        "gap_percent": pytest.approx(100 / 6),
        "accounting": "host",
        "critical_size": 2,
        "vms": 40,
        "shared": {
            "servers": 7,
            "cpus": 224,
            "memory_mib": 7 * 131072,
            "peak_s": 39.0,
            "peak_vms": 40,
            "unused_cpus": 43,
            "unused_mib": 176 * 1024,
            "saturated": "cpu",
        },
        "levels": [
            {
                "level": 1000,
                "level_text": "1.0",
                "vms": 20,
                "dedicated": dedicated | {"unused_cpus": 0, "unused_mib": 560 * 1024, "saturated": "cpu"},
            },
            {
                "level": 3000,
                "level_text": "3.0",
                "vms": 20,
                "dedicated": dedicated | {"unused_cpus": 140, "unused_mib": 0, "saturated": "memory", "peak_s": 39.0},
            },
        ],
        "notes": [],
    }


def test_without_a_policy_the_default_is_meant_and_several_can_be_named(week: str) -> None:
    assert [one["policy"] for one in told(week)] == ["worth"]
    assert [one["policy"] for one in told(week, "--policy", "first-fit,progress,first-fit")] == [
        "first-fit",
        "progress",
    ]
    assert json.loads(run("--output", "json", "plan", week).out) == told(week)[0]


def test_other_servers(week: str) -> None:
    (one,) = told(week, "--server", "8:4x20", "--server", "3:32G")
    assert (one["servers"], one["dedicated"], one["lower_bound"]) == (40, 40, 40)
    (one,) = told(week, "--server", "1024:1T")
    assert (one["servers"], one["dedicated"]) == (1, 2)


def test_too_few_servers_end_with_4(week: str) -> None:
    done = run("plan", week, "--server", "32:128x8", "--output", "json")
    failed(done, 4, "8 servers of 32 CPUs and 128 GiB are not enough for the dedicated cluster of 3:1")
    one = json.loads(done.out)
    assert (one["servers"], one["dedicated"], one["saved_percent"]) == (7, None, None)
    assert one["gap_percent"] == pytest.approx(100 / 6)
    done = run("plan", week, "--server", "32:128x6", "--policy", "progress")
    assert done.code == 4
    assert [line.split(" for ")[1] for line in done.err.splitlines()] == [
        "policy progress; plan with more",
        "the dedicated cluster of 3:1; plan with more",
    ]
    assert ["lower", "bound", "6"] in [line.split() for line in done.out.splitlines()]


def test_the_critical_size_and_the_accounting_are_those_asked_for(tmp_path: Path) -> None:
    """Of five small VMs of one level on a server; and of two and two that may share CPUs in the paper."""
    file = tmp_path / "w"
    file.write_text(table(*["1,1,2"] * 5))
    sizes = {size: told(str(file), "--server", "3:64", "--critical-size", size)[0]["servers"] for size in "0256"}
    assert sizes == {"0": 1, "2": 1, "5": 2, "6": 2}
    file.write_text(table("1,1,2", "1,1,3"))
    counts = [told(str(file), "--server", "1:64", "--accounting", of)[0]["servers"] for of in ("host", "paper")]
    assert counts == [2, 1]


def test_a_mix_deals_levels_anew_and_tells_the_seed(week: str) -> None:
    def levels(*arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = told(week, "--mix", "1=75,2=25", *arguments)[0]["levels"]
        return found

    assert [(one["level"], one["vms"]) for one in levels()] == [(1000, 30), (2000, 10)]
    assert levels() == levels("--seed", "0")
    assert levels("--seed", "1") == levels("--seed", "1")
    assert any(levels("--seed", str(seed)) != levels() for seed in range(1, 4))
    note = "note: levels were dealt anew with seed 3: 75 % at 1:1, 25 % at 2:1\n"
    assert run("plan", week, "--mix", "1=75,2=25", "--seed", "3").out.endswith(note)


def test_memory_may_be_capped_and_what_is_too_large_left_out(week: str) -> None:
    (one,) = told(week, "--memory-cap", "8G")
    assert one["levels"][1]["dedicated"]["servers"] == 2
    assert one["notes"] == ["the memory of 20 VMs above 1:1 was cut to 8 GiB"]
    failed(run("plan", week, "--server", "4:64"), 1, f"{week}: 20 VMs larger than any server", "--leave-out-too-large")
    (one,) = told(week, "--server", "4:64", "--leave-out-too-large")
    assert (one["vms"], one["servers"]) == (20, 10)
    assert one["notes"][0].startswith("left out 20 VMs")


# Many workloads


def test_several_workloads_are_rows_in_their_order(week: str, tmp_path: Path) -> None:
    other = tmp_path / "a.csv"
    other.write_text(table(*[WIDE] * 4))
    done = run("plan", week, str(other), week)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines() if line]
    assert [line[:7] for line in lines[1:4]] == [
        ["week", "worth", "7", "10", "6", "30.0", "%"],
        ["a", "worth", "1", "1", "1", "0.0", "%"],
        ["week", "worth", "7", "10", "6", "30.0", "%"],
    ]
    assert lines[5] == ["worth", "3", "15", "21", "13", "20.00", "%", "11.11", "%"]


def test_a_sweep_plans_for_all_of_a_folder_but_what_is_no_workload(tmp_path: Path) -> None:
    for name in ("b.csv", "a.properties", "c.csv"):
        (tmp_path / name).write_text(table(WIDE))
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / "counts.csv").write_text("file,servers\nb.csv,1\n")
    (tmp_path / "folder.csv").mkdir()
    done = run("plan", "--sweep", str(tmp_path), "-o", "json")
    assert [json.loads(line)["workload"] for line in done.out.splitlines()] == ["a.properties", "b.csv", "c.csv"]
    assert (done.code, done.err) == (0, f"vmstackctl: note: no workloads in {tmp_path}: README.md, counts.csv\n")


def test_a_broken_workload_is_named_and_the_others_are_planned_for(week: str, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "broken.csv").write_text(table(WIDE, "8,-4,1"))
    (folder / "good.csv").write_text(table(WIDE))
    done = run("plan", week, "--sweep", str(folder), "--output", "json")
    assert [json.loads(line)["workload"] for line in done.out.splitlines()] == ["week.csv", "good.csv"]
    assert done.code == 1
    assert re.fullmatch(rf"vmstackctl: {folder}/broken.csv: line 3, column mem_gb: .+\n", done.err)


@pytest.mark.parametrize("files", [[], ["README.md"], ["counts.csv"]], ids=["empty", "others", "foreign"])
def test_a_folder_without_workloads_is_a_failure(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("file,servers\nb.csv,1\n")
    done = run("plan", "--sweep", str(tmp_path))
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"vmstackctl: \S+: .+\n", done.err)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the workloads of the published experiment are not there")
def test_the_published_experiment_is_swept() -> None:
    with (SHARED / "baselines.csv").open() as file:
        baselines = {row["file"]: row for row in csv.DictReader(file)}
    found = told("--sweep", str(SHARED), "--accounting", "paper", "--policy", "all")
    assert {one["workload"] for one in found} == baselines.keys()
    assert len(found) == len(baselines) * len(POLICIES)
    columns = {"first-fit": "shared_first_fit", "progress": "shared_progress"}
    for one in found:
        row = baselines[one["workload"]]
        assert (one["dedicated"], one["lower_bound"]) == (int(row["dedicated_first_fit"]), int(row["lower_bound"]))
        if one["policy"] in columns:
            assert one["servers"] == int(row[columns[one["policy"]]])
        for level in one["levels"]:
            assert level["dedicated"]["servers"] == int(row[f"ded_ff_oc{level['level'] // 1000}"])


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a WORKLOAD"),
        (("w", "--server", "32"), "'32' is no server"),
        (("w", "--server", "0:8"), "1 to 65536 CPUs"),
        (("w", "--server", "32:128", "--server", "64:256"), "only the last --server"),
        (("w", "--policy", "best"), "'best' is no policy; they are worth"),
        (("w", "--critical-size", "-1"), "-1"),
        (("w", "--mix", "1=50,2=40"), "90 % in all"),
        (("w", "--seed", "1"), "--seed is for --mix"),
        (("w", "--memory-cap", "much"), "'much' is not a size"),
        (("w", "--output", "name"), "'name'"),
        (("w", "--accounting", "mine"), "'mine'"),
        (("w", "--socket", "/s"), "--socket"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], said: str) -> None:
    done = run("plan", *arguments)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"vmstackctl: .+\n", done.err), done.err
    assert said in done.err


def test_names_are_not_what_a_plan_has(week: str) -> None:
    failed(run("--output", "name", "plan", week), 2, "--output name is for commands about VMs or hosts")


def test_the_paper_knows_three_levels(week: str) -> None:
    done = run("plan", week, "--accounting", "paper", "--mix", "1=50,1.5=50")
    failed(done, 1, f"{week}: a VM has level 1.5:1", "1:1, 2:1, 3:1 only; plan with --accounting host")


def test_what_cannot_be_read_ends_with_1(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        done = run("plan", str(path))
        assert (done.code, done.out) == (1, "")
        assert re.fullmatch(rf"vmstackctl: {path}: .+\n", done.err)
    failed(
        run("plan", "--sweep", str(tmp_path / "none")),
        1,
        f"{tmp_path}/none: cannot be read: ",
        "--sweep takes a folder",
    )


# While it works


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _runs(pid: str) -> bool:
    """Whether it does anything; who has ended can stay in the table until its new parent looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("files", [1, 3], ids=["here", "in processes"])
def test_ctrl_c_ends_all_at_once(tmp_path: Path, files: int) -> None:
    for number in range(files):
        (tmp_path / f"{number}.csv").write_text(LONG)
    with subprocess.Popen(
        words("plan", *map(str, tmp_path.iterdir())),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        time.sleep(2)
        children = _children(process.pid)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err.strip()) == (130, "", "")
    deadline = time.monotonic() + PATIENCE
    while any(map(_runs, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_whoever_is_ended_in_another_way_leaves_nobody_behind(tmp_path: Path) -> None:
    """Workers would compute on for hours, and hold what reads our output."""
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text(LONG)
    with subprocess.Popen(
        words("plan", *map(str, tmp_path.iterdir())), cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while len(children := _children(process.pid)) < 3:  # two workers, and what spawn starts beside them
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGTERM
    while any(map(_runs, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_page_of_what_can_be_read_once_only(week: str) -> None:
    """As with plan <(zcat FILE), and of a name that is no text."""
    pytest.importorskip("matplotlib")
    with subprocess.Popen(["cat", week], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            words("plan", "/dev/stdin", "--output", "html"),
            cwd=ROOT,
            env=environment(),
            stdin=cat.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Most is saved with" in done.stdout


def test_a_terminal_sees_how_far_it_is_and_nothing_of_it_in_the_end(week: str, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(LONG.replace("150000", "20000"))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        words("plan", str(file)), cwd=ROOT, env=environment({"TERM": "xterm"}), stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while read := os.read(ours, 65536):
                seen += read
        except OSError:  # closed
            pass
        assert process.stdout is not None
        assert b"lower bound" in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"long\.csv: worth, 1[0-9]{4} servers", seen)
    assert seen.endswith(b"\x1b[2K")


def test_little_is_imported_for_programs(week: str) -> None:
    found = imported("plan", week, "--output", "json")
    assert "vmstackctl.plan.command" in found
    assert not found & {*SLOW, "rich", "matplotlib", "vmstackctl.plan.tables"}
