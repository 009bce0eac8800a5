"""Notices what happens to VMs outside of our operations, and makes the host fit it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from core.cpuset import format_cpu_list
from core.level import format_level
from core.model import Vm
from core.policy import Policy
from vmstackd import drift
from vmstackd.api.replies import UnplacedVm
from vmstackd.api.session import VmAdopted, VmGone
from vmstackd.daemon import log
from vmstackd.drift import Found
from vmstackd.host import Host, LiveVm, Phase
from vmstackd.hypervisor.base import HypervisorError, HypervisorEvent, ObservedVm
from vmstackd.reconcile import Reconciliation, reconcile

RETRY_S = 0.5
"""Seconds until what could not be looked at is looked at again."""

_BY_TAKING_NOTE = frozenset({"adopted", "gone", "resized", "stopped"})
"""Kinds that are repaired once the accounts have them."""
_SEEN_AGAIN = frozenset({"affinity", "pinning", "record"})
"""Kinds of which only the hypervisor can tell whether they are repaired."""
_TOLD = frozenset({*_SEEN_AGAIN, "accounts", "held", "owed", "unseen"})
"""Kinds that the log tells nothing else of."""


class Look(msgspec.Struct, frozen=True):
    """What the hypervisor was seen to have, and what follows from it. ignore: names of which nothing may be said."""

    running: list[ObservedVm]
    unknown: Mapping[str, str]
    ignore: frozenset[str]
    result: Reconciliation
    found: tuple[Found, ...]
    vms: int


class Checked(msgspec.Struct, frozen=True):
    """What looking at all VMs has found: each with whether it is repaired. at: seconds since 1970; seconds: it took.

    vms, hidden, busy: as in CheckReply.
    """

    at: float
    seconds: float
    findings: tuple[tuple[Found, bool], ...]
    vms: int
    hidden: int
    busy: int

    @property
    def remaining(self) -> int:
        """How many are not repaired."""
        return sum(not repaired for _, repaired in self.findings)


class Watch:
    """Compares one host with its hypervisor: at start, on events, when asked to, and every period seconds."""

    def __init__(self, host: Host, policy: Policy, period: float) -> None:
        self._host = host
        self._policy = policy
        self._period = period
        self._everything = False
        self._learned = False
        self._running = asyncio.Lock()
        self._repairing = asyncio.Lock()
        """Held until what was found is repaired too, by those who look at more than one VM."""
        self.last: Checked | None = None
        """The last look at all VMs."""

    def reconfigure(self, policy: Policy, period: float) -> None:
        """Use these from now on."""
        self._policy, self._period = policy, period

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._tick())

    def on_event(self, event: HypervisorEvent) -> None:
        """Take note of an event of the hypervisor."""
        host = self._host
        if event.kind == "changed":
            host.look_again({event.vm})
        elif event.kind == "lost":
            host.losses += 1
            host.link_failure = event.reason or "the link is down"
            log.warning("hypervisor-lost", uri=host.hypervisor.uri, reason=event.reason)
        else:
            log.info("hypervisor-restored", uri=host.hypervisor.uri)
            self._look_at_everything()

    async def check(self, *, dry_run: bool) -> Checked:
        """Look at all VMs now, and make the host fit; with dry_run, only look. Raises as ``compare`` does."""
        begin = time.monotonic()
        if dry_run:
            async with self._repairing, self._running:
                look = await self._look(None)
            return _checked(begin, look, tuple((found, False) for found in look.found))
        await self.compare(None)
        assert self.last is not None  # noqa: S101  compare has just set it
        return self.last

    async def compare(self, names: frozenset[str] | None) -> None:
        """Make the host fit what the hypervisor has, for these names or for all (None).

        Raises HypervisorError when the hypervisor does not answer; nothing has changed then.
        """
        async with self._repairing:
            await self.take_note(names)

    async def take_note(self, names: frozenset[str] | None) -> None:
        """As ``compare``, without waiting for another comparison to repair what it has found."""
        host = self._host
        begin = time.monotonic()
        async with self._running:
            asked = host.unclear - host.busy() if names is None else names
            host.unclear -= asked
            losses = host.losses
            try:
                look = await self._look(names)
            except HypervisorError:
                host.unclear |= asked
                raise
            if asked & look.ignore:
                # What was seen of them is outdated; those still busy are looked at when that has ended.
                host.look_again(asked & look.ignore)
            if self._learned:
                self._count(look)
            learned, self._learned = self._learned, self._learned or names is None
            self._take_over(look)
            for name, why in look.unknown.items():
                if name in host.live:
                    host.live[name].unseen = why
            if look.unknown:
                again = frozenset(look.unknown) | host.unplaced.keys()
                asyncio.get_running_loop().call_later(RETRY_S, host.look_again, again)
            if names is None and losses == host.losses:
                host.link_failure = ""
        for subset in host.state.subsets:
            await host.settle(subset.level)
        host.free_unpinned()
        findings = await self._outcome(look.found) if learned else ()
        if names is None:
            self.last = _checked(begin, look, findings)

    async def _look(self, names: frozenset[str] | None) -> Look:
        """Changes nothing that anybody sees."""
        host = self._host
        host.touched = set()
        busy = host.busy()
        observed = await host.hypervisor.observe(names)
        ignore = busy | host.busy() | host.touched
        unknown = {vm.name: vm.unknown for vm in observed if vm.unknown}
        seen = [vm for vm in observed if not vm.unknown]
        result = reconcile(
            host.state,
            seen,
            self._policy,
            scope=names,
            unknown=unknown,
            ignore=ignore,
            pinned=frozenset().union(*(live.pinned for live in host.live.values())),
            unplaced=host.unplaced,
            stopped=host.stopped,
        )
        running = [vm for vm in seen if vm.running and vm.name not in ignore]

        def judged(name: str) -> bool:
            return name not in ignore and (names is None or name in names)

        unseen = {name: why for name, why in unknown.items() if judged(name)}
        found = [*drift.of_vms(host, running, unseen, result, judged)]
        if names is None:
            known = () if self.last is None else self.last.findings
            found += drift.of_host(host, running, frozenset(one.text for one, _ in known if not one.vm))
        return Look(running, unknown, ignore, result, tuple(found), len(observed))

    def _count(self, look: Look) -> None:
        for found in look.found:
            if not found.old:
                self._host.drift[found.kind] += 1
                if found.kind in _TOLD:
                    log.warning("drift", kind=found.kind, vm=found.vm or None, found=found.text)

    async def _outcome(self, found: tuple[Found, ...]) -> tuple[tuple[Found, bool], ...]:
        """Each with whether it has been repaired. Where that can only be seen, it is looked at once more."""
        host = self._host
        doubtful = frozenset(one.vm for one in found if one.kind in _SEEN_AGAIN and one.vm)
        wrong = await self._still_wrong(doubtful) if doubtful else frozenset()

        def repaired(one: Found) -> bool:
            if one.kind == "held":
                return not host.held_for_nobody()
            if one.vm and one.kind in _SEEN_AGAIN:
                return (one.vm, one.kind) not in wrong
            return one.kind in _BY_TAKING_NOTE or (one.kind == "record" and self._tells(one.level))

        return tuple([(self._explained(one), repaired(one)) for one in found])

    def _explained(self, found: Found) -> Found:
        """With why it could not be pinned, which is known only now."""
        live = self._host.live.get(found.vm)
        if found.kind != "pinning" or live is None or not live.pin_failure:
            return found
        return msgspec.structs.replace(found, advice=f"it could not be pinned: {live.pin_failure}; it is tried again")

    async def _still_wrong(self, names: frozenset[str]) -> frozenset[tuple[str, str]]:
        """Name and kind of what is otherwise than decided still, of these VMs."""
        host = self._host
        async with self._running:
            try:
                look = await self._look(names)
            except HypervisorError:
                return frozenset((name, kind) for name in names for kind in _SEEN_AGAIN)
            wrong = {(found.vm, found.kind): found.text for found in look.found}
            for vm in look.running:
                live = host.live.get(vm.name)
                if live is not None:
                    live.stuck = frozenset(vm.threads) if (vm.name, "affinity") in wrong else frozenset()
                    live.pin_failure = live.pin_failure or wrong.get((vm.name, "pinning"), "")
        unseen = names & look.unknown.keys()
        for name in names & look.ignore:  # being changed again: what we were told must do
            live = host.live.get(name)
            if live is not None and (live.pin_failure or live.record_fault):
                unseen |= {name}
        return frozenset(wrong) | {(name, kind) for name in unseen for kind in _SEEN_AGAIN}

    def _tells(self, level: int) -> bool:
        """Whether a record tells the subset of a level, as far as is known."""
        subset = self._host.state.subset(level)
        return subset is None or any(
            live.record is not None and live.record.cpus == subset.cpus and not live.record_fault
            for name in subset.vms
            if (live := self._host.live.get(name)) is not None
        )

    def _take_over(self, look: Look) -> None:
        host, result = self._host, look.result
        unplaced_before = host.unplaced
        host.state = result.state
        host.unplaced = result.unplaced
        host.stopped = result.stopped
        for name in result.gone:
            del host.live[name]
        found = []
        places = drift.wanted_places(host)
        for vm in look.running:
            if (place := places.get(vm.name)) is not None:
                subset, cpus = place
                live = host.live.setdefault(vm.name, LiveVm(Phase.RUNNING))
                live.pinned = vm.pinned
                live.record_fault = drift.record_fault(subset.vms[vm.name], subset, vm.record, host.state.generation)
                if not live.record_fault or live.record is None:
                    live.record = vm.record
                live.unseen = ""
                kind, _ = drift.pins_fault(vm, cpus)
                live.astray = kind == "pinning" or (kind == "affinity" and live.stuck != frozenset(vm.threads))
                if kind != "pinning":
                    live.pin_failure = ""
                if not kind and vm.threads:
                    live.stuck = frozenset()
                if live.untold:
                    live.untold = False
                    found.append(subset.vms[vm.name])
        if result.gone and result.unplaced:
            host.look_again(result.unplaced)
        host.feed.touch()
        _tell(host, result, found, unplaced_before)

    def _look_at_everything(self) -> None:
        self._everything = True
        self._host.something_unclear.set()

    async def _follow(self) -> None:
        host = self._host
        failure = ""
        while True:
            await host.something_unclear.wait()
            host.something_unclear.clear()
            everything, self._everything = self._everything, False
            names = frozenset(host.unclear - host.busy())
            if not everything and not names:
                continue
            try:
                await self.compare(None if everything else names)
                failure = ""
            except HypervisorError as error:
                if str(error) != failure:
                    failure = str(error)
                    log.warning("compare-failed", reason=failure)
                self._everything |= everything
                asyncio.get_running_loop().call_later(RETRY_S, host.something_unclear.set)
            except Exception:
                log.logger.exception("unexpected error while comparing with the hypervisor")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            self._look_at_everything()


def _checked(begin: float, look: Look, findings: tuple[tuple[Found, bool], ...]) -> Checked:
    """begin: of the clock that never goes back."""
    return Checked(
        at=time.time(),
        seconds=time.monotonic() - begin,
        findings=findings,
        vms=look.vms,
        hidden=sum(not vm.threads for vm in look.running),
        busy=len(look.ignore),
    )


def _tell(host: Host, result: Reconciliation, found: list[Vm], unplaced_before: Mapping[str, UnplacedVm]) -> None:
    """found: VMs that have started after all."""
    adopted = {vm.name for vm in result.adopted}
    for name in result.gone:
        log.info("resized" if name in adopted else "gone", vm=name)
        if name not in adopted:
            host.feed.publish(VmGone(time=time.time(), name=name))
    for vm in (*result.adopted, *found):
        cpus = host.cpus_of(vm.level)
        host.feed.publish(VmAdopted(time=time.time(), name=vm.name, level=vm.level, cpus=cpus))
        log.info(
            "adopted",
            vm=vm.name,
            vcpus=vm.vcpus,
            memory_mib=vm.memory_mib,
            level=format_level(vm.level),
            cpus=format_cpu_list(cpus),
        )
    for name, unplaced in result.unplaced.items():
        if name not in unplaced_before:
            log.warning("unplaced", vm=name, reason=unplaced.reason, cpus=format_cpu_list(unplaced.cpus))
