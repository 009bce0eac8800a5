"""Tables of VMs and of shapes: columns in any order, rows in theirs; what is wrong is said by line and column."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.level import HIGHEST, LOWEST, format_level
from core.workload import Workload, WorkloadVm
from core.workload_cells import MOST_VMS, WorkloadTextError
from core.workload_table import SHAPE_COLUMNS, VM_COLUMNS, parse_table

HEADER = "vm_id,vcpus,mem_gb,level,arrival_s,departure_s"
A_VM = "a,2,3.5,1.5,0,60"
COLUMNS = (
    "vm_id, vcpus, mem_gb, level, arrival_s, departure_s, or for shapes vcpus, mem_gb, level, count, "
    "separated by commas"
)


def table(*rows: str, header: str = HEADER) -> Workload:
    return parse_table([header, *rows])


def refusal(*rows: str, header: str = HEADER) -> str:
    with pytest.raises(WorkloadTextError) as caught:
        table(*rows, header=header)
    return str(caught.value)


def test_every_column_is_read() -> None:
    assert table(A_VM, "b,16,60,3,60,") == Workload(
        (WorkloadVm("a", 1500, 2, 3584, 0.0, 60.0), WorkloadVm("b", 3000, 16, 61440, 60.0, inf))
    )


@given(st.permutations([*VM_COLUMNS, "mem_generated_gb", "owner"]))
def test_columns_may_stand_in_any_order_with_others_between(order: list[str]) -> None:
    cells = dict(zip(VM_COLUMNS, A_VM.split(","), strict=True))
    row = ",".join(cells.get(name, "whatever") for name in order)
    assert table(row, header=",".join(order)) == table(A_VM)


def test_cells_may_have_blanks_around_them() -> None:
    assert table(" a , 2,\t3.5 , 1.5 , 0 , 60 ", header=HEADER.replace(",", ", ")) == table(A_VM)


@pytest.mark.parametrize(
    ("quoted", "name"),
    [('"a"', "a"), (' "a" ', "a"), ('"a,b"', "a,b"), ('"the ""a"""', 'the "a"'), ('" a"', "a")],
)
def test_cells_may_be_quoted(quoted: str, name: str) -> None:
    found = table(f'{quoted},"2",3.5,"1.5",0,"60"', 'b,2,3.5,1.5,0,""', header=HEADER.replace("level", '"level"'))
    assert [(vm.name, vm.level, vm.departure) for vm in found.vms] == [(name, 1500, 60.0), ("b", 1500, inf)]


@pytest.mark.parametrize("name", ['"a', '"a""', 'a"b', '"a"b', '""a"'])
def test_quotation_marks_that_do_not_pair_are_refused(name: str) -> None:
    assert refusal(f"{name},2,3.5,1,0,60") == (
        f"line 2: found {f'{name},2,3.5,1,0,60'!r}, expected a cell with a quotation mark at its beginning and one at "
        "its end, in the same line"
    )


def test_a_quote_does_not_end_in_another_line() -> None:
    assert refusal('b,1,1,1,0,"', '"').startswith("line 2: found '\"', expected a cell with a quotation mark")


def test_the_order_of_rows_is_kept() -> None:
    found = table(*[f"{name},1,1,1,0," for name in "cab"])
    assert [vm.name for vm in found.vms] == ["c", "a", "b"]
    assert found.notes == ()


def test_rows_out_of_order_are_sorted_with_a_note() -> None:
    found = table("a,1,1,1,7,", "b,1,1,1,0,", "c,1,1,1,7,")
    assert [vm.name for vm in found.vms] == ["b", "a", "c"]
    assert found.notes[0].startswith("1 of 3 VMs stood after some that arrive later, 'b' first of all; sorted")


