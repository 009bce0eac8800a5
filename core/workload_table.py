"""Workloads as tables: cells separated by commas, the names of columns first.

Either a row is a VM, with the moments of its arrival and departure, in the order in which VMs are asked for; or a row
is a shape and a number of VMs, which are all there from the beginning and stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf

from core.workload import Workload, WorkloadVm
from core.workload_cells import (
    MOST_VMS,
    ForeignTextError,
    WorkloadTextError,
    again,
    end,
    how_many,
    in_order,
    level,
    memory_in_gb,
    moment,
    read_cell,
    shown,
    too_many,
    vcpus,
)

VM_COLUMNS = ("vm_id", "vcpus", "mem_gb", "level", "arrival_s", "departure_s")
SHAPE_COLUMNS = ("vcpus", "mem_gb", "level", "count")
EXPECTED_COLUMNS = f"{', '.join(VM_COLUMNS)}, or for shapes {', '.join(SHAPE_COLUMNS)}, separated by commas"

_ONLY_OF_VMS = tuple([name for name in VM_COLUMNS if name not in SHAPE_COLUMNS])
_KNOWN = (*VM_COLUMNS, "count")
_next_cell = re.compile(r'[ \t]*"((?:[^"]|"")*)"[ \t]*(?:,|$)|([^",]*)(?:,|$)').match

_Shape = tuple[int, int, int]
"""Level, vCPUs, MiB."""


def parse_table(lines: list[str]) -> Workload:
    """lines: without their ends, the names of columns first. Raises WorkloadTextError."""
    places = _places(lines[0])
    if len(lines) == 1:
        raise WorkloadTextError(2, "", "found the end, expected a row below the names of columns")
    return _shapes(lines, places) if "count" in places else _vms(lines, places)


def _places(header: str) -> dict[str, int]:
    """Where each column that is known stands, and how many there are, as column ""."""
    names: list[str] = []
    if any([name in header for name in _KNOWN]):  # else it need not even be cells
        names = [name.strip(" \t") for name in _cells(header, 1)]
    places = {"": len(names)}
    for place, name in enumerate(names):
        if name not in _KNOWN:
            continue
        if name in places:
            raise WorkloadTextError(1, name, "found this column twice, expected it once")
        places[name] = place
    if len(places) == 1:
        found, problem = (
            ("a blank line", WorkloadTextError) if not header.strip() else (shown(header), ForeignTextError)
        )
        raise problem(1, "", f"found {found}, expected the names of columns: {EXPECTED_COLUMNS}")
    needed: tuple[str, ...] = VM_COLUMNS
    if "count" in places:
        needed = SHAPE_COLUMNS
        for name in _ONLY_OF_VMS:
            if name in places:
                raise WorkloadTextError(
                    1, name, f"found this column beside count, expected one of them: {EXPECTED_COLUMNS}"
                )
    missing = [name for name in needed if name not in places]
    if missing:
        raise WorkloadTextError(1, "", f"found no column {', '.join(missing)}, expected {EXPECTED_COLUMNS}")
    return places


def _vms(lines: list[str], places: dict[str, int]) -> Workload:
    width = places[""]
    name_at, arrival_at, departure_at = places["vm_id"], places["arrival_s"], places["departure_s"]
    shape_of = _shape_reader(places)
    vms: list[WorkloadVm] = []
    known: dict[str, int] = {}
    for line, row in enumerate(lines[1:], 2):
        cells = _row(row, line, width)
        name = cells[name_at].strip(" \t")
        if not name:
            raise WorkloadTextError(line, "vm_id", "found nothing, expected the name of the VM")
        before = known.setdefault(name, line)
        if before != line:
            raise again(line, "vm_id", name, before)
        of_level, of_vcpus, memory_mib = shape_of(cells, line)
        arrival = read_cell(line, "arrival_s", moment, cells[arrival_at])
        departure = read_cell(line, "departure_s", end, cells[departure_at])
        if departure < arrival:
            found, earliest = shown(cells[departure_at]), cells[arrival_at].strip(" \t")
            raise WorkloadTextError(
                line, "departure_s", f"found {found}, expected no less than the arrival at {earliest} s, or nothing"
            )
        vms.append(WorkloadVm(name, of_level, of_vcpus, memory_mib, arrival, departure))
        if len(vms) > MOST_VMS:
            raise too_many(line)
    return in_order(vms)


def _shapes(lines: list[str], places: dict[str, int]) -> Workload:
    width, count_at = places[""], places["count"]
    shape_of = _shape_reader(places)
    vms: list[WorkloadVm] = []
    for line, row in enumerate(lines[1:], 2):
        cells = _row(row, line, width)
        of_level, of_vcpus, memory_mib = shape_of(cells, line)
        count = read_cell(line, "count", how_many, cells[count_at])
        if len(vms) + count > MOST_VMS:
            raise too_many(line)
        vms += [
            WorkloadVm(f"line {line} #{number}", of_level, of_vcpus, memory_mib, 0.0, inf)
            for number in range(1, count + 1)
        ]
    if not vms:
        raise WorkloadTextError(2, "count", "found 0 in every row, expected a VM")
    return Workload(tuple(vms))


def _shape_reader(places: dict[str, int]) -> Callable[[list[str], int], _Shape]:
    """Reads the shape of a row; there are few of them, so each is read once."""
    vcpus_at, memory_at, level_at = places["vcpus"], places["mem_gb"], places["level"]
    known: dict[tuple[str, str, str], _Shape] = {}

    def shape_of(cells: list[str], line: int) -> _Shape:
        texts = cells[vcpus_at], cells[memory_at], cells[level_at]
        shape = known.get(texts)
        if shape is None:
            of_vcpus = read_cell(line, "vcpus", vcpus, texts[0])
            memory_mib = read_cell(line, "mem_gb", memory_in_gb, texts[1])
            shape = known[texts] = read_cell(line, "level", level, texts[2]), of_vcpus, memory_mib
        return shape

    return shape_of


def _row(row: str, line: int, width: int) -> list[str]:
    cells = row.split(",") if '"' not in row else _cells(row, line)
    if len(cells) != width:
        if not row.strip():
            raise WorkloadTextError(line, "", "found a blank line, expected a row")
        raise WorkloadTextError(line, "", f"found {len(cells)} cells, expected {width} as in the first line")
    return cells


def _cells(row: str, line: int) -> list[str]:
    """Cells may be quoted, with quotation marks in them doubled."""
    if '"' not in row:
        return row.split(",")
    cells: list[str] = []
    position = 0
    while True:
        match = _next_cell(row, position)
        if match is None:
            raise WorkloadTextError(
                line,
                "",
                f"found {shown(row[position:])}, expected a cell with a quotation mark at its beginning and one at its "
                "end, in the same line",
            )
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        position = match.end()
        if position == len(row) and not match[0].endswith(","):
            return cells
