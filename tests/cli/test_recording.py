"""Recording by the daemon as a process: where it goes, what a reload changes, and that nothing stops it or the daemon
but itself: no kill, no full disk, no other daemon.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.trace import Sample
from tests.cli.command import call
from tests.running import PATIENCE, ROOT, SMALL_HOST, Daemon
from vmstackd.trace_file import TraceFile, TraceFileError

SIM = ("--hypervisor", "sim:", "--topology", SMALL_HOST, "--delay", "0.1")


def load(path: Path) -> list[Sample]:
    """All of a file, in which nothing had to be tolerated."""
    with TraceFile(path) as trace:
        samples = list(trace)
    assert trace.notes == []
    return samples


def loaded(path: Path) -> list[Sample]:
    """What is there already."""
    with contextlib.suppress(TraceFileError):  # not there yet
        return load(path)
    return []


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def deploy(daemon: Daemon, *names: str, level: str = "1") -> None:
    for name in names:
        assert daemon.get(f"/deploy?name={name}&cpu=1&mem=1&oc={level}&qcow2=/images/a.qcow2").status == 200


def test_vms_and_host_are_in_the_file_and_the_first_line_of_the_log_names_it(tmp_path: Path) -> None:
    path = tmp_path / "results" / "trace.csv"
    with Daemon(*SIM, "--record", str(path)) as daemon:
        assert daemon.wait_for(r" starting .* record=(\S+)")[1] == str(path)
        deploy(daemon, "web", level="2")
        eventually(lambda: [sample for sample in loaded(path) if sample.vms])
        count = len(loaded(path))
        eventually(lambda: len(loaded(path)) > count)
        assert daemon.stop() == 0
    first, *_, last = load(path)
    assert (first.time, first.cpus, first.memory_mib) == (0, 16, 65536)
    assert [(vm.name, vm.level, vm.vcpus, vm.memory_mib) for vm in last.vms] == [("web", 2000, 1, 1024)]
    assert [(level.level, level.cpus) for level in last.levels] == [(2000, 1)]
    assert last.vms[0].cpu is not None
    times = [sample.time for sample in load(path)]
    assert times == sorted(set(times))
    told = [line.split(" ")[2] for line in daemon.log.splitlines()]
    assert sorted(told) == ["deploy", "ready", "recording", "starting", "stopping"]


def test_debug_records_where_the_prototype_did(tmp_path: Path) -> None:
    flags = (*SIM, "--debug", "1", "--record", "")
    with Daemon(*flags, folder=tmp_path) as daemon:
        path = tmp_path / "results" / "monitoring.csv"
        assert daemon.wait_for(r" starting .* record=(\S+)")[1] == str(path)
        eventually(lambda: loaded(path))


def test_without_record_there_is_none(tmp_path: Path) -> None:
    with Daemon(*SIM, folder=tmp_path) as daemon:
        deploy(daemon, "web")
        assert daemon.stop() == 0
        assert "record" not in daemon.log
    assert list(tmp_path.iterdir()) == []


def test_checking_the_configuration_makes_no_file(tmp_path: Path) -> None:
    done = call("--topology", SMALL_HOST, "--record", str(tmp_path / "results" / "a.csv"), "--check-config")
    assert (done.code, done.err) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_recording_what_is_never_measured_is_a_wrong_configuration() -> None:
    done = call("--topology", SMALL_HOST, "--record", "a.csv", "--delay", "0", "--check-config")
    assert (done.code, done.out) == (78, "")
    assert done.err == "vmstackd: record: with a delay of 0 nothing is measured; set delay, or record to none\n"


def test_a_reload_begins_ends_and_moves_the_recording(tmp_path: Path) -> None:
    config, first, second = tmp_path / "vmstackd.toml", tmp_path / "first.csv", tmp_path / "second.csv"
    config.write_text("")

    def reload(text: str) -> None:
        seen = daemon.log.count(" reloaded ")
        config.write_text(text)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: daemon.log.count(" reloaded ") > seen)

    daemon = Daemon(*SIM, "--config", str(config))
    flag = daemon.command.index("--record")  # it would win over the file
    del daemon.command[flag : flag + 2]
    with daemon:
        reload(f'record = "{first}"\n')
        eventually(lambda: loaded(first))
        reload(f'record = "{second}"\nrecord_files = 2\n')
        eventually(lambda: len(loaded(second)) > 1)
        moved = first.read_bytes()
        reload("")
        ended = second.read_bytes()
        time.sleep(1.5)  # in which another sample would come
        assert (first.read_bytes(), second.read_bytes()) == (moved, ended)
        reload(f'record = "{second}"\n')
        eventually(lambda: (tmp_path / "second.csv.1").exists() and loaded(second))
        assert (tmp_path / "second.csv.1").read_bytes() == ended
        assert loaded(second)[0].time > 0  # since the daemon began to measure
        assert not re.search(" (warning|error) ", daemon.log)


def test_a_new_start_keeps_the_recording_before(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    for _ in range(3):
        with Daemon(*SIM, "--record", str(path), "--record-files", "2"):
            eventually(lambda: loaded(path))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "trace.csv.1"]
    assert load(path)[0].time == load(tmp_path / "trace.csv.1")[0].time == 0


def test_a_second_daemon_on_the_same_file_says_so_and_serves(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    with Daemon(*SIM, "--record", str(path)) as first:
        eventually(lambda: loaded(path))
        with Daemon(*SIM, "--record", str(path)) as second:
            warning = second.wait_for(" warning recording-stopped .*")[0]
            assert 'reason="another process records in it"' in warning
            assert "give each daemon a file of its own (record), then reload" in warning
            deploy(second, "web")
            count = len(load(path))
            eventually(lambda: len(load(path)) > count + 1)
            assert second.log.count("recording-stopped") == 1
        assert first.stop() == 0
    assert not any(sample.vms for sample in load(path))


@pytest.mark.parametrize("place", ["directory", "fifo", "below-a-file"])
def test_a_path_that_cannot_be_is_one_warning_and_nothing_else(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    if place == "directory":
        path.mkdir()
    elif place == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
        path /= "trace.csv"
    with Daemon(*SIM, "--record", str(path)) as daemon:
        daemon.wait_for(" warning recording-stopped .* next_step=")
        deploy(daemon, "web")
        time.sleep(1.5)  # in which another sample comes
        assert daemon.stop() == 0
        assert len(re.findall(" (warning|error) ", daemon.log)) == 1


def test_whenever_the_daemon_is_killed_its_recordings_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    chance = random.Random(7)
    for _ in range(8):
        with Daemon(*SIM, "--record", str(path), "--record-files", "3") as daemon:
            deploy(daemon, "a", "b", level="3")
            time.sleep(chance.uniform(0, 1.2))
            daemon.stop(signal.SIGKILL)
        for file in tmp_path.glob("trace.csv*"):
            if file.suffix != ".new":
                load(file)
    assert len(list(tmp_path.glob("trace.csv*"))) >= 3


FLOOD = """\
import itertools
import sys
from pathlib import Path

import msgspec

from tests.test_trace_writer import sample
from vmstackd.recorder import Plan, Recorder

recorder = Recorder(Plan(path=Path(sys.argv[1]), size=1, files=3))
recorder.start()
large = sample(0, vms=700)
print(flush=True)
for second in itertools.count():
    recorder.take(msgspec.structs.replace(large, time=second))
"""


def test_killed_in_the_middle_of_a_sample_only_that_one_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    chance = random.Random(5)
    kinds = []
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", FLOOD, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.15))
            process.kill()
        for file in tmp_path.glob("trace.csv*"):
            if file.suffix == ".new":
                continue
            with TraceFile(file) as trace:
                samples = list(trace)
            assert samples
            assert all(len(one.vms) == 700 for one in samples)
            kinds.append("cut off" if trace.notes else "whole")
    print(kinds)  # pytest -rP shows it
    assert "whole" in kinds