def test_a_vm_may_leave_in_the_moment_in_which_it_comes() -> None:
    assert table("a,1,1,1,60,60").vms[0].departure == 60.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,0,1,1,0,", "column vcpus: found '0', expected whole vCPUs from 1 to 4096"),
        ("b,1,-1,1,0,", "column mem_gb: found '-1', expected a number of GB (of 1024 MiB) above 0, at most 1048576"),
        ("b,1,1,four,0,", "column level: found 'four', expected a level from 1.0 to 64.0 with at most 3 decimals"),
        (
            "b,1,1,1,,",
            "column arrival_s: found nothing, expected a number of seconds from -10000000000 to 10000000000",
        ),
        (
            "b,1,1,1,0,never",
            (
                "column departure_s: found 'never', expected a number of seconds from -10000000000 to 10000000000, "
                "or nothing for a VM that stays"
            ),
        ),
        (
            "b,1,1,1,60,59",
            "column departure_s: found '59', expected no less than the arrival at 60 s, or nothing",
        ),
        ("a,1,1,1,0,", "column vm_id: found 'a' again after line 2, expected each VM once"),
        (" ,1,1,1,0,", "column vm_id: found nothing, expected the name of the VM"),
    ],
)
def test_what_is_wrong_with_a_vm_is_said_with_its_line_and_column(row: str, message: str) -> None:
    assert refusal(A_VM, row, A_VM) == f"line 3, {message}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "found a blank line, expected a row"),
        ("b,1,1,1,0", "found 5 cells, expected 6 as in the first line"),
        ("b,1,1,5,1,0,60", "found 7 cells, expected 6 as in the first line"),
        ('b,1,"1,5",1,0,60,', "found 7 cells, expected 6 as in the first line"),
    ],
)
def test_what_is_no_row_is_refused(row: str, message: str) -> None:
    assert refusal(A_VM, row, A_VM) == f"line 3: {message}"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", f"line 1: found a blank line, expected the names of columns: {COLUMNS}"),
        (A_VM, f"line 1: found 'a,2,3.5,1.5,0,60', expected the names of columns: {COLUMNS}"),
        (
            HEADER.replace(",", ";"),
            f"line 1: found 'vm_id;vcpus;mem_gb;level;arrival_s;depar...', expected the names of columns: {COLUMNS}",
        ),
        ("vm_id,vcpus,level,arrival_s", f"line 1: found no column mem_gb, departure_s, expected {COLUMNS}"),
        ("vcpus,count", f"line 1: found no column mem_gb, level, expected {COLUMNS}"),
        (f"{HEADER},vcpus", "line 1, column vcpus: found this column twice, expected it once"),
        (
            f"{HEADER},count",
            f"line 1, column vm_id: found this column beside count, expected one of them: {COLUMNS}",
        ),
    ],
)
def test_what_are_no_columns_is_refused(header: str, message: str) -> None:
    assert refusal(A_VM, header=header) == message


def test_columns_without_a_row_are_refused() -> None:
    assert refusal() == "line 2: found the end, expected a row below the names of columns"


def test_shapes_are_as_many_vms_in_the_order_of_the_rows() -> None:
    found = table("2,4,1,2", "1,0.5,3,0", "4,8,1.5,1.0", header="vcpus,mem_gb,level,count")
    assert found == Workload(
        (
            WorkloadVm("line 2 #1", 1000, 2, 4096, 0.0, inf),
            WorkloadVm("line 2 #2", 1000, 2, 4096, 0.0, inf),
            WorkloadVm("line 4 #1", 1500, 4, 8192, 0.0, inf),
        )
    )


@given(st.permutations([*SHAPE_COLUMNS, "name"]))
def test_columns_of_shapes_may_stand_in_any_order(order: list[str]) -> None:
    cells = dict(zip(SHAPE_COLUMNS, ("2", "4", "1", "3"), strict=True))
    row = ",".join(cells.get(name, "small") for name in order)
    assert [(vm.vcpus, vm.memory_mib, vm.level) for vm in table(row, header=",".join(order)).vms] == [
        (2, 4096, 1000)
    ] * 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,1,1,-1"], "line 2, column count: found '-1', expected whole VMs from 0 to 2000000"),
        (["1,1,1,1.5"], "line 2, column count: found '1.5', expected whole VMs from 0 to 2000000"),
        (["1,1,0,1"], "line 2, column level: found '0', expected a level from 1.0 to 64.0 with at most 3 decimals"),
        (["1,1,1,0", "2,1,1,0"], "line 2, column count: found 0 in every row, expected a VM"),
        (["1,1,1,1", f"1,1,1,{MOST_VMS}"], "line 3: found more than 2000000 VMs, expected no more"),
    ],
)
def test_what_is_wrong_with_shapes_is_said(rows: list[str], message: str) -> None:
    assert refusal(*rows, header="vcpus,mem_gb,level,count") == message


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=8).filter(
    lambda name: name.strip(" \t") == name
)
TIMES = st.floats(-1e9, 1e9)


@st.composite
def workloads(draw: st.DrawFn) -> list[WorkloadVm]:
    """VMs with different names, in the order of their arrivals."""
    vms = [
        WorkloadVm(
            name,
            draw(st.integers(LOWEST, HIGHEST)),
            draw(st.integers(1, 4096)),
            draw(st.integers(1, 1 << 30)),
            arrival := draw(TIMES),
            draw(st.just(inf) | st.floats(arrival, 1e10)),
        )
        for name in draw(st.lists(NAMES, min_size=1, max_size=10, unique=True))
    ]
    return sorted(vms, key=lambda vm: vm.arrival)


@given(workloads(), st.booleans())
def test_what_is_written_is_read_again(vms: list[WorkloadVm], quoted: bool) -> None:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted or "," in text or '"' in text else text

    rows = [
        ",".join(
            cell(text)
            for text in (
                vm.name,
                str(vm.vcpus),
                f"{vm.memory_mib / 1024:.10f}",
                format_level(vm.level),
                repr(vm.arrival),
                "" if vm.departure == inf else repr(vm.departure),
            )
        )
        for vm in vms
    ]
    assert table(*rows) == Workload(tuple(vms))
