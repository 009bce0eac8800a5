"""How far a replay is, in one line at the bottom of a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_ERASE = "\r\x1b[K"


class NoBar:
    """Where nobody looks."""

    def show(self, position: int, rows: int) -> None:
        """Draw it."""

    def erase(self) -> None:
        """Make room for other lines; it comes back when shown."""


class Bar(NoBar):
    """On stderr, which must be a terminal. total: bytes of the file, 0 if not known."""

    def __init__(self, total: int) -> None:
        # Only needed on a terminal, and slow to import.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self._console: Console = Console(stderr=True, highlight=False)
        self._progress: Progress = Progress(
            TextColumn("replaying"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]:,} rows"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=total or None, rows=0)
        self._drawn = False

    def show(self, position: int, rows: int) -> None:
        self._progress.update(self._task, completed=position, rows=rows)
        with self._console.capture() as captured:
            self._console.print(self._progress.get_renderable(), end="")
        self._write(_ERASE + captured.get().partition("\n")[0])
        self._drawn = True

    def erase(self) -> None:
        if self._drawn:
            self._write(_ERASE)
            self._drawn = False

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def bar(total: int) -> NoBar:
    """A bar if stderr is a terminal that can take a line back."""
    return Bar(total) if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else NoBar()
