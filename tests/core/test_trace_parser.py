"""What is written can be read again, and what cannot be read is refused by line, found and expected."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.level import HIGHEST, LOWEST
from core.trace import (
    COLUMNS,
    HEADER,
    Sample,
    TracedLevel,
    TracedVm,
    format_sample,
    printable_name,
)
from core.trace_parser import TraceError, TraceParser

OURS = HEADER.rstrip("\n")
PROTOTYPES = OURS.removesuffix("\tdelay")
MOMENT = """\
60\tglobal\tcpu\t0.5\t8\tNone\tNone\tNone\tNone\tNone\tNone\tNone
60\tsubset\tcpu\t1.25\t2\tsubset-1.0\tNone\tNone\t1.0\t1\t{"res_list":[4,0],"consumer_list":["a"]}\t0.5
60\tvm\tcpu\t0.75\t1\tsubset-1.0\tu-a\ta\t1.0\tNone\tNone\t0.25
60\tvm\tcpu\tNone\t2\tsubset-2.0\tNone\tb\t2.0\tNone\tNone\tNone
60\tglobal\tmem\t0.25\t16384\tNone\tNone\tNone\tNone\tNone\tNone\tNone
60\tsubset\tmem\t0.25\t3072\tsubset-1\tNone\tNone\t1\t0\t{"res_list":[[0,3072]],"consumer_list":["a","b"]}\tNone
60\tvm\tmem\t0.5\t1024\tsubset-1\tu-a\ta\t1\tNone\tNone\tNone
60\tvm\tmem\tNone\t2048\tsubset-1\tNone\tb\t1\tNone\tNone\tNone
"""
READ = Sample(
    time=60,
    cpus=8,
    memory_mib=16384,
    cpu=0.5,
    memory=0.25,
    levels=(TracedLevel(1000, 2, 1.25, 1, b'{"res_list":[4,0],"consumer_list":["a"]}', 0.5),),
    vms=(
        TracedVm("u-a", "a", 1000, 1, 1024, 0.75, 0.5, 0.25),
        TracedVm("", "b", 2000, 2, 2048, None, None, None),
    ),
    line=2,
)


def parse(*rows: str | bytes, header: str = OURS) -> list[Sample]:
    parser = TraceParser(header.encode())
    return read_all(parser, rows)


def read_all(parser: TraceParser, rows: Iterable[str | bytes]) -> list[Sample]:
    samples = list(parser.read([row.encode() if isinstance(row, str) else row for row in rows]))
    last = parser.end()
    return samples if last is None else [*samples, last]


def rows_of(text: str) -> list[str]:
    """Lines end with a line feed and with nothing else that Python would take for an end."""
    return text.removesuffix("\n").split("\n")


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def as_written(sample: Sample) -> Sample:
    """What is left of a sample when it is written and read; its line aside."""
    changed = msgspec.structs.replace
    return changed(
        sample,
        line=0,
        cpu=rounded(sample.cpu),
        memory=rounded(sample.memory),
        levels=tuple(
            changed(level, busy_cpus=rounded(level.busy_cpus), delay_s=rounded(level.delay_s))
            for level in sample.levels
        ),
        vms=tuple(
            changed(vm, cpu=rounded(vm.cpu), memory=rounded(vm.memory), delay_s=rounded(vm.delay_s))
            for level in sample.levels
            for vm in sample.vms
            if vm.level == level.level
        ),
    )


def test_every_field_is_read() -> None:
    assert parse(*rows_of(MOMENT)) == [READ]


def test_a_sample_is_given_out_when_the_next_moment_begins() -> None:
    parser = TraceParser(OURS.encode())
    rows = [row.encode() for row in rows_of(MOMENT)]
    assert list(parser.read(rows)) == []
    assert list(parser.read([rows[0].replace(b"60", b"61")])) == [READ]
    assert parser.line == 10


def test_the_prototypes_columns_are_read() -> None:
    rows = [row.rpartition("\t")[0] for row in rows_of(MOMENT)]
    (sample,) = parse(*rows, header=PROTOTYPES)
    assert [vm.delay_s for vm in sample.vms] == [None, None]
    assert format_sample(sample) == MOMENT.replace("\t0.5\n", "\tNone\n").replace("\t0.25\n", "\tNone\n").replace(
        rows_of(MOMENT)[3] + "\n", ""
    )


def test_a_vm_of_a_level_without_a_subset_row_is_read() -> None:
    assert [(vm.name, vm.level) for vm in parse(*rows_of(MOMENT))[0].vms] == [("a", 1000), ("b", 2000)]


@given(st.permutations([*COLUMNS, "mine", "yours"]), st.sets(st.sampled_from(["subset", "sb_unused", "sb_dsc"])))
def test_columns_may_stand_in_any_order_with_others_between(order: list[str], without: set[str]) -> None:
    names = [name for name in order if name not in without]
    rows = []
    for row in rows_of(MOMENT):
        cells = {**dict(zip(COLUMNS, row.split("\t"), strict=True)), "mine": "nan", "yours": ""}
        rows.append("\t".join(cells[name] for name in names))
    expected = READ
    for column, field, value in (("sb_unused", "unused", 0), ("sb_dsc", "description", b"")):
        if column in without:
            levels = (msgspec.structs.replace(expected.levels[0], **{field: value}),)
            expected = msgspec.structs.replace(expected, levels=levels)
    assert parse(*rows, header="\t".join(names)) == [expected]


numbers = st.none() | st.floats(0, 1)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
names = texts.filter(lambda text: text != "None")


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    """Some moments as a daemon records them: VMs of the levels that are there, with memory."""
    found: list[Sample] = []
    times = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
    for time in sorted(times):
        levels = draw(st.lists(st.integers(LOWEST, HIGHEST), max_size=4, unique=True))
        uuids = draw(st.lists(st.uuids().map(str) | st.just(""), max_size=6))
        vms: dict[str, TracedVm] = {}
        for number, uuid in enumerate(uuids if levels else []):
            name = f"{draw(names)}{number}"
            vm = TracedVm(
                uuid=uuid,
                name=printable_name(name),
                level=draw(st.sampled_from(levels)),
                vcpus=draw(st.integers(1, 4096)),
                memory_mib=draw(st.integers(1, 1 << 30)),
                cpu=draw(numbers),
                memory=draw(numbers),
                delay_s=draw(st.none() | st.floats(0, 10**6)),
            )
            vms.setdefault(uuid or name, vm)
        found.append(
            Sample(
                time=time,
                cpus=draw(st.integers(0, 8192)),
                memory_mib=draw(st.integers(0, 1 << 40)),
                cpu=draw(numbers),
                memory=draw(numbers),
                levels=tuple(
                    TracedLevel(
                        level=level,
                        cpus=draw(st.integers(0, 8192)),
                        busy_cpus=draw(st.none() | st.floats(0, 8192)),
                        unused=draw(st.integers(0, 8192)),
                        description=draw(st.sampled_from([b"", b'{"res_list":[1]}'])),
                        delay_s=draw(st.none() | st.floats(0, 10**6)),
                    )
                    for level in levels
                ),
                vms=tuple(vms.values()),
            )
        )
    return found


@given(samples(), st.integers(1, 20))
def test_what_is_written_is_read_again(recorded: list[Sample], at_once: int) -> None:
    rows = [row.encode() for sample in recorded for row in rows_of(format_sample(sample))]
    parser = TraceParser(OURS.encode())
    parts = [rows[place : place + at_once] for place in range(0, len(rows), at_once)]
    found = [*chain.from_iterable(parser.read(part) for part in parts), parser.end()]
    assert [sample and msgspec.structs.replace(sample, line=0) for sample in found] == [
        as_written(sample) for sample in recorded
    ]
    assert parser.notes() == []
    assert parser.line == 1 + len(rows)


@given(samples())
def test_what_was_read_is_written_as_it_was(recorded: list[Sample]) -> None:
    text = "".join(format_sample(as_written(sample)) for sample in recorded)
    assert "".join(map(format_sample, parse(*rows_of(text)))) == text


def test_files_of_one_recording_may_be_put_together() -> None:
    rows = rows_of(MOMENT)
    later = [row.replace("60\t", "75\t", 1) for row in rows]
    assert parse(*rows, OURS, *later) == [READ, msgspec.structs.replace(READ, time=75, line=11)]


def test_a_vm_without_a_name_is_called_by_its_uuid() -> None:
    (sample,) = parse(with_cell(VM_CPU, "vm_cmn", "None"), with_cell(VM_MEM, "vm_cmn", "None"))
    assert [(vm.uuid, vm.name, vm.memory_mib) for vm in sample.vms] == [("u-a", "u-a", 1024)]


def test_a_name_cannot_command_a_terminal() -> None:
    row = with_cell(with_cell(VM_CPU, "vm_cmn", "a\x1b[31m"), "vm_uuid", "u\x1b")
    (sample,) = parse(row, with_cell(VM_MEM, "vm_uuid", "u\x1b"))
    assert [(vm.uuid, vm.name, vm.memory_mib) for vm in sample.vms] == [("u?", "a?[31m", 1024)]


def test_memory_is_found_by_uuid_and_not_by_name() -> None:
    rows = [
        "0\tvm\tcpu\tNone\t1\tNone\tu-1\tsame\t1.0\tNone\tNone\tNone",
        "0\tvm\tcpu\tNone\t2\tNone\tu-2\tsame\t1.0\tNone\tNone\tNone",
        "0\tvm\tcpu\tNone\t3\tNone\tNone\tsame\t1.0\tNone\tNone\tNone",
        "0\tvm\tmem\tNone\t30\tNone\tNone\tsame\t1\tNone\tNone\tNone",
        "0\tvm\tmem\tNone\t20\tNone\tu-2\tother\t1\tNone\tNone\tNone",
        "0\tvm\tmem\tNone\t10\tNone\tu-1\tNone\t1\tNone\tNone\tNone",
    ]
    (sample,) = parse(*rows)
    assert [(vm.vcpus, vm.memory_mib, vm.name) for vm in sample.vms] == [
        (1, 10, "same"),
        (2, 20, "same"),
        (3, 30, "same"),
    ]


def test_a_name_is_not_taken_for_a_uuid() -> None:
    rows = [VM_CPU, with_cell(with_cell(VM_CPU, "vm_uuid", "None"), "vm_cmn", "u-a"), VM_MEM]
    first, _ = parse(*rows, HOST.replace("60", "61"), HOST_MEM.replace("60", "61"))
    assert first.vms == (
        TracedVm("u-a", "a", 1000, 1, 1024, 0.75, 0.5, 0.25),
        TracedVm("", "u-a", 1000, 1, None, 0.75, None, 0.25),
    )


def test_a_moment_is_one_however_it_is_written() -> None:
    assert parse(*(row.replace("60", "060.0", 1) if "\tmem\t" in row else row for row in rows_of(MOMENT))) == [READ]


@pytest.mark.parametrize(
    ("old", "new", "field", "value"),
    [
        ("\t16384\t", "\t16384.0\t", "memory_mib", 16384),
        ("\t0.25\t16384", "\t1.0312\t16384", "memory", 1.0),  # measured a little more than there is
        ("\t0.5\t8\t", "\t5e-05\t8\t", "cpu", 0.00005),
        ("\t0.5\t8\t", "\t0\t8\t", "cpu", 0.0),
        ("\t0.5\t8\t", "\tNone\t8.\t", "cpu", None),
    ],
)
def test_numbers_as_the_prototype_may_write_them(old: str, new: str, field: str, value: float | None) -> None:
    (sample,) = parse(*rows_of(MOMENT.replace(old, new)))
    assert getattr(sample, field) == value


def test_the_host_need_not_be_told() -> None:
    (sample,) = parse(*[row for row in rows_of(MOMENT) if "global" not in row])
    assert sample == msgspec.structs.replace(READ, cpus=0, memory_mib=0, cpu=None, memory=None)


VM_CPU = "60\tvm\tcpu\t0.75\t1\tsubset-1.0\tu-a\ta\t1.0\tNone\tNone\t0.25"
VM_MEM = "60\tvm\tmem\t0.5\t1024\tsubset-1\tu-a\ta\t1\tNone\tNone\tNone"
SUBSET = "60\tsubset\tcpu\t1.25\t2\tsubset-1.0\tNone\tNone\t1.0\t1\t{}\t0.5"
SUBSET_MEM = "60\tsubset\tmem\t0.25\t3072\tsubset-1\tNone\tNone\t1\t0\t{}\tNone"
HOST = "60\tglobal\tcpu\t0.5\t8\tNone\tNone\tNone\tNone\tNone\tNone\tNone"
HOST_MEM = "60\tglobal\tmem\t0.5\t8\tNone\tNone\tNone\tNone\tNone\tNone\tNone"


def with_cell(row: str, column: str, cell: str) -> str:
    cells = row.split("\t")
    cells[COLUMNS.index(column)] = cell
    return "\t".join(cells)


SHARE = "expected a number from 0 to 1, or None"
LEVEL = "expected a level from 1.0 to 64.0 with at most 3 decimals"
NAMES = f"the column names of a trace, separated by tabs: {', '.join(COLUMNS)}"
LONG = "9" * 50


@pytest.mark.parametrize(
    ("row", "column", "cell", "message"),
    [
        (VM_CPU, "tmp", "soon", "found tmp 'soon', expected whole seconds from 0 to 10000000000"),
        (VM_CPU, "tmp", "None", "found tmp 'None', expected whole seconds from 0 to 10000000000"),
        (VM_CPU, "tmp", "-1", "found tmp '-1', expected whole seconds from 0 to 10000000000"),
        (VM_CPU, "tmp", "60.5", "found tmp '60.5', expected whole seconds from 0 to 10000000000"),
        (VM_CPU, "tmp", "10000000001", "found tmp '10000000001', expected whole seconds from 0 to 10000000000"),
        (VM_CPU, "tmp", "59", "found tmp 59 after 60, expected rows in the order of time"),
        (VM_CPU, "rec", "core", "found rec 'core', expected global, subset or vm"),
        (VM_CPU, "rec", "", "found rec '', expected global, subset or vm"),
        (VM_CPU, "res", "disk", "found res 'disk', expected cpu or mem"),
        (SUBSET, "res", "disk", "found res 'disk', expected cpu or mem"),
        (HOST, "res", "disk", "found res 'disk', expected cpu or mem"),
        *[
            (row, "val", cell, f"found val {cell!r}, {SHARE}")
            for row in (VM_CPU, VM_MEM, HOST, HOST_MEM, SUBSET_MEM)
            for cell in ("nan", "NaN", "inf", "-0.5", "1_0", " 1", "8.01", "1e999", "", "none")
        ],
        (VM_CPU, "val", LONG, f"found val '{LONG[:40]}...', {SHARE}"),
        (SUBSET, "val", "nan", "found val 'nan', expected a number of busy CPUs, or None"),
        (SUBSET, "val", "8193", "found val '8193', expected a number of busy CPUs, or None"),
        (VM_CPU, "delay", "-1", "found delay '-1', expected a number of seconds, or None"),
        (SUBSET, "delay", "NaN", "found delay 'NaN', expected a number of seconds, or None"),
        (VM_CPU, "config", "0", "found config '0', expected whole vCPUs from 1 to 8192"),
        (VM_CPU, "config", "1.5", "found config '1.5', expected whole vCPUs from 1 to 8192"),
        (VM_CPU, "config", "8193", "found config '8193', expected whole vCPUs from 1 to 8192"),
        (VM_MEM, "config", "0", "found config '0', expected whole MiB from 1 to 1099511627776"),
        (VM_MEM, "config", "None", "found config 'None', expected whole MiB from 1 to 1099511627776"),
        (SUBSET, "config", "-1", "found config '-1', expected whole CPUs from 0 to 8192"),
        (SUBSET_MEM, "config", "1e3", "found config '1e3', expected whole MiB from 0 to 1099511627776"),
        (HOST, "config", "many", "found config 'many', expected whole CPUs from 0 to 8192"),
        (HOST_MEM, "config", "nan", "found config 'nan', expected whole MiB from 0 to 1099511627776"),
        (SUBSET, "sb_unused", "few", "found sb_unused 'few', expected whole CPUs from 0 to 8192"),
        (VM_CPU, "sb_oc", "0.5", f"found sb_oc '0.5', {LEVEL}"),
        (VM_CPU, "sb_oc", "None", f"found sb_oc 'None', {LEVEL}"),
        (SUBSET, "sb_oc", "65", f"found sb_oc '65', {LEVEL}"),
        (VM_CPU, "val", "\0\0\0", "found NUL bytes, expected text"),
        (VM_CPU, "vm_cmn", "a\tb", "found 13 columns, expected 12 as in the first line"),
        (VM_MEM, "vm_cmn", "a\tb", "found 13 columns, expected 12 as in the first line"),
        (HOST, "vm_cmn", "a\tb", "found 13 columns, expected 12 as in the first line"),
        (SUBSET, "sb_dsc", "{\t}", "found 13 columns, expected 12 as in the first line"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(row: str, column: str, cell: str, message: str) -> None:
    for columns in (COLUMNS, COLUMNS[::-1]):
        rows = ["60\tvm\tcpu\tNone\t1\tNone\tNone\tother\t1.0\tNone\tNone\tNone", with_cell(row, column, cell)]
        if columns != COLUMNS:
            rows = ["\t".join(row.split("\t")[::-1]) for row in rows]
        with pytest.raises(TraceError) as caught:
            parse(*rows, header="\t".join(columns))
        assert (caught.value.line, caught.value.message) == (3, message)
        assert str(caught.value) == f"line 3: {message}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([""], "found a blank line, expected a row"),
        ([HOST, ""], "found a blank line, expected a row"),
        ([" "], "found 1 columns, expected 12 as in the first line"),
        ([PROTOTYPES + "\tother"], "found tmp 'tmp', expected whole seconds from 0 to 10000000000"),
        ([VM_CPU[:20]], "found 6 columns, expected 12 as in the first line"),
        ([VM_CPU, "60\tvm\tcpu"], "found 3 columns, expected 12 as in the first line"),
        ([VM_CPU, "x\ty\tz"], "found 3 columns, expected 12 as in the first line"),
        ([VM_CPU, VM_CPU.removesuffix("\t0.25")], "found 11 columns, expected 12 as in the first line"),
        ([VM_CPU, VM_CPU + "\t"], "found 13 columns, expected 12 as in the first line"),
        ([VM_CPU, VM_CPU], "found a second cpu row of the VM 'a' at 60 s, expected one for each moment"),
        ([VM_MEM, VM_MEM], "found a second mem row of the VM 'a' at 60 s, expected one for each moment"),
        ([HOST, HOST], "found a second global cpu row at 60 s, expected one for each moment"),
        ([HOST_MEM, HOST_MEM], "found a second global mem row at 60 s, expected one for each moment"),
        ([SUBSET, SUBSET], "found a second cpu row of the subset of level 1.0 at 60 s, expected one for each moment"),
        (
            [VM_CPU, with_cell(with_cell(VM_CPU, "sb_oc", "2.0"), "vm_cmn", "b")],
            "found a second cpu row of the VM 'b' at 60 s, expected one for each moment",
        ),
        (
            [with_cell(VM_CPU, "vm_uuid", "None").replace("\ta\t", "\tNone\t")],
            "found a VM with neither vm_uuid nor vm_cmn, expected one of them",
        ),
        (
            [with_cell(VM_MEM, "vm_uuid", "").replace("\ta\t", "\t\t")],
            "found a VM with neither vm_uuid nor vm_cmn, expected one of them",
        ),
    ],
)
def test_a_row_that_cannot_be_is_refused(rows: list[str], message: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse(*rows)
    assert (caught.value.line, caught.value.message) == (1 + len(rows), message)


@pytest.mark.parametrize("column", ["vm_uuid", "vm_cmn"])
def test_names_that_are_not_utf8_are_refused(column: str) -> None:
    row = with_cell(VM_CPU, column, "M\xfcller").encode("latin-1")
    with pytest.raises(TraceError) as caught:
        parse(row)
    assert caught.value.message == f"found {column} 'M\ufffdller', expected text in UTF-8"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", f"found a blank line, expected {NAMES}"),
        (
            ",".join(COLUMNS),
            f"found '{','.join(COLUMNS)[:40]}...', expected {NAMES}",
        ),
        (OURS + "\ttmp", "found the column 'tmp' twice, expected each once"),
        (OURS + "\tmine\tmine", "found the column 'mine' twice, expected each once"),
        (
            OURS.replace("vm_uuid\t", "").replace("sb_oc", "oc"),
            "found no column vm_uuid, sb_oc, expected at least tmp, rec, res, val, config, vm_uuid, vm_cmn, sb_oc",
        ),
    ],
)
def test_column_names_that_are_none_are_refused(header: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        TraceParser(header.encode())
    assert (caught.value.line, caught.value.message) == (1, message)


def test_very_many_columns_are_looked_through_at_once() -> None:
    names = "\t".join(str(number) for number in range(300_000))
    with pytest.raises(TraceError, match=r"found the column '7' twice"):
        TraceParser(f"{OURS}\t{names}\t7".encode())


def test_samples_before_an_error_are_given_out() -> None:
    parser = TraceParser(OURS.encode())
    rows = parser.read([row.encode() for row in [*rows_of(MOMENT), HOST.replace("60", "61"), ""]])
    assert next(rows) == READ
    with pytest.raises(TraceError, match=r"^line 11: found a blank line"):
        next(rows)


def moment(time: int, vms: Iterable[str], without: str = "", *, host: bool = True) -> Iterator[str]:
    """Rows of a moment: cpu rows of VMs, the host's memory, and mem rows of all VMs but some."""
    yield f"{time}\tglobal\tcpu\t0.5\t8" + "\tNone" * 7
    yield from (f"{time}\tvm\tcpu\t0.5\t1\tNone\tNone\t{vm}\t1.0\tNone\tNone\tNone" for vm in vms)
    if host:
        yield f"{time}\tglobal\tmem\t0.5\t8" + "\tNone" * 7
    for vm in vms:
        if vm not in without:
            yield f"{time}\tvm\tmem\t0.5\t9\tNone\tNone\t{vm}\t1\tNone\tNone\tNone"


