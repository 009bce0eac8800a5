"""Any text is a workload, or is refused with a line of it."""

from __future__ import annotations

import gzip
from csv import DictReader
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.workload import Workload, WorkloadVm
from core.workload_cells import WorkloadTextError
from core.workload_parser import LONGEST_LINE, MOST_LINES, parse_workload
from core.workload_table import VM_COLUMNS

WORKLOADS = Path(__file__).resolve().parent.parent.parent.parent / "shared/workloads"
TABLE = "vm_id,vcpus,mem_gb,level,arrival_s,departure_s\na,2,3.5,1.5,0,60\nb,1,1,1,0,\n"
PROPERTIES = "vm7=vmid:7,vmcpu:2,vmoc:3.0,vmram:7168,vmsubmission:0,cloudletlifetime:60480\n"
IN_TABLE = Workload((WorkloadVm("a", 1500, 2, 3584, 0.0, 60.0), WorkloadVm("b", 1000, 1, 1024, 0.0, inf)))
IN_PROPERTIES = Workload((WorkloadVm("7", 3000, 2, 7168, 0.0, 60480.0),))


def parsed(text: str) -> Workload | WorkloadTextError:
    try:
        return parse_workload(text)
    except WorkloadTextError as error:
        return error


def refusal(text: str) -> str:
    with pytest.raises(WorkloadTextError) as caught:
        parse_workload(text)
    return str(caught.value)


@pytest.mark.parametrize(("text", "workload"), [(TABLE, IN_TABLE), (PROPERTIES, IN_PROPERTIES)])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("after", ["", "\n", "\n\n \n"])
@pytest.mark.parametrize("before", ["", "\ufeff"])
def test_every_format_is_recognised_however_lines_end(
    text: str, workload: Workload, line_end: str, after: str, before: str
) -> None:
    assert parse_workload((before + text.rstrip("\n") + after).replace("\n", line_end)) == workload


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", " \r\n\n"])
def test_nothing_is_refused_with_what_was_expected(text: str) -> None:
    assert refusal(text) == (
        "line 1: found nothing, expected the names of columns: vm_id, vcpus, mem_gb, level, arrival_s, departure_s, "
        "or for shapes vcpus, mem_gb, level, count, separated by commas"
    )


def test_a_line_is_told_as_an_editor_counts_it() -> None:
    assert refusal(TABLE.replace("\n", "\r\n") + "c,x,1,1,0,\r\n").startswith("line 4, column vcpus: ")
    assert refusal(TABLE + "c\u2028\x0b\x85,x,1,1,0,\n").startswith("line 4, column vcpus: ")


def test_nul_characters_are_refused_even_where_nobody_looks() -> None:
    assert refusal(TABLE + "c\0,1,1,1,0,\n") == "line 4: found NUL characters, expected text"


def test_a_line_that_is_too_long_is_refused() -> None:
    row = f"{'x' * (LONGEST_LINE - 9)},1,1,1,0,"
    assert len(row) == LONGEST_LINE
    assert len(parse_workload(f"{TABLE}{row}\n").vms) == 3
    assert refusal(f"{TABLE}x{row}\n") == (
        f"line 4: found {'x' * 40 + '...'!r} with {LONGEST_LINE + 1} characters, expected a line of at most 65536"
    )


def test_more_lines_than_anybody_needs_are_refused_before_they_are_read() -> None:
    assert parse_workload(TABLE.rstrip("\n") + "\n" * (MOST_LINES - 2)) == IN_TABLE
    assert refusal(TABLE + "\n" * MOST_LINES) == "line 4000001: found more than 4000000 lines, expected no more"


PIECES = st.sampled_from(
    [
        *(*VM_COLUMNS, "count", "vmid", "vmcpu", "vmram", "vmoc", "nan", "e9"),
        *',\n,\n,\r"10-. \t#=:\0\ufeffé\x1b',
    ]
)


@given(
    st.sampled_from(
        ["", TABLE, PROPERTIES, "vcpus,mem_gb,level,count\n", "vm_id,vcpus,mem_gb,level,arrival_s,departure_s\n"]
    ),
    st.text() | st.lists(PIECES).map("".join),
)
def test_any_text_is_a_workload_or_is_refused_with_a_line(start: str, text: str) -> None:
    found = parsed(start + text)
    if isinstance(found, WorkloadTextError):
        assert 1 <= found.line <= (start + text).count("\n") + (start + text).count("\r") + 2
        assert str(found).isprintable()
        return
    assert found.vms
    arrivals = [vm.arrival for vm in found.vms]
    assert arrivals == sorted(arrivals)
    assert all(vm.vcpus > 0 and vm.memory_mib > 0 and vm.arrival <= vm.departure for vm in found.vms)


@given(st.integers(0, len(TABLE) - 1), st.text(max_size=2))
def test_a_table_with_something_else_in_one_place_is_read_or_refused(place: int, other: str) -> None:
    found = parsed(TABLE[:place] + other + TABLE[place + 1 :])
    assert "expected" in str(found) if isinstance(found, WorkloadTextError) else found.vms


@pytest.mark.skipif(not WORKLOADS.is_dir(), reason="the published workloads are not there")
def test_the_published_workloads_are_read_row_by_row() -> None:
    files = sorted(WORKLOADS.glob("*.csv.gz"))
    assert len(files) == 30
    for file in files:
        text = gzip.decompress(file.read_bytes()).decode()
        assert parse_workload(text) == Workload(
            tuple(
                WorkloadVm(
                    row["vm_id"],
                    int(row["level"]) * 1000,
                    int(row["vcpus"]),
                    round(float(row["mem_gb"]) * 1024),
                    float(row["arrival_s"]),
                    float(row["departure_s"]),
                )
                for row in DictReader(text.splitlines())
            )
        )
