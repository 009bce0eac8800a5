"""Traces on disk: whole samples, bounded files, one owner, and what happens to what cannot be written."""

from __future__ import annotations

import os
import resource
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.trace import HEADER, Sample, TracedLevel, TracedVm, format_sample
from vmstackd.trace_writer import TraceWriteError, TraceWriter

SIZE = 1 << 20


def sample(time: int, vms: int = 1, prefix: str = "vm") -> Sample:
    """One moment of a host with VMs that nobody else has."""
    return Sample(
        time=time,
        cpus=16,
        memory_mib=65536,
        cpu=0.5,
        memory=0.25,
        levels=(TracedLevel(level=1000, cpus=vms, busy_cpus=0.5),),
        vms=tuple(
            TracedVm(uuid=f"{prefix}-{number}", name=f"{prefix}{number}", level=1000, vcpus=1, memory_mib=1024, cpu=0.5)
            for number in range(vms)
        ),
    )


def text(*samples: Sample) -> str:
    """The file that has these."""
    return HEADER + "".join(map(format_sample, samples))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def write(writer: TraceWriter, *samples: Sample, size: int = SIZE, files: int = 4) -> None:
    for one in samples:
        writer.write(one, size, files)


def refusal(path: Path) -> TraceWriteError:
    with pytest.raises(TraceWriteError) as error:
        write(TraceWriter(path), sample(0))
    assert str(error.value).isprintable()
    return error.value


def test_column_names_then_the_samples_as_they_come(path: Path) -> None:
    writer = TraceWriter(path)
    for time in range(3):
        write(writer, sample(time))
        assert path.read_text() == text(*map(sample, range(time + 1)))
    writer.close()
    assert os.listdir(path.parent) == ["trace.csv"]  # noqa: PTH208  names alone


def test_a_sample_is_one_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = os.write

    def counted(descriptor: int, data: memoryview) -> int:
        written.append(len(data))
        return real(descriptor, data)

    writer = TraceWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", counted)
        write(writer, sample(0, vms=700), sample(1))
    assert written == [len(text(sample(0, vms=700))), len(format_sample(sample(1)))]


def test_folders_are_made_and_others_may_not_read(tmp_path: Path) -> None:
    path = tmp_path / "results" / "today" / "trace.csv"
    before = os.umask(0o022)
    try:
        write(TraceWriter(path), sample(0))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


def test_what_was_there_is_kept_beside_it(path: Path) -> None:
    path.write_text(text(sample(0)))
    older(path, 1).write_text(text(sample(1)))
    write(TraceWriter(path), sample(2))
    assert [file.read_text() for file in (path, older(path, 1), older(path, 2))] == [
        text(sample(2)),
        text(sample(0)),
        text(sample(1)),
    ]


