"""The log: one line per event, whatever is in it."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmstackd import log

LINE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z (debug|info|warning|error) "
    r'([a-z-]+|"(?:[^"\\]|\\.)*")((?: [a-z_]+=(?:[A-Za-z0-9_.,:/@+-]+|"(?:[^"\\]|\\.)*"))*)'
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
