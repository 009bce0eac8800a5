"""Whose call is next: those of every caller in turn, and not too many without a pause for everything else."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar

_Call = TypeVar("_Call")

MOST_CALLS = 1024
"""Of one caller, that have been made and not answered."""
MOST_CALLS_OF_ALL = 4096
"""Of all callers together. One program can be many callers, so this is what bounds the memory."""
FEW_CALLS = 16
"""Of one caller, while all together have made too many."""
SLICE_S = 0.005
"""Seconds of work before others of the event loop get their turn."""


class Turns(Generic[_Call]):
    """Calls wait here, and are served soon."""

    def __init__(self, serve: Callable[[str, _Call], None]) -> None:
        """serve: begins a call of a caller; whoever has ended it says ``done``."""
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[_Call]] = {}
        self._open: Counter[str] = Counter()
        self._all_open = 0
        self._scheduled = False

    def add(self, caller: str, call: _Call) -> bool:
        """False if the caller, or all of them, have made too many already; then it is not served."""
        if self._open[caller] >= (MOST_CALLS if self._all_open < MOST_CALLS_OF_ALL else FEW_CALLS):
            return False
        self._open[caller] += 1
        self._all_open += 1
        if caller in self._waiting:
            self._waiting[caller].append(call)
        else:
            self._waiting[caller] = deque((call,))
        self._schedule()
        return True

    def done(self, caller: str) -> None:
        """A call has been answered."""
        self._open[caller] -= 1
        self._all_open -= 1
        if not self._open[caller]:
            del self._open[caller]

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        end = self._loop.time() + SLICE_S
        while self._waiting and self._loop.time() < end:
            caller = next(iter(self._waiting))
            calls = self._waiting.pop(caller)
            call = calls.popleft()
            if calls:
                self._waiting[caller] = calls  # at the end
            self._serve(caller, call)
        self._schedule()