LEFT_OUT = "the sample that begins here, at 60 s, is incomplete and was left out"
NO_MEMORY = "a VM has no mem row at this moment, so its memory is not known"


@pytest.mark.parametrize(
    ("rows", "times", "notes"),
    [
        ([*moment(0, "ab"), *moment(60, "ab")], [0, 60], []),
        ([*moment(0, "ab"), *moment(60, "abc", "c")], [0], [f"line 8: {LEFT_OUT}"]),
        ([*moment(0, "ab"), *moment(60, "ab", "ab")], [0], [f"line 8: {LEFT_OUT}"]),
        ([*moment(0, "ab"), *moment(60, "", host=False)], [0], [f"line 8: {LEFT_OUT}"]),
        ([*moment(60, "ab", "b")], [], [f"line 2: {LEFT_OUT}"]),
        ([*moment(0, "", host=False), *moment(60, "", host=False)], [0, 60], []),
        ([], [], []),
        (
            [*moment(0, "ab", "ab", host=False), *moment(60, "abc", "abc", host=False)],
            [0, 60],
            [f"line 3: {NO_MEMORY} (rows like this: 5)"],
        ),
    ],
)
def test_a_last_sample_that_is_incomplete_is_left_out(rows: list[str], times: list[int], notes: list[str]) -> None:
    parser = TraceParser(OURS.encode())
    assert [sample.time for sample in read_all(parser, rows)] == times
    assert parser.notes() == notes


