"""What stands in the cells of a workload's text, whatever its format: read, or refused with what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from math import inf
from typing import TypeVar

from core.level import HIGHEST, LOWEST, LevelError, format_level, parse_level
from core.trace_parser import LARGEST_TIME
from core.workload import Workload, WorkloadVm

MOST_VMS = 2_000_000
MOST_VCPUS = 4096
MOST_MEMORY_MIB = 1 << 30
"""As much as a host may be asked for."""
MIB_PER_GB = 1024

_match_whole_number = re.compile(r"[ \t]*([0-9]{1,15})(?:\.0{1,9})?[ \t]*").fullmatch
_match_decimal = re.compile(r"[ \t]*([0-9]{1,15}(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?)[ \t]*").fullmatch
_match_time = re.compile(r"[ \t]*-?[0-9]{1,15}(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?[ \t]*").fullmatch

_Value = TypeVar("_Value")


class WorkloadTextError(ValueError):
    """What is wrong with the text of a workload. line: from 1. column: its name, or that of a property; "" if the
    line as a whole is wrong. message: what was found and what was expected.
    """

    def __init__(self, line: int, column: str, message: str) -> None:
        super().__init__(f"line {line}, column {column}: {message}" if column else f"line {line}: {message}")
        self.line = line
        self.column = column
        self.message = message


class ForeignTextError(WorkloadTextError):
    """A text that begins with nothing of a workload, so that it is something else."""


class Unexpected(Exception):
    """A cell that cannot be read, before it is known where it is."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")


def read_cell(line: int, column: str, read: Callable[[str], _Value], cell: str) -> _Value:
    """What a reader makes of a cell. Raises WorkloadTextError."""
    try:
        return read(cell)
    except Unexpected as wrong:
        raise WorkloadTextError(line, column, str(wrong)) from None


def again(line: int, column: str, name: str, before: int) -> WorkloadTextError:
    """A VM that is there already, in the line ``before``."""
    return WorkloadTextError(line, column, f"found {shown(name)} again after line {before}, expected each VM once")


def too_many(line: int) -> WorkloadTextError:
    """A line that has one VM more than MOST_VMS."""
    return WorkloadTextError(line, "", f"found more than {MOST_VMS} VMs, expected no more")


def vcpus(cell: str) -> int:
    """From 1. Like the other readers of cells, raises Unexpected."""
    return _whole(cell, "vCPUs", 1, MOST_VCPUS)


def memory_in_gb(cell: str) -> int:
    """MiB of a number of GB. A part of a MiB counts as a whole one: a VM must get what it was sold."""
    match = _match_decimal(cell)
    if match is not None:
        size = Fraction(match[1]) * MIB_PER_GB
        mib = -(-size.numerator // size.denominator)
        if 1 <= mib <= MOST_MEMORY_MIB:
            return mib
    raise Unexpected(shown(cell), f"a number of GB (of 1024 MiB) above 0, at most {MOST_MEMORY_MIB // MIB_PER_GB}")


def memory_in_mib(cell: str) -> int:
    """From 1."""
    return _whole(cell, "MiB", 1, MOST_MEMORY_MIB)


def level(cell: str) -> int:
    """Thousandths."""
    try:
        return parse_level(cell.strip(" \t"))
    except LevelError:
        expected = f"a level from {format_level(LOWEST)} to {format_level(HIGHEST)} with at most 3 decimals"
        raise Unexpected(shown(cell), expected) from None


def how_many(cell: str) -> int:
    """VMs of a shape; there may be none."""
    return _whole(cell, "VMs", 0, MOST_VMS)


def moment(cell: str) -> float:
    """Seconds from any zero."""
    if _match_time(cell) is not None and abs(seconds := float(cell)) <= LARGEST_TIME:
        return seconds
    raise Unexpected(shown(cell), f"a number of seconds from -{LARGEST_TIME} to {LARGEST_TIME}")


def end(cell: str) -> float:
    """Seconds from the same zero; infinite for a cell without anything."""
    if not cell.strip(" \t"):
        return inf
    try:
        return moment(cell)
    except Unexpected as wrong:
        raise Unexpected(
            shown(cell), f"{str(wrong).partition(', expected ')[2]}, or nothing for a VM that stays"
        ) from None


def duration(cell: str) -> int:
    """Seconds, from 0."""
    return _whole(cell, "seconds", 0, LARGEST_TIME)


def _whole(cell: str, unit: str, lowest: int, highest: int) -> int:
    """Tables often write whole numbers as 4.0."""
    match = _match_whole_number(cell)
    if match is None or not lowest <= (number := int(match[1])) <= highest:
        raise Unexpected(shown(cell), f"whole {unit} from {lowest} to {highest}")
    return number


def shown(cell: str) -> str:
    """A cell as an error shows it: short, and without anything that a terminal would obey."""
    if not cell:
        return "nothing"
    return repr(cell[:40] + "..." if len(cell) > 40 else cell)


def in_order(vms: list[WorkloadVm], notes: tuple[str, ...] = ()) -> Workload:
    """The workload of these VMs, by arrival; of equals, the first first. Says so in a note if that moves any."""
    late, first = 0, ""
    latest = -inf
    for vm in vms:
        if vm.arrival >= latest:
            latest = vm.arrival
        else:
            late += 1
            first = first or vm.name
    if not late:
        return Workload(tuple(vms), notes)
    note = (
        f"{late} of {len(vms)} VMs stood after some that arrive later, {shown(first)} first of all; "
        "sorted by arrival, VMs of the same moment in the order in which they stood"
    )
    return Workload(tuple(sorted(vms, key=_arrival)), (*notes, note))


def _arrival(vm: WorkloadVm) -> float:
    return vm.arrival
