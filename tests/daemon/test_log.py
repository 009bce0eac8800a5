"""The log: one line per event, whatever is in it; in the journal, one entry with the right fields."""

from __future__ import annotations

import array
import contextlib
import fcntl
import io
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.descriptors import descriptors
from tests.running import PATIENCE, ROOT
from vmstackd.api import requests
from vmstackd.daemon import log

LINE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z (debug|info|warning|error) "
    r'([a-z_-]+|"(?:[^"\\]|\\.)*")((?: [a-z_]+=(?:[A-Za-z0-9_.,:/@+-]+|"(?:[^"\\]|\\.)*"))*)'
)
FIELD = re.compile(r' ([a-z_]+)=([^" ]+|"(?:[^"\\]|\\.)*")')
NASTY = st.text() | st.text(alphabet=' "\\=\n\r\t\x00\x1b\x7f\x85\u2028\u202e\ud800axinfo')


def _formatted(record: logging.LogRecord) -> str:
    return log.formatter().format(record)


def _written(name: str, **fields: object) -> str:
    record = logging.makeLogRecord({"msg": name, "levelno": logging.INFO, "levelname": "INFO", "fields": fields})
    return _formatted(record)


def _read(text: str) -> dict[str, str]:
    """The fields of a line, as a program would read them."""
    match = LINE.fullmatch(text)
    assert match is not None, text
    return {
        key: value[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape") if value[0] == '"' else value
        for key, value in FIELD.findall(match[3])
    }


@given(NASTY, NASTY)
def test_no_value_can_end_the_line_or_pretend_to_be_another_field(vm: str, why: str) -> None:
    text = _written("deploy", vm=vm, outcome="ok", why=why)
    assert text.isprintable()
    fields = _read(text)
    assert list(fields) == ["vm", "outcome", "why"]
    assert fields == {"vm": vm, "outcome": "ok", "why": why}


@given(NASTY)
def test_messages_of_libraries_cannot_either(text: str) -> None:
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"})
    assert _formatted(record).isprintable()
    match = LINE.fullmatch(_formatted(record))
    assert match is not None
    assert match[2].startswith('"'), "events of ours are the only ones without quotes"


@given(NASTY)
def test_the_lines_of_a_traceback_are_set_in_whatever_the_exception_says(text: str) -> None:
    fault = ValueError(text)
    try:
        raise fault
    except ValueError:
        record = logging.makeLogRecord({"msg": "oops", "levelname": "ERROR", "exc_info": sys.exc_info()})
    first, *rest = _formatted(record).split("\n")
    assert LINE.fullmatch(first)
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "Traceback" in rest[0]


def test_plain_values_stay_plain_and_fields_that_are_none_are_left_out() -> None:
    text = _written("remove", vm="web-1", cpus="0-3,128", image="/a/b.qcow2", why=None, empty="", level=1.5)
    assert text.partition(" info ")[2] == 'remove vm=web-1 cpus=0-3,128 image=/a/b.qcow2 empty="" level=1.5'


def test_the_time_is_utc_with_milliseconds() -> None:
    record = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "created": 1.5, "msecs": 500.0})
    assert _formatted(record).startswith("1970-01-01T00:00:01.500Z ")


