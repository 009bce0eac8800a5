"""Which hosts there are: those of the settings, and those that the files of a folder name.

A file is ``address = "HOST:PORT"`` or ``addresses = ["HOST:PORT", ...]``.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from vmstackd.address import parse_address
from vmstackd.api.errors import AlreadyExists, Internal, InvalidRequest

DEFAULT_PORT = 8097
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
        rest = text.partition("://")[2].partition("/")[0]
        host = rest.rpartition(":")[0] or rest
        raise ValueError(
            f"HOST:PORT of a vmstackd, not a URL: globald speaks to the hosts' TCP port, {DEFAULT_PORT}; "
            f"write {host}:{DEFAULT_PORT} instead of {text[:80]}"
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
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


class Folder:
    """The files of a folder. What cannot be read counts as it was when it last could."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {}

    def read(self) -> tuple[list[Entry], list[str]]:
        """The hosts, by file in the order of their names; and what is wrong with new or changed files, in words."""
        found: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {}
        problems: list[str] = []
        try:
            with os.scandir(self._path) as files:
                names = sorted(file.name for file in files if _is_ours(file.name))
        except FileNotFoundError:
            names = []
        except OSError as error:
            return self._entries(), [f"{self._path}: cannot be read: {error.strerror}"]
        for name in names:
            before = self._known.get(name)
            try:
                stamp = _stamp(self._path / name)
                if before is not None and before[0] == stamp:
                    found[name] = before
                    continue
                found[name] = (stamp, _addresses(self._path / name))
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(f"{self._path / name}: cannot be read: {error.strerror}")
            except ValueError as error:
                problems.append(f"{self._path / name}: {error}")
                found[name] = (stamp, () if before is None else before[1])
                continue
            if name not in found and before is not None:
                found[name] = before
        self._known = found
        return self._entries(), problems

    def _entries(self) -> list[Entry]:
        return [
            Entry(address, str(self._path / name))
            for name, (_, addresses) in self._known.items()
            for address in addresses
        ]

    def add(self, address: str, name: str) -> str:
        """Write a file that names a host; returns its path. name: of the file; empty: made of the address.

        Raises AlreadyExists if there is such a file, Internal if it cannot be written.
        """
        stem = name or re.sub(r"[^A-Za-z0-9._-]+", "-", address).strip("-.")
        path = self._path / f"{stem}{SUFFIX}"
        try:
            self._path.mkdir(mode=0o755, exist_ok=True)
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


def _addresses(path: Path) -> tuple[str, ...]:
    """Raises ValueError with what is wrong, OSError."""
    if not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
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