@pytest.mark.parametrize(
    ("rows", "times"),
    [
        ([*moment(0, "ab"), *moment(60, "ab")], [0, 60]),
        ([*moment(0, "ab"), *moment(60, "ab")][:-1], [0]),
        ([*moment(0, "ab"), *moment(60, "ab", host=False)], [0]),
        ([*moment(60, "", host=False)], []),
        ([*moment(0, "ab", "ab", host=False), *moment(60, "ab", "ab", host=False)], [0]),
        ([], []),
    ],
)
def test_when_rows_are_missing_the_last_sample_must_show_that_it_is_complete(rows: list[str], times: list[int]) -> None:
    parser = TraceParser(OURS.encode())
    found = [*parser.read([row.encode() for row in rows]), parser.end(cut_off=True)]
    assert [sample.time for sample in found if sample is not None] == times


def test_a_vm_of_which_only_memory_is_told_is_left_out_and_noted_once() -> None:
    rows = [*moment(0, "ab"), *moment(1, "ab"), *moment(2, "ab")]
    parser = TraceParser(OURS.encode())
    found = read_all(parser, [row for row in rows if not ("cpu" in row and "\tb\t" in row and row[0] != "0")])
    assert [[vm.name for vm in sample.vms] for sample in found] == [["a", "b"], ["a"], ["a"]]
    assert parser.notes() == [
        "line 12: a VM has no cpu row at this moment, so it was left out (rows like this: 2)",
    ]


