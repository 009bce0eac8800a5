"""The one door to a host: a request goes in, a decision is made and carried out, a reply comes out.

Decisions happen in the event loop, one after the other, in microseconds; the hypervisor works in its
own threads, for several VMs at once.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from typing import get_args

import msgspec

from core.allocator import plan_deploy, plan_remove, plan_withdraw, progress, refusal
from core.level import format_level
from core.model import HostState, Plan, Refusal, Rules, Vm
from core.policy import Policy
from core.status import host_status
from core.trace import Sample
from core.usage import HostCounters
from vmstackd.api import replies, requests
from vmstackd.api.errors import AlreadyExists, Cordoned, HypervisorFailed, Internal, NotFound, Unavailable, refused
from vmstackd.api.session import Degraded, Identity, VmDeployed, VmRefused, VmRemoved
from vmstackd.daemon import log
from vmstackd.daemon.feed import Subscription
from vmstackd.daemon.operations import NOT_REFUSALS, Operations, Outcome, operation_of
from vmstackd.host import Host, LiveVm, Phase
from vmstackd.hypervisor.base import (
    Hypervisor,
    HypervisorError,
    HypervisorUnreachable,
    Record,
    VmDefinition,
    VmMissing,
)
from vmstackd.hypervisor.options import HypervisorOptions
from vmstackd.kernel_counters import kernel_counters
from vmstackd.local_state import LocalState, LocalStateError
from vmstackd.sampling import Sampler
from vmstackd.watch import Checked, Watch

GRACE_S = 30.0
"""Seconds for which a VM whose start was cut off keeps its CPUs, seen or not."""

CONNECT_RETRY_S = 2.0
"""Seconds between two attempts to reach a hypervisor that did not answer at the start."""

NOTICE_S = 0.05
"""Seconds for which changes are gathered before it is looked whether something has degraded."""


class Engine(Operations):
    """See the module. Create it in a running event loop, ``start`` it, ``handle`` requests, ``stop`` it."""

    accepted = frozenset(get_args(requests.HostRequest))

    def __init__(
        self,
        state: HostState,
        policy: Policy,
        hypervisor: Hypervisor,
        *,
        local: LocalState | None = None,
        name: str = "",
        period: float = 15.0,
        delay: float = 0.0,
        kernel: Callable[[], HostCounters] = kernel_counters,
        record: Callable[[Sample], None] = lambda _: None,
        observer: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """state: an empty one. local: what the host keeps; None: nothing. name: of the host; empty: the machine's.

        period: seconds between two comparisons with the hypervisor. delay, kernel, record: as for Sampler.
        """
        self._local = LocalState(None) if local is None else local
        self._host = Host(state, hypervisor)
        identity = Identity(program="vmstackd", host=name or platform.node(), uuid=self._local.uuid)
        super().__init__(identity, self._host.feed, observer)
        self._policy = policy
        self._watch = Watch(self._host, policy, period)
        self.sampler = Sampler(self._host, delay, kernel, record)
        self._tasks: list[asyncio.Task[None]] = []
        self._cordoning = asyncio.Lock()
        """Held while the disk is waited for."""

    # Life

    async def start(self, *, require_hypervisor: bool = True) -> None:
        """Connect, and learn what runs; requests that came before are answered from then on.

        If the hypervisor does not answer, raises HypervisorError; or, where it is not required, serves
        readers only, and goes on trying.
        """
        reachable = True
        try:
            await self._connect()
        except HypervisorError as error:
            if require_hypervisor:
                raise
            reachable = False
            self._host.link_failure = str(error)
            log.warning("hypervisor-unreachable", uri=self._host.hypervisor.uri, reason=error, note="trying again")
        self._tasks = [
            asyncio.create_task(self._run(reachable=reachable)),
            asyncio.create_task(self._announce(self._host.feed.subscribe())),
            asyncio.create_task(self.sampler.run()),
        ]
        self._started.set()

    async def _connect(self) -> None:
        await self._host.hypervisor.open(self._watch.on_event)
        try:
            await self._watch.compare(None)
        except BaseException:
            await self._host.hypervisor.close()
            raise

    async def _run(self, *, reachable: bool) -> None:
        while not reachable:
            await asyncio.sleep(CONNECT_RETRY_S)
            try:
                await self._connect()
                reachable = True
            except HypervisorError as error:
                if self._host.link_failure != str(error):
                    self._host.link_failure = str(error)
            else:
                log.info("hypervisor-restored", uri=self._host.hypervisor.uri, vms=self.status().host.vms)
        await self._watch.run()

    async def _announce(self, subscription: Subscription) -> None:
        """Tell subscribers whenever something else is not as it should be."""
        before: tuple[str, ...] = ()
        while True:
            problems = tuple(self._degraded())
            if problems != before:
                before = problems
                self._host.feed.publish(Degraded(time=time.time(), problems=problems))
            while not (await subscription.news()).changed:
                pass
            await asyncio.sleep(NOTICE_S)

    async def stop(self) -> None:
        """Let operations in progress end, then disconnect. VMs keep running."""
        await self.end_operations()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._host.hypervisor.close()

    @property
    def running(self) -> bool:
        """Whether it has started and everything it does by itself is being done."""
        return self._started.is_set() and not any(task.done() for task in self._tasks)

    def reconfigure(
        self, rules: Rules, policy: Policy, period: float, delay: float, options: HypervisorOptions
    ) -> None:
        """Decide by other rules from now on. What a level has keeps its CPUs; what it then owes is degraded."""
        self._policy = policy
        self._host.state = msgspec.structs.replace(self._host.state, rules=rules)
        self._watch.reconfigure(policy, period)
        self.sampler.reconfigure(delay)
        self._host.hypervisor.reconfigure(options)

    @property
    def state(self) -> HostState:
        """What is decided now."""
        return self._host.state

    @property
    def repins(self) -> int:
        """VMs pinned anew since the start."""
        return self._host.repins

    @property
    def checked(self) -> Checked | None:
        """The last comparison of all VMs."""
        return self._watch.last

    @property
    def drift(self) -> Mapping[str, int]:
        """How often the hypervisor had a VM in another way than was decided, by kind (vmstackd.host.DRIFT)."""
        return self._host.drift

    # Requests

    def publish(self, request: requests.Change, reply: replies.Reply | None, outcome: str, why: str) -> None:
        now = time.time()
        match reply:
            case replies.Deployed(dry_run=False):
                self.feed.publish(VmDeployed(time=now, name=reply.name, level=reply.level, cpus=reply.cpus))
            case replies.Removed(dry_run=False):
                self.feed.publish(VmRemoved(time=now, name=reply.name, released=reply.released))
            case None if isinstance(request, requests.VmChange) and outcome not in NOT_REFUSALS:
                operation = operation_of(request)
                self.feed.publish(VmRefused(time=now, name=request.name, operation=operation, code=outcome, reason=why))

    def at_once(self, request: requests.Request) -> bool:
        return not isinstance(request, requests.Change)

    async def answer(self, request: requests.Request, request_id: str) -> replies.Reply:  # noqa: ARG002  for others
        host: str = getattr(request, "host", "")
        if host not in ("", self.identity.host, self.identity.uuid):
            raise NotFound(f"this is host {self.identity.host!r}, not {host!r}")
        if isinstance(request, requests.VmChange | requests.Check):
            self._require_link()
        match request:
            case requests.Deploy():
                return await self._deploy(request)
            case requests.Remove():
                return await self._remove(request)
            case requests.Cordon():
                return await self._set_cordon(request.reason)
            case requests.Uncordon():
                return await self._set_cordon(None)
            case requests.Check():
                return await self._check(dry_run=request.dry_run)
            case requests.Progress():
                return self._progress(request)
            case requests.Status():
                return self.status()
            case requests.List():
                return self.vms()
            case requests.Describe():
                return self._describe(request.name)
            case requests.Topology():
                return self._topology()
            case _:
                raise TypeError(f"{type(request).__name__} is not for a host")

    async def _set_cordon(self, reason: str | None) -> replies.CordonReply:
        async with self._cordoning:
            try:
                await asyncio.to_thread(self._local.set_cordon, reason)
            except LocalStateError as error:
                log.error("cordon-failed", reason=error, note="nothing has changed")
                raise Internal(f"nothing has changed: {error}") from error
            reply = replies.CordonReply(cordoned=reason is not None, reason=self._local.cordon or "")
        self.feed.touch()
        return reply

    def _require_open(self) -> None:
        if self._local.cordon is not None:
            why = f": {self._local.cordon}" if self._local.cordon else ""
            raise Cordoned(f"this host takes no new VMs{why}; vmstackctl uncordon lets it")

    def _require_link(self) -> None:
        if self._stopping:
            raise Unavailable("vmstackd is stopping; try again in a moment")
        if self._host.link_failure:
            raise Unavailable(
                f"the hypervisor {self._host.hypervisor.uri} is unreachable, so nothing can be changed now: "
                f"{self._host.link_failure}"
            )

    # Deploy

    async def _deploy(self, request: requests.Deploy) -> replies.Deployed:
        host = self._host
        name = request.name
        self._require_open()
        image = await host.hypervisor.check_image(request.image)
        self._require_link()
        self._require_open()
        if name in host.stopped:
            raise AlreadyExists(
                f"{name!r} is defined in the hypervisor but shut off; start it there, or remove it first"
            )
        if name in host.unplaced:
            raise AlreadyExists(f"{name!r} runs already, outside all subsets: {host.unplaced[name].reason}")
        vm = Vm(name=name, vcpus=request.vcpus, memory_mib=request.memory_mib, level=request.level)
        plan = plan_deploy(host.state, vm, self._policy)
        if isinstance(plan, Refusal):
            raise refused(plan)
        if request.dry_run:
            return replies.Deployed(name=name, level=vm.level, cpus=plan.pins[0].cpus, dry_run=True)
        host.state = plan.state
        live = host.live[name] = LiveVm(Phase.STARTING)
        try:
            await self._start(plan, live, image)
        finally:
            host.running_again(name, live)
        await host.settle(vm.level)
        generation = plan.state.generation
        return replies.Deployed(name=name, level=vm.level, cpus=host.cpus_of(vm.level), generation=generation)

    async def _start(self, plan: Plan, live: LiveVm, image: str) -> None:
        """Widen the others of the subset, then start the VM on it."""
        host, vm = self._host, plan.vm
        try:
            await host.settle(vm.level)
            cpus = host.cpus_of(vm.level)
            live.pinned = frozenset(cpus)
            live.record = Record(
                level=vm.level,
                vcpus=vm.vcpus,
                memory_mib=vm.memory_mib,
                image=image,
                cpus=cpus,
                generation=host.state.generation,
                arrival=plan.state.generation,
            )
            await host.hypervisor.create(VmDefinition(vm=vm, record=live.record))
        except HypervisorUnreachable as error:
            # Whether it runs will be seen when the link is back. Even then the order may still be under
            # way somewhere, so for a while not seeing it does not mean that it is not there.
            live.changes += 1
            live.untold = True
            asyncio.get_running_loop().call_later(GRACE_S, host.changed, vm.name, live)
            raise Unavailable(f"whether {vm.name!r} has started is unknown: {error}", outcome="unknown") from error
        except HypervisorError as error:
            del host.live[vm.name]
            host.state = plan_withdraw(host.state, plan).state
            await host.settle(vm.level)
            raise HypervisorFailed(f"the hypervisor did not start {vm.name!r}: {error}") from error

    # Remove

    async def _remove(self, request: requests.Remove) -> replies.Removed:
        host = self._host
        name = request.name
        vm = host.state.vm(name)
        if vm is None:
            return await self._remove_outsider(request)
        live = host.live[name]
        if live.phase is not Phase.RUNNING:
            raise Unavailable(f"{name!r} is {live.phase.value}; try again when that has ended")
        if request.dry_run:
            plan = plan_remove(host.state, name, self._policy)
            return replies.Removed(name=name, released=plan.released, dry_run=True)
        live.phase = Phase.REMOVING
        host.feed.touch()
        try:
            await host.hand_over_record(vm.level, name)
            await self._destroy(name)
        finally:
            host.running_again(name, live)
        plan = plan_remove(host.state, name, self._policy)
        host.state = plan.state
        del host.live[name]
        await host.settle(vm.level)
        return replies.Removed(name=name, released=plan.released, generation=plan.state.generation)

    async def _remove_outsider(self, request: requests.Remove) -> replies.Removed:
        """Remove a VM that is in no subset: shut off, or without a place."""
        name = request.name
        if name not in self._host.stopped and name not in self._host.unplaced:
            raise NotFound(f"{name!r} does not exist on this host")
        if not request.dry_run:
            await self._destroy(name)
            try:
                await self._watch.take_note(frozenset({name}))
            except HypervisorError:
                self._host.look_again({name})  # it is gone all the same; that will be seen
        return replies.Removed(name=name, released=(), dry_run=request.dry_run)

    async def _destroy(self, name: str) -> None:
        try:
            await self._host.hypervisor.destroy(name)
        except VmMissing:
            pass  # gone by itself in the meantime, which is what was asked for
        except HypervisorUnreachable as error:
            raise Unavailable(f"whether {name!r} has been removed is unknown: {error}", outcome="unknown") from error
        except HypervisorError as error:
            raise HypervisorFailed(f"the hypervisor did not remove {name!r}: {error}") from error

    # Check

    async def _check(self, *, dry_run: bool) -> replies.CheckReply:
        try:
            checked = await self._watch.check(dry_run=dry_run)
        except HypervisorUnreachable as error:
            raise Unavailable(f"the hypervisor {self._host.hypervisor.uri} cannot be asked: {error}") from error
        except HypervisorError as error:
            raise HypervisorFailed(f"the hypervisor does not tell what it runs: {error}") from error
        findings = [
            replies.Finding(
                kind=found.kind,
                vm=found.vm,
                text=found.told(repaired=repaired, dry_run=dry_run)[: replies.MOST_TEXT],
                repaired=repaired,
            )
            for found, repaired in sorted(checked.findings, key=lambda one: one[1])
        ]
        return replies.CheckReply(
            findings=tuple(findings[: replies.MOST_FINDINGS]),
            vms=checked.vms,
            hidden=checked.hidden,
            busy=checked.busy,
            left_out=max(0, len(findings) - replies.MOST_FINDINGS),
            dry_run=dry_run,
        )

    # Reading

    def _progress(self, request: requests.Progress) -> replies.ProgressReply:
        refusing = refusal(self._host.state, request.level, request.vcpus, request.memory_mib)
        if refusing is not None:
            raise refused(refusing)
        return replies.ProgressReply(
            progress=progress(self._host.state, request.level, request.vcpus, request.memory_mib)
        )

    def status(self, *, usage: bool = True) -> replies.StatusReply:
        """The figures of this moment."""
        measured = self.sampler.usage if usage else None
        return replies.StatusReply(
            host=host_status(self._host.state),
            hypervisor="down" if self._host.link_failure else "up",
            unplaced=tuple(self._host.unplaced.values()),
            stopped=tuple(sorted(self._host.stopped)),
            degraded=tuple(self._degraded()),
            cordoned=self._local.cordon is not None,
            cordon_reason=self._local.cordon or "",
            starting=tuple(name for name, live in self._host.live.items() if live.phase is Phase.STARTING),
            usage=None if measured is None else measured.host,
        )

    def names(self) -> tuple[str, ...]:
        return tuple(name for subset in self._host.state.subsets for name in subset.vms)

    def _degraded(self) -> Iterable[str]:
        if self._host.link_failure:
            yield f"the hypervisor is unreachable: {self._host.link_failure}"
        for level in host_status(self._host.state).levels:
            if level.degraded:
                yield f"level {format_level(level.level)} has {level.cpus} CPUs and needs {level.needed}"
        for vm in self._host.unplaced.values():
            yield f"VM {vm.name!r} runs outside all subsets: {vm.reason}"
        for name, live in self._host.live.items():
            if live.pin_failure:
                yield f"VM {name!r} is not pinned as decided: {live.pin_failure}"
            if live.unseen:
                yield f"VM {name!r} cannot be looked at: {live.unseen}"

    def vms(self) -> replies.ListReply:
        """The VMs of this moment."""
        return replies.ListReply(
            vms=tuple(self._describe(name) for subset in self._host.state.subsets for name in subset.vms)
        )

    def _describe(self, name: str) -> replies.VmReply:
        subset = self._host.state.subset_of(name)
        live = self._host.live.get(name)
        if subset is None or live is None:
            raise NotFound(f"{name!r} does not exist on this host")
        vm = subset.vms[name]
        return replies.VmReply(
            name=name,
            vcpus=vm.vcpus,
            memory_mib=vm.memory_mib,
            level=vm.level,
            cpus=subset.cpus,
            pinned=tuple(sorted(live.pinned)),
            state=live.phase.value,
            image=live.record.image if live.record is not None else "",
            usage=self.sampler.of(name),
        )

    def _topology(self) -> replies.TopologyReply:
        topology = self._host.state.topology
        use = {cpu: format_level(subset.level) for subset in self._host.state.subsets for cpu in subset.cpus}
        use |= dict.fromkeys(self._host.state.held, "held")
        return replies.TopologyReply(
            name=topology.name,
            host_cpus=topology.host_cpus,
            cache_names=topology.cache_names,
            nodes=topology.nodes,
            node_distances=topology.node_distances,
            memory_mib=topology.memory_mib,
            cpus=tuple(
                replies.CpuReply(
                    id=cpu.id,
                    package=cpu.package,
                    node=cpu.node,
                    core=cpu.core,
                    caches=cpu.caches,
                    use=use.get(cpu.id, "free"),
                )
                for cpu in topology.cpus
            ),
        )
