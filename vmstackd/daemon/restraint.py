"""Keeps callers from filling the log: what anybody can cause as often as they like is told a few times a second."""

from __future__ import annotations

import asyncio

from vmstackd.daemon import log

MOST = 20
"""Lines in a period."""
PERIOD_S = 1.0


class Restraint:
    """For lines of one kind. Needs a running event loop."""

    def __init__(self) -> None:
        self._told = self._untold = 0
        self._period: asyncio.TimerHandle | None = None

    def tell(self, name: str, **fields: object) -> None:
        """Log the event, or count it where there have been too many; then their number follows."""
        if self._period is None:
            self._period = asyncio.get_running_loop().call_later(PERIOD_S, self._end)
        if self._told < MOST:
            self._told += 1
            log.info(name, **fields)
        else:
            self._untold += 1

    def _end(self) -> None:
        if self._untold:
            log.warning("refusals-not-logged", count=self._untold, seconds=PERIOD_S)
        self._told, self._untold, self._period = 0, 0, None
