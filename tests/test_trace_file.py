"""Trace files: plain, packed, piped, cut off, damaged, and what is none."""

from __future__ import annotations

import gzip
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.trace import COLUMNS, HEADER, Sample, TracedLevel, TracedVm, format_sample
from vmstackd.trace_file import LONGEST_LINE, TraceFile, TraceFileError

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "shared/reference/monitoring-example.csv"
DESCRIPTORS = Path("/proc/self/fd")
NAMES = ", ".join(COLUMNS)
A_TRACE = f"a trace: the names of columns, separated by tabs ({NAMES}), then rows"
THE_NAMES = f"the column names of a trace, separated by tabs: {NAMES}"


def sample(time: int, vms: int = 2, prefix: str = "vm") -> Sample:
    """A moment of a host with two levels."""
    return Sample(
        time=time,
        cpus=16,
        memory_mib=65536,
        cpu=0.5,
        memory=0.25,
        levels=(
            TracedLevel(level=1000, cpus=4, busy_cpus=0.5, description=b'{"res_list":[0,1,2,3]}', delay_s=0.125),
            TracedLevel(level=2000, cpus=2),
        ),
        vms=tuple(
            TracedVm(f"{prefix}-{number}", f"{prefix}{number}", 1000, 1, 1024, 0.5, None, 0.25) for number in range(vms)
        ),
    )


MOMENTS = [sample(time) for time in (0, 15, 30)]
TEXTS = [format_sample(moment).encode() for moment in MOMENTS]
TRACE = HEADER.encode() + b"".join(TEXTS)
ROWS = TRACE.count(b"\n") - 1


def file_of(folder: Path, data: bytes | bytearray) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(data)
    return path


def without_lines(samples: list[Sample]) -> list[Sample]:
    return [msgspec.structs.replace(found, line=0) for found in samples]


def read(path: Path) -> tuple[list[Sample], list[str]]:
    """Samples, without their lines, and notes."""
    with TraceFile(path) as trace:
        return without_lines(list(trace)), trace.notes


def error_of(path: Path) -> str:
    """What is wrong with a file, behind its path."""
    with pytest.raises(TraceFileError) as caught, TraceFile(path) as trace:
        list(trace)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@contextmanager
def piped(folder: Path, data: bytes, at_once: int) -> Iterator[Path]:
    """A named pipe that somebody writes into, so many bytes at once."""
    path = folder / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            for place in range(0, len(data), at_once):
                pipe.write(data[place : place + at_once])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield path
    finally:
        writer.join(60)
        path.unlink()


def test_a_file_gives_its_samples_one_after_the_other(tmp_path: Path) -> None:
    with TraceFile(file_of(tmp_path, TRACE)) as trace:
        assert (trace.position, trace.size, trace.rows) == (0, len(TRACE), 0)
        first = next(iter(trace))
        assert first == msgspec.structs.replace(MOMENTS[0], line=2)
        others = list(trace)
        assert without_lines(others) == MOMENTS[1:]
        assert [found.line for found in others] == [11, 20]
        assert (trace.position, trace.size, trace.rows) == (len(TRACE), len(TRACE), ROWS)
        assert list(trace) == []
        assert trace.notes == []


def test_the_file_is_closed_even_if_not_all_is_read(tmp_path: Path) -> None:
    with TraceFile(file_of(tmp_path, TRACE)) as trace:
        samples = iter(trace)
        next(samples)
        opened = len(list(DESCRIPTORS.iterdir()))
    assert len(list(DESCRIPTORS.iterdir())) == opened - 1
    assert list(samples) == []


def shortened(row: list[str]) -> list[str]:
    return [*row[:3], row[3].removesuffix(".0"), *row[4:]]


