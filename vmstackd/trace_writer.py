"""Writes traces to disk: each file is ours alone and of bounded size, and older ones stay beside it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
import time
from pathlib import Path

from core.trace import HEADER, Sample, format_sample

_HEADER = HEADER.encode()
_FIRST_COLUMN = _HEADER.partition(b"\t")[0] + b"\t"
_ATTEMPTS, _PAUSE_S = 10, 0.01
"""To get a file that others have for a moment."""


class TraceWriteError(Exception):
    """Why nothing more can be written, in one line. next_step: what helps."""

    def __init__(self, reason: str, next_step: str = "correct it, or name another file") -> None:
        super().__init__(reason)
        self.next_step = next_step


class TraceWriter:
    """A trace of this path, begun when the first sample comes. What is there then is kept as PATH.1.

    Until its first sample is whole, a file is PATH.new, so that whoever reads PATH always finds a trace. Who has
    locked PATH.new is the only one who may move PATH away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._length = 0

    def write(self, sample: Sample, size: int, files: int) -> None:
        """Add whole rows. size: bytes that no file exceeds if it has several samples. files: that are kept in all.

        Raises TraceWriteError; then the file is closed, and ends as before if the disk lets it. Waits for the disk.
        """
        rows = format_sample(sample).encode()
        try:
            self._write(rows, size, files)
        except OSError as error:
            self.close()
            place = error.filename2 or error.filename or self.path
            raise TraceWriteError(self._about(Path(place), error.strerror or "failed")) from error
        except TraceWriteError:
            self.close()
            raise

    def close(self) -> None:
        """The next sample begins another file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # some disks tell only now that they are full; nothing can be done
                os.close(descriptor)

    def _write(self, rows: bytes, size: int, files: int) -> None:
        if self._descriptor is None or not _has_name(self._descriptor, self.path):  # others have moved it away
            self._begin(rows, files)
            return
        length = os.fstat(self._descriptor).st_size
        if length == 0:  # others have emptied it
            rows = _HEADER + rows
        elif length < self._length or length + len(rows) > size:  # others have cut it off, or it is full
            self._begin(rows, files)
            return
        _append(self._descriptor, rows, length)
        self._length = length + len(rows)

    def _begin(self, rows: bytes, files: int) -> None:
        """Another file, with these rows."""
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        new = self._beside("new")
        descriptor = self._lock(new, os.O_CREAT)
        try:
            os.ftruncate(descriptor, 0)
            _append(descriptor, _HEADER + rows, 0)
            self.close()
            self._move_away(files)
            new.rename(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            os.close(descriptor)
            raise
        self._descriptor, self._length = descriptor, len(_HEADER) + len(rows)

    def _lock(self, path: Path, flags: int = 0) -> int:
        """Open a file, which must be a trace, and be the only one who writes to it. Raises FileNotFoundError."""
        flags |= os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                self._check_regular(path, path.lstat())  # opening a device or a FIFO may already do something
            descriptor = os.open(path, flags, 0o640)
            with contextlib.ExitStack() as failing:
                failing.callback(os.close, descriptor)
                self._check_regular(path, os.fstat(descriptor))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _has_name(descriptor, path):
                        self._check_trace(path, descriptor)
                        failing.pop_all()
                        return descriptor
            time.sleep(_PAUSE_S)
        raise TraceWriteError("another process records in it", "give each daemon a file of its own")

    def _move_away(self, files: int) -> None:
        """PATH becomes PATH.1, that PATH.2, as far as needed; the oldest goes where there would be too many."""
        try:
            descriptor = self._lock(self.path)
        except FileNotFoundError:
            return
        try:
            if os.fstat(descriptor).st_size == 0:
                return
            kept = files - 1
            for number in itertools.count(kept + 1):
                if not _removed(self._beside(number)):
                    break
            names = [self.path, *map(self._beside, range(1, kept + 1))]
            gap = next((number for number, name in enumerate(names) if not name.exists()), kept)
            if gap == kept:
                _removed(names[kept])
            for number in range(gap, 0, -1):
                names[number - 1].rename(names[number])
        finally:
            os.close(descriptor)

    def _beside(self, suffix: object) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _check_regular(self, path: Path, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISLNK, "a symbolic link"))
            kind = next((name for test, name in kinds if test(found.st_mode)), "not a regular file")
            next_step = "name a file that is regular or not there yet"
            raise TraceWriteError(self._about(path, f"it is {kind}"), next_step)

    def _check_trace(self, path: Path, descriptor: int) -> None:
        """It will be moved away or emptied, which must not happen to what somebody named by mistake."""
        if not begins_as_trace(descriptor):
            next_step = "name another file, or move it away"
            raise TraceWriteError(self._about(path, "it is there and not a trace"), next_step)

    def _about(self, path: Path, reason: str) -> str:
        return reason if path == self.path else f"{path}: {reason}"


def begins_as_trace(descriptor: int) -> bool:
    """Whether a file may be a trace; an empty one may. Raises OSError."""
    return _FIRST_COLUMN.startswith(os.pread(descriptor, len(_FIRST_COLUMN), 0))


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _append(descriptor: int, data: bytes, length: int) -> None:
    """One write, unless the disk takes only a part of it. length: of the file before."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, length)
        raise


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
