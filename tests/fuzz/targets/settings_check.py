"""Settings from all their sources: read, and what was accepted written and read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from core.cpuset import format_cpu_list
from core.level import format_level
from tests.fuzz.target import check_told, scratch
from vmstackd.daemon.table import SettingsError, Table

_FOLDER = scratch()
_Load = Callable[[Mapping[str, str], Mapping[str, str], Path | None, Path | None], msgspec.Struct]


def check(data: bytes, table: Table, load: _Load) -> None:
    """Parts separated by dashes: a TOML file, an env file, lines KEY=VALUE of the environment, and of flags."""
    toml, env_file, environment, flags, *_ = *data.split(b"\n---\n"), b"", b"", b""
    files = _FOLDER / "daemon.toml", _FOLDER / ".env"
    files[0].write_bytes(toml)
    files[1].write_bytes(env_file)
    known = {row.key for row in table.rows}
    given = {key: value for key, value in _pairs(flags) if key in known}
    try:
        settings = load(given, dict(_pairs(environment)), files[1], files[0])
    except SettingsError as error:
        check_told(error, "")
        return
    try:
        text = _toml(settings).encode()
    except UnicodeEncodeError:
        return  # paths may hold bytes that are no text, files of settings not
    again = _FOLDER / "again.toml"
    again.write_bytes(text)
    assert load({}, {}, None, again) == settings


def words(table: Table) -> tuple[str, ...]:
    """What inputs for a table are likely to hold."""
    keys = [f"\n{row.key} = " for row in table.rows]
    old = [f"\n{row.legacy}=" for row in table.rows if row.legacy]
    variables = [f"\n{table.variable(row)}=" for row in table.rows]
    defaults = {json.dumps(row.shown_default) for row in table.rows}
    return (*keys, *old, *variables, *defaults, "\n---\n", "true", "1.5", "nan", "inf", "[1]", "1979-05-27", "'''")


def _pairs(lines: bytes) -> list[tuple[str, str]]:
    """As a program gets them: what is no text comes as surrogates."""
    texts = [line.decode(errors="surrogateescape").partition("=") for line in lines.split(b"\n")]
    return [(key, value) for key, _, value in texts]


def _toml(settings: msgspec.Struct) -> str:
    return "".join(f"{key} = {_value(key, value)}\n" for key, value in msgspec.structs.asdict(settings).items())


def _value(key: str, value: object) -> str:
    if key == "exclude_cpus" and isinstance(value, tuple):
        return json.dumps(format_cpu_list(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{format_level(level)}" = {size}' for level, size in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_value("", item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()