@pytest.mark.skipif(not EXAMPLE.exists(), reason=f"needs {EXAMPLE.name} of the project's notes")
def test_the_prototypes_example_is_read_whole_and_written_as_it_was() -> None:
    with TraceFile(EXAMPLE) as trace:
        samples = list(trace)
        assert (trace.rows, trace.notes, trace.position) == (5074, [], trace.size)
    assert len(samples) == 60
    assert len({vm.uuid for found in samples for vm in found.vms}) == 99
    assert all(vm.memory_mib for found in samples for vm in found.vms)
    # The prototype writes whole numbers that it has measured as 17.0.
    rows = [shortened(row.split("\t")) for row in EXAMPLE.read_text().splitlines()[1:]]
    again = [row.split("\t")[:-1] for row in "".join(map(format_sample, samples)).splitlines()]
    # Of memory, ours tells in the order of the levels; the host's part of the subset is measured only once.
    assert [row for row in again if row[2] == "cpu"] == [row for row in rows if row[2] == "cpu"]
    assert sorted(row for row in again if row[1] != "subset") == sorted(row for row in rows if row[1] != "subset")


def as_it_is(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("pack", [as_it_is, gzip.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_whatever_the_line_ends_and_the_packing(
    tmp_path: Path, pack: Callable[[bytes], bytes], mark: bytes, end: bytes, last: bool
) -> None:
    data = mark + TRACE.replace(b"\n", end)
    if not last:
        data = data.removesuffix(b"\n")
    path = file_of(tmp_path, pack(data))
    assert read(path) == (MOMENTS, [])


def test_lines_may_end_in_either_way_in_one_file(tmp_path: Path) -> None:
    assert read(file_of(tmp_path, HEADER.encode() + TEXTS[0] + TEXTS[1].replace(b"\n", b"\r\n") + TEXTS[2])) == (
        MOMENTS,
        [],
    )


@pytest.mark.parametrize("at_once", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("pack", [as_it_is, gzip.compress])
def test_a_pipe_gives_the_same_in_whatever_pieces(tmp_path: Path, pack: Callable[[bytes], bytes], at_once: int) -> None:
    data = pack(TRACE.replace(b"\n", b"\r\n"))
    with piped(tmp_path, data, at_once) as path, TraceFile(path) as trace:
        assert without_lines(list(trace)) == MOMENTS
        assert (trace.position, trace.size, trace.rows, trace.notes) == (len(data), 0, ROWS, [])


def test_packed_parts_may_follow_each_other_under_any_name(tmp_path: Path) -> None:
    cut = len(TRACE) // 2
    packed = gzip.compress(TRACE[:cut]) + gzip.compress(b"") + gzip.compress(TRACE[cut:])
    with TraceFile(file_of(tmp_path, packed)) as trace:
        assert without_lines(list(trace)) == MOMENTS
        assert (trace.position, trace.size) == (len(packed), len(packed))


def test_only_column_names_are_a_trace_without_samples(tmp_path: Path) -> None:
    for header in (HEADER, HEADER.rstrip("\n")):
        assert read(file_of(tmp_path, header.encode())) == ([], [])


def whole_moments(data: bytes) -> int:
    """How many moments are in a trace that was cut off; the very last line end may be missing."""
    count, end = 0, len(HEADER)
    for text in TEXTS:
        end += len(text)
        count += len(data) >= end - 1
    return count


def test_a_recording_may_have_been_killed_at_any_byte(tmp_path: Path) -> None:
    ends = {
        len(HEADER) - 1,
        *(len(HEADER) + len(b"".join(TEXTS[:count])) - back for count in range(4) for back in (0, 1)),
    }
    for length in range(len(HEADER) - 1, len(TRACE) + 1):
        samples, notes = read(file_of(tmp_path, TRACE[:length]))
        assert samples == MOMENTS[: whole_moments(TRACE[:length])], length
        assert bool(notes) == (length not in ends), length


def test_a_packed_recording_may_have_been_killed_at_any_byte(tmp_path: Path) -> None:
    packed = gzip.compress(TRACE[:1500]) + gzip.compress(TRACE[1500:])
    most = 0
    for length in range(2, len(packed)):
        try:
            samples, notes = read(file_of(tmp_path, packed[:length]))
        except TraceFileError as error:
            samples, notes = [], [str(error)]
            assert most == 0, "once there were samples, more bytes do not take them back"
        assert samples == MOMENTS[: len(samples)]
        assert len(samples) >= most
        assert notes or length == len(gzip.compress(TRACE[:1500]))
        most = len(samples)
    assert most >= 2


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        (TRACE + TEXTS[0][:7].replace(b"0", b"45", 1), ["line 29: the file was cut off here"]),
        (
            TRACE[:-20],
            [
                "line 28: the file was cut off here",
                "line 20: the sample that begins here, at 30 s, is incomplete and was left out",
            ],
        ),
        (
            TRACE[: TRACE.rindex(b"30\tvm")],
            ["line 20: the sample that begins here, at 30 s, is incomplete and was left out"],
        ),
    ],
)
def test_what_was_cut_off_is_noted(tmp_path: Path, data: bytes, notes: list[str]) -> None:
    assert read(file_of(tmp_path, data))[1] == notes


def test_only_the_end_may_be_incomplete(tmp_path: Path) -> None:
    middle = TRACE.index(b"15\tglobal\tcpu")
    data = TRACE[: middle - 8] + TRACE[middle:]
    assert error_of(file_of(tmp_path, data)) == "line 10: found 22 columns, expected 12 as in the first line"


def test_samples_before_an_error_are_given_out(tmp_path: Path) -> None:
    with TraceFile(file_of(tmp_path, TRACE + b"\n")) as trace:
        samples = iter(trace)
        assert without_lines([next(samples), next(samples)]) == MOMENTS[:2]
        with pytest.raises(TraceFileError, match=r"line 29: found a blank line, expected a row$"):
            next(samples)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", f"is empty, expected {A_TRACE}"),
        (gzip.compress(b"", mtime=0), f"is empty, expected {A_TRACE}"),
        (gzip.compress(TRACE, mtime=0)[:8], f"is empty, expected {A_TRACE}"),
        (
            b"\n" + TRACE,
            f"line 1: found a blank line, expected {THE_NAMES}",
        ),
        (
            b'{"vmstack_topology": 1}\n',
            f"line 1: found '{{\"vmstack_topology\": 1}}', expected {THE_NAMES}",
        ),
        (
            HEADER.encode().replace(b"\tvm_cmn", b""),
            "line 1: found no column vm_cmn, expected at least tmp, rec, res, val, config, vm_uuid, vm_cmn, sb_oc",
        ),
        (TRACE.decode().encode("utf-16"), f"is a binary file, expected {A_TRACE}"),
        (gzip.compress(bytes(100), mtime=0), f"is a binary file, expected {A_TRACE}"),
        (bytes(LONGEST_LINE + 1), f"is a binary file, expected {A_TRACE}"),
        (TRACE.replace(b"15\tvm", b"\0\0\tvm", 1), "line 13: found NUL bytes, expected text"),
        (TRACE.replace(b"vm1\t", b"v\xff1\t"), "line 5: found vm_cmn 'v\ufffd1', expected text in UTF-8"),
        (
            TRACE.replace(b"\t0.5\t16", b"\tnan\t16", 1),
            "line 2: found val 'nan', expected a number from 0 to 1, or None",
        ),
        (TRACE + TEXTS[0], "line 29: found tmp 0 after 30, expected rows in the order of time"),
        (
            TRACE + b"x" * (LONGEST_LINE + 1),
            f"line 29: found more than {LONGEST_LINE} bytes without a line end, expected a row",
        ),
        (
            TRACE + b"x" * (10 << 20) + b"\n" + TRACE,
            f"line 29: found more than {LONGEST_LINE} bytes without a line end, expected a row",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    assert error_of(file_of(tmp_path, data)) == message


def test_a_row_may_be_as_long_as_the_prototypes(tmp_path: Path) -> None:
    description = b'{"res_list":[' + b"1," * (LONGEST_LINE // 2 - 200) + b"1]}"
    data = TRACE.replace(b'{"res_list":[0,1,2,3]}', description, 1)
    samples, notes = read(file_of(tmp_path, data))
    assert samples[0].levels[0].description == description
    assert samples[1:] == MOMENTS[1:]
    assert notes == []


def test_a_row_that_is_too_long_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    with path.open("wb") as file:
        file.write(TRACE)
        file.truncate(200 << 20)
    tracemalloc.start()
    try:
        assert "without a line end" in error_of(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * LONGEST_LINE
    finally:
        tracemalloc.stop()


def test_damaged_gzip_data_are_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(TRACE))
    assert error_of(file_of(tmp_path, packed + b"more")) == (
        "line 29: found damaged gzip data, expected them as gzip wrote them: "
        "Error -3 while decompressing data: incorrect header check"
    )
    packed[-6] ^= 1
    assert error_of(file_of(tmp_path, packed)).endswith("incorrect data check")


@given(st.data())
def test_a_flipped_bit_of_gzip_data_is_never_passed_over(data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(TRACE, mtime=0))
    # The header's flags, time and system mean nothing to the content.
    place = data.draw(st.integers(10, len(packed) - 1))
    packed[place] ^= 1 << data.draw(st.integers(0, 7))
    with TemporaryDirectory() as folder:
        path = file_of(Path(folder), packed)
        try:
            samples, notes = read(path)
        except TraceFileError as error:
            samples, notes = [], [str(error)]
    assert notes or samples == MOMENTS  # some bits only fill a byte


def test_what_is_no_file(tmp_path: Path) -> None:
    assert error_of(tmp_path) == "is a directory, expected the file of a trace"
    assert error_of(tmp_path / "missing") == "cannot be read: No such file or directory"
    assert error_of(file_of(tmp_path, TRACE) / "below") == "cannot be read: Not a directory"
    assert error_of(Path("/proc/self/mem")) == "cannot be read: Input/output error"
    assert error_of(Path(sys.executable)) == f"is a binary file, expected {A_TRACE}"
    assert error_of(Path("/dev/zero")) == f"is a binary file, expected {A_TRACE}"
    with pytest.raises(TraceFileError, match="null byte"):
        TraceFile("a\0b")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, TRACE)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert error_of(path) == "cannot be read: Permission denied"
    finally:
        os.seteuid(user)


@given(
    st.lists(
        st.sampled_from([*TRACE.splitlines(keepends=True), b"45", b"\t", b"\n", b"\r\n", b"None", b"\x1f\x8b"])
        | st.binary(max_size=30),
        max_size=20,
    ),
    st.sampled_from([HEADER.encode(), b""]),
    st.booleans(),
)
def test_any_bytes_are_samples_or_an_error(parts: list[bytes], header: bytes, packed: bool) -> None:
    data = header + b"".join(parts)
    with TemporaryDirectory() as folder:
        path = file_of(Path(folder), gzip.compress(data, 1) if packed else data)
        try:
            samples, _ = read(path)
        except TraceFileError as error:
            told, samples = str(error), []
        else:
            told = f"{path}: "
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    assert [found.time for found in samples] == sorted({found.time for found in samples})


def peak_of(path: Path, moments: int) -> int:
    """Bytes that reading needs at a time, of a host with other VMs at every moment."""
    with path.open("w") as file:
        file.write(HEADER)
        for time in range(moments):
            file.write(format_sample(sample(time, vms=50, prefix=f"vm-{time}-")))
    tracemalloc.start()
    try:
        with TraceFile(path) as trace:
            assert sum(len(found.vms) for found in trace) == 50 * moments
            assert trace.rows == 105 * moments
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    short = peak_of(tmp_path / "short.csv", 120)
    assert peak_of(tmp_path / "long.csv", 1000) < 1.2 * short