def test_a_vm_of_which_no_memory_is_told_is_there() -> None:
    parser = TraceParser(OURS.encode())
    found = read_all(parser, [*moment(0, "ab", "b"), *moment(1, "ab")])
    assert [[(vm.name, vm.memory_mib, vm.memory) for vm in sample.vms] for sample in found] == [
        [("a", 9, 0.5), ("b", None, None)],
        [("a", 9, 0.5), ("b", 9, 0.5)],
    ]
    assert parser.notes() == [f"line 4: {NO_MEMORY} (rows like this: 1)"]


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        (VM_MEM, True),
        (SUBSET_MEM, True),
        (VM_MEM[:-1], False),
        (VM_CPU, False),  # of 0.25, more may have followed
        (VM_MEM.removesuffix("\tNone"), False),
        (VM_MEM + "\tNone", False),
        ("", False),
    ],
)
def test_a_last_row_is_whole_if_it_can_be_seen(row: str, whole: bool) -> None:
    assert TraceParser(OURS.encode()).is_whole(row.encode()) is whole


@given(st.integers(0, 200))
def test_a_description_is_whole_with_its_last_bracket(length: int) -> None:
    row = b'60\tsubset\tmem\t0.25\t3072\tsubset-1\tNone\tNone\t1\t0\t{"res_list":[[0,3072]],"consumer_list":["}"]}'
    parser = TraceParser(PROTOTYPES.encode())
    assert parser.is_whole(row[:length]) is (length >= len(row))
    assert not parser.is_whole(b"\t" * 10 + b'{"a":' * 5000)


