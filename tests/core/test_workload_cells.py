"""What is read from the cells of a workload, to the MiB and the second, and the order in which VMs are asked for."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.workload import Workload, WorkloadVm
from core.workload_cells import (
    MOST_MEMORY_MIB,
    MOST_VCPUS,
    Unexpected,
    WorkloadTextError,
    duration,
    end,
    how_many,
    in_order,
    level,
    memory_in_gb,
    memory_in_mib,
    moment,
    read_cell,
    shown,
    vcpus,
)
from vmstackd.api import requests


def test_a_vm_may_be_as_large_as_a_host_may_be_asked_for() -> None:
    assert (MOST_VCPUS, MOST_MEMORY_MIB) == (requests.MAX_VCPUS, requests.MAX_MEMORY_MIB)


@pytest.mark.parametrize(("cell", "number"), [("1", 1), (" 16 ", 16), ("4.0", 4), ("4096", 4096), ("007", 7)])
def test_vcpus_are_read(cell: str, number: int) -> None:
    assert vcpus(cell) == number


NO_NUMBERS = ["", " ", "x", "-1", "+1", "nan", "inf", "-inf", "1_0", "0x10", "1,5", "٣", "1 2", "1.", ".5", "--1", "1e"]


@pytest.mark.parametrize("cell", ["0", "0.0", "4097", "1.5", "1e1", "9" * 30, *NO_NUMBERS])
def test_what_are_no_vcpus_is_refused(cell: str) -> None:
    with pytest.raises(Unexpected, match="expected whole vCPUs from 1 to 4096"):
        vcpus(cell)


@pytest.mark.parametrize(
    ("cell", "mib"),
    [
        ("2", 2048),
        ("0.75", 768),
        ("3.5", 3584),
        ("8.0", 8192),
        ("1e0", 1024),
        ("0.0009765625", 1),
        ("0.0009765626", 2),
        ("1.0001", 1025),
        ("0.3", 308),
        ("1e-9", 1),
        ("1048576", 1 << 30),
    ],
)
def test_memory_is_read_and_a_part_of_a_mib_counts_as_a_whole_one(cell: str, mib: int) -> None:
    assert memory_in_gb(cell) == mib


@given(st.decimals(min_value="0.000001", max_value=1 << 20, places=6))
def test_a_vm_gets_at_least_what_it_was_sold_and_less_than_a_mib_more(gb: Fraction) -> None:
    assert 0 <= memory_in_gb(f"{gb:f}") - Fraction(gb) * 1024 < 1


@pytest.mark.parametrize("cell", ["0", "0.0", "0e9", "1048576.0001", "1e999", "9" * 30, *NO_NUMBERS])
def test_what_is_no_memory_is_refused(cell: str) -> None:
    with pytest.raises(Unexpected, match=r"expected a number of GB \(of 1024 MiB\) above 0, at most 1048576"):
        memory_in_gb(cell)


def test_memory_in_mib_and_other_whole_numbers_have_their_own_bounds() -> None:
    assert (memory_in_mib("7168"), how_many("0"), duration("0")) == (7168, 0, 0)
    for read, cell, expected in (
        (memory_in_mib, "0", "whole MiB from 1 to 1073741824"),
        (how_many, "2000001", "whole VMs from 0 to 2000000"),
        (duration, "-1", "whole seconds from 0 to 10000000000"),
    ):
        with pytest.raises(Unexpected, match=f"^found '{cell}', expected {expected}$"):
            read(cell)


@pytest.mark.parametrize(("cell", "thousandths"), [("1", 1000), ("2.0", 2000), (" 1.5 ", 1500), ("64", 64000)])
def test_levels_are_read(cell: str, thousandths: int) -> None:
    assert level(cell) == thousandths


@pytest.mark.parametrize("cell", ["0", "0.5", "65", "1.0001", "1e1", "2:1", *NO_NUMBERS])
def test_what_is_no_level_is_refused(cell: str) -> None:
    with pytest.raises(Unexpected, match=r"expected a level from 1\.0 to 64\.0 with at most 3 decimals"):
        level(cell)


@pytest.mark.parametrize(("cell", "seconds"), [("0", 0.0), ("-5", -5.0), (" 60480 ", 60480.0), ("1.5e3", 1500.0)])
def test_moments_are_read(cell: str, seconds: float) -> None:
    assert moment(cell) == end(cell) == seconds


@pytest.mark.parametrize("cell", ["", " ", "\t"])
def test_without_an_end_a_vm_stays(cell: str) -> None:
    assert end(cell) == inf


@pytest.mark.parametrize("cell", ["x", "nan", "inf", "2024-01-01", "1e999", "10000000001", "1_0"])
def test_what_is_no_moment_is_refused(cell: str) -> None:
    expected = "expected a number of seconds from -10000000000 to 10000000000"
    with pytest.raises(Unexpected, match=f"{expected}$"):
        moment(cell)
    with pytest.raises(Unexpected, match=f"{expected}, or nothing for a VM that stays$"):
        end(cell)


def test_an_error_says_where_it_is() -> None:
    with pytest.raises(WorkloadTextError) as caught:
        read_cell(7, "vcpus", vcpus, "many")
    error = caught.value
    assert (error.line, error.column) == (7, "vcpus")
    assert str(error) == "line 7, column vcpus: found 'many', expected whole vCPUs from 1 to 4096"
    assert str(WorkloadTextError(3, "", "found it")) == "line 3: found it"


@pytest.mark.parametrize(
    ("cell", "text"),
    [("", "nothing"), ("4", "'4'"), ("\x1b[2J\u202e", r"'\x1b[2J\u202e'"), ("x" * 50, repr("x" * 40 + "..."))],
)
def test_a_cell_is_shown_short_and_printable(cell: str, text: str) -> None:
    assert shown(cell) == text
    assert shown(cell).isprintable()


def vm(name: str, arrival: float) -> WorkloadVm:
    return WorkloadVm(name, 1000, 1, 1024, arrival, inf)


def test_vms_in_order_are_left_as_they_are() -> None:
    vms = [vm("b", 0), vm("a", 0), vm("c", 1)]
    assert in_order(vms, ("odd",)) == Workload(tuple(vms), ("odd",))


def test_vms_out_of_order_are_sorted_with_a_note() -> None:
    first, late, later, last = vm("first", 5), vm("late", 1), vm("later", 1), vm("last", 5)
    assert in_order([first, late, later, last], ("odd",)) == Workload(
        (late, later, first, last),
        (
            "odd",
            (
                "2 of 4 VMs stood after some that arrive later, 'late' first of all; sorted by arrival, "
                "VMs of the same moment in the order in which they stood"
            ),
        ),
    )


@given(st.lists(st.integers(0, 4)))
def test_vms_of_the_same_moment_keep_their_order(arrivals: list[int]) -> None:
    vms = [vm(str(number), arrival) for number, arrival in enumerate(arrivals)]
    ordered = in_order(vms)
    assert [(one.arrival, int(one.name)) for one in ordered.vms] == sorted(
        (arrival, number) for number, arrival in enumerate(arrivals)
    )
    assert bool(ordered.notes) == (arrivals != sorted(arrivals))
