"""Recording: everything that is taken is written, whatever the disk does nobody waits, and one warning tells of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.trace import Sample
from tests.test_trace_writer import older, sample, text
from vmstackd import recorder
from vmstackd.recorder import QUEUED, Plan, Recorder
from vmstackd.trace_writer import TraceWriteError, TraceWriter

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def plan(path: Path | None, size: int = 1, files: int = 4) -> Plan:
    return Plan(path=path, size=size, files=files)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def fields(caplog: pytest.LogCaptureFixture, event: str) -> dict[str, object]:
    (record,) = [record for record in caplog.records if record.getMessage() == event]
    return {key: str(value) for key, value in vars(record)["fields"].items()}


def record(first: Plan, *steps: Sample | Plan) -> None:
    """A whole life of a recorder."""
    made = Recorder(first)
    made.start()
    for step in steps:
        if isinstance(step, Plan):
            made.use(step)
        else:
            made.take(step)
    made.stop()


def test_what_is_taken_is_written_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.csv"
    samples = [sample(time) for time in range(QUEUED)]
    record(plan(path), *samples)
    assert path.read_text() == text(*samples)
    assert told(caplog) == ["recording"]
    assert fields(caplog, "recording") == {"record": str(path)}


def test_what_came_before_the_start_is_written_too(tmp_path: Path) -> None:
    made = Recorder(plan(tmp_path / "trace.csv"))
    made.take(sample(0))
    made.start()
    made.stop()
    assert (tmp_path / "trace.csv").read_text() == text(sample(0))


def test_without_a_file_nothing_is_written(caplog: pytest.LogCaptureFixture) -> None:
    record(plan(None), sample(0), plan(None), sample(1))
    assert told(caplog) == []


def test_a_recording_that_takes_nothing_leaves_no_file(tmp_path: Path) -> None:
    record(plan(tmp_path / "results" / "trace.csv"), plan(tmp_path / "results" / "other.csv"))
    assert list(tmp_path.iterdir()) == []


def test_another_file_from_one_sample_to_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    record(plan(first), sample(0), plan(second), sample(1), plan(None), sample(2), plan(first), sample(3))
    assert first.read_text() == text(sample(3))
    assert older(first, 1).read_text() == text(sample(0))
    assert second.read_text() == text(sample(1))
    assert told(caplog) == ["recording"] * 3


def test_a_file_that_is_no_longer_recorded_in_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    made = Recorder(plan(path))
    made.start()
    made.take(sample(0))
    made.use(plan(None))
    other = TraceWriter(path)
    eventually(lambda: path.exists() and _writes(other))
    made.stop()


def _writes(writer: TraceWriter) -> bool:
    try:
        writer.write(sample(9), 1 << 20, 4)
    except TraceWriteError:
        return False
    return True


def test_size_and_files_change_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    large = [sample(time, vms=6000) for time in range(5)]
    assert 1 << 19 < len(text(large[0])) < 1 << 20
    record(plan(path, size=2), large[0], large[1], plan(path, size=1, files=2), large[2], large[3], large[4])
    assert path.read_text() == text(large[4])
    assert older(path, 1).read_text() == text(large[3])
    assert not older(path, 2).exists()


def test_what_cannot_be_written_is_told_once_and_tried_again_after_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trace.csv"
    path.mkdir()
    made = Recorder(plan(path))
    made.start()
    for second in range(5):
        made.take(sample(second))
    eventually(lambda: "recording-stopped" in told(caplog))
    path.rmdir()
    made.take(sample(5))
    made.use(plan(path))
    made.take(sample(6))
    made.stop()
    assert path.read_text() == text(sample(6))
    assert told(caplog) == ["recording-stopped", "recording"]
    assert fields(caplog, "recording-stopped") == {
        "record": str(path),
        "reason": "it is a directory",
        "next_step": "name a file that is regular or not there yet (record), then reload",
    }


def test_a_reload_that_changes_nothing_tells_again_what_is_still_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(plan(tmp_path), sample(0), sample(1), plan(tmp_path), sample(2), sample(3))
    assert told(caplog) == ["recording-stopped"] * 2


class Hanging:
    """A disk that takes nothing until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.works, self.asked = threading.Event(), threading.Event()
        real = TraceWriter.write

        def write(writer: TraceWriter, one: Sample, size: int, files: int) -> None:
            self.asked.set()
            self.works.wait(WAIT_S)
            real(writer, one, size, files)

        monkeypatch.setattr(TraceWriter, "write", write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging(monkeypatch)
    yield hanging
    hanging.works.set()


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_slow_disk_costs_samples_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, disk: Hanging
) -> None:
    path = tmp_path / "trace.csv"
    made = Recorder(plan(path))
    made.start()
    made.take(sample(0))
    assert disk.asked.wait(WAIT_S)
    for second in range(1, 100):
        made.take(sample(second))
    assert told(caplog) == ["recording-behind"]
    disk.works.set()
    eventually(lambda: "recording-caught-up" in told(caplog))
    made.take(sample(100))
    made.stop()
    assert path.read_text() == text(*map(sample, range(QUEUED + 1)), sample(100))
    assert told(caplog) == ["recording-behind", "recording", "recording-caught-up"]
    assert fields(caplog, "recording-caught-up") == {"record": str(path), "left_out": str(99 - QUEUED)}


def test_the_end_waits_for_the_disk_but_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, disk: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recorder(plan(tmp_path / "trace.csv"))
    made.start()
    made.take(sample(0))
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "STOP_S", 0.1)
        made.stop()
    disk.works.set()
    made.stop()
    assert told(caplog)[:1] == ["recording-cut-off"]
    assert fields(caplog, "recording-cut-off")["reason"] == "the disk has not taken the last samples within 0.1 s"
