"""``vmstackd --load=TRACE``: what a replay prints, writes and refuses, and how it ends."""

from __future__ import annotations

import array
import contextlib
import csv
import fcntl
import gzip
import io
import json
import os
import pty
import re
import resource
import signal
import stat
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cpuset import format_cpu_list
from core.level import format_level
from core.trace import HEADER, Sample, TracedVm, format_sample
from tests.cli.command import call, one_line
from tests.running import PATIENCE, ROOT, SMALL_HOST, Finished, clean_environment, command

REFERENCE = ROOT.parent / "shared" / "reference"
EXAMPLE = REFERENCE / "monitoring-example.csv"
EXAMPLE_HOST = str(ROOT / "topologies" / "EPYC-7662-exp.json")
recorded = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the prototype's example trace is not here")

HOST = f"--topology={SMALL_HOST}"
ALWAYS = "--critical-size=0"


def traced(
    name: str, level: int = 2000, vcpus: int = 2, memory: int | None = 1024, cpu: float | None = 0.5
) -> TracedVm:
    return TracedVm(f"id-{name}", name, level, vcpus, memory, cpu, 0.25, 1.5)


def sample(time_s: int, *vms: TracedVm) -> Sample:
    return Sample(time=time_s, cpus=16, memory_mib=65536, cpu=0.5, memory=0.25, levels=(), vms=vms)


def as_text(samples: list[Sample]) -> str:
    """The trace of a host on which every VM had CPUs of its own."""
    rows = [HEADER]
    for each in samples:
        levels = dict.fromkeys(vm.level for vm in each.vms)
        for row in format_sample(each).splitlines(keepends=True):
            rows.append(row)
            if "\tglobal\tcpu\t" in row:
                for level in levels:
                    text = format_level(level)
                    subset = f"subset-{text}"
                    rows.append(f"{each.time}\tsubset\tcpu\tNone\t2\t{subset}\tNone\tNone\t{text}\t0\tNone\tNone\n")
                    rows += [
                        f"{each.time}\tvm\tcpu\t{vm.cpu}\t{vm.vcpus}\t{subset}\t{vm.uuid}\t{vm.name}\t{text}"
                        f"\tNone\tNone\t{vm.delay_s}\n"
                        for vm in each.vms
                        if vm.level == level
                    ]
    return "".join(rows)


