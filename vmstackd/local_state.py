"""The little that a host keeps on its disk: who it is, and whether its operator lets it have new VMs.

Nothing about VMs is here: that is in the hypervisor. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

UUID_FILE, CORDON_FILE = "host-uuid", "cordoned"
MOST_BYTES = 1024
"""Read of either file."""

_T = TypeVar("_T")
_NEXT_STEP = "name another folder with state_dir, or none"


class LocalStateError(Exception):
    """What cannot be read or written, in one line."""


class LocalState:
    """uuid: made once, and the host's from then on. cordon: why there are no new VMs; None while there may be."""

    def __init__(self, folder: Path | None) -> None:
        """folder: made if it is not there; None: nothing outlives the process. Raises LocalStateError."""
        self._folder = folder
        self.uuid = str(uuid.uuid4())
        self.cordon: str | None = None
        if folder is None:
            return
        _make(folder)
        known = _read(folder / UUID_FILE)
        if known is None:
            known = _write_first(folder / UUID_FILE, self.uuid)
        self.uuid = _uuid(folder / UUID_FILE, known)
        cordon = _read(folder / CORDON_FILE)
        self.cordon = None if cordon is None else _one_line(cordon)

    def set_cordon(self, reason: str | None) -> None:
        """Keep it, in one line. Raises LocalStateError, and then nothing has changed. Waits for the disk."""
        reason = None if reason is None else _one_line(reason)
        if self._folder is not None:
            path = self._folder / CORDON_FILE
            _try(path, "written", lambda: _remove(path) if reason is None else _write(path, reason))
        self.cordon = reason


def _one_line(text: str) -> str:
    """What people said, with nothing in it that could end a line: the file may have been written by somebody else."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _uuid(path: Path, text: str) -> str:
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError:
        raise LocalStateError(f"{path}: not a UUID; delete the file to make this a new host") from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o750)
    except FileExistsError:
        pass  # whether it is a folder is seen when something is read
    except FileNotFoundError:
        raise LocalStateError(f"{folder}: {folder.parent} is not there; make it, or {_NEXT_STEP}") from None
    except OSError as error:
        raise LocalStateError(f"{folder}: cannot be made: {error.strerror}; {_NEXT_STEP}") from error


def _read(path: Path) -> str | None:
    """The text; None if there is no such file."""
    try:
        # Neither waits for the other end of a FIFO, nor shows what a link leads to: we may read more than others.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise LocalStateError(f"{path}: cannot be read: {why}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LocalStateError(f"{path}: cannot be read: it is not a regular file")
        return _try(path, "read", lambda: os.read(descriptor, MOST_BYTES)).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def _write_first(path: Path, text: str) -> str:
    """Write it unless the file is there in the meantime, made by a daemon that starts too; returns what it holds."""
    _try(path, "written", lambda: _write(path, text, first=True))
    return _read(path) or ""


def _write(path: Path, text: str, *, first: bool = False) -> None:
    """first: only if there is no such file."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        if first:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(temporary)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have what was renamed or removed outlive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _try(path: Path, what: str, work: Callable[[], _T]) -> _T:
    try:
        return work()
    except OSError as error:
        raise LocalStateError(f"{path}: cannot be {what}: {error.strerror}; correct it, or {_NEXT_STEP}") from error
