"""Measures every few seconds what the CPUs and VMs of a host really do. Nothing waits for it.

The figures of a round are those of the subsets as they are at its end. A CPU that was given or taken since the round
before counts whole for whom it has now, so that the levels and what is free always add up to the host. Of a VM that
was not there then, or not in the same life, nothing is known until the next round, and its level's delay is that of
the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from core.trace import Sample, sample_of
from core.usage import Counters, HostCounters, Usage, VmUsage, usage
from vmstackd.daemon import log
from vmstackd.host import Host, LiveVm
from vmstackd.hypervisor.base import HypervisorError, HypervisorUnreachable, Measured
from vmstackd.kernel_counters import KernelError

PATIENCE_S = 10.0
"""Seconds that the hypervisor gets to tell of its VMs. A round that has waited so long does without them."""


def _ignore(_: Sample) -> None:
    pass


class Sampler:
    """usage: of the time between the last two rounds; None where nothing is known of the host. rounds: that have ended
    since the start; seconds: that they took together. failed_rounds: of these, in which VMs or host could not be
    measured. delays: seconds that the VMs of each level there is have been seen to wait for CPUs.
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
        self.seconds = 0.0
        self.failed_rounds = 0
        self.delays: Mapping[int, float] = {}
        self._host = host
        self._delay = delay
        self._kernel = kernel
        self._record = record
        self._before: Counters | None = None
        self._lives: Mapping[str, LiveVm] = {}
        """The VMs of the last round: a name may be another VM's since."""
        self._asked: asyncio.Future[Measured] | None = None
        """What the hypervisor was asked last: it may not have answered yet, and is not asked twice."""
        # Its own thread: others may all be waiting for a disk.
        self._reader = ThreadPoolExecutor(1, "kernel-counters")
        self._uuids: dict[LiveVm, str] = {}
        """Of the VMs that live and have been measured once."""
        self._made_up = False
        """Whether the host is the hypervisor's own, so that this machine's counters are of another."""
        self._failing: set[str] = set()
        self._began: float | None = None
        self._recorded = -1
        self._changed = asyncio.Event()

    def reconfigure(self, delay: float) -> None:
        """Use this delay from now on."""
        if delay != self._delay:
            self._delay = delay
            self._changed.set()

    def of(self, name: str) -> VmUsage | None:
        """What a VM did within the time of ``usage``; None where that is not known."""
        if self.usage is None or self._host.live.get(name) is not self._lives.get(name):
            return None
        return self.usage.vms.get(name)

    async def run(self) -> None:
        """Measure until cancelled, first at once."""
        try:
            await self._run()
        finally:
            if self._asked is not None:
                self._asked.cancel()
            self._reader.shutdown(wait=False)

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            if self._delay:
                await self.measure()
                now = time.monotonic()
                due += self._delay
                if due < now:  # rounds that are late are not made up for
                    due = now + self._delay
            else:
                self._forget()
                self.delays = {}
                self._host.feed.measured()
            try:
                async with asyncio.timeout(due - time.monotonic() if self._delay else None):
                    await self._changed.wait()
                self._changed.clear()
                due = time.monotonic()
            except TimeoutError:
                pass

    async def measure(self) -> None:
        """One round. What goes wrong in it is logged."""
        began, known = time.monotonic(), self.usage
        try:
            await self._measure()
        except Exception:  # the next round may be better, and the host must be served in any case
            log.logger.exception("unexpected error in measuring")
            self.failed_rounds += 1
            if self.usage is known:
                self._forget()
        self.rounds += 1
        self.seconds += time.monotonic() - began
        self._host.feed.measured()

    async def _measure(self) -> None:
        lives = self._host.live.copy()
        failure = host_failure = ""
        try:
            measured = await self._ask()
        except HypervisorError as error:
            failure, measured = str(error), Measured(at=time.monotonic(), vms={})
        host = measured.host
        self._made_up |= host is not None
        if not self._made_up:
            try:
                host = await asyncio.get_running_loop().run_in_executor(self._reader, self._kernel)
            except KernelError as error:
                host_failure = str(error)
        self.failed_rounds += bool(failure or host_failure)
        if not self._host.link_failure:  # of which others tell
            self._tell("VMs", failure)
        self._tell("host", host_failure)
        if host is None:
            self._forget()
        else:
            self._take(measured, host, lives)

    async def _ask(self) -> Measured:
        """What the hypervisor tells. Raises HypervisorError, also when that takes too long."""
        if self._host.link_failure:
            raise HypervisorUnreachable(self._host.link_failure)
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(self._host.hypervisor.measure())
            self._asked.add_done_callback(_overlook)
            await asyncio.wait({self._asked}, timeout=PATIENCE_S)
        if not self._asked.done():
            raise HypervisorError(f"{self._host.hypervisor.uri} does not answer within {PATIENCE_S:g} s")
        return self._asked.result()

    def _take(self, measured: Measured, host: HostCounters, lives: Mapping[str, LiveVm]) -> None:
        """Make usage of what was read."""
        state, live = self._host.state, self._host.live
        # Whoever got its name while it was being measured is another VM.
        vms = {name: vm for name, vm in measured.vms.items() if live.get(name) is lives.get(name)}
        now = self._with_earlier(Counters(at=measured.at, host=host, vms=vms), lives)
        self.usage = found = usage(self._before, now, state, time.time())
        self._before, self._lives = now, lives
        self.delays = {
            level.level: self.delays.get(level.level, 0.0) + (level.delay_s or 0.0)
            for level in found.host.levels
            if level.delay_s is not None or level.level in self.delays
        }
        # A VM of which a trace tells no UUID once would be another one there.
        self._uuids = {
            vm: vms[name].uuid if name in vms else self._uuids[vm]
            for name, vm in live.items()
            if name in vms or vm in self._uuids
        }
        if self._began is None:
            self._began = host.at
        elapsed = int(host.at - self._began)
        if elapsed > self._recorded:
            self._recorded = elapsed
            uuids = {name: self._uuids[vm] for name, vm in live.items() if vm in self._uuids}
            self._record(sample_of(elapsed, state, found, uuids))

    def _with_earlier(self, now: Counters, lives: Mapping[str, LiveVm]) -> Counters:
        """With the last counters of VMs that live on and could not be read, so that the next round spans the gap."""
        before = self._before
        if before is None:
            return now
        unread = {
            name: vm
            for name, vm in before.vms.items()
            if name not in now.vms and name in lives and lives[name] is self._lives.get(name)
        }
        read_before = {name: before.read_before.get(name, before.at) for name in unread}
        return msgspec.structs.replace(now, vms={**now.vms, **unread}, read_before=read_before)

    def _forget(self) -> None:
        self.usage = self._before = None

    def _tell(self, what: str, failure: str) -> None:
        """Log once that something cannot be measured, and once that it can again."""
        if failure and what not in self._failing:
            self._failing.add(what)
            log.warning("not-measured", what=what, reason=failure)
        elif not failure and what in self._failing:
            self._failing.discard(what)
            log.info("measured-again", what=what)


def _overlook(asked: asyncio.Future[Measured]) -> None:
    """An error is no news to asyncio, even if it comes when nobody waits for it any more."""
    if not asked.cancelled():
        asked.exception()
