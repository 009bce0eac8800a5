"""Where the workload of a plan comes from: files, told apart by what they hold, whatever they are called."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import BinaryIO

import msgspec

from core.capacity import cpus_needed
from core.level import UNIT
from core.workload import ServerKind, Workload, WorkloadVm
from core.workload_cells import MOST_VMS, ForeignTextError, WorkloadTextError, shown
from core.workload_parser import LONGEST_LINE, parse_workload
from vmstackctl.plan.recorded import recorded_workload
from vmstackctl.values import count, memory
from vmstackd.trace_file import TraceFile, TraceFileError

LARGEST_TEXT = 256 << 20
"""Bytes, unpacked; recordings may be larger."""

_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OF_TRACES = b"tmp"
"""A column that every recording has."""
_NAMED = 3
"""VMs that an error names."""


class WorkloadError(Exception):
    """A workload that cannot be read or planned for: one line for people, with its path, line and column."""


class NoWorkload(WorkloadError):
    """A file of text that begins with nothing of a workload, so that it is something else."""


def read_workload(path: Path) -> Workload:
    """The workload of a file, plain or packed with gzip: a table of VMs or of shapes, CloudFactory's vms.properties,
    a recording of vmstackd, or a saved inventory. It has at least one VM.

    Raises WorkloadError; NoWorkload for a text that is something else.
    """
    text = _text(path)
    if text is None:
        return _recorded(path)
    if text.lstrip()[:1] == "{":
        return _of_inventory(path, text)
    try:
        return parse_workload(text)
    except WorkloadTextError as error:
        problem = NoWorkload if isinstance(error, ForeignTextError) else WorkloadError
        raise problem(f"{path}: {error}") from None


def without_too_large(
    workload: Workload, kinds: Sequence[ServerKind], *, leave_out: bool, with_itself: bool = False
) -> Workload:
    """The workload without VMs that no server takes even when it is empty, with a note if there were any.

    with_itself: whether a VM may be oversubscribed with itself; else it needs a CPU for each vCPU. Raises WorkloadError
    that names the first such VMs if they may not be left out, or if no other is left.
    """
    taken: dict[tuple[int, int], bool] = {}
    fitting: list[WorkloadVm] = []
    too_large: list[WorkloadVm] = []
    for vm in workload.vms:
        size = cpus_needed(vm.level, vm.vcpus, 0 if with_itself else vm.vcpus), vm.memory_mib
        fits = taken.get(size)
        if fits is None:
            fits = taken[size] = any(size[0] <= kind.cpus and size[1] <= kind.memory_mib for kind in kinds)
        (fitting if fits else too_large).append(vm)
    if not too_large:
        return workload
    examples = ", ".join(
        f"{shown(vm.name)} ({count(vm.vcpus, 'vCPU')}, {memory(vm.memory_mib)})" for vm in too_large[:_NAMED]
    )
    more = f" and {len(too_large) - _NAMED} more" if len(too_large) > _NAMED else ""
    what = f"{count(len(too_large), 'VM')} larger than any server: {examples}{more}"
    if not leave_out:
        raise WorkloadError(f"{what}; plan with larger servers, or leave such VMs out with --leave-out-too-large")
    if not fitting:
        raise WorkloadError(f"{what}; no other VM is left, so plan with larger servers")
    return Workload(tuple(fitting), (*workload.notes, f"left out {what}"))


def capped(workload: Workload, memory_cap_mib: int) -> Workload:
    """The workload with no more memory than that for each VM above 1:1, as in the published experiment."""
    vms = tuple(
        msgspec.structs.replace(vm, memory_mib=memory_cap_mib)
        if vm.level > UNIT and vm.memory_mib > memory_cap_mib
        else vm
        for vm in workload.vms
    )
    cut = sum(vm is not before for vm, before in zip(vms, workload.vms, strict=True))
    note = f"the memory of {count(cut, 'VM')} above 1:1 was cut to {memory(memory_cap_mib)}"
    return Workload(vms, (*workload.notes, note))


def _text(path: Path) -> str | None:
    """What a file holds as text; None if it is a recording."""
    try:
        with path.open("rb") as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = _data(path, file if is_regular else io.BytesIO(file.read(LARGEST_TEXT + 1)))
    except IsADirectoryError:
        raise WorkloadError(f"{path}: is a directory, expected the file of a workload") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WorkloadError(f"{path}: found damaged gzip data, expected them as gzip wrote them: {error}") from error
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL byte in the path
        raise WorkloadError(f"{str(path)!r}: {error}") from error
    if data is None:
        if not is_regular:
            raise WorkloadError(f"{path}: is a recording in a pipe, expected one in a file; write it to a file first")
        return None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise WorkloadError(
            f"{path}: line {line}, byte {column}: found 0x{data[error.start]:02x}, expected text in UTF-8; save it so"
        ) from None


def _data(path: Path, file: BinaryIO | io.BufferedReader) -> bytes | None:
    """The bytes of a file that can be sought in, unpacked; None if it is a recording. Raises WorkloadError."""
    packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    plain = gzip.GzipFile(fileobj=file) if packed else file
    header = plain.readline(LONGEST_LINE)
    if _OF_TRACES in header.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n").split(b"\t"):
        return None
    data = header + plain.read(LARGEST_TEXT + 1 - len(header))
    if len(data) > LARGEST_TEXT:
        raise WorkloadError(f"{path}: holds more than {LARGEST_TEXT >> 20} MiB of text, expected no more")
    return data


def _of_inventory(path: Path, text: str) -> Workload:
    """The VMs of a cluster as it was, host after host: all at once, and nobody leaves."""
    from vmstackctl.inventory_file import InventoryError, parse  # noqa: PLC0415  imports the client

    try:
        inventory = parse(path, text.encode())
    except InventoryError as error:
        raise NoWorkload(str(error)) from error
    vms: list[WorkloadVm] = []
    for host in inventory.hosts:
        for shape in host.vms or ():
            if len(vms) + shape.count > MOST_VMS:
                raise WorkloadError(f"{path}: has more than {MOST_VMS} VMs, expected no more")
            vms += [
                WorkloadVm(f"{host.name}-{number}", shape.level, shape.vcpus, shape.memory_mib, 0.0, inf)
                for number in range(len(vms), len(vms) + shape.count)
            ]
    silent = sum(host.vms is None for host in inventory.hosts)
    if not vms:
        raise WorkloadError(f"{path}: is an inventory without VMs, expected at least one")
    notes = (f"{count(silent, 'host')} did not tell which VMs there are; these are not planned for",) if silent else ()
    return Workload(tuple(vms), notes)


def _recorded(path: Path) -> Workload:
    try:
        with TraceFile(path) as file:
            workload = recorded_workload(file)
            notes = (*file.notes, *workload.notes)
    except TraceFileError as error:
        raise WorkloadError(str(error)) from error
    if not workload.vms:
        raise WorkloadError(f"{path}: is a recording without any VM whose size it tells, expected at least one")
    return Workload(workload.vms, notes)
