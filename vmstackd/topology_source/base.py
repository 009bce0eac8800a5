"""What the sources share: their error, reading with a bound, the rule for names."""

from __future__ import annotations

import os
from pathlib import Path

from core.cpuset import CpuListError, parse_cpu_list
from core.topology import TopologyError

LONGEST_NAME = 100
HIGHEST_NODE = 1023
"""The largest NUMA node id accepted: the kernel's own limit on x86 (MAX_NUMNODES 1024)."""


class SourceError(TopologyError):
    """A source that cannot be read or that contradicts itself.

    place: the file or the specification. field: the part of it, "" for all of it. line: from 1, None
    where lines mean nothing.
    """

    def __init__(self, place: str | Path, message: str, *, field: str = "", line: int | None = None) -> None:
        shown = str(place) if line is None else f"{place}:{line}"
        super().__init__(f"{shown}: {field}" if field else shown, message)
        self.place = str(place)
        self.field = field
        self.line = line


def read_start(path: Path, size: int) -> bytes:
    """At most the first size bytes of a file, without ever waiting for a pipe. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte in the path
        raise FileNotFoundError(2, str(error)) from error
    try:
        parts = []
        while size > 0 and (part := os.read(descriptor, size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_file(path: Path, limit: int) -> bytes:
    """A whole file of at most limit bytes. Raises SourceError."""
    try:
        data = read_start(path, limit + 1)
    except OSError as error:
        raise SourceError(path, f"cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise SourceError(path, f"is larger than {limit} bytes")
    return data


def check_name(name: str) -> str | None:
    """What is wrong with the name of a topology, None if nothing is."""
    if 1 <= len(name) <= LONGEST_NAME and name.isprintable():
        return None
    return f"a name is 1 to {LONGEST_NAME} printable characters"


def cpus_in(text: str, place: str | Path, *, field: str = "") -> tuple[int, ...]:
    """A kernel CPU list. Raises SourceError."""
    try:
        return parse_cpu_list(text)
    except CpuListError as error:
        raise SourceError(place, str(error), field=field) from error
