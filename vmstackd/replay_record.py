"""The trace that a replay writes: under its name only when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from core.trace import HEADER, Sample, format_sample
from vmstackd.trace_writer import begins_as_trace

DEFAULT = Path("results/replay.csv")


class RecordError(Exception):
    """Why the trace cannot be written, in one line with its path."""


def refusal(path: Path, source: Path) -> str | None:
    """Why a replay of ``source`` must not be written to a path, whatever links lead there; None if it may."""
    with contextlib.suppress(OSError):
        if path.samefile(source):
            return "this is the trace that is replayed; name another file"
        if not path.is_file():
            return "this is there and not a file; name another one"
        if any(os.path.samestat(path.stat(), os.fstat(stream)) for stream in (1, 2)):
            return "what is printed goes there; name another file"
        with path.open("rb") as there:
            if not begins_as_trace(there.fileno()):
                return "this is there and not a trace; name another file, or move it away"
            try:
                fcntl.flock(there, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "another process records in it; name another file"
    return None


class ReplayRecord:
    """Takes samples in a ``with`` block, after which nothing is left of them unless ``finish`` was called.

    The folder of the path is made if needed. Everything raises RecordError.
    """

    def __init__(self, path: Path) -> None:
        self._shown = path
        self._path = Path(os.path.realpath(path))  # a link stays one

    def __enter__(self) -> Self:
        with self._told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}-", dir=self._path.parent)
            self._temporary = Path(name)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="")
            self._file.write(HEADER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what could not be written has been told, or is no longer wanted
            self._file.close()

    def add(self, sample: Sample) -> None:
        """Write the rows of one sample."""
        with self._told():
            self._file.write(format_sample(sample))

    def finish(self) -> None:
        """Give the file its name, in place of what had it."""
        with self._told():
            self._file.flush()
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(self._file.fileno(), 0o666 & ~mask)  # as any other new file
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordError(f"{self._shown}: cannot be written: {error.strerror}; name another file") from error
