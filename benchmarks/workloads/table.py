"""Workloads as files, in the format that ``vmstackctl plan`` reads."""

from __future__ import annotations

import csv
import gzip
import io
from math import isinf
from pathlib import Path

from core.level import format_level
from core.workload import Workload
from core.workload_cells import MIB_PER_GB
from core.workload_table import VM_COLUMNS

PACKED = ".csv.gz"
PLAIN = ".csv"


def write_csv(path: Path, workload: Workload) -> None:
    """A row for each VM, in the order of the workload; packed if the name ends in ``.gz``, always to the same bytes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(VM_COLUMNS)
    for vm in workload.vms:
        memory_gb, level = _number(vm.memory_mib / MIB_PER_GB), format_level(vm.level).removesuffix(".0")
        departure = "" if isinf(vm.departure) else _number(vm.departure)
        rows.writerow((vm.name, vm.vcpus, memory_gb, level, _number(vm.arrival), departure))
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def file_stem(path: Path) -> str:
    """The name of a workload's file without what says its format."""
    return path.name.removesuffix(".gz").removesuffix(PLAIN)


def _number(value: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(value).removesuffix(".0")
