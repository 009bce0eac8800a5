"""What CloudFactory writes for its simulator is read, in both of its variants."""

from __future__ import annotations

import pytest

from core.workload import Workload, WorkloadVm
from core.workload_cells import WorkloadTextError
from core.workload_properties import are_properties, parse_properties

EXPECTED = "a VM as vm7=vmid:7,vmcpu:2,vmoc:3.0,vmram:7168,vmsubmission:0,cloudletlifetime:60480"


def line(
    number: int, vcpus: int = 2, level: str | None = "3.0", mib: int = 7168, start: int = 0, life: int = 3600
) -> str:
    """A line as the generator writes it; without a level, the variant that knows none."""
    oversubscription = "" if level is None else f"vmoc:{level},"
    return (
        f"vm{number}=vmid:{number},vmmips:730,vmcpu:{vcpus},{oversubscription}vmram:{mib},vmbw:1000,vmsize:10000,"
        f"vmsubmission:{start},cloudletid:{number},cloudletmips:{life * 1000},cloudletcpu:{vcpus},"
        f"cloudletfilesize:300,cloudletoutputsize:300,cloudletmodel:vm{number}_model,cloudletvm:vm{number},"
        f"cloudletlifetime:{life}"
    )


def refusal(*lines: str) -> str:
    with pytest.raises(WorkloadTextError) as caught:
        parse_properties([*lines])
    return str(caught.value)


def test_every_vm_is_read_in_the_order_of_the_file() -> None:
    assert parse_properties([line(1), line(0, 16, "1.0", 61440, 0, 60480), line(2, 1, "1.5", 768, 8640)]) == Workload(
        (
            WorkloadVm("1", 3000, 2, 7168, 0.0, 3600.0),
            WorkloadVm("0", 1000, 16, 61440, 0.0, 60480.0),
            WorkloadVm("2", 1500, 1, 768, 8640.0, 12240.0),
        )
    )


def test_a_vm_without_a_level_is_one_that_is_not_oversubscribed_and_this_is_said() -> None:
    found = parse_properties([line(0), line(1, level=None), line(2, level=None)])
    assert [vm.level for vm in found.vms] == [3000, 1000, 1000]
    assert found.notes == ("line 2: no vmoc, so the VM was taken as sold at 1:1 (VMs like this: 2)",)


def test_vms_out_of_order_are_sorted_with_a_note() -> None:
    found = parse_properties([line(0, start=720), line(1, start=360)])
    assert [vm.name for vm in found.vms] == ["1", "0"]
    assert found.notes[0].startswith("1 of 2 VMs stood after some that arrive later, '1' first of all")


def test_comments_and_blank_lines_are_passed_over() -> None:
    assert parse_properties(["#Wed Nov 25", "", "! a comment", f"  {line(0)}  "]) == parse_properties([line(0)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (line(0), "line 2, column vmid: found '0' again after line 1, expected each VM once"),
        (line(1, vcpus=0), "line 2, column vmcpu: found '0', expected whole vCPUs from 1 to 4096"),
        (line(1, mib=-5), "line 2, column vmram: found '-5', expected whole MiB from 1 to 1073741824"),
        (
            line(1, level="oc"),
            "line 2, column vmoc: found 'oc', expected a level from 1.0 to 64.0 with at most 3 decimals",
        ),
        (line(1, start=-1), "line 2, column vmsubmission: found '-1', expected whole seconds from 0 to 10000000000"),
        (line(1, life=-1), "line 2, column cloudletlifetime: found '-1', expected whole seconds from 0 to 10000000000"),
        (line(1).replace("vmcpu:2,", ""), f"line 2, column vmcpu: found nothing, expected {EXPECTED}"),
        (line(1).replace("vmid:1,", "vmid:,"), f"line 2, column vmid: found nothing, expected {EXPECTED}"),
        (line(1).replace("vmram:7168", "vmram"), f"line 2: found 'vmram' in a VM, expected {EXPECTED}"),
        (line(1) + ",vmcpu:4", "line 2: found 'vmcpu' twice in a VM, expected it once"),
        ("vm1", f"line 2: found 'vm1', expected {EXPECTED}"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_property(wrong: str, message: str) -> None:
    assert refusal(line(0), wrong, line(2)) == message


@pytest.mark.parametrize(
    ("lines", "are"),
    [
        ([line(0)], True),
        (["# vm_id,vcpus", "", line(0)], True),
        (["vm0=vmid:,"], True),
        (["vm_id,vcpus", line(0)], False),
        (["vm0=2"], False),
        (["# vm0=vmid:0"], False),
        ([], False),
    ],
)
def test_they_are_told_from_other_formats(lines: list[str], are: bool) -> None:
    assert are_properties(lines) == are
