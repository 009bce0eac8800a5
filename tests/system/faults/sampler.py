"""Looks at all hosts several times a second: no CPU may be open to vCPUs of two levels."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from tests.system.box import Box
from tests.system.faults.seen import moment, shared

PERIOD_S = 0.1


class Sampler:
    """Works within a ``with`` statement, in a thread. levels: by VM; it may grow meanwhile.

    overlaps: in words; samples: of one host each; error: what has ended it.
    """

    def __init__(self, boxes: Iterable[Box], levels: Mapping[str, int]) -> None:
        self._boxes = tuple(boxes)
        self._levels = levels
        self.overlaps: list[str] = []
        self.samples = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def look(self, box: Box) -> None:
        """Once. A VM is read after the other, so only what stays for two rounds was there at one moment: the first VM
        was where it is before the other one was read, and after it.
        """
        found = shared(moment(box), self._levels)
        if found:
            found &= shared(moment(box), self._levels)
        self.samples += 1
        self.overlaps += [f"{box.name}: {text}" for text in sorted(found)]

    def _work(self) -> None:
        try:
            while not self._stop.wait(PERIOD_S):
                for box in self._boxes:
                    self.look(box)
        except BaseException as error:
            self.error = error
            raise
