"""The example of a recording: always the same, as lively as it says, and replayed whole."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import example_trace
from core.policy import POLICIES
from core.replay import Replay
from core.trace import Sample, described_cpus
from tests.running import PATIENCE, ROOT, clean_environment
from vmstackd import app
from vmstackd.settings import load_settings
from vmstackd.trace_file import TraceFile


def make(*arguments: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.example_trace", *arguments],
        cwd=ROOT,
        env=clean_environment({"PYTHONHASHSEED": seed}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("example") / "results" / "monitoring.csv"
    done = make(str(path))
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[0].startswith(f"{path}: 12 hours of EPYC-7662-exp with ")
    assert told[1:] == [
        f"Replay it:   .venv/bin/vmstackd --load={path} --topology=topologies/EPYC-7662-exp.json",
        f"Look at it:  .venv/bin/vmstackctl report {path} -o report.html",
    ]
    return path


@pytest.fixture(scope="module")
def samples(path: Path) -> list[Sample]:
    with TraceFile(path) as trace:
        found = list(trace)
    assert trace.notes == []
    return found


def test_it_is_the_same_each_time_and_the_one_before_is_kept(path: Path) -> None:
    first = path.read_bytes()
    assert make(str(path), seed="1").returncode == 0
    assert path.read_bytes() == first == path.with_name("monitoring.csv.1").read_bytes()


def test_vms_of_three_levels_come_and_go_and_one_level_ends_and_is_there_again(samples: list[Sample]) -> None:
    assert [sample.time for sample in samples] == list(range(0, 12 * 3600, 60))
    alive = [len(sample.vms) for sample in samples]
    assert example_trace.FEWEST <= min(alive) < 50
    assert 110 < max(alive) <= example_trace.MOST
    levels = [tuple(level.level for level in sample.levels) for sample in samples]
    assert set(levels) >= {(2000, 1000), (2000, 1000, 3000)}
    there = [there for there, _ in itertools.groupby(3000 in present for present in levels)]
    assert there == [False, True, False, True, False]
    for level in (1000, 2000, 3000):
        sizes = [found.cpus for sample in samples for found in sample.levels if found.level == level]
        assert any(after > before for before, after in itertools.pairwise(sizes))
        assert any(after < before for before, after in itertools.pairwise(sizes))


def test_every_value_is_there_and_somebody_waits(samples: list[Sample]) -> None:
    assert all(sample.cpu is not None and sample.memory is not None for sample in samples[1:])
    delays = [level.delay_s for sample in samples[1:] for level in sample.levels]
    assert sum(delay or 0 for delay in delays) > 60
    assert len({vm.uuid for sample in samples for vm in sample.vms}) > 400


def test_a_replay_places_every_vm_again(samples: list[Sample]) -> None:
    flags = {"topology": f"file:{ROOT / example_trace.TOPOLOGY}"}
    settings = load_settings(flags, {}, config_file=Path(os.devnull))
    replay = Replay(app.host_state(settings), POLICIES[settings.policy])
    for sample in samples:
        moment = replay.step(sample)
        assert all(decision.refusal is None for decision in moment.decisions)
        placed = {subset.level: (len(subset.cpus), set(subset.vms)) for subset in moment.state.subsets}
        assert placed == {
            level.level: (level.cpus, {vm.name for vm in sample.vms if vm.level == level.level})
            for level in sample.levels
        }
        assert all(len(described_cpus(level.description)) == level.cpus for level in sample.levels)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = make(str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path}: it is a directory; name a file that is regular or not there yet\n"


def test_other_arguments_show_how_to_call_it() -> None:
    for arguments in (("a", "b"), ("--help",)):
        done = make(*arguments)
        assert (done.returncode, done.stderr) == (2, "usage: python -m benchmarks.example_trace [FILE]\n")
