"""Files of which vmstackctl plan makes a workload: tables, properties, recordings, inventories; plain or packed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isinf

from core import workload_properties, workload_table
from core.level import HIGHEST, LOWEST
from core.workload import ServerKind, WorkloadVm
from core.workload_cells import MOST_MEMORY_MIB, MOST_VCPUS
from core.workload_table import VM_COLUMNS
from tests.fuzz.target import Target, check_told, scratch, words
from vmstackctl.plan import source
from vmstackctl.plan.source import WorkloadError, capped, read_workload, without_too_large

_FOLDER = scratch()
_MOST_VMS = 2000
_COUNTERS = (source, workload_table, workload_properties)


@contextmanager
def _only_few_vms() -> Iterator[None]:
    """A row may stand for two million VMs, and they take what two million VMs take; not here."""
    before = [vars(module)["MOST_VMS"] for module in _COUNTERS]
    try:
        for module in _COUNTERS:
            vars(module)["MOST_VMS"] = _MOST_VMS
        yield
    finally:
        for module, most in zip(_COUNTERS, before, strict=True):
            vars(module)["MOST_VMS"] = most


@_only_few_vms()
def take(data: bytes) -> None:
    """A whole file."""
    file = _FOLDER / "workload.csv"
    file.write_bytes(data)
    try:
        workload = capped(read_workload(file), 4096)
    except WorkloadError as error:
        check_told(error, file)
        return
    assert workload.vms
    before = workload.vms[0].arrival
    for vm in workload.vms:
        assert LOWEST <= vm.level <= HIGHEST
        assert vm.vcpus >= 1
        assert vm.memory_mib >= 1
        assert before <= vm.arrival <= vm.departure
        before = vm.arrival
    without_too_large(workload, [ServerKind(1 << 30, 1 << 50)], leave_out=False)
    if len({vm.name for vm in workload.vms}) == len(workload.vms):
        _goes_round(workload.vms)


def _goes_round(vms: tuple[WorkloadVm, ...]) -> None:
    """Written as a table, they are read as the same. Recordings may have larger VMs, and names that no cell has."""
    if any(vm.vcpus > MOST_VCPUS or vm.memory_mib > MOST_MEMORY_MIB or vm.name != _cell_text(vm.name) for vm in vms):
        return
    file = _FOLDER / "again.csv"
    rows = [",".join(VM_COLUMNS), *map(_row, vms)]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8", newline="")
    assert read_workload(file).vms == vms


def _cell_text(name: str) -> str:
    return name.strip(" \t").replace("\n", "").replace("\r", "").replace("\0", "")


def _row(vm: WorkloadVm) -> str:
    name = vm.name.replace('"', '""')
    departure = "" if isinf(vm.departure) else repr(vm.departure)
    level, memory = f"{vm.level / 1000:.3f}", f"{vm.memory_mib / 1024:.10f}"
    return f'"{name}",{vm.vcpus},{memory},{level},{vm.arrival!r},{departure}'


_WORDS = """
count
,
"
""
¶vm1,1,1,1.0,0,
vcpus,mem_gb,level,count¶1,1,1.5,3
1e3
#
vm7=vmid:7,vmcpu:2,vmoc:3.0,vmram:7168,vmsubmission:0,cloudletlifetime:60480
vmoc:
←¶
﻿
→
"""
TARGET = Target(
    take,
    words=(*VM_COLUMNS, *words(_WORDS)),
)
