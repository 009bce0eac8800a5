"""What processes have at a moment: memory, descriptors, threads, and what they have logged so far."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from tests.descriptors import descriptors

_PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


class Process(msgspec.Struct, frozen=True):
    """One process. kind: with which it is summed up. held: of its descriptors, those that clients hold open for long.

    log_bytes: written since the begin of the run, by processes that it took the place of as well.
    """

    name: str
    kind: str
    resident_kib: int
    descriptors: int
    held: int
    threads: int
    log_bytes: int


class Moment(msgspec.Struct, frozen=True):
    """All processes at one moment. at: seconds since the begin of the run."""

    at: float
    processes: tuple[Process, ...]


class Call(msgspec.Struct, frozen=True):
    """One answered call. at: seconds since the begin of the run, when the answer came. door: who was asked, and how."""

    at: float
    door: str
    seconds: float


def look_at(pid: int, name: str, kind: str, *, held: int, log_bytes: int) -> Process:
    """A process as the kernel sees it now. Raises FileNotFoundError or ProcessLookupError if it has ended."""
    folder = Path(f"/proc/{pid}")
    return Process(
        name=name,
        kind=kind,
        resident_kib=int((folder / "statm").read_text().split()[1]) * _PAGE_KIB,
        descriptors=descriptors(pid),
        held=held,
        threads=len(list((folder / "task").iterdir())),
        log_bytes=log_bytes,
    )
