"""A host as the daemon knows it: what is decided, where each VM may really run, and what is unclear.

What is decided and what is pinned meet in ``settle``: it writes intent first, then pins, and only a
CPU that reads back unpinned becomes free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from enum import Enum

from core.allocator import free_cpus
from core.cpuset import format_cpu_list
from core.model import HostState, Subset
from vmstackd.api.replies import UnplacedVm
from vmstackd.daemon import log
from vmstackd.daemon.feed import Feed
from vmstackd.hypervisor.base import Hypervisor, HypervisorError, Record, VmMissing

DRIFT = (
    "accounts",
    "adopted",
    "affinity",
    "gone",
    "held",
    "owed",
    "pinning",
    "record",
    "resized",
    "stopped",
    "unplaced",
    "unseen",
)
"""How things can be otherwise than was decided. Of a VM: it is new (adopted), or new and fits nowhere (unplaced); it is
not there (gone), or new and does not run (stopped); it has another size; the hypervisor says that it may run on other
CPUs (pinning), or only the kernel does (affinity); its metadata do not say what they should (record); it cannot be
looked at (unseen). Of the host: its accounts contradict themselves, CPUs or memory are held for nobody, a level has
fewer CPUs than it owes to its VMs.
"""

GATHER_S = 0.005
"""Seconds until the VM of an operation is looked at again."""


class Phase(Enum):
    """Where a VM is between deploy and remove."""

    STARTING = "starting"
    RUNNING = "running"
    REMOVING = "removing"


class LiveVm:
    """What is known of a VM beyond the decision.

    pinned: every CPU that it may run on now, as last read back; more while a change is under way.
    record: what its metadata says. pin_failure: why it is not pinned as decided. unseen: why it could
    not be looked at the last time. changes: calls under
    way that change its pinning or its record, so that neither can be learned by looking. untold: nobody
    knows whether its start has succeeded, so nobody was told that it is there.
    astray: some of its threads are not pinned as decided, even if pinned says so. stuck: to which CPUs the kernel
    has them pinned after all has been tried. record_fault: what is wrong with what its metadata say; record is then
    what they should say, as far as that is known.
    """

    __slots__ = (
        "astray",
        "changes",
        "phase",
        "pin_failure",
        "pinned",
        "record",
        "record_fault",
        "stuck",
        "unseen",
        "untold",
    )

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.pinned: frozenset[int] = frozenset()
        self.record: Record | None = None
        self.pin_failure = ""
        self.unseen = ""
        self.changes = 0
        self.untold = False
        self.astray = False
        self.stuck: frozenset[frozenset[int]] = frozenset()
        self.record_fault = ""


class Host:
    """One host. Everything here happens in the event loop."""

    def __init__(self, state: HostState, hypervisor: Hypervisor) -> None:
        self.feed = Feed()
        self._state = state
        self._link_failure = "not yet connected"
        self.hypervisor = hypervisor
        self.live: dict[str, LiveVm] = {}
        self.unplaced: Mapping[str, UnplacedVm] = {}
        self.stopped: frozenset[str] = frozenset()
        self.losses = 0
        """How often the link was lost."""
        self.repins = 0
        self.drift = dict.fromkeys(DRIFT, 0)
        """How often each has been found since the start; what is learned at the start does not count."""
        self.touched: set[str] = set()
        """Names that changed since somebody last emptied this: what was seen of them is outdated."""
        self.unclear: set[str] = set()
        """Names to look at again in the hypervisor."""
        self.something_unclear = asyncio.Event()
        self._settling: dict[int, asyncio.Lock] = {}

    @property
    def state(self) -> HostState:
        """What is decided now."""
        return self._state

    @state.setter
    def state(self, state: HostState) -> None:
        self._state = state
        self.feed.touch()

    @property
    def link_failure(self) -> str:
        """Why the hypervisor cannot be asked; empty while it can."""
        return self._link_failure

    @link_failure.setter
    def link_failure(self, reason: str) -> None:
        self._link_failure = reason
        self.feed.touch()

    def cpus_of(self, level: int) -> tuple[int, ...]:
        """The subset of a level in attribution order; empty if there is none."""
        subset = self.state.subset(level)
        return () if subset is None else subset.cpus

    def busy(self) -> frozenset[str]:
        """Names in the middle of a change; what is seen of them now means nothing."""
        return frozenset(name for name, live in self.live.items() if live.changes or live.phase is not Phase.RUNNING)

    def settling(self, level: int) -> bool:
        """Whether the pins or records of a level are being made to fit just now."""
        return (lock := self._settling.get(level)) is not None and lock.locked()

    def held_for_nobody(self) -> frozenset[int]:
        """Held CPUs that no VM may run on as far as is known."""
        loose = set(self.state.held)
        for live in self.live.values():
            loose -= live.pinned
        for vm in self.unplaced.values():
            loose.difference_update(vm.cpus)
        return frozenset(loose)

    def look_again(self, names: Iterable[str]) -> None:
        """Have these VMs compared with the hypervisor soon."""
        self.unclear.update(names)
        self.something_unclear.set()

    def running_again(self, name: str, live: LiveVm) -> None:
        """An operation on this VM has ended, one way or another."""
        live.phase = Phase.RUNNING
        self.touched.add(name)
        self.unclear.add(name)
        # Not at once: whoever asked for the operation waits for its answer, and others may end meanwhile.
        asyncio.get_running_loop().call_later(GATHER_S, self.something_unclear.set)
        self.feed.touch()

    async def settle(self, level: int) -> None:
        """Pin every running VM of a level to its subset, then free the CPUs that nothing runs on.

        Never raises for the hypervisor: a VM that cannot be pinned keeps its CPUs held and is
        reported; the periodic pass tries again.
        """
        async with self._lock(level):
            while (subset := self.state.subset(level)) is not None:
                await self._write_record(level)
                await self._mend_records(level)
                if self.state.subset(level) is not subset:
                    continue
                target = frozenset(subset.cpus)
                wrong = [
                    (name, live)
                    for name in subset.vms
                    if (live := self.live.get(name))
                    and live.phase is Phase.RUNNING
                    and (live.astray or live.pinned != target)
                ]
                calls = [self._pin(name, live, subset.cpus) for name, live in wrong]
                if self.hypervisor.immediate:  # a task for each would take longer than all of them
                    for call in calls:
                        await call
                else:
                    await asyncio.gather(*calls)
                if self.state.subset(level) is subset:
                    break
        self.free_unpinned()

    def free_unpinned(self) -> None:
        """Held CPUs that no VM may run on become free."""
        if self.state.held and (loose := self.held_for_nobody()):
            self.state = free_cpus(self.state, sorted(loose))

    async def hand_over_record(self, level: int, leaving: str) -> None:
        """Before a VM goes, have another one of its level tell the subset."""
        async with self._lock(level):
            await self._write_record(level, leaving)

    def _lock(self, level: int) -> asyncio.Lock:
        return self._settling.setdefault(level, asyncio.Lock())

    def _pin(self, name: str, live: LiveVm, cpus: tuple[int, ...]) -> Coroutine[None, None, None]:
        # Noted at once, before the first call can run: until it is read back, some vCPU may be on the
        # old CPUs and some on the new, so neither may be freed.
        live.pinned |= frozenset(cpus)
        live.astray = False
        live.changes += 1
        self.repins += 1
        return self._pin_and_read_back(name, live, cpus)

    async def _pin_and_read_back(self, name: str, live: LiveVm, cpus: tuple[int, ...]) -> None:
        failure = ""
        try:
            live.pinned = await self.hypervisor.pin(name, cpus)
        except VmMissing:
            self.look_again({name})
        except HypervisorError as error:
            failure = str(error)
        else:
            if live.pinned != frozenset(cpus):
                self.drift["pinning"] += not live.pin_failure
                failure = f"it reads back as {format_cpu_list(sorted(live.pinned))}"
        finally:
            live.pin_failure = failure
            self.changed(name, live)
        if failure:
            log.warning("pin-failed", vm=name, cpus=format_cpu_list(cpus), reason=failure)

    def changed(self, name: str, live: LiveVm) -> None:
        """A call that was counted in live.changes has ended."""
        live.changes -= 1
        self.touched.add(name)
        self.feed.touch()
        if name in self.unclear:
            self.something_unclear.set()

    async def _write_record(self, level: int, leaving: str = "") -> None:
        """Make sure that the newest record among the VMs of a level tells its subset.

        leaving: a VM about to be destroyed, whose record does not count. While a VM of the level
        starts nothing is written: its own record will be the newest.
        """
        subset = self.state.subset(level)
        if subset is None:
            return
        members = [(name, self.live[name]) for name in subset.vms if name in self.live and name != leaving]
        if not members or any(live.phase is Phase.STARTING for _, live in members):
            return
        records = [live.record for _, live in members if live.record is not None and not live.record_fault]
        if records and max(records, key=lambda record: record.generation).cpus == subset.cpus:
            return
        generation = self.state.generation
        for name, live in members:
            if await self._write_record_of(name, live, subset, generation):
                return

    async def _mend_records(self, level: int) -> None:
        """Write the records that are missing or wrong. Not while a VM of the level starts: as above."""
        subset = self.state.subset(level)
        if subset is None:
            return
        members = [(name, self.live[name]) for name in subset.vms if name in self.live]
        wrong = [(name, live) for name, live in members if live.record_fault and live.phase is Phase.RUNNING]
        if not wrong or any(live.phase is Phase.STARTING for _, live in members):
            return
        generation = self.state.generation
        await asyncio.gather(*(self._write_record_of(name, live, subset, generation) for name, live in wrong))

    async def _write_record_of(self, name: str, live: LiveVm, subset: Subset, generation: int) -> bool:
        """Have the VM's metadata tell this subset, as it was at this generation; returns whether they do."""
        vm = subset.vms[name]
        record = Record(
            level=vm.level,
            vcpus=vm.vcpus,
            memory_mib=vm.memory_mib,
            image=live.record.image if live.record is not None else "",
            cpus=subset.cpus,
            generation=generation,
            arrival=live.record.arrival if live.record is not None else generation,
        )
        live.changes += 1
        try:
            await self.hypervisor.write_record(name, record)
        except VmMissing:
            self.look_again({name})
        except HypervisorError as error:
            log.warning("record-failed", vm=name, reason=error)
        else:
            live.record, live.record_fault = record, ""
            return True
        finally:
            self.changed(name, live)
        return False
