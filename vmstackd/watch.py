"""Notices what happens to VMs outside of our operations, and makes the host fit it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from core.cpuset import format_cpu_list
from core.level import format_level
from core.model import Vm
from core.policy import Policy
from vmstackd.api.replies import UnplacedVm
from vmstackd.api.session import VmAdopted, VmGone
from vmstackd.daemon import log
from vmstackd.host import Host, LiveVm, Phase
from vmstackd.hypervisor.base import HypervisorError, HypervisorEvent, ObservedVm
from vmstackd.reconcile import Reconciliation, reconcile

RETRY_S = 0.5
"""Seconds until what could not be looked at is looked at again."""


class Watch:
    """Compares one host with its hypervisor: at start, on events, and every period seconds."""

    def __init__(self, host: Host, policy: Policy, period: float) -> None:
        self._host = host
        self._policy = policy
        self._period = period
        self._everything = False
        self._learned = False
        self._running = asyncio.Lock()

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

    async def compare(self, names: frozenset[str] | None) -> None:
        """Make the host fit what the hypervisor has, for these names or for all (None).

        Raises HypervisorError when the hypervisor does not answer; nothing has changed then.
        """
        host = self._host
        async with self._running:
            host.touched = set()
            busy, losses = host.busy(), host.losses
            asked = host.unclear - busy if names is None else names
            host.unclear -= asked
            try:
                observed = await host.hypervisor.observe(names)
            except HypervisorError:
                host.unclear |= asked
                raise
            ignore = busy | host.busy() | host.touched
            if asked & ignore:
                # What was seen of them is outdated; those still busy are looked at when that has ended.
                host.look_again(asked & ignore)
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
            if self._learned:
                _count_drift(host, result, running)
            self._learned |= names is None
            self._take_over(result, running)
            for name, why in unknown.items():
                if name in host.live:
                    host.live[name].unseen = why
            if unknown:
                again = frozenset(unknown) | host.unplaced.keys()
                asyncio.get_running_loop().call_later(RETRY_S, host.look_again, again)
            if names is None and losses == host.losses:
                host.link_failure = ""
        for subset in host.state.subsets:
            await host.settle(subset.level)
        host.free_unpinned()

    def _take_over(self, result: Reconciliation, running: list[ObservedVm]) -> None:
        host = self._host
        unplaced_before = host.unplaced
        host.state = result.state
        host.unplaced = result.unplaced
        host.stopped = result.stopped
        for name in result.gone:
            del host.live[name]
        found = []
        for vm in running:
            subset = host.state.subset_of(vm.name)
            if subset is not None:
                live = host.live.setdefault(vm.name, LiveVm(Phase.RUNNING))
                live.pinned = vm.pinned
                live.record = vm.record
                live.unseen = ""
                if live.pinned == frozenset(subset.cpus):
                    live.pin_failure = ""
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


def _count_drift(host: Host, result: Reconciliation, running: list[ObservedVm]) -> None:
    """Before the result is taken over. Pins that could not be set are no drift: what they are now is not known."""
    adopted, gone = {vm.name for vm in result.adopted}, set(result.gone)
    host.drift["adopted"] += len(adopted - gone)
    host.drift["gone"] += len(gone - adopted)
    host.drift["resized"] += len(adopted & gone)
    host.drift["unplaced"] += sum(vm.name in result.unplaced and vm.name not in host.unplaced for vm in running)
    host.drift["pinning"] += sum(
        live.pinned != vm.pinned and not live.pin_failure
        for vm in running
        if vm.name not in gone and (live := host.live.get(vm.name)) is not None
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
