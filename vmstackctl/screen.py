"""A whole terminal to draw on, given back as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from vmstackctl.terminal import size, write

_ENTER = "\033[?1049h\033[?25l\033[2J"  # the other screen, without a cursor, empty
_LEAVE = "\033[?25h\033[?1049l"


class Screen:
    """In a ``with`` statement, in a running event loop. changed: called when everything is to be drawn anew.

    ended: done, with an exit code, when the user types q or the process is told to end. What is typed
    does not show; Ctrl-C and Ctrl-Z work as ever.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._shown: list[str] = []
        self._modes: list[Any] | None = None
        self.ended: asyncio.Future[int] = self._loop.create_future()

    def __enter__(self) -> Self:
        self._signals = {
            signal.SIGWINCH: self._anew,
            signal.SIGTSTP: self._suspend,
            signal.SIGTERM: lambda: self._end(128 + signal.SIGTERM),
            signal.SIGHUP: lambda: self._end(128 + signal.SIGHUP),
        }
        self._take()
        for number, react in self._signals.items():
            self._loop.add_signal_handler(number, react)
        if sys.stdin is not None and sys.stdin.isatty():
            self._loop.add_reader(sys.stdin.fileno(), self._typed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._signals:
            self._loop.remove_signal_handler(number)
        if sys.stdin is not None and sys.stdin.isatty():
            self._loop.remove_reader(sys.stdin.fileno())
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._give_back()

    def show(self, lines: Sequence[str]) -> None:
        """Draw lines from the top; the last one at the bottom. What does not fit is left out, and said so."""
        _, height = size()
        body, last = list(lines[:-1]), lines[-1]
        room = height - 1
        if len(body) > room:
            hidden = len(body) - room + 1
            body = [*body[: room - 1], f"... {hidden} more lines: make the window taller"]
        wanted = [*body, *[""] * (room - len(body)), last]
        pieces = []
        for row, line in enumerate(wanted):
            if row >= len(self._shown) or self._shown[row] != line:
                # Cleared first: after a line that ends in the last column, that column would be cleared.
                pieces.append(f"\033[{row + 1};1H\033[K{line}")
        self._shown = wanted
        if pieces:
            write("".join(pieces))

    def _anew(self) -> None:
        self._shown = []
        write("\033[2J")
        self._changed()

    def _take(self) -> None:
        with contextlib.suppress(termios.error, ValueError, OSError):  # no terminal to type at
            self._modes = termios.tcgetattr(sys.stdin.fileno())
            quiet = termios.tcgetattr(sys.stdin.fileno())
            quiet[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, quiet)
        write(_ENTER)

    def _give_back(self) -> None:
        write(_LEAVE)
        if self._modes is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._modes)

    def _suspend(self) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self._anew()

    def _typed(self) -> None:
        keys = os.read(sys.stdin.fileno(), 1024)
        if not keys:
            self._loop.remove_reader(sys.stdin.fileno())
        elif b"q" in keys:
            self._end(0)

    def _end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)