SHORT = [
    sample(0, traced("web"), traced("db", 1000, 4, 8192)),
    sample(60, traced("web"), traced("db", 1000, 4, 8192), traced("big", 1000, 15)),
    sample(120, traced("web"), traced("db", 1000, 4, 8192), traced("big", 1000, 15), traced("fat", 2000, 1, 70000)),
    sample(3720, traced("web")),
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(as_text(SHORT), encoding="utf-8")
    return file


def replay(*flags: object) -> Finished:
    return call(HOST, ALWAYS, *map(str, flags))


def json_lines(done: Finished) -> list[dict[str, Any]]:
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


def test_the_text_tells_decisions_changes_and_a_summary(trace: Path) -> None:
    done = replay(f"--load={trace}")
    assert (done.code, done.err) == (0, "")
    head, _, rest = done.out.partition("0:00:00 (0 s)\n")
    described = f"{trace} on {SMALL_HOST}: policy reference, critical size 0"
    assert "".join(head.split()) == "".join(described.split())
    told, _, summary = rest.partition("\n\n")
    assert told.splitlines() == [
        "  deploy web   2 vCPUs    1 GiB at 2.0: took CPUs 0,8",
        "  deploy db    4 vCPUs    8 GiB at 1.0: took CPUs 4-6,12",
        "  level 1.0: 1 VM, 4 vCPUs on 4 CPUs: 4-6,12",
        "  level 2.0: 1 VM, 2 vCPUs on 2 CPUs: 0,8",
        "  free: 10 of 16 CPUs, 56320 of 65536 MiB",
        "0:01:00 (60 s)",
        "  deploy big  15 vCPUs    1 GiB at 1.0: refused: not enough cpu: 15 more CPUs needed, 10 free; the",
        "      largest VM that fits now has 10 vCPUs at level 1.0 and 56320 MiB",
        "0:02:00 (120 s)",
        "  deploy fat   1 vCPU  70000 MiB at 2.0: refused: not enough memory: 70000 MiB needed, 56320 MiB",
        "      free; the largest VM that fits now has 12 vCPUs at level 2.0 and 56320 MiB",
        "1:02:00 (3720 s)",
        "  remove db   4 vCPUs    8 GiB at 1.0: gave back CPUs 4-6,12",
        "  level 1.0: no VMs any more",
        "  free: 14 of 16 CPUs, 64512 of 65536 MiB",
    ]
    assert summary.splitlines()[:4] == [
        "4 samples in 1:02:00",
        "  VMs:    4 arrived, 2 refused (1 for cpu, 1 for memory)",
        "  CPUs:   16, of these 10 free at the least, 3.0 busy at the most",
        "  memory: 65536 MiB, of these 9216 MiB sold at the most",
    ]
    assert [line.split() for line in summary.splitlines() if line[:1].isdigit()][1:] == [
        ["1.0", "2", "1", "0", "1", "4", "4", "0.1", "0.1", "2.0", "50%", "0", "4.5"],
        ["2.0", "2", "0", "1", "1", "2", "2", "2.0", "1.0", "1.0", "50%", "0", "6.0"],
    ]


def test_no_line_of_the_text_is_wider_than_100_columns(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    crowd = [traced(f"a-vm-with-a-rather-long-name-{number}", 1000, 1) for number in range(120)]
    samples = [sample(0, *crowd), sample(1, *crowd[::2]), sample(2, *crowd[::2], traced("wide", 3000, 99))]
    file.write_text(as_text(samples), encoding="utf-8")
    done = call("--topology", EXAMPLE_HOST, f"--load={file}")
    assert done.code == 0
    assert [line for line in done.out.splitlines() if len(line) > 100] == []
    assert done.out.isascii()


def test_vms_without_memory_are_told_of_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    less = traced("b", memory=None)
    file.write_text(as_text([sample(0, traced("a")), sample(1, traced("a"), less), sample(2, traced("a"))]))
    done = replay(f"--load={file}", "--output=none")
    assert done.code == 0
    assert "  not placed: 1 VM whose memory the trace does not tell\n" in done.out
    assert done.err.startswith(f"vmstackd: {file}: line ")


def test_json_is_lines_with_a_header_and_a_summary(trace: Path) -> None:
    header, first, second, third, last, end = json_lines(replay(f"--load={trace}", "--output", "json"))
    assert header == {
        "replay": 1,
        "trace": str(trace),
        "topology": SMALL_HOST,
        "policy": "reference",
        "critical_size": 0,
    }
    assert first == {
        "t": 0,
        "ops": [["deploy", "web", True, None], ["deploy", "db", True, None]],
        "state": {
            "cpu": [
                {"l": 2.0, "alloc": 2, "cap": 2, "cpus": "0,8", "vms": ["web"]},
                {"l": 1.0, "alloc": 4, "cap": 4, "cpus": "4,12,5-6", "vms": ["db"]},
            ],
            "mem": {"alloc": 9216, "cap": 9216},
        },
    }
    operation, name, accepted, reason = second["ops"][0]
    assert (operation, name, accepted, second["state"]) == ("deploy", "big", False, None)
    assert reason.startswith("not enough cpu: 15 more CPUs needed, 10 free; ")
    assert third["ops"][0][3].startswith("not enough memory: 70000 MiB needed, 56320 MiB free; ")
    assert last["ops"] == [["remove", "db", True, "offline"]]
    assert (end["summary"]["samples"], end["summary"]["vms"], end["summary"]["refused_memory"]) == (4, 4, 1)
    assert [level["level"] for level in end["summary"]["levels"]] == [1.0, 2.0]


def test_json_of_an_empty_host_has_no_memory_pool(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(as_text([sample(0), sample(1)]), encoding="utf-8")
    lines = json_lines(replay(f"--load={file}", "--output=json", "--critical-sizes=2.0=4", "--relevel=3.0=1.5"))
    assert (lines[0]["critical_sizes"], lines[0]["relevel"]) == ({"2.0": 4}, {"3.0": 1.5})
    assert lines[1:3] == [
        {"t": 0, "ops": [], "state": {"cpu": [], "mem": None}},
        {"t": 1, "ops": [], "state": None},
    ]


def test_csv_is_a_row_for_each_decision_and_the_summary_is_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    odd = traced('a "b", c')
    file.write_text(as_text([sample(0, odd), sample(5, traced("big", 1000, 17)), sample(6)]), encoding="utf-8")
    done = replay(f"--load={file}", "--output=csv")
    assert done.code == 0
    rows = list(csv.reader(io.StringIO(done.out)))
    assert ",".join(rows[0]) == "time,operation,vm,uuid,level,vcpus,memory_mib,accepted,reason,cpus"
    assert rows[1] == ["0", "deploy", 'a "b", c', 'id-a "b", c', "2.0", "2", "1024", "true", "", "0,8"]
    assert rows[2][:8] == ["5", "deploy", "big", "id-big", "1.0", "17", "1024", "false"]
    assert rows[2][8].startswith("not enough cpu: 17 more CPUs needed")
    assert rows[3] == ["5", "remove", 'a "b", c', 'id-a "b", c', "2.0", "2", "1024", "true", "", ""]
    assert len(rows) == 4
    assert done.err.startswith("3 samples in 0:00:06\n")


def test_none_is_the_summary_alone(trace: Path) -> None:
    text, none = replay(f"--load={trace}"), replay(f"--load={trace}", "--output=none")
    assert (none.code, none.err) == (0, "")
    assert text.out.endswith(none.out[none.out.index("4 samples") :])
    assert "deploy" not in none.out


def test_a_name_cannot_move_the_cursor_of_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(as_text([sample(0, traced("\x1b[2J\u202eb"))]), encoding="utf-8")
    done = replay(f"--load={file}")
    assert done.code == 0
    assert done.out.replace("\n", "").isprintable()


def test_what_if_the_settings_were_others(trace: Path) -> None:
    def summary(*flags: str) -> dict[str, Any]:
        found: dict[str, Any] = json_lines(replay(f"--load={trace}", "--output=json", *flags))[-1]["summary"]
        return found

    assert summary()["cpus"] == 16
    moved = summary("--relevel=1.0=2.0")
    assert [(level["level"], level["vms"]) for level in moved["levels"]] == [(2.0, 4)]
    assert moved["refused_cpu"] == 0, "all share, so that big has room"
    assert [level["level"] for level in summary("--relevel=1.0=2.0,2.0=3.0")["levels"]] == [2.0, 3.0]
    assert summary("--exclude-cpus=0-9")["refused_cpu"] == 1
    assert summary("--exclude-cpus=0-10")["refused_cpu"] == 2
    assert summary("--reserved-memory=60000")["refused_memory"] == 2
    assert summary("--topology=synthetic:cores=16,smt=2,memory=131072")["refused_memory"] == 0
    shared = summary("--critical-sizes=1.0=5,2.0=1", "--critical-size=9")
    assert shared["levels"][1]["most_cpus"] == 2


@recorded
def test_the_prototypes_own_decisions_come_out_again() -> None:
    """Every line, apart from what the corrected rules do otherwise: a level whose last VM has gone is forgotten
    (SEMANTICS 6, "restart"), so the prototype's lines of these moments list an empty level that ours do not. No VM of
    that level arrives later, so nothing else follows from it. Memory is in MiB; theirs is 1/1024 of it (14, "units").
    """
    lists_an_empty_level = {3180, 3240, 3300, 3360}
    expected = [json.loads(line) for line in EXAMPLE.with_suffix(".decisions.jsonl").read_text().splitlines()][1:]
    flags = (f"--load={EXAMPLE}", f"--topology={EXAMPLE_HOST}", ALWAYS, "--output=json")
    header, *found, end = json_lines(call(*flags))
    assert header == {
        "replay": 1,
        "trace": str(EXAMPLE),
        "topology": EXAMPLE_HOST,
        "policy": "reference",
        "critical_size": 0,
    }
    seen: set[int] = set()
    for theirs, ours in zip(expected, found, strict=True):
        if theirs["state"] is not None:
            empty = [level for level in theirs["state"]["cpu"] if not level["vms"]]
            if empty:
                seen.add(theirs["t"])
                assert [(level["alloc"], level["cap"]) for level in empty] == [(0, 0)] * len(empty)
            levels = [level for level in theirs["state"]["cpu"] if level["vms"]]
            theirs["state"]["cpu"] = sorted(levels, key=lambda level: float(level["l"]))
            ours["state"]["cpu"].sort(key=lambda level: float(level["l"]))
            if theirs["state"]["mem"] is not None:
                theirs["state"]["mem"] = {key: 1024 * value for key, value in theirs["state"]["mem"].items()}
        assert ours == theirs
    assert seen == lists_an_empty_level
    assert (end["summary"]["samples"], end["summary"]["vms"], end["summary"]["refused_cpu"]) == (60, 99, 0)


@recorded
def test_the_prototypes_trace_recomputed_has_its_values_and_the_subsets_of_the_replay(tmp_path: Path) -> None:
    """Its subset rows are of its live run, which decided in another order, so they are no measure for ours."""
    again = tmp_path / "again.csv"
    flags = (f"--load={EXAMPLE}", f"--topology={EXAMPLE_HOST}", ALWAYS, "--output=json", f"--record={again}")
    subsets: dict[str, dict[str, str]] = {}
    now: dict[str, str] = {}
    for line in json_lines(call(*flags))[1:-1]:
        if line["state"] is not None:
            now = {f"subset-{level['l']}": level["cpus"] for level in line["state"]["cpu"]}
        subsets[str(line["t"])] = now
    theirs, ours = _rows(EXAMPLE), _rows(again)

    def rows(found: list[dict[str, str]], record: str, resource_name: str, *columns: str) -> list[list[str]]:
        """In an order of its own: that of the levels is another, since ours are forgotten. They write 1 as 1.0."""
        return sorted(
            [row["tmp"], *["1" if row[column] == "1.0" else row[column] for column in columns]]
            for row in found
            if (row["rec"], row["res"]) == (record, resource_name)
        )

    for what in (
        ("global", "cpu", "val", "config"),
        ("global", "mem", "val", "config"),
        ("vm", "cpu", "vm_uuid", "vm_cmn", "val", "config", "sb_oc", "subset"),
        ("vm", "mem", "vm_uuid", "vm_cmn", "val", "config", "sb_oc", "subset"),
    ):
        assert rows(ours, *what) == rows(theirs, *what)
    for moment, levels in subsets.items():
        assert {
            row["subset"]: format_cpu_list(json.loads(row["sb_dsc"])["res_list"])
            for row in ours
            if (row["tmp"], row["rec"], row["res"]) == (moment, "subset", "cpu")
        } == levels


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_recomputed_trace_gives_the_same_decisions(trace: Path, tmp_path: Path) -> None:
    again, third = tmp_path / "again.csv", tmp_path / "third.csv"
    first = json_lines(replay(f"--load={trace}", "--output=json", f"--record={again}"))[1:-1]
    second = json_lines(replay(f"--load={again}", "--output=json", f"--record={third}"))[1:-1]
    for line in first:
        line["ops"] = [op for op in line["ops"] if op[2]]
    assert second == first
    assert third.read_text() == again.read_text()


def test_debug_writes_the_recomputed_trace_where_nothing_else_is(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("--record=", "--debug=1", HOST, ALWAYS, f"--load={trace}", "--output=none")
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["replay.csv"]
    written = tmp_path / "results" / "replay.csv"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(written.stat().st_mode) == 0o666 & ~mask
    assert written.read_text().startswith(HEADER)
    assert '{"res_list":[4,12,5,6],"consumer_list":["db"]}' in written.read_text()
    assert "big" not in written.read_text(), "it was refused"


def test_nothing_is_written_unless_asked_for(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record in the file of a daemon is where that records its host, not where a replay may write."""
    monkeypatch.chdir(tmp_path)
    live = tmp_path / "live.csv"
    config = tmp_path / "vmstackd.toml"
    config.write_text(f'record = "{live}"\n', encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    assert call("--config", str(config), "--record=", HOST, f"--load={trace}").code == 0
    assert call("--record=none", "--debug=1", HOST, f"--load={trace}").code == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("way", ["itself", "other spelling", "symbolic link", "hard link"])
def test_the_input_is_never_written_over(way: str, trace: Path, tmp_path: Path) -> None:
    text = trace.read_bytes()
    target = {"itself": trace, "other spelling": tmp_path / "x" / ".." / trace.name}.get(way, tmp_path / "link.csv")
    (tmp_path / "x").mkdir()
    if way == "symbolic link":
        target.symlink_to(trace)
    elif way == "hard link":
        target.hardlink_to(trace)
    done = replay(f"--load={trace}", f"--record={target}")
    assert (done.code, done.out) == (2, "")
    assert f"--record {target}: this is the trace that is replayed; name another file" in one_line(done.err)
    assert trace.read_bytes() == text


def test_the_default_is_not_written_over_the_input_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/replay.csv").write_text(as_text(SHORT))
    done = call("--record=", "--debug=1", HOST, "--load=results/replay.csv")
    assert done.code == 2
    assert "--record results/replay.csv: this is the trace that is replayed" in one_line(done.err)


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
def test_a_record_takes_the_place_of_files_only(path: str, trace: Path) -> None:
    done = replay(f"--load={trace}", f"--record={path}")
    assert done.code == 2
    assert f"--record {path}: this is there and not a file; name another one" in one_line(done.err)


def test_a_record_through_a_link_leaves_the_link(trace: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "link.csv", tmp_path / "target.csv"
    target.write_text(HEADER)
    link.symlink_to(target)
    assert replay(f"--load={trace}", f"--record={link}").code == 0
    assert link.is_symlink()
    assert target.read_text().startswith(f"{HEADER}0\t")


def test_a_record_in_the_place_of_what_is_no_trace_is_refused(trace: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("of many years")
    done = replay(f"--load={trace}", f"--record={thesis}")
    assert (done.code, thesis.read_text()) == (2, "of many years")
    assert "this is there and not a trace; name another file, or move it away" in one_line(done.err)


def test_a_record_in_the_place_of_what_a_daemon_records_is_refused(trace: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.csv"
    live.write_text(HEADER)
    with live.open("rb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        done = replay(f"--load={trace}", f"--record={live}")
    assert done.code == 2
    assert "another process records in it" in one_line(done.err)


def test_a_record_does_not_take_the_place_of_what_is_printed(trace: Path, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    with printed.open("wb") as out:
        done = subprocess.run(
            command(HOST, f"--load={trace}", "--record=/dev/stdout"),
            cwd=ROOT,
            env=clean_environment(),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 2
    assert "what is printed goes there" in one_line(done.stderr)


def test_a_record_that_cannot_be_written_is_one_line(trace: Path) -> None:
    done = replay(f"--load={trace}", f"--record={trace}/below/a.csv")
    assert done.code == 1
    assert one_line(done.err) == (
        f"vmstackd: {trace}/below/a.csv: cannot be written: Not a directory; name another file"
    )


def long_trace(path: Path, samples: int) -> None:
    vms = [traced(f"vm{number}", 1000 * (1 + number % 3), 1) for number in range(20)]
    several = [sample(moment, *vms[moment % 7 :]) for moment in range(samples)]
    path.write_text(as_text(several), encoding="utf-8")


def test_a_disk_that_gets_full_leaves_what_was_there(tmp_path: Path) -> None:
    file, target = tmp_path / "trace.csv", tmp_path / "out" / "again.csv"
    long_trace(file, 60)
    target.parent.mkdir()
    target.write_text(HEADER)
    done = subprocess.run(
        command(HOST, f"--load={file}", f"--record={target}", "--output=none"),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1
    assert one_line(done.stderr) == f"vmstackd: {target}: cannot be written: File too large; name another file"
    assert "samples in" not in done.stdout
    assert [path.name for path in target.parent.iterdir()] == ["again.csv"]
    assert target.read_text() == HEADER


GOOD = as_text(SHORT)
LINES = GOOD.splitlines(keepends=True)


def _with(line: int, old: str, new: str) -> Callable[[], bytes]:
    """The trace with something else in a line, from 1."""
    assert old in LINES[line - 1]
    return lambda: "".join([*LINES[: line - 1], LINES[line - 1].replace(old, new, 1), *LINES[line:]]).encode()


MALFORMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "blank line": (lambda: "".join([*LINES[:3], "\n", *LINES[3:]]).encode(), "line 4: found a blank line"),
    "unknown record": (_with(4, "\tvm\t", "\tpod\t"), "line 4: found rec 'pod', expected global, subset or vm"),
    "NaN": (_with(4, "\t0.5\t", "\tnan\t"), "line 4: found val 'nan', expected a number"),
    "cut in the middle": (_with(4, "\tid-web\tweb\t", "\n"), "line 4: found "),
    "columns missing": (_with(1, "\tconfig", ""), "line 1: found no column config"),
    "no columns": (lambda: "".join(LINES[1:]).encode(), "line 1: found "),
    "time goes back": (_with(len(LINES), "3720", "3"), f"line {len(LINES)}: found tmp 3 after 3720"),
    "no level": (_with(4, "\t2.0\t", "\t0.5\t"), "line 4: found sb_oc '0.5'"),
    "10 MB line": ((LINES[0] + "0" * 10_000_000).encode, "line 2: found more than "),
    "damaged gzip": (lambda: gzip.compress(GOOD.encode())[:-8] + b"\0" * 8, ": found damaged gzip data"),
    "empty": (lambda: b"", "is empty, expected "),
    "binary": (lambda: bytes(range(256)) * 40, "is a binary file"),
    "JSON named csv": (lambda: b"{}\n", "line 1: found '{}', expected the column names of a trace"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_trace_is_one_line_with_the_place(kind: str, tmp_path: Path) -> None:
    make, told = MALFORMED[kind]
    file, again = tmp_path / "trace.csv", tmp_path / "again.csv"
    file.write_bytes(make())
    done = replay(f"--load={file}", f"--record={again}")
    assert done.code == 1
    line = one_line(done.err)
    assert line.startswith(f"vmstackd: {file}: ")
    assert told in line
    assert "samples in" not in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


def test_what_came_before_a_malformed_line_has_been_told(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(_with(len(LINES), "3720", "x")())
    done = replay(f"--load={file}", "--output=json")
    assert done.code == 1
    assert [json.loads(line).get("t") for line in done.out.splitlines()] == [None, 0, 60, 120]


def _other_order() -> bytes:
    rows = [line.rstrip("\n").split("\t") for line in LINES]
    return "".join("\t".join(reversed(row)) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("trace.csv.gz", lambda: gzip.compress(GOOD.encode())),
        ("trace", lambda: gzip.compress(GOOD.encode())),
        ("trace", GOOD.encode),
        ("trace.json", lambda: b"\xef\xbb\xbf" + GOOD.encode()),
        ("CRLF.CSV", lambda: GOOD.replace("\n", "\r\n").encode()),
        ("trace.txt", _other_order),
    ],
    ids=["gzip", "gzip by content", "by content", "byte order mark", "CRLF", "other order"],
)
def test_whatever_a_trace_is_called_and_however_it_is_written(
    name: str, make: Callable[[], bytes], trace: Path, tmp_path: Path
) -> None:
    file = tmp_path / "other" / name
    file.parent.mkdir()
    file.write_bytes(make())
    expected = json_lines(replay(f"--load={trace}", "--output=json"))
    assert json_lines(replay(f"--load={file}", "--output=json"))[1:] == expected[1:]


def test_a_recording_that_was_killed_is_replayed_up_to_there_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(GOOD[:-30], encoding="utf-8")
    done = replay(f"--load={file}", "--output=none")
    assert done.code == 0
    assert "\n3 samples in 0:02:00\n" in done.out
    assert all(line.startswith(f"vmstackd: {file}: line ") for line in done.err.splitlines())
    assert "cut off" in done.err


@pytest.mark.parametrize(("name", "why"), [("none.csv", "No such file or directory"), ("", "Is a directory")])
def test_a_trace_that_cannot_be_opened_is_wrong_usage(name: str, why: str, tmp_path: Path) -> None:
    done = replay(f"--load={tmp_path / name}")
    assert done.code == 2
    assert f"--load {tmp_path / name}: cannot be read: {why}" in one_line(done.err)


@pytest.mark.parametrize(
    ("relevel", "told"),
    [
        ("2.0", "'2.0' is not understood"),
        ("", "'' is not understood"),
        ("2.0=0.5", "'0.5' is not an oversubscription level"),
        ("x=2", "'x' is not an oversubscription level"),
        ("2=3,2.0=1.5", "level 2.0 is there twice"),
    ],
)
def test_levels_that_are_not_understood_are_wrong_usage(relevel: str, told: str, trace: Path) -> None:
    done = replay(f"--load={trace}", f"--relevel={relevel}")
    assert (done.code, done.out) == (2, "")
    line = one_line(done.err)
    assert line.startswith(f"vmstackd: argument --relevel: {told}")
    assert 'write levels as "2.0=3.0,1.5=2.0"' in line


@pytest.mark.parametrize("flag", ["--dump-topology", "--check-config"])
def test_what_is_no_replay_does_not_go_with_a_trace(flag: str, trace: Path) -> None:
    done = replay(f"--load={trace}", flag)
    assert done.code == 2
    assert "a trace is replayed; --dump-topology and --check-config do something else" in one_line(done.err)


def test_settings_that_cannot_be_used_end_with_78(trace: Path) -> None:
    for flags, told in (
        (["--policy=x"], "--policy: "),
        (["--reserved-memory=65536"], "reserved_memory: "),
        ([f"--topology={trace}/none.json"], "topology: "),
    ):
        done = replay(f"--load={trace}", *flags)
        assert (done.code, done.out) == (78, "")
        assert f"vmstackd: {told}" in one_line(done.err)


def test_it_needs_no_hypervisor_and_leaves_nothing_behind(trace: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(
            *("--hypervisor", f"qemu+unix:///system?socket={tmp_path}/none", "--dbus", f"unix:path={tmp_path}/none"),
            *("--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "socket"), HOST, f"--load={trace}"),
        ),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


@contextlib.contextmanager
def fed(*flags: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401  those of Popen
    """A replay of what it is sent. Ended at the end, whatever it does."""
    process = subprocess.Popen(
        command(HOST, ALWAYS, "--load=/dev/stdin", *flags),
        cwd=ROOT,
        env=clean_environment({"TERM": "xterm"}),
        stdin=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def send(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.flush()


def wait_until_taken(process: subprocess.Popen[bytes]) -> None:
    """What was sent is no longer in the pipe."""
    assert process.stdin is not None
    waiting, deadline = array.array("i", [1]), time.monotonic() + PATIENCE
    while waiting[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        fcntl.ioctl(process.stdin, termios.FIONREAD, waiting)


def test_a_pipe_is_replayed_as_a_trace(trace: Path) -> None:
    with fed("--output=json") as process:
        out, err = process.communicate(GOOD.encode(), timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")
    expected = json_lines(replay(f"--load={trace}", "--output=json"))
    assert [json.loads(line) for line in out.splitlines()][1:] == expected[1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    target = tmp_path / "again.csv"
    target.write_text(HEADER)
    with fed(f"--record={target}") as process:
        send(process, GOOD)
        deadline = time.monotonic() + PATIENCE
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + number, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["again.csv"]
    assert target.read_text() == HEADER


def test_who_has_read_enough_ends_it_quietly(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    long_trace(file, 200)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command(HOST, f"--load={file}", "--output=json"),
            cwd=ROOT,
            env=clean_environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("form", ["text", "json", "csv", "none"])
def test_output_that_cannot_be_written_is_a_failure_in_one_line(form: str, trace: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            command(HOST, f"--load={trace}", f"--output={form}"),
            cwd=ROOT,
            env=clean_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert one_line(done.stderr) == "vmstackd: cannot write: No space left on device"


def test_names_that_the_output_cannot_spell_are_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(as_text([sample(0, traced("Zürich"))]), encoding="utf-8")
    done = subprocess.run(
        command(HOST, f"--load={file}"),
        cwd=ROOT,
        env=clean_environment({"PYTHONIOENCODING": "ascii"}),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"deploy Z\\xfcrich " in done.stdout


def _screen(data: bytes) -> list[str]:
    """Lines as a terminal shows them that understands "back to the start" and "erase from here"."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", data.decode())
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            erased = part.startswith("\x1b[K")
            new = part.removeprefix("\x1b[K")
            shown = new if erased else new + shown[len(new) :]
        lines.append(shown)
    return lines


def _read_all(descriptor: int) -> bytes:
    data = b""
    with contextlib.suppress(OSError):  # how a terminal tells that nobody writes any more
        while piece := os.read(descriptor, 65536):
            data += piece
    return data


@pytest.mark.parametrize("form", ["text", "none"])
def test_a_terminal_shows_progress_and_no_line_is_garbled(form: str, trace: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with fed(f"--output={form}", stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            for line in LINES:
                send(process, line)
                wait_until_taken(process)
                time.sleep(0.02)
            assert process.stdin is not None
            process.stdin.close()
            data = _read_all(ours)
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(ours)
    assert b"replaying" in data
    assert b" rows" in data
    shown = _screen(data)
    assert shown[-1] == "", "the bar is gone at the end"
    assert _behind_the_header(shown) == _behind_the_header(
        replay(f"--load={trace}", f"--output={form}").out.splitlines()
    )


def _behind_the_header(lines: list[str]) -> list[str]:
    """Without blank lines."""
    told = [line for line in lines if line]
    return told[next(place for place, line in enumerate(told) if line.startswith(("0:00:00 ", "4 samples "))) :]


def test_without_a_terminal_there_is_no_progress() -> None:
    with fed("--output=none") as process:
        for line in LINES:
            send(process, line)
            time.sleep(0.02)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")
