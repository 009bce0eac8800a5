"""One line per event on stderr: time, severity, event, then key=value fields.

Values are quoted wherever they could be mistaken for something else, so no name that a user chose
can forge a line. Where stderr is the journal, each event becomes an entry with fields instead.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

JOURNAL_SOCKET = "/run/systemd/journal/socket"

JOURNAL_PATIENCE_S = 0.05
"""Seconds. Its queue can be as short as ten entries, and a burst of events is longer."""

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:/@+-")

logger = logging.getLogger("vmstack")
"""Of every daemon; its name is shown nowhere."""


def event(severity: int, name: str, **fields: object) -> None:
    """Log one event; fields that are None are left out."""
    if logger.isEnabledFor(severity):
        logger.log(severity, name, extra={"fields": fields})


def info(name: str, **fields: object) -> None:
    """Something happened as it should."""
    event(logging.INFO, name, **fields)


def warning(name: str, **fields: object) -> None:
    """Something an operator should look at."""
    event(logging.WARNING, name, **fields)


def error(name: str, **fields: object) -> None:
    """Something that ends the daemon or an operation."""
    event(logging.ERROR, name, **fields)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if text and _PLAIN.issuperset(text) else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + one_line(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def one_line(text: str) -> str:
    """The text with everything escaped that could end a line or move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Message(logging.Formatter):
    """Event and fields; then the traceback, if there is one, in lines that are set in."""

    def format(self, record: logging.LogRecord) -> str:
        ours = hasattr(record, "fields")
        fields: dict[str, Any] = getattr(record, "fields", {})
        parts = [record.getMessage() if ours else _quoted(record.getMessage())]
        parts += [f"{key}={_text(value)}" for key, value in fields.items() if value is not None]
        line = " ".join(parts)
        if record.exc_info:
            # Set in, since the text of an exception may hold what a user wrote.
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {one_line(part)}" for part in trace)
        return line


class _Formatter(_Message):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        return f"{stamp} {record.levelname.lower()} {super().format(record)}"


def formatter() -> logging.Formatter:
    """What makes a line of an event."""
    return _Formatter()


_OPERATIONS = frozenset({"deploy", "remove", "cordon", "uncordon", "check", "host_add", "host_remove"})
_JOURNAL_KEY = re.compile(r"[A-Z0-9_]{1,56}")
"""What may follow VMSTACK_; journald drops other names, and those of more than 64 characters."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""From a severity of Python's to syslog's."""


def journal_entry(record: logging.LogRecord, program: str) -> bytes:
    """The record in the journal's native protocol: every field of an event also as VMSTACK_<KEY>."""
    entry = {
        "MESSAGE": _Message().format(record),
        "PRIORITY": str(next((priority for level, priority in _PRIORITIES if record.levelno >= level), 7)),
        "SYSLOG_IDENTIFIER": program,
    }
    if hasattr(record, "fields"):
        fields: dict[str, Any] = record.fields
        for key, value in fields.items():
            if value is not None and _JOURNAL_KEY.fullmatch(key.upper()):
                entry[f"VMSTACK_{key.upper()}"] = str(value)
        entry["VMSTACK_EVENT"] = name = record.getMessage()
        if name in _OPERATIONS:
            entry["VMSTACK_OPERATION"] = name
    return b"".join(_framed(key, value) for key, value in entry.items())


def _framed(key: str, value: str) -> bytes:
    # With its length told, a value may hold line ends, and cannot begin another field.
    data = value.encode(errors="backslashreplace")
    return b"%s\n%s%s\n" % (key.encode("ascii"), len(data).to_bytes(8, "little"), data)


class Writable(Protocol):
    """What the text of a record can be written to."""

    def write(self, text: str, /) -> object:
        """Write all of it, or lose it."""


class Unwaiting:
    """A stream socket as a text stream. Text for which there is no room is lost, not waited for."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError if it is not a socket. The descriptor stays the caller's."""
        copy = os.dup(descriptor)
        try:
            self._socket = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            raise
        self._torn = False

    def write(self, text: str, /) -> None:
        """As in Writable."""
        # A line of which only a part was taken must not run into the next one.
        data = (f"\n{text}" if self._torn else text).encode(errors="backslashreplace")
        try:
            # Not O_NONBLOCK: others, such as QEMU, have the same socket as their stderr.
            self._torn = self._socket.send(data, socket.MSG_DONTWAIT) < len(data)
        except OSError:
            return

    def close(self) -> None:
        """The descriptor that this was made of stays open."""
        self._socket.close()


class JournalHandler(logging.StreamHandler[Writable]):
    """Sends each record to the journal's socket. What is not taken is written to the stream, as text.

    program: whose records these are. patience: seconds that a journal whose queue is full gets to make
    room; only once, until it takes something again.
    """

    def __init__(self, path: str, stream: Writable, program: str, patience: float = JOURNAL_PATIENCE_S) -> None:
        super().__init__(stream)
        self._program = program
        self.setFormatter(formatter())
        self._path = path
        # Not connected: a journald that starts anew has another socket at the same path.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        seconds = int(patience)
        limit = struct.pack("ll", seconds, int((patience - seconds) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._hangs = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(journal_entry(record, self._program))
        except OSError:
            super().emit(record)
        except Exception:  # as in logging's own handlers: a record that cannot be formatted is a mistake of ours
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> None:
        try:
            self._deliver([entry])
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(entry)

    def _send_file(self, entry: bytes) -> None:
        """For what is too large for a datagram."""
        with os.fdopen(os.memfd_create(f"{self._program}-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb") as file:
            file.write(entry)
            file.flush()
            # journald reads only what nobody can change under its hands.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            self._deliver([], file.fileno())

    def _deliver(self, data: list[bytes], *descriptors: int) -> None:
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg(data, passed, socket.MSG_DONTWAIT if self._hangs else 0, self._path)
        except BlockingIOError:
            self._hangs = True
            raise
        self._hangs = False


def _is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether this is the stream that systemd says it has connected to the journal (DEVICE:INODE)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    told = environment.get("JOURNAL_STREAM")
    return stat.S_ISSOCK(found.st_mode) and told == f"{found.st_dev}:{found.st_ino}"


def set_up(
    *,
    debug: bool,
    program: str = "vmstackd",
    environment: Mapping[str, str] = os.environ,
    journal: str = JOURNAL_SOCKET,
) -> None:
    """Send everything to stderr, or to the journal if stderr leads there; debug messages only on request."""
    handler: logging.Handler
    if _is_journal(2, environment):
        handler = JournalHandler(journal, Unwaiting(2), program)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(debug=debug)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)


def set_level(*, debug: bool) -> None:
    """Debug messages from now on, or no longer."""
    logging.getLogger().setLevel(logging.DEBUG if debug else logging.INFO)
