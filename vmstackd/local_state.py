"""The little that a host keeps on its disk: who it is, and whether its operator lets it have new VMs.

Nothing about VMs is here: that is in the hypervisor. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

UUID_FILE, CORDON_FILE = "host-uuid", "cordoned"
MOST_BYTES = 4096
"""Read of either file."""


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
        with contextlib.suppress(FileExistsError):
            _try(folder, lambda: folder.mkdir(mode=0o750))
        known = self._read(UUID_FILE)
        if known is None:
            self._write(UUID_FILE, self.uuid)
        else:
            try:
                self.uuid = str(uuid.UUID(known))
            except ValueError:
                raise LocalStateError(
                    f"{folder / UUID_FILE}: not a UUID; delete the file to make this a new host"
                ) from None
        self.cordon = self._read(CORDON_FILE)

    def set_cordon(self, reason: str | None) -> None:
        """Keep it. Raises LocalStateError, and then nothing has changed."""
        if self._folder is not None:
            if reason is None:
                path = self._folder / CORDON_FILE
                _try(path, lambda: path.unlink(missing_ok=True))
            else:
                self._write(CORDON_FILE, reason)
        self.cordon = reason

    def _read(self, name: str) -> str | None:
        path = self._path(name)
        try:
            with path.open(encoding="utf-8") as file:
                return file.read(MOST_BYTES).strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise LocalStateError(f"{path}: not a text") from None
        except OSError as error:
            raise LocalStateError(f"{path}: cannot be read: {error.strerror}") from error

    def _write(self, name: str, text: str) -> None:
        path = self._path(name)
        _try(path, lambda: _write_whole(path, f"{text}\n"))

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise LocalStateError("there is no folder to keep anything in")
        return self._folder / name


def _write_whole(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _try(path: Path, work: Callable[[], object]) -> None:
    try:
        work()
    except FileExistsError:
        raise
    except OSError as error:
        raise LocalStateError(f"{path}: cannot be written: {error.strerror}") from error
