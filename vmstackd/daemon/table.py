"""The settings of a daemon as a table: each once, with its key in the file, in the environment, and as a flag.

Flags win over environment variables, those over an env file (which takes the prototype's names too,
SEMANTICS 12), that over the TOML file, that over the default.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec


class SettingsError(Exception):
    """A setting that cannot be used: where it stands, which one, what is allowed. One line."""


class Setting(msgspec.Struct, frozen=True):
    """One row. read: from a text or a TOML value to the field's value, raising ValueError with what is
    allowed. legacy: the prototype's name in an env file. reload: whether SIGHUP can change it.
    """

    key: str
    default: Any
    read: Callable[[Any], Any]
    metavar: str
    help: str
    legacy: str = ""
    reload: bool = False

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.key.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default as people write it; empty where nothing is set."""
        match self.default:
            case bool():
                return "yes" if self.default else "no"
            case tuple():
                return ",".join(map(str, self.default))
            case dict():
                return ""
            case _:
                return str(self.default)


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A whole number."""

    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def seconds(value: object) -> float:
    """Seconds, at least a tenth and at most a day."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.1 <= value <= 86400:
        raise ValueError("seconds from 0.1 to 86400")
    return float(value)


def text(allowed: str, pattern: str) -> Callable[[Any], str]:
    """A text of this form."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not _fits(pattern, value):
            raise ValueError(allowed)
        return value

    return read


def _fits(pattern: str, value: str) -> bool:
    # No name of a file has the byte 0, and the system's functions take none.
    return "\0" not in value and re.fullmatch(pattern, value) is not None


def yes_or_no(value: object) -> bool:
    """yes and no, or true and false of TOML."""
    known = {True: True, False: False, "yes": True, "no": False}
    if not isinstance(value, bool | str) or value not in known:
        raise ValueError("yes or no (in TOML: true or false)")
    return known[value]


def one_of(*names: str) -> Callable[[Any], str]:
    """One of these words."""

    def read(value: object) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return str(value)

    return read


def names(allowed: str, pattern: str) -> Callable[[Any], tuple[str, ...]]:
    """A comma separated list, or a list in TOML, of texts of this form."""

    def read(value: object) -> tuple[str, ...]:
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) and _fits(pattern, i) for i in items):
            raise ValueError(allowed)
        return tuple(items)

    return read


_PATH = text("an absolute path, or nothing", r"(/.+)?")

TLS = (
    Setting("tls_ca", "", _PATH, "FILE", "certificate of the cluster's own authority (PEM)"),
    Setting("tls_certificate", "", _PATH, "FILE", "our certificate, signed by that authority (PEM)"),
    Setting("tls_key", "", _PATH, "FILE", "the key of our certificate (PEM)"),
)
_ADDRESS = r"[A-Za-z0-9._:%-]+"


def doors(*, socket: str, tcp_port: int, http_port: int, legacy: str) -> tuple[Setting, ...]:
    """The rows of every daemon about where it listens. legacy: what the prototype's settings began with."""
    return (
        Setting(
            "socket",
            socket,
            text("an absolute path, or none", r"none|/.+"),
            "PATH",
            "Unix socket for vmstackctl and other msgpack-RPC clients, or none",
        ),
        Setting(
            "tcp_host",
            "127.0.0.1",
            text("an address or a host name, or none", _ADDRESS),
            "ADDRESS",
            "address of msgpack-RPC over TCP, or none; beyond loopback it needs the three tls settings",
        ),
        Setting("tcp_port", tcp_port, whole(0, 65535), "PORT", "port of msgpack-RPC over TCP; 0 = any free one"),
        *TLS,
        Setting(
            "http_host",
            "127.0.0.1",
            text("an address or a host name", _ADDRESS),
            "ADDRESS",
            "address of the HTTP endpoint",
            f"{legacy}_URL",
        ),
        Setting(
            "http_port",
            http_port,
            whole(0, 65535),
            "PORT",
            "port of the HTTP endpoint; 0 = any free one",
            f"{legacy}_PORT",
        ),
        Setting(
            "http_names",
            (),
            names("a comma separated list of host names", r"[A-Za-z0-9.:_-]+"),
            "NAMES",
            "further host names that HTTP requests may be addressed to",
            reload=True,
        ),
    )


DEBUG = Setting("debug", 0, whole(0, 9), "N", "more in the log if above 0", reload=True)
"""A row of every daemon."""


class Table(msgspec.Struct, frozen=True):
    """All settings of one program.

    prefix: of its environment variables. file: read where no other is named, if it is there. skipped: names of
    the prototype in an env file that have no meaning for this program.
    """

    program: str
    prefix: str
    file: Path
    rows: tuple[Setting, ...]
    skipped: re.Pattern[str]

    def variable(self, row: Setting) -> str:
        """The environment variable."""
        return self.prefix + row.key.upper()


def load(
    table: Table,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    env_file: Path | None = None,
    config_file: Path | None = None,
) -> dict[str, Any]:
    """Put all sources together: values by key. flags: texts by key, only those given.

    config_file None: the table's file, if there is one. Raises SettingsError.
    """
    rows = {row.key: row for row in table.rows}
    found: dict[str, Any] = {row.key: row.default for row in table.rows}

    def take(key: str, value: object, where: str) -> None:
        try:
            found[key] = rows[key].read(value)
        except ValueError as error:
            raise SettingsError(f"{where}: {_shown(value)} is not allowed; it must be {error}") from error

    path = table.file if config_file is None else config_file
    for key, value in _read_toml(path, optional=config_file is None).items():
        if key not in rows:
            raise SettingsError(f"{path}: {key}: there is no such setting; known are {', '.join(sorted(rows))}")
        take(key, value, f"{path}: {key}")
    if env_file is not None:
        _take_env_file(table, env_file, take)
    for row in table.rows:
        variable = table.variable(row)
        if variable in environment:
            take(row.key, environment[variable], f"environment variable {variable}")
    for key, text in flags.items():
        take(key, text, rows[key].flag)
    return found


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return "so large a number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _read_toml(path: Path, *, optional: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from error


def _take_env_file(table: Table, path: Path, take: Callable[[str, object, str], None]) -> None:
    by_name = {row.legacy: row.key for row in table.rows if row.legacy}
    by_name |= {table.variable(row): row.key for row in table.rows}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text file: {error}") from error
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", stripped)
        if match is None:
            raise SettingsError(f"{path}: line {number}: not of the form KEY=VALUE")
        name, value = match[1], match[2]
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if name in by_name:
            take(by_name[name], value, f"{path}: line {number}: {name}")
        elif not table.skipped.fullmatch(name):
            raise SettingsError(f"{path}: line {number}: {name}: there is no such setting")
