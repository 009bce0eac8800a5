"""Tables of settings: which source wins, what kinds of values there are, and which files are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmstackd.daemon import table as module
from vmstackd.daemon.table import TLS, Setting, SettingsError, Table, load

TABLE = Table(
    program="exampled",
    prefix="EXAMPLED_",
    file=Path("/nowhere/exampled.toml"),
    rows=(
        Setting("colour", "red", module.one_of("red", "green", "blue"), "COLOUR", "of the lamp", "OLD_COLOUR"),
        Setting("lamps", 4, module.whole(1, 64), "N", "how many", reload=True),
        Setting("dim", False, module.yes_or_no, "YES|NO", "less light"),
        Setting("rooms", (), module.names("a list of rooms", r"[a-z]+"), "ROOMS", "where"),
        Setting("sizes", {}, dict, "SIZES", "of lamps"),
        *TLS,
    ),
    skipped=re.compile(r"OLD_(WINDOW|DOOR)"),
)
NO_FILE = Path("/dev/null")


def told(work: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as error:
        work()
    assert str(error.value).isprintable()
    return str(error.value)


# Rows


def test_a_row_is_a_flag_a_variable_and_a_text_for_its_default() -> None:
    rows = {row.key: row for row in TABLE.rows}
    assert rows["tls_ca"].flag == "--tls-ca"
    assert TABLE.variable(rows["tls_ca"]) == "EXAMPLED_TLS_CA"
    shown = {key: row.shown_default for key, row in rows.items() if not key.startswith("tls")}
    assert shown == {"colour": "red", "lamps": "4", "dim": "no", "rooms": "", "sizes": ""}
    assert msgspec.structs.replace(rows["rooms"], default=("a", "b")).shown_default == "a,b"
    assert msgspec.structs.replace(rows["dim"], default=True).shown_default == "yes"


def test_every_daemon_can_be_given_certificates_and_has_none() -> None:
    assert [row.key for row in TLS] == ["tls_ca", "tls_certificate", "tls_key"]
    assert {row.default for row in TLS} == {""}


READERS: Mapping[str, Callable[[Any], Any]] = {
    "whole": module.whole(-1, 10),
    "seconds": module.seconds,
    "text": module.text("two letters", r"[a-z]{2}"),
    "yes_or_no": module.yes_or_no,
    "one_of": module.one_of("a", "b"),
    "names": module.names("letters", r"[a-z]"),
}


@pytest.mark.parametrize(
    ("reader", "given", "value"),
    [
        ("whole", "10", 10),
        ("whole", "007", 7),
        ("whole", -1, -1),
        ("seconds", "0.1", 0.1),
        ("seconds", 86400, 86400.0),
        ("text", "ab", "ab"),
        ("yes_or_no", "yes", True),
        ("yes_or_no", False, False),
        ("one_of", "b", "b"),
        ("names", "a, b,,", ("a", "b")),
        ("names", "", ()),
        ("names", ["a", "a"], ("a", "a")),
    ],
)
def test_what_is_allowed_is_understood(reader: str, given: object, value: object) -> None:
    found = READERS[reader](given)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("reader", "given", "allowed"),
    [
        ("whole", "11", "a whole number from -1 to 10"),
        ("whole", "-1", "a whole number from -1 to 10"),
        ("whole", True, "a whole number from -1 to 10"),
        ("whole", 1.0, "a whole number from -1 to 10"),
        ("whole", "٣", "a whole number from -1 to 10"),
        ("whole", "9" * 5000, "a whole number from -1 to 10"),
        ("seconds", "0.09", "seconds from 0.1 to 86400"),
        ("seconds", float("nan"), "seconds from 0.1 to 86400"),
        ("seconds", "1e3", "seconds from 0.1 to 86400"),
        ("text", "ab\n", "two letters"),
        ("text", 12, "two letters"),
        ("yes_or_no", "YES", "yes or no (in TOML: true or false)"),
        ("yes_or_no", 1, "yes or no (in TOML: true or false)"),
        ("yes_or_no", [], "yes or no (in TOML: true or false)"),
        ("one_of", "c", "one of a, b"),
        ("one_of", ["a"], "one of a, b"),
        ("names", "a,bc", "letters"),
        ("names", [1], "letters"),
        ("names", {"a": 1}, "letters"),
    ],
)
def test_the_rest_is_refused_with_what_is_allowed(reader: str, given: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(allowed)):
        READERS[reader](given)


# Sources


def test_flags_win_over_the_environment_over_an_env_file_over_the_file(tmp_path: Path) -> None:
    config, env_file = tmp_path / "exampled.toml", tmp_path / "env"
    config.write_text('colour = "green"\nlamps = 10\ndim = true\nrooms = ["hall"]\n', encoding="utf-8")
    env_file.write_text("EXAMPLED_LAMPS=11\nEXAMPLED_DIM=no\nEXAMPLED_ROOMS=attic\n", encoding="utf-8")
    environment = {"EXAMPLED_DIM": "yes", "EXAMPLED_ROOMS": "cellar"}
    found = load(TABLE, {"rooms": "kitchen"}, environment, env_file, config)
    assert found == {
        "colour": "green",
        "lamps": 11,
        "dim": True,
        "rooms": ("kitchen",),
        "sizes": {},
        "tls_ca": "",
        "tls_certificate": "",
        "tls_key": "",
    }


def test_without_any_source_there_are_the_defaults() -> None:
    assert load(TABLE, {}, {}) == {row.key: row.default for row in TABLE.rows}


def test_variables_of_other_programs_are_none_of_our_business() -> None:
    found = load(TABLE, {}, {"EXAMPLED_UNKNOWN": "1", "OTHERD_LAMPS": "2", "lamps": "3", "PATH": "/bin"}, None, NO_FILE)
    assert found["lamps"] == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"flags": {"lamps": "0"}}, "--lamps: '0' is not allowed; it must be a whole number from 1 to 64"),
        ({"environment": {"EXAMPLED_LAMPS": ""}}, "environment variable EXAMPLED_LAMPS: '' is not allowed; "),
        ({"flags": {"tls_key": "key.pem"}}, "--tls-key: 'key.pem' is not allowed; it must be an absolute path, or "),
        ({"flags": {"colour": "x" * 5000}}, f"--colour: '{'x' * 59}... is not allowed; it must be one of red, "),
    ],
)
def test_a_wrong_value_is_told_with_its_place(given: dict[str, Any], says: str) -> None:
    sources = {"flags": {}, "environment": {}} | given
    assert told(lambda: load(TABLE, config_file=NO_FILE, **sources)).startswith(says)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("OLD_COLOUR=green", {"colour": "green"}),
        ("export EXAMPLED_COLOUR = 'green'", {"colour": "green"}),
        ('  # a comment\n\nOLD_COLOUR="blue"\n', {"colour": "blue"}),
        ("OLD_WINDOW=anything\nOLD_DOOR=", {}),
        ("OLD_COLOUR=green\nEXAMPLED_COLOUR=blue", {"colour": "blue"}),
    ],
)
def test_an_env_file_takes_old_and_new_names(lines: str, found: dict[str, object], tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(lines, encoding="utf-8")
    defaults = {row.key: row.default for row in TABLE.rows}
    assert load(TABLE, {}, {}, env_file, NO_FILE) == defaults | found


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("OLD_COLOUR=pink", "line 1: OLD_COLOUR: 'pink' is not allowed; it must be one of red, green, blue"),
        ("\n\nEXAMPLED_LAMPS=", "line 3: EXAMPLED_LAMPS: '' is not allowed"),
        ("OLD_COLOUR", "line 1: not of the form KEY=VALUE"),
        ("OLD_WINDOWS=1", "line 1: OLD_WINDOWS: there is no such setting"),
        ("OTHERD_LAMPS=1", "line 1: OTHERD_LAMPS: there is no such setting"),
    ],
)
def test_an_env_file_is_refused_by_line(lines: str, says: str, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(lines, encoding="utf-8")
    assert told(lambda: load(TABLE, {}, {}, env_file, NO_FILE)).startswith(f"{env_file}: {says}")


@pytest.mark.parametrize("source", ["config_file", "env_file"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [("missing", "No such file"), ("folder", "Is a directory"), ("binary", "not a "), ("below a file", "Not a dir")],
)
def test_files_that_cannot_be_read_are_refused(source: str, kind: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\x7fELF\x00\xff\xfe")
    elif kind == "below a file":
        path.touch()
        path /= "below"
    files = {"config_file": NO_FILE, source: path}
    message = told(lambda: load(TABLE, {}, {}, **files))
    assert message.startswith(f"{path}: ")
    assert says in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = 1\nb =\n", "(at line 2, column 4)"),
        ("lamps = 1\nlamps = 2\n", "(at line 2"),
        ("[section\n", "(at line 1"),
        ("lamps = " + "[" * 5000, "recursion"),
        ("lamps = " + "9" * 5000, "4300 digits"),
        ("lamps = 0x" + "f" * 500, "lamps: so large a number is not allowed"),
        ('tls_ca = "/a\\u0000b"', r"tls_ca: '/a\x00b' is not allowed; it must be an absolute path, or nothing"),
        ("lamp = 6", "lamp: there is no such setting; known are colour, dim, lamps, rooms, sizes, tls_ca, "),
        ("[http]\nport = 1", "http: there is no such setting"),
        ('"" = 1', ": there is no such setting"),
    ],
)
def test_a_toml_file_is_refused_by_line_or_key(text: str, says: str, tmp_path: Path) -> None:
    config = tmp_path / "exampled.toml"
    config.write_text(text, encoding="utf-8")
    message = told(lambda: load(TABLE, {}, {}, None, config))
    assert message.startswith(f"{config}: ")
    assert says in message


def test_the_default_file_may_be_missing_but_not_broken(tmp_path: Path) -> None:
    default = tmp_path / "example" / "exampled.toml"
    table = msgspec.structs.replace(TABLE, file=default)
    assert load(table, {}, {})["lamps"] == 4
    default.parent.mkdir()
    assert load(table, {}, {})["lamps"] == 4
    default.write_text("lamps = 7", encoding="utf-8")
    assert load(table, {}, {})["lamps"] == 7
    default.write_text("lamps = 0", encoding="utf-8")
    assert told(lambda: load(table, {}, {})).startswith(f"{default}: lamps: 0 is not allowed")
    default.unlink()
    default.mkdir()
    assert "Is a directory" in told(lambda: load(table, {}, {}))