GARBAGE = st.lists(
    st.sampled_from(
        [*(row.encode() for row in rows_of(MOMENT)), b"60", b"61", b"vm", b"cpu", b"None", b"1.0", b"\t", b"\n", b"{}"]
    )
    | st.binary(max_size=20),
    max_size=20,
).map(b"".join)


@given(GARBAGE, st.sampled_from([OURS, PROTOTYPES, "\t".join(reversed(COLUMNS))]))
def test_any_bytes_are_samples_or_an_error(data: bytes, header: str) -> None:
    rows = data.split(b"\n")
    parser = TraceParser(header.encode())
    parser.is_whole(data)
    try:
        found = read_all(parser, rows)
    except TraceError as error:
        lines, message = [error.line], error.message
    else:
        lines, message = [sample.line for sample in found], "found no mistake, expected none"
    assert all(2 <= line <= 1 + len(rows) for line in lines)
    assert message.startswith("found ")
    assert ", expected " in message


@given(GARBAGE)
def test_any_bytes_are_column_names_or_an_error(header: bytes) -> None:
    with pytest.raises(TraceError, match=r"^line 1: found .*, expected "):
        TraceParser(header)


def peak_of(moments: int, vms: int, prefix: str = "vm-") -> int:
    """Bytes that reading so many moments needs at a time, every one with other VMs than the one before."""
    parser = TraceParser(OURS.encode())
    tracemalloc.start()
    try:
        for time in range(moments):
            rows = moment(time, [f"{prefix}{time * vms + number}" for number in range(vms)])
            for sample in parser.read([row.encode() for row in rows]):
                assert len(sample.vms) == vms
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_vms_that_come_and_go_leave_nothing_behind() -> None:
    assert peak_of(300, 40) < 1.5 * peak_of(60, 40)


def test_names_of_any_length_leave_nothing_behind() -> None:
    long = "vm" * 10_000
    assert peak_of(200, 1, long) < 1.5 * peak_of(20, 1, long)
