"""Records what is measured, in a thread of its own: neither a slow disk nor a full one holds up anything else."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

import msgspec

from core.trace import Sample
from vmstackd.daemon import log
from vmstackd.trace_writer import TraceWriteError, TraceWriter

QUEUED = 16
"""Samples that wait for the disk; what comes then is left out."""

STOP_S = 5.0
"""Seconds that the disk has at the end."""


class Plan(msgspec.Struct, frozen=True):
    """path: the trace; None: nothing is recorded. size: of a file in MiB. files: that are kept in all."""

    path: Path | None
    size: int
    files: int


class Recorder:
    """``start`` it, have it ``take`` samples, ``stop`` it.

    What cannot be written ends the recording, with one warning, until the next ``use``.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._orders: deque[tuple[Plan, Sample | None]] = deque()
        """Samples, each with the plan when it came; None: only the plan."""
        self._left_out = 0
        self._ending = False
        self._news = threading.Condition()
        # Not waited for at the end of the process: the disk may never answer.
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Write what comes from now on."""
        self._thread.start()

    def take(self, sample: Sample) -> None:
        """Have it written soon. Does not wait, and does not raise."""
        with self._news:
            if self._plan.path is None:
                return
            if len(self._orders) < QUEUED:
                self._orders.append((self._plan, sample))
                self._news.notify()
                return
            self._left_out += 1
            left_out = self._left_out
        if left_out == 1:
            next_step = "record to another disk, or measure less often (delay)"
            reason = "the disk does not keep up; samples are left out"
            log.warning("recording-behind", record=self._plan.path, reason=reason, next_step=next_step)

    def use(self, plan: Plan) -> None:
        """Record like this from now on; again, if something had ended it."""
        with self._news:
            self._plan = plan
            self._orders.append((plan, None))
            self._news.notify()

    def stop(self) -> None:
        """Write what has come. Waits for it, but not for long."""
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            reason = f"the disk has not taken the last samples within {STOP_S:g} s"
            log.warning("recording-cut-off", record=self._plan.path, reason=reason)

    def _run(self) -> None:
        writer: TraceWriter | None = None
        failed: Plan | None = None
        while (order := self._next()) is not None:
            plan, sample = order
            if writer is not None and writer.path != plan.path:
                writer.close()
                writer = None
            if plan.path is None or sample is None or plan is failed:
                continue
            new = writer is None
            writer = writer or TraceWriter(plan.path)
            try:
                writer.write(sample, plan.size << 20, plan.files)
            except TraceWriteError as error:
                writer, failed = None, plan
                next_step = f"{error.next_step} (record), then reload"
                log.warning("recording-stopped", record=plan.path, reason=error, next_step=next_step)
            else:
                if new:
                    log.info("recording", record=plan.path)
        if writer is not None:
            writer.close()

    def _next(self) -> tuple[Plan, Sample | None] | None:
        """The next order; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._orders or self._ending)
            if not self._orders:
                return None
            order = self._orders.popleft()
            left_out = 0 if self._orders else self._left_out
            self._left_out -= left_out
        if left_out:
            log.info("recording-caught-up", record=order[0].path, left_out=left_out)
        return order