def test_an_empty_file_is_not_kept(path: Path) -> None:
    path.touch()
    write(TraceWriter(path), sample(0))
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_is_not_there_before_its_first_sample_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever is killed, or the disk, leaves none that is empty."""
    there: list[bool] = []
    real = os.write

    def watched(descriptor: int, data: memoryview) -> int:
        there.append(path.exists())
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", watched)
        write(TraceWriter(path), sample(0))
    assert there == [False]
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_left_is_no_hindrance(path: Path) -> None:
    unfinished = path.with_name("trace.csv.new")
    unfinished.write_text(text(sample(0))[:-5])
    write(TraceWriter(path), sample(1))
    assert path.read_text() == text(sample(1))
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_touched_until_there_is_something_to_write(path: Path) -> None:
    path.write_text(text(sample(0)))
    TraceWriter(path).close()
    assert path.read_text() == text(sample(0))


def test_only_as_many_are_moved_as_needed(path: Path) -> None:
    path.write_text(text(sample(0)))
    older(path, 1).write_text(text(sample(1)))
    older(path, 3).write_text(text(sample(3)))
    write(TraceWriter(path), sample(9), files=4)
    assert [older(path, number).read_text() for number in (1, 2, 3)] == [text(sample(number)) for number in (0, 1, 3)]


@pytest.mark.parametrize("files", [1, 2, 3])
def test_more_files_than_are_to_be_kept_go(path: Path, files: int) -> None:
    path.write_text(text(sample(0)))
    for number in range(1, 6):
        older(path, number).write_text(text(sample(number)))
    write(TraceWriter(path), sample(9), files=files)
    left = [path, *(older(path, number) for number in range(1, files))]
    assert set(path.parent.iterdir()) == set(left)
    assert [file.read_text() for file in left] == [text(sample(9)), *(text(sample(n)) for n in range(files - 1))]


class Step(msgspec.Struct, frozen=True):
    """A sample of so many VMs; again: after a new start."""

    vms: int
    again: bool


@given(
    st.lists(st.builds(Step, vms=st.integers(0, 12), again=st.booleans()), max_size=20),
    st.integers(1, 6000),
    st.integers(1, 5),
)
def test_files_are_bounded_and_have_the_newest_samples_in_order(steps: list[Step], size: int, files: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        writer = TraceWriter(path)
        samples = [sample(time, step.vms) for time, step in enumerate(steps)]
        for step, one in zip(steps, samples, strict=True):
            if step.again:
                writer.close()
                writer = TraceWriter(path)
            write(writer, one, size=size, files=files)
        writer.close()
        found = [file for number in range(files, 0, -1) if (file := older(path, number)).exists()]
        found += [path] if steps else []
        assert set(Path(folder).iterdir()) == set(found)
        assert len(found) <= files
        rest = [format_sample(one) for one in samples]
        for file in reversed(found):
            content = file.read_text()
            assert content.startswith(HEADER)
            body, count = content.removeprefix(HEADER), 0
            while body:
                last = rest.pop()
                assert body.endswith(last)
                body, count = body.removesuffix(last), count + 1
            assert count == 1 or file.stat().st_size <= size
        assert len(found) == files or not rest


@pytest.mark.parametrize("away", [Path.unlink, lambda path: path.rename(f"{path}-20260101")])
def test_a_file_that_others_take_away_is_begun_anew(path: Path, away: Callable[[Path], object]) -> None:
    writer = TraceWriter(path)
    write(writer, sample(0))
    away(path)
    write(writer, sample(1), sample(2))
    assert path.read_text() == text(sample(1), sample(2))
    assert not older(path, 1).exists()


def test_a_file_that_others_empty_gets_its_column_names_again(path: Path) -> None:
    writer = TraceWriter(path)
    write(writer, sample(0))
    os.truncate(path, 0)
    write(writer, sample(1))
    assert path.read_text() == text(sample(1))


def test_a_file_that_others_cut_off_is_not_gone_on_with(path: Path) -> None:
    writer = TraceWriter(path)
    write(writer, sample(0))
    os.truncate(path, len(text(sample(0))) - 5)
    write(writer, sample(1))
    write(writer, sample(2))
    assert path.read_text() == text(sample(1), sample(2))
    assert older(path, 1).read_text() == text(sample(0))[:-5]


def test_of_two_writers_the_second_is_refused(path: Path) -> None:
    first, second = TraceWriter(path), TraceWriter(path)
    write(first, sample(0))
    with pytest.raises(TraceWriteError, match="another process records in it") as error:
        write(second, sample(1))
    assert error.value.next_step == "give each daemon a file of its own"
    write(first, sample(2), size=1)
    with pytest.raises(TraceWriteError, match="another process"):
        write(second, sample(3))
    first.close()
    write(second, sample(4))
    assert [file.read_text() for file in (path, older(path, 1), older(path, 2))] == [
        text(sample(4)),
        text(sample(2)),
        text(sample(0)),
    ]


def test_writers_that_race_never_mix_and_lose_nothing(path: Path) -> None:
    written: dict[str, list[int]] = {f"w{number}-": [] for number in range(4)}

    def work(prefix: str) -> None:
        writer = TraceWriter(path)
        for time in range(80):
            try:
                writer.write(sample(time, prefix=prefix), 900, 2000)
                written[prefix].append(time)
            except TraceWriteError as error:
                assert str(error) == "another process records in it"  # noqa: PT017
            if time % 7 == 0:
                writer.close()
        writer.close()

    threads = [threading.Thread(target=work, args=(prefix,)) for prefix in written]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[str, list[int]] = {prefix: [] for prefix in written}
    for file in path.parent.iterdir():
        content = file.read_text()
        (prefix,) = [prefix for prefix in written if prefix in content]
        times = sorted({int(row.partition("\t")[0]) for row in content.splitlines()[1:]})
        assert content == text(*(sample(time, prefix=prefix) for time in times))
        found[prefix] += times
    assert {prefix: sorted(times) for prefix, times in found.items()} == written


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "it is a directory"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to("elsewhere.csv"), "it is a symbolic link"),
    ],
    ids=["directory", "fifo", "link"],
)
def test_what_is_no_file_is_refused_at_once(path: Path, make: Callable[[Path], object], reason: str) -> None:
    make(path)
    error = refusal(path)
    assert (str(error), error.next_step) == (reason, "name a file that is regular or not there yet")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_devices_are_refused(device: str) -> None:
    assert str(refusal(Path(device))) == "it is not a regular file"


@pytest.mark.parametrize("content", ["root:x:0:0\n", "tm", "tmp,rec,res\n", "tmpfile"])
def test_what_is_not_a_trace_is_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    if HEADER.startswith(content):  # one that was cut off
        write(TraceWriter(path), sample(0))
        assert older(path, 1).read_text() == content
        return
    assert str(refusal(path)) == "it is there and not a trace"
    assert (path.read_text(), list(path.parent.iterdir())) == (content, [path])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(refusal(file / "below" / "trace.csv")) == f"{file / 'below'}: Not a directory"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert str(refusal(path)) == f"{path}.new: File name too long"


def test_an_older_file_that_cannot_be_replaced_is_named_and_nothing_moves(path: Path) -> None:
    path.write_text(text(sample(0)))
    for number in (1, 2, 3):
        older(path, number).mkdir()
    assert str(refusal(path)) == f"{older(path, 3)}: Is a directory"
    assert path.read_text() == text(sample(0))


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Set the size in bytes that no file may grow beyond: the kernel then takes a part, and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_sample_that_does_not_fit_is_cut_off_again(path: Path, limit: Callable[[int], None]) -> None:
    writer = TraceWriter(path)
    write(writer, sample(0))
    limit(path.stat().st_size + 100)
    with pytest.raises(TraceWriteError, match=r"^File too large$"):
        write(writer, sample(1))
    assert path.read_text() == text(sample(0))
    with pytest.raises(TraceWriteError):
        write(writer, sample(1, vms=3))
    assert path.read_text() == text(sample(0))
    assert list(path.parent.iterdir()) == [path]
    limit(SIZE)
    write(writer, sample(2))
    assert path.read_text() == text(sample(2))
    assert older(path, 1).read_text() == text(sample(0))


def test_after_a_failure_the_file_is_free_for_others(path: Path, limit: Callable[[int], None]) -> None:
    writer = TraceWriter(path)
    write(writer, sample(0))
    limit(path.stat().st_size)
    with pytest.raises(TraceWriteError):
        write(writer, sample(1))
    limit(SIZE)
    write(TraceWriter(path), sample(2))
