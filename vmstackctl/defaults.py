"""Which daemon is asked, and how: from what was typed, the environment and vmstackctl.toml, in this order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from vmstackctl.options import CLUSTER_ADDRESS, DEFAULT_ADDRESS, TLS_VARIABLES, Choices
from vmstackctl.values import parse_address, printable
from vmstackd.client import parse_address as read_address
from vmstackd.tls import Tls, TlsError, TlsFiles

FILE = "vmstackctl.toml"
SYSTEM_FILE = Path("/etc/vmstack") / FILE
KEYS = ("address", *TLS_VARIABLES)
GLOBALD, VMSTACKD = "globald", "vmstackd"
"""What programs call themselves."""
_GLOBALD_PORT = 8098


class FileError(click.ClickException):
    """Which file, where in it, what is expected and what to do; in one line."""


class DefaultsError(FileError):
    """Which file, which key, what is allowed; in one line."""

    exit_code = 2


class Server(msgspec.Struct, frozen=True):
    """A daemon. tls: None for a socket of this machine. program: which one it is by its address."""

    address: str
    tls: Tls | None
    program: str


def files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where defaults may stand; later ones win."""
    home = environment.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(home) if home.startswith("/") else Path("~/.config").expanduser()
    except RuntimeError:  # nobody knows where a home would be
        return (SYSTEM_FILE,)
    return SYSTEM_FILE, folder / "vmstack" / FILE


def server(choices: Choices, paths: Iterable[Path] | None = None) -> Server:
    """Raises click.ClickException. paths: of the files; None: the usual ones."""
    if choices.cluster and choices.address:
        raise click.UsageError(
            f"--cluster means {CLUSTER_ADDRESS}; leave it out, or --address and --socket", _context()
        )
    address = CLUSTER_ADDRESS if choices.cluster else choices.address or choices.address_in_environment
    # A file that is wrong does not hinder somebody who needs nothing of it.
    known: Mapping[str, str] = {}
    if not address or (read_address(address).kind == "tcp" and len(choices.tls) < len(TLS_VARIABLES)):
        known = read(files(os.environ) if paths is None else paths)
    address = address or known.get("address", DEFAULT_ADDRESS)
    where = read_address(address)
    if where.kind == "unix":
        program = GLOBALD if Path(where.path).name == Path(CLUSTER_ADDRESS).name else VMSTACKD
        return Server(address=address, tls=None, program=program)
    program = GLOBALD if where.port == _GLOBALD_PORT else VMSTACKD
    return Server(address=address, tls=_tls(choices.tls, known), program=program)


def _context() -> click.Context | None:
    return click.get_current_context(silent=True)


def _tls(chosen: Mapping[str, str], known: Mapping[str, str]) -> Tls | None:
    """None where nothing is known of it: within this machine it may not be needed."""
    found = {name: chosen.get(name) or known.get(name, "") for name in TLS_VARIABLES}
    if not any(found.values()):
        return None
    for name, variable in TLS_VARIABLES.items():
        if not found[name]:
            raise click.UsageError(
                f"for TLS three files are needed, and --{name.replace('_', '-')} is missing "
                f"(or {variable}, or {name} in {FILE})",
                _context(),
            )
    try:
        return Tls(TlsFiles(ca=Path(found["tls_ca"]), certificate=Path(found["tls_cert"]), key=Path(found["tls_key"])))
    except TlsError as error:
        raise DefaultsError(printable(str(error))) from error


def read(paths: Iterable[Path]) -> dict[str, str]:
    """The keys of all files that there are; those of later ones win. Raises DefaultsError."""
    found: dict[str, str] = {}
    for path in paths:
        found |= _read(path)
    return found


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DefaultsError(f"{path}: cannot be read: {error.strerror}; correct it, or take it away") from error
    except UnicodeDecodeError as error:
        raise DefaultsError(f"{path}: not UTF-8; write it anew") from error
    import tomllib  # noqa: PLC0415  most people have no such file

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DefaultsError(f'{path}: not TOML: {printable(str(error))}; a line is KEY = "VALUE"') from error
    return {key: _checked(path, key, value) for key, value in table.items()}


def _checked(path: Path, key: str, value: Any) -> str:  # noqa: ANN401  whatever TOML may hold
    if key not in KEYS:
        raise DefaultsError(f"{path}: {printable(key)[:80]}: there is no such key; keys are {', '.join(KEYS)}")
    if not isinstance(value, str) or not value:
        raise DefaultsError(f'{path}: {key}: it is no text; write it as {key} = "..."')
    if key == "address":
        try:
            return parse_address(value)
        except ValueError as error:
            raise DefaultsError(f"{path}: {key}: {error}") from error
    try:
        # A path that is not absolute is one beside the file.
        return str(path.parent / Path(value).expanduser())
    except RuntimeError as error:
        raise DefaultsError(
            f"{path}: {key}: there is no such home: {printable(value)}; write the whole path"
        ) from error
