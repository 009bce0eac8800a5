"""Where a report goes: one page, or a folder of pictures. Nothing is there by halves."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from vmstackctl.values import printable

_PNGS = "*.png"


class Target(msgspec.Struct, frozen=True):
    """path: of the page, or of the folder in which the pictures are to be."""

    path: Path
    is_folder: bool


class WriteError(Exception):
    """What could not be written, why, and what to do. One line."""


def parse_target(text: str) -> Target:
    """Read FILE.html, 'DIR/*.png' or DIR/. Raises ValueError with what is allowed."""
    if text == _PNGS or text.endswith(f"/{_PNGS}"):
        return Target(path=Path(text.removesuffix(_PNGS) or "."), is_folder=True)
    path = Path(text)
    if text.endswith("/") or (text and path.is_dir()):
        return Target(path=path, is_folder=True)
    if path.suffix.lower() in (".html", ".htm"):
        return Target(path=path, is_folder=False)
    raise ValueError(
        f"{printable(text)!r} is neither a page nor a folder; write FILE.html for one page, or 'DIR/{_PNGS}' in quotes "
        "or DIR/ for pictures"
    )


def make_folder(folder: Path) -> None:
    """Unless it is there. Raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be made: {error.strerror}; choose another -o") from error


def write_whole(file: Path, content: bytes, *, instead: str = "choose another -o") -> None:
    """In the place of what is there, whole or not at all. instead: what to do if it fails. Raises WriteError.

    A link stays one, and what it leads to is written; a device or a pipe is left alone.
    """
    try:
        file = file.resolve()
    except (OSError, RuntimeError) as error:
        raise WriteError(f"{file}: cannot be followed: {error}; {instead}") from error
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise WriteError(f"{file}: is no file that could be replaced; {instead}")
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WriteError(f"{file}: cannot be written: {error.strerror}; {instead}") from error