@pytest.mark.parametrize("debug", [False, True])
def test_debug_messages_are_written_on_request(debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log.set_up(debug=debug)
        log.event(logging.DEBUG, "detail", a=1)
        log.info("told", a=1)
        log.warning("warned", a=1)
        log.error("failed", a=1)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    events = [line.split(" ")[1:3] for line in stream.getvalue().splitlines()]
    told = [["info", "told"], ["warning", "warned"], ["error", "failed"]]
    assert events == ([["debug", "detail"], *told] if debug else told)


# The journal


def _entry(datagram: bytes) -> list[tuple[str, bytes]]:
    """The fields of an entry, in order, read as the description of the native protocol says."""
    fields = []
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            length, datagram = int.from_bytes(datagram[:8], "little"), datagram[8:]
            assert datagram[length : length + 1] == b"\n"
            value, datagram = datagram[:length], datagram[length + 1 :]
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", key)
        fields.append((key.decode(), value))
    return fields


class Journal:
    """A socket such as journald's, and another such as it gives to services as their stderr."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "socket")
        self.socket = self._bound()
        self.far_stderr, self.stderr = socket.socketpair()
        self.far_stderr.setblocking(False)
        self.stream = log.Unwaiting(self.stderr.fileno())
        self.handler = log.JournalHandler(self.path, self.stream, "globald")

    def _bound(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bound.bind(self.path)
        bound.setblocking(False)
        return bound

    def restart(self) -> None:
        """As if journald had come back after it was stopped with its sockets."""
        self.socket = self._bound()

    def stop(self) -> None:
        """As if journald were stopped with its sockets."""
        self.socket.close()
        Path(self.path).unlink()

    def close(self) -> None:
        for each in (self.socket, self.far_stderr, self.stderr, self.stream, self.handler):
            each.close()

    def write(self, name: str, severity: int = logging.INFO, **fields: object) -> None:
        level = logging.getLevelName(severity)
        self.handler.handle(
            logging.makeLogRecord({"msg": name, "levelno": severity, "levelname": level, "fields": fields})
        )

    def read(self) -> dict[str, str]:
        """The next entry; no field comes twice."""
        fields = _entry(self.socket.recv(1 << 20))
        assert len(dict(fields)) == len(fields)
        return {key: value.decode() for key, value in fields}

    def lines(self) -> list[str]:
        """What has been written to stderr since the last time."""
        try:
            return self.far_stderr.recv(1 << 20).decode().splitlines()
        except BlockingIOError:
            return []


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.close()


def test_an_event_becomes_an_entry_with_its_fields(journal: Journal) -> None:
    journal.write("gone", vm="web 1", cpus="0-3", level="1.5", why=None, empty="", count=3)
    assert journal.read() == {
        "MESSAGE": 'gone vm="web 1" cpus=0-3 level=1.5 empty="" count=3',
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "globald",
        "VMSTACK_EVENT": "gone",
        "VMSTACK_VM": "web 1",
        "VMSTACK_CPUS": "0-3",
        "VMSTACK_LEVEL": "1.5",
        "VMSTACK_EMPTY": "",
        "VMSTACK_COUNT": "3",
    }
    assert journal.lines() == []


CHANGES = sorted(kind.__struct_config__.tag for kind in get_args(requests.Change))


@pytest.mark.parametrize(("name", "operation"), [*((name, name) for name in CHANGES), ("ready", None), ("hosts", None)])
def test_operations_can_be_found_as_such(journal: Journal, name: str, operation: str | None) -> None:
    journal.write(name, vm="web", request="r1", outcome="ok")
    entry = journal.read()
    assert entry.get("VMSTACK_OPERATION") == operation
    assert (entry["VMSTACK_EVENT"], entry["VMSTACK_REQUEST"], entry["VMSTACK_OUTCOME"]) == (name, "r1", "ok")


def test_a_field_cannot_pretend_to_be_the_event_or_have_a_name_that_journald_refuses(journal: Journal) -> None:
    journal.write(
        "gone", logging.INFO, **{"event": "deploy", "größe": 1, "a b": 2, "a=b\nPRIORITY": 3, "x" * 57: 4, "y" * 56: 5}
    )
    entry = journal.read()
    assert entry["VMSTACK_EVENT"] == "gone"
    assert set(entry) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "VMSTACK_EVENT", "VMSTACK_" + "Y" * 56}


@pytest.mark.parametrize(
    ("severity", "priority"),
    [
        (logging.DEBUG, "7"),
        (logging.INFO, "6"),
        (logging.WARNING, "4"),
        (logging.ERROR, "3"),
        (logging.CRITICAL, "2"),
        (logging.ERROR + 5, "3"),
    ],
)
def test_severities_become_those_of_syslog(journal: Journal, severity: int, priority: str) -> None:
    journal.write("x", severity)
    assert journal.read()["PRIORITY"] == priority


FORGED = "web\nPRIORITY=0\nVMSTACK_CALLER=root\nVMSTACK_CALLER\n\x04\0\0\0\0\0\0\0root\n"


@given(NASTY | st.sampled_from([FORGED, "\n", "=", "a\n\nb"]))
def test_no_value_can_become_another_field_or_change_one(text: str) -> None:
    record = logging.makeLogRecord({"msg": "deploy", "levelno": logging.INFO, "fields": {"vm": text, "caller": text}})
    entry = _entry(log.journal_entry(record, "globald"))
    raw = text.encode(errors="backslashreplace")
    message = entry.pop(0)
    assert message[0] == "MESSAGE"
    assert message[1].decode().isprintable()
    assert entry == [
        ("PRIORITY", b"6"),
        ("SYSLOG_IDENTIFIER", b"globald"),
        ("VMSTACK_VM", raw),
        ("VMSTACK_CALLER", raw),
        ("VMSTACK_EVENT", b"deploy"),
        ("VMSTACK_OPERATION", b"deploy"),
    ]


@given(NASTY)
def test_messages_of_libraries_have_no_fields_of_ours(text: str) -> None:
    record = logging.makeLogRecord({"msg": text, "levelno": logging.WARNING})
    entry = dict(_entry(log.journal_entry(record, "globald")))
    assert set(entry) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"}
    assert entry["MESSAGE"].startswith(b'"'), "as on stderr, so that nobody takes it for an event of ours"


@given(NASTY)
def test_a_traceback_is_one_entry(text: str) -> None:
    fault = ValueError(text)
    try:
        raise fault
    except ValueError:
        record = logging.makeLogRecord({"msg": "oops", "levelno": logging.ERROR, "exc_info": sys.exc_info()})
    entry = dict(_entry(log.journal_entry(record, "globald")))
    assert set(entry) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"}
    first, *rest = entry["MESSAGE"].decode().split("\n")
    assert first == '"oops"'
    assert rest[0] == "    Traceback (most recent call last):"
    assert any("raise fault" in line for line in rest)
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_what_is_too_large_for_a_datagram_is_passed_as_a_sealed_file(journal: Journal) -> None:
    before = descriptors()
    text = "x\n" * 500_000
    journal.write("gone", why=text)
    data, ancillary, _, _ = journal.socket.recvmsg(10, socket.CMSG_SPACE(4))
    assert data == b""
    ((level, kind, content),) = ancillary
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    (descriptor,) = array.array("i", content)
    with os.fdopen(descriptor, "rb") as file:
        seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        file.seek(0)
        entry = dict(_entry(file.read()))
    assert entry["VMSTACK_WHY"] == text.encode()
    assert entry["VMSTACK_EVENT"] == b"gone"
    assert descriptors() == before
    assert journal.lines() == []


def test_without_the_journal_events_are_lines_on_stderr_until_it_is_back(journal: Journal) -> None:
    journal.write("first")
    assert journal.read()["VMSTACK_EVENT"] == "first"
    journal.stop()
    journal.write("second", vm="web", why="x\ny")
    (line,) = journal.lines()
    assert " info second " in line
    assert _read(line) == {"vm": "web", "why": "x\ny"}
    journal.restart()
    journal.write("third")
    assert journal.read()["VMSTACK_EVENT"] == "third"


def test_a_journal_that_hangs_is_not_waited_for(journal: Journal) -> None:
    """Neither of its two sockets is read. What has room is kept, the rest is lost."""
    began = time.monotonic()
    for number in range(5000):
        journal.write("deploy", number=number, why="y" * 500)
    assert time.monotonic() - began < PATIENCE, "it is given time once, not for each event"
    kept = []
    with contextlib.suppress(BlockingIOError):
        while True:
            kept.append(int(journal.read()["VMSTACK_NUMBER"]))
    assert kept == list(range(len(kept)))
    lines = journal.lines()
    journal.write("later")
    assert journal.read()["VMSTACK_EVENT"] == "later"
    for number, line in enumerate(lines[:-1], len(kept)):
        assert _read(line)["number"] == str(number)
    assert len(kept) + len(lines) < 5000


def test_a_burst_of_events_is_kept_whole_by_a_journal_that_is_at_work(journal: Journal) -> None:
    events = 2000
    handler = log.JournalHandler(journal.path, journal.stream, "globald", PATIENCE)
    journal.socket.setblocking(True)
    with contextlib.closing(handler), ThreadPoolExecutor(1) as pool:
        numbers = pool.submit(lambda: [journal.read()["VMSTACK_NUMBER"] for _ in range(events)])
        for number in range(events):
            handler.handle(logging.makeLogRecord({"msg": "deploy", "levelno": 20, "fields": {"number": number}}))
        assert numbers.result(PATIENCE) == [str(number) for number in range(events)]
    assert journal.lines() == []


def test_half_a_line_does_not_run_into_the_next_one(journal: Journal) -> None:
    journal.stop()
    journal.write("large", why="x" * 1_000_000)
    torn = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            torn += journal.far_stderr.recv(1 << 20)
    assert b" large why=xxx" in torn
    assert b"\n" not in torn
    journal.write("next")
    assert journal.far_stderr.recv(1 << 20).decode().split("\n", 1)[0] == ""
    journal.write("after-that")
    (line,) = journal.lines()
    assert LINE.fullmatch(line)


def test_a_record_that_cannot_be_formatted_is_told_and_does_no_harm(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "levelno": logging.INFO}))
    journal.write("next")
    assert journal.read()["VMSTACK_EVENT"] == "next"
    assert "Logging error" in capsys.readouterr().err


def test_stderr_must_be_a_stream_socket(tmp_path: Path) -> None:
    before = descriptors()
    with (tmp_path / "log").open("w") as file, pytest.raises(OSError, match="non-socket"):
        log.Unwaiting(file.fileno())
    assert descriptors() == before


PROGRAM = """
import logging, sys
from vmstackd.daemon import log
log.set_up(debug=False, journal=sys.argv[1], **dict([sys.argv[2:]] if sys.argv[2:] else []))
log.event(logging.DEBUG, "detail")
log.info("deploy", vm="web")
logging.getLogger("library").warning("told %s", "so")
"""


def _run(journal: Journal, stderr: int, stream: str | None, *program: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, journal.path, *program],
        cwd=ROOT,
        env=environment if stream is None else environment | {"JOURNAL_STREAM": stream},
        stderr=stderr,
        check=True,
        timeout=PATIENCE,
    )


def test_the_journal_gets_the_events_where_stderr_leads_to_it(journal: Journal) -> None:
    found = os.fstat(journal.stderr.fileno())
    _run(journal, journal.stderr.fileno(), f"{found.st_dev}:{found.st_ino}")
    assert [journal.read()["MESSAGE"] for _ in range(2)] == ["deploy vm=web", '"told so"']
    assert journal.lines() == []
    with pytest.raises(BlockingIOError):
        journal.read()


@pytest.mark.parametrize(("given", "told"), [((), "vmstackd"), (("program", "globald"), "globald")])
def test_entries_are_those_of_the_program(journal: Journal, given: tuple[str, ...], told: str) -> None:
    found = os.fstat(journal.stderr.fileno())
    _run(journal, journal.stderr.fileno(), f"{found.st_dev}:{found.st_ino}", *given)
    assert [journal.read()["SYSLOG_IDENTIFIER"] for _ in range(2)] == [told, told]


@pytest.mark.parametrize("stream", [None, "", "1:2", "{dev}:{other}", "{dev}", "{dev}:{ino} ", "x:y"])
def test_stderr_gets_them_where_it_leads_elsewhere(journal: Journal, stream: str | None) -> None:
    found = os.fstat(journal.stderr.fileno())
    if stream is not None:
        stream = stream.format(dev=found.st_dev, ino=found.st_ino, other=found.st_ino + 1)
    _run(journal, journal.stderr.fileno(), stream)
    assert [line.partition("Z ")[2] for line in journal.lines()] == ["info deploy vm=web", 'warning "told so"']


def test_a_file_is_not_the_journal_whatever_the_environment_says(journal: Journal, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        found = os.fstat(file.fileno())
        _run(journal, file.fileno(), f"{found.st_dev}:{found.st_ino}")
    assert len((tmp_path / "log").read_text().splitlines()) == 2
