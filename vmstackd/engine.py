"""The one door to a host: a request goes in, a decision is made and carried out, a reply comes out.

Decisions happen in the event loop, one after the other, in microseconds; the hypervisor works in its
own threads, for several VMs at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec

from core.allocator import plan_deploy, plan_remove, plan_withdraw, progress, refusal
from core.cpuset import format_cpu_list
from core.level import format_level
from core.model import HostState, Plan, Refusal, Rules, Vm
from core.policy import Policy
from core.status import host_status
from vmstackd import log
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import (
    AlreadyExists,
    Denied,
    HypervisorFailed,
    Internal,
    InvalidRequest,
    NotFound,
    Unavailable,
    VmstackError,
    refused,
)
from vmstackd.api.session import Degraded, VmDeployed, VmRefused, VmRemoved
from vmstackd.feed import Feed, Subscription
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
from vmstackd.watch import Watch

GRACE_S = 30.0
"""Seconds for which a VM whose start was cut off keeps its CPUs, seen or not."""

CONNECT_RETRY_S = 2.0
"""Seconds between two attempts to reach a hypervisor that did not answer at the start."""

NOTICE_S = 0.05
"""Seconds for which changes are gathered before it is looked whether something has degraded."""

STOP_PATIENCE = 60.0
"""Seconds that operations in progress get to end when the daemon stops."""


_NOT_REFUSALS = frozenset({InvalidRequest.code, Denied.code, "ok", "cancelled"})
"""Outcomes that subscribers are not told: anybody can cause them, as often as they like."""


class Outcome(msgspec.Struct, frozen=True):
    """One finished request, for counters.

    outcome: "ok" or the code of the error. reason: the resource of a refusal, else empty.
    """

    operation: str
    outcome: str
    reason: str
    seconds: float


class Engine:
    """See the module. Create it in a running event loop, ``start`` it, ``handle`` requests, ``stop`` it."""

    def __init__(
        self,
        state: HostState,
        policy: Policy,
        hypervisor: Hypervisor,
        *,
        period: float = 15.0,
        observer: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """state: an empty one. period: seconds between two comparisons with the hypervisor."""
        self._host = Host(state, hypervisor)
        self._policy = policy
        self._watch = Watch(self._host, policy, period)
        self._observer = observer
        self._operations: set[asyncio.Task[replies.Reply]] = set()
        self._asking: set[asyncio.Task[object]] = set()
        """Operations that have not begun, because somebody is asked whether they may."""
        self._tasks: list[asyncio.Task[None]] = []
        self._started = asyncio.Event()
        self._stopping = False

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
        self._stopping = True
        for task in self._asking:  # an answer may take minutes, and would come too late
            task.cancel()
        if self._operations:
            await asyncio.wait(self._operations, timeout=STOP_PATIENCE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._host.hypervisor.close()

    @property
    def running(self) -> bool:
        """Whether it has started and everything it does by itself is being done."""
        return self._started.is_set() and not any(task.done() for task in self._tasks)

    @property
    def started(self) -> bool:
        """Whether requests are answered."""
        return self._started.is_set()

    @property
    def feed(self) -> Feed:
        """What happens."""
        return self._host.feed

    def reconfigure(self, rules: Rules, policy: Policy, period: float, options: HypervisorOptions) -> None:
        """Decide by other rules from now on. What a level has keeps its CPUs; what it then owes is degraded."""
        self._policy = policy
        self._host.state = msgspec.structs.replace(self._host.state, rules=rules)
        self._watch.reconfigure(policy, period)
        self._host.hypervisor.reconfigure(options)

    @property
    def state(self) -> HostState:
        """What is decided now."""
        return self._host.state

    @property
    def repins(self) -> int:
        """VMs pinned anew since the start."""
        return self._host.repins

    # Requests

    async def handle(self, request: requests.Request, caller: Caller, request_id: str) -> replies.Reply:
        """Answer one request, or raise a VmstackError. A change runs to its end even if the caller goes away.

        A request that comes before the start has ended waits for that.
        """
        if not self._started.is_set():
            await self._started.wait()
        if not isinstance(request, requests.Change):
            return await self._handle(request, caller, request_id)
        return await asyncio.shield(self.begin(request, caller, request_id))

    def begin(self, request: requests.Change, caller: Caller, request_id: str) -> asyncio.Task[replies.Reply]:
        """Begin a change, after the start. The task, which nobody may cancel, returns or raises as ``handle`` does."""
        task = asyncio.create_task(self._handle(request, caller, request_id))
        self._operations.add(task)
        task.add_done_callback(self._ended)
        return task

    def read(self, request: requests.Request, caller: Caller, request_id: str) -> replies.Reply:
        """Answer a request that only reads, as ``handle`` does, but without a task: reading never waits.

        Raises a VmstackError; RuntimeError for a change, or before the start.
        """
        if isinstance(request, requests.Change) or not self.started:
            raise RuntimeError(f"{type(request).__name__} cannot be answered at once")
        work = self._handle(request, caller, request_id)
        try:
            work.send(None)
        except StopIteration as answered:
            reply: replies.Reply = answered.value
            return reply
        finally:
            work.close()
        raise RuntimeError(f"{type(request).__name__} waits for something")

    def _ended(self, task: asyncio.Task[replies.Reply]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # has been logged; the caller may be gone

    async def _handle(self, request: requests.Request, caller: Caller, request_id: str) -> replies.Reply:
        operation = type(request).__name__.lower()
        begin = asyncio.get_running_loop().time()
        outcome, reason, why = "ok", "", ""
        reply: replies.Reply | None = None
        try:
            requests.check(request)
            reply = await self._dispatch(request, caller, operation)
        except VmstackError as error:
            outcome, reason, why = error.code, str(error.details.get("resource", "")), error.message
            raise
        except asyncio.CancelledError:
            outcome, why = "cancelled", "vmstackd is stopping"
            raise
        except Exception as error:
            outcome, why = Internal.code, "see the traceback above"
            log.logger.exception("unexpected error in %s, request %s", operation, request_id)
            raise Internal("internal error; the log of vmstackd has the details") from error
        finally:
            seconds = asyncio.get_running_loop().time() - begin
            self._observer(Outcome(operation=operation, outcome=outcome, reason=reason, seconds=seconds))
            if isinstance(request, requests.Change):
                _log_decision(request, reply, outcome, why, caller, request_id, seconds)
                self._publish(request, reply, outcome, why)
        return reply

    def _publish(self, request: requests.Change, reply: replies.Reply | None, outcome: str, why: str) -> None:
        now, name = time.time(), request.name
        match reply:
            case replies.Deployed(dry_run=False):
                self.feed.publish(VmDeployed(time=now, name=name, level=reply.level, cpus=reply.cpus))
            case replies.Removed(dry_run=False):
                self.feed.publish(VmRemoved(time=now, name=name, released=reply.released))
            case None if outcome not in _NOT_REFUSALS:
                operation = type(request).__name__.lower()
                self.feed.publish(VmRefused(time=now, name=name, operation=operation, code=outcome, reason=why))

    async def _dispatch(self, request: requests.Request, caller: Caller, operation: str) -> replies.Reply:
        if isinstance(request, requests.Change):
            if caller.role < Role.OPERATOR and not await self._granted(request, caller):
                raise Denied(f"{caller.identity} may read but not {operation}")
            self._require_link()
        elif caller.role < Role.READER:
            raise Denied(f"{caller.identity} may not use vmstackd")
        match request:
            case requests.Deploy():
                return await self._deploy(request)
            case requests.Remove():
                return await self._remove(request)
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

    async def _granted(self, request: requests.Change, caller: Caller) -> bool:
        task = asyncio.current_task()
        if caller.grant is None or task is None:
            return False
        self._asking.add(task)
        try:
            return await caller.grant(request)
        finally:
            self._asking.discard(task)

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
        image = await host.hypervisor.check_image(request.image)
        self._require_link()
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
        return replies.Deployed(name=name, level=vm.level, cpus=host.cpus_of(vm.level))

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
            asyncio.get_running_loop().call_later(GRACE_S, host.changed, vm.name, live)
            raise Unavailable(f"whether {vm.name!r} has started is unknown: {error}") from error
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
        return replies.Removed(name=name, released=plan.released)

    async def _remove_outsider(self, request: requests.Remove) -> replies.Removed:
        """Remove a VM that is in no subset: shut off, or without a place."""
        name = request.name
        if name not in self._host.stopped and name not in self._host.unplaced:
            raise NotFound(f"{name!r} does not exist on this host")
        if not request.dry_run:
            await self._destroy(name)
            await self._watch.compare(frozenset({name}))
        return replies.Removed(name=name, released=(), dry_run=request.dry_run)

    async def _destroy(self, name: str) -> None:
        try:
            await self._host.hypervisor.destroy(name)
        except VmMissing:
            pass  # gone by itself in the meantime, which is what was asked for
        except HypervisorUnreachable as error:
            raise Unavailable(f"whether {name!r} has been removed is unknown: {error}") from error
        except HypervisorError as error:
            raise HypervisorFailed(f"the hypervisor did not remove {name!r}: {error}") from error

    # Reading

    def _progress(self, request: requests.Progress) -> replies.ProgressReply:
        refusing = refusal(self._host.state, request.level, request.vcpus, request.memory_mib)
        if refusing is not None:
            raise refused(refusing)
        return replies.ProgressReply(
            progress=progress(self._host.state, request.level, request.vcpus, request.memory_mib)
        )

    def status(self) -> replies.StatusReply:
        """The figures of this moment."""
        return replies.StatusReply(
            host=host_status(self._host.state),
            hypervisor="down" if self._host.link_failure else "up",
            unplaced=tuple(self._host.unplaced.values()),
            stopped=tuple(sorted(self._host.stopped)),
            degraded=tuple(self._degraded()),
        )

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


def _log_decision(
    request: requests.Change,
    reply: replies.Reply | None,
    outcome: str,
    why: str,
    caller: Caller,
    request_id: str,
    seconds: float,
) -> None:
    asked: dict[str, object] = {"vm": request.name}
    if isinstance(request, requests.Deploy):
        asked |= {
            "vcpus": request.vcpus,
            "memory_mib": request.memory_mib,
            "level": format_level(request.level),
            "image": request.image,
        }
    decided: dict[str, object] = {"outcome": outcome}
    if isinstance(reply, replies.Deployed):
        decided["cpus"] = format_cpu_list(reply.cpus)
    elif isinstance(reply, replies.Removed):
        decided["released"] = format_cpu_list(reply.released)
    log.info(
        type(request).__name__.lower(),
        request=request_id,
        caller=f"{caller.transport}:{caller.identity}",
        **asked,
        dry_run="yes" if request.dry_run else None,
        **decided,
        why=why or None,
        ms=f"{seconds * 1000:.1f}",
    )
