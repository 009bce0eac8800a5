"""A listening Unix socket that belongs to one daemon at a time."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

from vmstackd.address import MAX_PATH_BYTES
from vmstackd.daemon import log
from vmstackd.daemon.peers import unix_peer

MODE = 0o660
BACKLOG = 1024


class ListenError(OSError):
    """Why nobody can listen there, in one line."""


class _Listener(socket.socket):
    """Takes the file away when it is closed, unless another one is there by then."""

    _lock: int
    _path: Path
    _inode: tuple[int, int]

    def keep(self, path: Path, lock: int) -> None:
        """path: that this is bound to. lock: a descriptor to be closed with this."""
        self._path, self._lock, self._inode = path, lock, _inode(path)

    def close(self) -> None:
        if self.fileno() >= 0 and hasattr(self, "_inode"):
            with contextlib.suppress(OSError):
                if _inode(self._path) == self._inode:
                    self._path.unlink()
            os.close(self._lock)
        super().close()


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def listen(path: Path, group: str) -> socket.socket:
    """A listening socket for root and a group; without the group, or the right to give it away, for our own group.

    It is ours alone as long as it is open: ``<path>.lock`` is locked. Raises ListenError.
    """
    if not path.is_absolute() or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ListenError(f"{path}: the path of a socket must be absolute, of at most {MAX_PATH_BYTES} bytes")
    with contextlib.ExitStack() as opened:
        try:
            lock = _locked(path)
            opened.callback(os.close, lock)
            _clear(path)
            listener = opened.enter_context(_Listener(socket.AF_UNIX, socket.SOCK_STREAM))
            _bind(listener, path, group)
            listener.listen(BACKLOG)
        except ListenError:
            raise
        except FileNotFoundError as error:
            raise ListenError(
                f"{path}: the folder {path.parent} does not exist; "
                f"make it: install -d -m 0750 -g {group or 'root'} {path.parent}"
            ) from error
        except OSError as error:
            raise ListenError(f"{path}: {error.strerror or error}") from error
        listener.keep(path, lock)
        opened.pop_all()
    return listener


def _locked(path: Path) -> int:
    """A descriptor that holds the lock. The file stays: one that was removed could be locked twice."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise
        holder = _holder(path) or "another process"
        raise ListenError(f"{path}: {holder} has it; stop that first, or choose another path") from error
    return lock


def _holder(path: Path) -> str:
    """Who listens at the other end; empty if nobody does, as far as can be seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
            pid = unix_peer(probe).pid
        except BlockingIOError:
            return "a process that is very busy"
        except OSError:
            return ""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = "?"
    return f"process {pid} ({log.one_line(name)})"


def _clear(path: Path) -> None:
    """Take away what a daemon left that was killed; whoever holds the lock may, unless somebody still listens.

    That is systemd, which does not lock, while the .socket unit is active.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"{path}: there is something that is not a socket; move it away, or choose another path")
    if holder := _holder(path):
        raise ListenError(f"{path}: {holder} has it; stop that first, or choose another path")
    path.unlink()


def _bind(listener: socket.socket, path: Path, group: str) -> None:
    # Nobody may connect before it has its group; the umask is the process's, which has no other threads yet.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        log.warning("socket-group-missing", path=path, group=group, note="only our own group may connect")
    else:
        try:
            os.chown(path, -1, gid)
        except PermissionError as error:
            log.warning("socket-group-refused", path=path, group=group, reason=error.strerror)
    path.chmod(MODE)
