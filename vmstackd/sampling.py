"""Measures every few seconds what the CPUs and VMs of a host really do. Nothing waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from core.trace import Sample, sample_of
from core.usage import Counters, HostCounters, Usage, usage
from vmstackd.daemon import log
from vmstackd.host import Host
from vmstackd.hypervisor.base import HypervisorError, Measured
from vmstackd.kernel_counters import KernelError


def _ignore(_: Sample) -> None:
    pass


class Sampler:
    """usage: of the time between the last two rounds; None before the first. rounds: since the start.
    failed_rounds: of these, in which VMs or host could not be measured. delays: seconds that the VMs of each level
    have waited for CPUs since the start.
    """

    def __init__(
        self,
        host: Host,
        delay: float,
        kernel: Callable[[], HostCounters],
        record: Callable[[Sample], None] = _ignore,
    ) -> None:
        """delay: seconds between two rounds; 0: none happen. kernel: reads this machine's counters, raises
        KernelError. record: takes what was measured, at most once a second, and does not wait.
        """
        self.usage: Usage | None = None
        self.rounds = 0
        self.failed_rounds = 0
        self.delays: dict[int, float] = {}
        self._host = host
        self._delay = delay
        self._kernel = kernel
        self._record = record
        self._before: Counters | None = None
        self._began: float | None = None
        self._recorded = -1
        self._failure = ""
        self._changed = asyncio.Event()

    def reconfigure(self, delay: float) -> None:
        """Use this delay from now on."""
        if delay != self._delay:
            self._delay = delay
            self._changed.set()

    async def run(self) -> None:
        """Measure until cancelled, first at once."""
        due = time.monotonic()
        while True:
            if self._delay:
                await self.measure()
                now = time.monotonic()
                due += self._delay
                if due < now:  # rounds that are late are not made up for
                    due = now + self._delay
            else:
                self.usage = self._before = None
            try:
                async with asyncio.timeout(due - time.monotonic() if self._delay else None):
                    await self._changed.wait()
                self._changed.clear()
                due = time.monotonic()
            except TimeoutError:
                pass

    async def measure(self) -> None:
        """One round."""
        began = time.time()
        self.rounds += 1
        measured, failure = Measured(at=time.monotonic(), vms={}), ""
        try:
            if not self._host.link_failure:
                measured = await self._host.hypervisor.measure()
        except HypervisorError as error:
            failure = f"the VMs: {error}"
        try:
            host = await asyncio.to_thread(self._kernel) if measured.host is None else measured.host
        except KernelError as error:
            failure, host = f"the host: {error}", None
        self.failed_rounds += bool(failure)
        self._tell(failure)
        if host is None:
            self._before = None
            return
        now = Counters(at=measured.at, host=host, vms=measured.vms)
        self.usage = found = usage(self._before, now, self._host.state, began)
        self._before = now
        for level in found.host.levels:
            self.delays[level.level] = self.delays.get(level.level, 0.0) + (level.delay_s or 0.0)
        if self._began is None:
            self._began = host.at
        elapsed = int(host.at - self._began)
        if elapsed > self._recorded:
            self._recorded = elapsed
            uuids = {name: vm.uuid for name, vm in now.vms.items()}
            self._record(sample_of(elapsed, self._host.state, found, uuids))
        self._host.feed.measured()

    def _tell(self, failure: str) -> None:
        """Log a failure once, until there is another or none."""
        if failure and failure != self._failure:
            log.warning("not-measured", reason=failure)
        self._failure = failure
