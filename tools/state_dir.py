"""The directory of ``make run``: what is in it, whose it is, and who uses it now."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import sys
from pathlib import Path

from vmstackd.hypervisor.embedded import embedded_root

DEFAULT = "/var/tmp/vmstack"  # noqa: S108 (its owner is checked)
MARK = ".made-by-vmstack"
"""A file that says that the directory is ours to delete, and that is locked while vmstackd runs on it."""


class StateDirError(Exception):
    """A directory that cannot be used, and what to do about it."""


class StateDir:
    """One such directory. ``open`` or ``make`` it; it stays locked until ``close`` or the end of the process."""

    def __init__(self, path: str) -> None:
        """Raises StateDirError for a path that cannot work."""
        if not re.fullmatch(r"/[A-Za-z0-9._/-]+", path):
            raise StateDirError(f"{path}: must be an absolute path of letters, digits and . _ - /")
        self.path = Path(path)
        try:
            embedded_root(self.uri)
        except ValueError as error:
            raise StateDirError(str(error)) from error
        self.lock = -1

    @property
    def images(self) -> Path:
        """Where disk images are."""
        return self.path / "images"

    @property
    def socket(self) -> Path:
        """Where vmstackctl finds the daemon."""
        return self.path / "vmstackd.sock"

    @property
    def host(self) -> Path:
        """What the daemon keeps: which host this is, and its cordon."""
        return self.path / "host"

    @property
    def cluster_socket(self) -> Path:
        """Where vmstackctl finds the daemon of the cluster."""
        return self.path / "globald.sock"

    @property
    def hosts_dir(self) -> Path:
        """The files that name further hosts of the cluster."""
        return self.path / "hosts.d"

    @property
    def libvirt(self) -> Path:
        """The root of libvirt's embedded driver."""
        return self.path / "libvirt"

    @property
    def uri(self) -> str:
        """The hypervisor in it."""
        return f"qemu:///embed?root={self.libvirt}"

    def make(self) -> None:
        """Make it, or take one made before, and lock it. Raises StateDirError, OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            self._check_owner()
        mark = self.path / MARK
        if not mark.exists() and any(self.path.iterdir()):
            raise StateDirError(f"{self.path} is not empty and was not made by make run; choose another STATE_DIR")
        self._take(os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self.images.mkdir(mode=0o700, exist_ok=True)

    def open(self) -> None:
        """Lock one made before. Raises StateDirError, FileNotFoundError."""
        self._check_owner()
        try:
            descriptor = os.open(self.path / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StateDirError(f"{self.path} was not made by make run, so it is left alone") from error
        self._take(descriptor)

    def delete(self) -> None:
        """Delete all of it, the mark last, so that an attempt that fails can be repeated. Raises OSError."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARK:
                entry.unlink()
        (self.path / MARK).unlink()
        self.path.rmdir()

    def close(self) -> None:
        """Let others use it."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def _check_owner(self) -> None:
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise StateDirError(f"{self.path} is not a directory; choose another STATE_DIR")
        if found.st_uid != os.geteuid():
            raise StateDirError(f"{self.path} belongs to user {found.st_uid}, not to you; choose another STATE_DIR")
        if found.st_mode & 0o022:
            raise StateDirError(f"{self.path} can be written by other users; choose another STATE_DIR")

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StateDirError(
                f"{self.path} is in use: vmstackd runs on it; end it first (Ctrl-C there; where no terminal has it any "
                "more, end its processes vmstackd and globald)"
            ) from error
        self.lock = descriptor


def say(text: str) -> None:
    """Tell the person at the terminal."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    sys.stderr.write(f"{bold}==>{plain} {text}\n")
    sys.stderr.flush()
