"""Workloads as CloudFactory writes them for its simulator (``vms.properties``): a line for each VM,
``vm7=vmid:7,vmcpu:2,vmoc:3.0,vmram:7168,vmsubmission:0,cloudletlifetime:60480,...`` with more than is needed here.

``vmram`` is in MiB as generated, the moments in seconds. ``vmoc``, the level, is there only in the variant for
oversubscription.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from core.level import UNIT
from core.workload import Workload, WorkloadVm
from core.workload_cells import (
    MOST_VMS,
    WorkloadTextError,
    again,
    duration,
    in_order,
    level,
    memory_in_mib,
    read_cell,
    shown,
    too_many,
    vcpus,
)

_is_vm = re.compile(r"[^=,]*=[^=,:]*:").match
_EXPECTED = "a VM as vm7=vmid:7,vmcpu:2,vmoc:3.0,vmram:7168,vmsubmission:0,cloudletlifetime:60480"

_Value = TypeVar("_Value")


def are_properties(lines: list[str]) -> bool:
    """Whether these lines are of this format rather than of another, right or wrong."""
    for row in lines:
        if not _is_comment(row):
            return _is_vm(row) is not None
    return False


def parse_properties(lines: list[str]) -> Workload:
    """lines: without their ends. Raises WorkloadTextError."""
    vms: list[WorkloadVm] = []
    known: dict[str, int] = {}
    without_level, first_without = 0, 0
    for line, row in enumerate(lines, 1):
        if _is_comment(row):
            continue
        fields = _fields(row, line)
        name = _read(fields, line, "vmid", str)
        before = known.setdefault(name, line)
        if before != line:
            raise again(line, "vmid", name, before)
        of_level = UNIT
        if "vmoc" in fields:
            of_level = _read(fields, line, "vmoc", level)
        else:
            without_level += 1
            first_without = first_without or line
        arrival = _read(fields, line, "vmsubmission", duration)
        vms.append(
            WorkloadVm(
                name=name,
                level=of_level,
                vcpus=_read(fields, line, "vmcpu", vcpus),
                memory_mib=_read(fields, line, "vmram", memory_in_mib),
                arrival=float(arrival),
                departure=float(arrival + _read(fields, line, "cloudletlifetime", duration)),
            )
        )
        if len(vms) > MOST_VMS:
            raise too_many(line)
    note = f"line {first_without}: no vmoc, so the VM was taken as sold at 1:1 (VMs like this: {without_level})"
    return in_order(vms, (note,) if without_level else ())


def _is_comment(row: str) -> bool:
    text = row.lstrip()
    return not text or text.startswith(("#", "!"))


def _fields(row: str, line: int) -> dict[str, str]:
    _, equals, value = row.partition("=")
    if not equals:
        raise WorkloadTextError(line, "", f"found {shown(row)}, expected {_EXPECTED}")
    fields: dict[str, str] = {}
    for field in value.split(","):
        name, colon, content = field.partition(":")
        name = name.strip()
        if not colon:
            raise WorkloadTextError(line, "", f"found {shown(field)} in a VM, expected {_EXPECTED}")
        if name in fields:
            raise WorkloadTextError(line, "", f"found {shown(name)} twice in a VM, expected it once")
        fields[name] = content.strip()
    return fields


def _read(fields: dict[str, str], line: int, name: str, read: Callable[[str], _Value]) -> _Value:
    content = fields.get(name, "")
    if not content:
        raise WorkloadTextError(line, name, f"found nothing, expected {_EXPECTED}")
    return read_cell(line, name, read, content)
