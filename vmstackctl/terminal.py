"""Where output goes: what it can show, and how it gets there."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 80
"""Columns of pictures where there is no terminal."""
_ENDLESS = 1_000_000
"""Columns of tables there: nothing is cut off."""


class Look(msgspec.Struct, frozen=True):
    """How to draw. width: the terminal's columns; None where there is none, so that nothing is cut off."""

    width: int | None
    colour: bool
    encoding: str = "utf-8"

    @property
    def picture_width(self) -> int:
        """Columns for what takes as many as it gets."""
        return self.width or PIPE_WIDTH


def look(colour: str, environment: Mapping[str, str]) -> Look:
    """What stdout can show. colour: "always", "never", or "auto": on a terminal, unless NO_COLOR is set."""
    terminal = sys.stdout.isatty()
    plain = bool(environment.get("NO_COLOR")) or environment.get("TERM") == "dumb"
    return Look(
        width=size()[0] if terminal else None,
        colour=colour == "always" or (colour == "auto" and terminal and not plain),
        encoding=sys.stdout.encoding,
    )


def size() -> tuple[int, int]:
    """Columns and lines of the terminal at stdout."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        columns, lines = 0, 0
    return columns or 80, lines or 24


def drawn(picture: RenderableType, how: Look) -> str:
    """The picture as text, without blanks at the ends of lines."""
    # Only needed where something is drawn, and slow to import.
    from rich.console import Console  # noqa: PLC0415

    file = io.TextIOWrapper(io.BytesIO(), encoding=how.encoding, errors="replace", newline="")
    console = Console(
        file=file,
        width=how.width or _ENDLESS,
        height=1000,
        force_terminal=how.colour,
        color_system="standard" if how.colour else None,
        no_color=not how.colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )
    console.print(picture)
    file.flush()
    buffer = file.buffer
    assert isinstance(buffer, io.BytesIO)  # noqa: S101  as given above
    text = buffer.getvalue().decode(how.encoding)
    return "".join(f"{line.rstrip(' ')}\n" for line in text.splitlines())


class ReaderGone(Exception):
    """Whoever read our output has seen enough."""


def write(text: str) -> None:
    """Write to stdout at once. Raises ReaderGone, or OSError such as for a full disk."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Not as an OSError: click has its own opinion about those.
        raise ReaderGone from None


def complain(message: str) -> None:
    """Say on stderr what went wrong."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"vmstackctl: {message}\n")
        sys.stderr.flush()


def set_up() -> None:
    """Let nothing that happens to stdout or stderr become an exception of its own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def abandon_stdout() -> None:
    """Let what is still buffered go nowhere, so that Python does not try again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
