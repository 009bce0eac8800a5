"""Which hosts there are: those of the settings, and those that the files of a folder name.

A file is ``address = "HOST:PORT"`` or ``addresses = ["HOST:PORT", ...]``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from vmstackd.address import parse_address
from vmstackd.api.errors import AlreadyExists, Internal, InvalidRequest

DEFAULT_PORT = 8097
HTTP_PORTS = (8099, 8100)
"""Of vmstackd and globald, and what lists of the prototype have."""
STATIC = "static"
"""The source of a host that the settings name."""
SUFFIX = ".toml"
MOST_BYTES = 4 << 20
"""Read of a file."""


class Entry(msgspec.Struct, frozen=True):
    """A host that is to be part of the cluster. source: STATIC, or the path of the file that names it."""

    address: str
    source: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    address: str = ""
    addresses: tuple[str, ...] = ()


def read_address(text: str) -> str:
    """A host's address as HOST:PORT; without a port, the usual one. Raises ValueError with what is allowed."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        host = re.sub(r":[0-9]*$", "", text.partition("://")[2].partition("/")[0])
        raise ValueError(
            f"HOST:PORT of a vmstackd, not a URL: globald speaks to the hosts' TCP port, {DEFAULT_PORT}; "
            f"write {host[:80]}:{DEFAULT_PORT} instead of {text[:80]}"
        )
    if (text.startswith("[") and text.endswith("]")) or text.count(":") == 0:
        text = f"{text}:{DEFAULT_PORT}"
    elif text.count(":") > 1 and not text.startswith(("[", "tcp:")):
        text = f"[{text}]:{DEFAULT_PORT}"
    try:
        address = parse_address(text)
    except InvalidRequest as error:
        raise ValueError(f"HOST:PORT ({error.message})") from error
    if address.path or not address.port:
        raise ValueError("HOST:PORT")
    if address.port in HTTP_PORTS:
        raise ValueError(
            f"HOST:PORT of the hosts' TCP port; {address.port} is a port for HTTP: write {DEFAULT_PORT} instead"
        )
    if ":" in address.host:
        host, _, zone = address.host.partition("%")
        compressed = ipaddress.IPv6Address(host).compressed
        return f"[{compressed}%{zone}]:{address.port}" if zone else f"[{compressed}]:{address.port}"
    try:
        address.host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"HOST:PORT; {address.host[:80]!r} is no name of a host") from error
    return f"{address.host.lower()}:{address.port}"


class _Found(msgspec.Struct, frozen=True):
    """A file. stamp: of what was read. addresses: what it names, or named before it became unusable."""

    stamp: tuple[int, int, int] | None
    addresses: tuple[str, ...] = ()
    problem: str = ""


class Folder:
    """The files of a folder. What cannot be read counts as it was when it last could."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, _Found] = {}

    def read(self) -> tuple[list[Entry], list[str]]:
        """The hosts, by file in the order of their names; and what is wrong with the files, in words."""
        try:
            with os.scandir(self._path) as files:
                names = sorted(file.name for file in files if _is_ours(file.name))
        except FileNotFoundError:
            names = []
        except OSError as error:
            return self._entries(), [f"{self._path}: cannot be read: {error.strerror}"]
        found = {name: self._look_at(name) for name in names}
        self._known = {name: file for name, file in found.items() if file is not None}
        return self._entries(), [file.problem for file in self._known.values() if file.problem]

    def _look_at(self, name: str) -> _Found | None:
        """A file as it is now; None if it is gone."""
        path = self._path / name
        before = self._known.get(name, _Found(None))
        stamp = None
        try:
            stamp = _stamp(path)
            return before if before.stamp == stamp else _Found(stamp, _addresses(path))
        except FileNotFoundError:
            if not path.is_symlink():
                return None
            problem = "is a link to a file that does not exist"
        except OSError as error:
            stamp, problem = None, f"cannot be read: {error.strerror}"
        except ValueError as error:
            problem = str(error)
        return _Found(stamp, before.addresses, f"{path}: {problem}")

    def _entries(self) -> list[Entry]:
        return [
            Entry(address, str(self._path / name)) for name, file in self._known.items() for address in file.addresses
        ]

    def add(self, address: str, name: str) -> str:
        """Write a file that names a host; returns its path. name: of the file; empty: made of the address.

        Raises AlreadyExists if there is such a file, Internal if it cannot be written.
        """
        path = self._path / f"{name or stem_of(address)}{SUFFIX}"
        try:
            with contextlib.suppress(FileExistsError):
                self._path.mkdir(mode=0o755)
            descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self._path)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(f'address = "{address}"\n')
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).chmod(0o644)
                os.link(temporary, path)  # unlike a rename, it replaces nothing
            finally:
                Path(temporary).unlink(missing_ok=True)
        except FileExistsError as error:
            raise AlreadyExists(f"{path} exists already; choose another name, or edit it") from error
        except OSError as error:
            raise Internal(f"{path}: cannot be written: {error.strerror}; nothing has changed") from error
        return str(path)

    def remove(self, entry: Entry) -> None:
        """Delete the file that names a host. Raises InvalidRequest if it names others too, Internal if it stays."""
        others = [other for other in self._entries() if other.source == entry.source and other != entry]
        if others:
            raise InvalidRequest(
                f"{entry.source} names {len(others)} other hosts too; take {entry.address} out of it by hand",
                field="host",
            )
        try:
            with contextlib.suppress(FileNotFoundError):
                Path(entry.source).unlink()
        except OSError as error:
            raise Internal(f"{entry.source}: cannot be deleted: {error.strerror}; nothing has changed") from error


def stem_of(address: str) -> str:
    """What the file of a host is named, if nobody says."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", address).strip("-.")


def together(static: Iterable[str], files: Iterable[Entry]) -> tuple[list[Entry], list[str]]:
    """All hosts in host order, each address once; and what is named twice, in words."""
    entries: dict[str, Entry] = {address: Entry(address, STATIC) for address in static}
    problems = []
    for entry in files:
        first = entries.setdefault(entry.address, entry)
        if first.source != entry.source:
            problems.append(f"{entry.source}: {entry.address} is named by {first.source} already")
    return list(entries.values()), problems


def _is_ours(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _without_waiting(path: str, flags: int) -> int:
    """Else a FIFO would be waited for until somebody writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _addresses(path: Path) -> tuple[str, ...]:
    """Raises ValueError with what is wrong, OSError."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    try:
        content = msgspec.convert(tomllib.loads(data.decode()), _File)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"not a TOML file: {error}") from error
    except msgspec.ValidationError as error:
        raise ValueError(f'{error}; it must be address = "HOST:PORT" or addresses = ["HOST:PORT", ...]') from error
    texts = (*([content.address] if content.address else []), *content.addresses)
    if not texts:
        raise ValueError('it names no host; it must be address = "HOST:PORT" or addresses = ["HOST:PORT", ...]')
    addresses = []
    for text in texts:
        try:
            addresses.append(read_address(text))
        except ValueError as error:
            raise ValueError(f"{text[:80]!r} is not allowed; it must be {error}") from error
    return tuple(dict.fromkeys(addresses))
