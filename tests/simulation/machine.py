"""A host as it really is: its VMs with their threads and where these may run, whatever daemons believe.

``Machine`` has the truth, and watches at each change that no CPU is open to two levels. ``SimulatedHypervisor`` is what
one life of a daemon sees of it: late, refusing, silent, or gone in the middle of an order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from core.topology import Topology
from tests.simulation.clock import Process
from vmstackd.api.errors import InvalidRequest
from vmstackd.hypervisor.base import (
    HypervisorError,
    HypervisorEvent,
    HypervisorUnreachable,
    Measured,
    ObservedVm,
    Record,
    VmDefinition,
    VmMissing,
)
from vmstackd.hypervisor.options import HypervisorOptions

STEP_S = (0.001, 0.03)
"""Seconds that a step of an order takes."""
KEEPALIVE_S = 4.0
"""Seconds after which a silent hypervisor counts as lost."""
RECONNECT_S = (0.2, 2.0)


class Domain:
    """One VM. threads: CPUs that each may run on, while it runs. defined: whether it stays known when it has ended.

    level: in whose subset it counts; None for one from outside that nobody has pinned since.
    """

    def __init__(self, uuid: str, vcpus: int, memory_mib: int, cpus: frozenset[int], record: Record | None) -> None:
        self.uuid = uuid
        self.vcpus = vcpus
        self.memory_mib = memory_mib
        self.threads = [cpus] * (vcpus + 1)
        self.record = record
        self.running = True
        self.defined = False
        self.level: int | None = None

    @property
    def pinned(self) -> frozenset[int]:
        return frozenset().union(*self.threads) if self.running else frozenset()


class Machine:
    """stalled: until when its hypervisor does not answer. violations: what must never be, and when."""

    def __init__(self, name: str, topology: Topology, chance: random.Random, note: Callable[[str], None]) -> None:
        self.name = name
        self.topology = topology
        self.chance = chance
        self.note = note
        self.domains: dict[str, Domain] = {}
        self.powered = True
        self.stalled = 0.0
        self.down = 0.0
        self.trouble = 0.0
        """How likely an order is refused."""
        self.violations: list[str] = []
        self.ended: Callable[[str], None] = lambda _: None
        """Called with the name of a VM that has ended by itself."""
        self.effects: Callable[[], None] | None = None
        """Called once, after the next thing that takes effect."""
        self._listeners: list[SimulatedHypervisor] = []
        self._last = 0
        self._lives = 0
        """Of its hypervisor."""

    @property
    def running(self) -> set[str]:
        return {name for name, domain in self.domains.items() if domain.running}

    def listen(self, hypervisor: SimulatedHypervisor) -> None:
        """Somebody has connected."""
        self._listeners = [known for known in self._listeners if known.process.alive and known is not hypervisor]
        self._listeners.append(hypervisor)

    def forget_levels(self) -> None:
        """A new daemon cannot know where VMs without a record belong; until it has decided, they are strangers."""
        for domain in self.domains.values():
            if domain.record is None:
                domain.level = None

    def new_uuid(self) -> str:
        self._last += 1
        return f"{self.name}-{self._last}"

    def changed(self, what: str, name: str) -> None:
        """Something has taken effect."""
        self.note(f"{self.name}: {what} {name}")
        self._look(f"after {what} of {name}")
        for listener in self._listeners:
            listener.tell(HypervisorEvent("changed", vm=name))
        if self.effects is not None:
            then, self.effects = self.effects, None
            then()

    def _look(self, when: str) -> None:
        owner: dict[int, tuple[int, str]] = {}
        for name, domain in self.domains.items():
            if domain.running and domain.level is not None:
                for cpu in domain.pinned:
                    level, other = owner.setdefault(cpu, (domain.level, name))
                    if level != domain.level:
                        self.violations.append(
                            f"{when}: CPU {cpu} of {self.name} is open to {other} ({level}) and {name} ({domain.level})"
                        )
                        return

    # What happens by itself, or by strangers

    def end(self, name: str) -> None:
        """The VM's process is gone."""
        domain = self.domains[name]
        domain.running = False
        if not domain.defined:
            del self.domains[name]
        self.ended(name)
        self.changed("death", name)

    def power_off(self) -> None:
        """Everything that runs is gone; what is defined is still there afterwards."""
        self.powered = False
        self._lives += 1
        for name, domain in list(self.domains.items()):
            if domain.running:
                domain.running = False
                self.ended(name)
            if not domain.defined:
                del self.domains[name]
        self.note(f"{self.name}: power off")

    def power_on(self) -> None:
        self.powered = True
        self.stalled = self.down = 0.0
        self.note(f"{self.name}: power on")

    def lose_link(self, seconds: float) -> None:
        """The hypervisor's daemon has died, and is back after so long. VMs run on."""
        self.down = asyncio.get_running_loop().time() + seconds
        self._lives += 1
        self.note(f"{self.name}: hypervisor gone for {seconds:.2f} s")
        for listener in self._listeners:
            listener.lost("it has died")

    def stall(self, seconds: float) -> None:
        """The hypervisor's daemon does nothing for so long."""
        self.stalled = max(self.stalled, asyncio.get_running_loop().time() + seconds)
        self.note(f"{self.name}: hypervisor stalls for {seconds:.2f} s")
        if seconds > KEEPALIVE_S:
            for listener in self._listeners:
                listener.lose_later()

    def finish(self, steps: Sequence[Callable[[], None]]) -> None:
        """Carry out what is left of an order that nobody waits for any more."""
        loop = asyncio.get_running_loop()
        life = self._lives
        if not self.powered or loop.time() < self.down:
            return

        def go_on() -> None:
            if loop.time() < self.stalled:
                loop.call_at(self.stalled, go_on)
                return
            for step in steps:
                try:
                    if self._lives == life:
                        step()
                except HypervisorError:
                    return

        go_on()


class SimulatedHypervisor:
    """Of one life of a daemon, which is what kills it."""

    uri = "simulated:"
    immediate = False

    def __init__(self, machine: Machine, process: Process, level_of: Callable[[str], int | None]) -> None:
        """level_of: in whose subset a daemon believes a VM to be."""
        self._machine = machine
        self.level_of = level_of
        self.process = process
        self._chance = machine.chance
        self._on_event: Callable[[HypervisorEvent], None] | None = None
        self._broken = "not connected"
        self._cut = asyncio.Event()
        """Set, and replaced, when the link is lost."""

    # Life

    async def open(self, on_event: Callable[[HypervisorEvent], None]) -> None:
        await self._alive()
        self._cut = asyncio.Event()
        await self._pass(self._chance.uniform(*STEP_S))
        if self._away:
            raise HypervisorUnreachable("nobody answers")
        self._on_event, self._broken = on_event, ""
        self._machine.listen(self)

    async def close(self) -> None:
        self._on_event, self._broken = None, "not connected"

    def reconfigure(self, options: HypervisorOptions) -> None:
        """Nothing here depends on them."""

    @property
    def _away(self) -> bool:
        now = asyncio.get_running_loop().time()
        return now < self._machine.down or now < self._machine.stalled - KEEPALIVE_S

    def tell(self, event: HypervisorEvent) -> None:
        """Events arrive late, and never after the link is lost."""
        if self._on_event is None or self._broken:
            return
        cut = self._cut
        when = max(asyncio.get_running_loop().time(), self._machine.stalled) + self._chance.uniform(*STEP_S)
        self.process.call_at(when, lambda: None if cut.is_set() else self._emit(event))

    def lost(self, reason: str) -> None:
        """The link has broken; it is made again by itself."""
        if self._on_event is None or self._broken or not self.process.alive:
            return
        self._broken = reason
        self._cut.set()
        self.process.inside(partial(self._emit, HypervisorEvent("lost", reason=reason)))
        self._reconnect_later()

    def lose_later(self) -> None:
        """Nobody answers keepalives any more."""
        stalled = self._machine.stalled
        when = asyncio.get_running_loop().time() + KEEPALIVE_S

        def look() -> None:
            if self._machine.stalled == stalled:
                self.lost("keepalive timeout")

        self.process.call_at(when, look)

    def _reconnect_later(self) -> None:
        again = max(self._machine.down, self._machine.stalled, asyncio.get_running_loop().time())
        self.process.call_at(again + self._chance.uniform(*RECONNECT_S), self._reconnect)

    def _reconnect(self) -> None:
        if self._on_event is None or not self._broken:
            return
        if self._away or not self._machine.powered:
            self._reconnect_later()
            return
        self._broken, self._cut = "", asyncio.Event()
        self._emit(HypervisorEvent("restored"))

    def _emit(self, event: HypervisorEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    # Orders

    async def _alive(self) -> None:
        if not self.process.alive:
            await asyncio.Event().wait()  # nothing that it wants takes effect any more

    async def _pass(self, seconds: float) -> None:
        """Wait, as long as the hypervisor does too. Raises HypervisorUnreachable when the link breaks."""
        await self._alive()
        loop = asyncio.get_running_loop()
        cut = self._cut
        until = max(loop.time(), self._machine.stalled) + seconds
        try:
            async with asyncio.timeout_at(until):
                await cut.wait()
        except TimeoutError:
            pass
        await self._alive()
        if cut.is_set():
            raise HypervisorUnreachable(self._broken or "the link was cut")

    async def _order(self, what: str, name: str, steps: Sequence[Callable[[], None]]) -> None:
        """Have the hypervisor carry something out, step by step.

        If its caller dies, or the link breaks, the rest may be carried out all the same: at once, or, in a hypervisor
        that is stalled, when it goes on.
        """
        await self._alive()
        if self._broken:
            raise HypervisorUnreachable(self._broken)
        left = list(steps)
        try:
            await self._pass(self._chance.uniform(*STEP_S))
            if self._chance.random() < self._machine.trouble:
                self._machine.note(f"{self._machine.name}: {what} {name} is refused")
                raise HypervisorError(f"{what} of {name} was told to fail")
            while left:
                left.pop(0)()
                await self._pass(self._chance.uniform(*STEP_S))
        except (HypervisorUnreachable, asyncio.CancelledError):
            if what != "observe" and self._chance.random() < 0.5:
                self._machine.finish(left)
            raise
        if what != "create" and self._chance.random() < self._machine.trouble / 2:
            raise HypervisorError(f"{what} of {name} failed after it had taken effect")

    async def check_image(self, image: str) -> str:
        await self._alive()
        if not image.startswith("/"):
            raise InvalidRequest("image: must be an absolute path", field="image")
        await asyncio.sleep(self._chance.uniform(*STEP_S) / 4)
        return image

    async def observe(self, names: Iterable[str] | None = None) -> list[ObservedVm]:
        found: list[ObservedVm] = []

        def look() -> None:
            domains = self._machine.domains
            for name in list(domains) if names is None else [name for name in dict.fromkeys(names) if name in domains]:
                hidden = self._chance.random() < self._machine.trouble / 2
                found.append(_seen(name, domains[name], "it did not answer" if hidden else ""))

        await self._order("observe", "", [look])
        return found

    async def measure(self) -> Measured:
        raise HypervisorError("nothing is measured here")

    async def create(self, definition: VmDefinition) -> None:
        machine, vm = self._machine, definition.vm

        def define() -> None:
            if vm.name in machine.domains:
                raise HypervisorError(f"domain '{vm.name}' already exists")
            cpus = frozenset(definition.record.cpus)
            domain = Domain(machine.new_uuid(), vm.vcpus, vm.memory_mib, cpus, definition.record)
            domain.defined, domain.running = True, False
            machine.domains[vm.name] = domain
            machine.changed("define", vm.name)

        def start() -> None:
            if vm.name not in machine.domains:
                raise HypervisorError(f"domain '{vm.name}' is no more")
            domain = machine.domains[vm.name]
            domain.running, domain.level = True, vm.level
            machine.changed("start", vm.name)

        await self._order("create", vm.name, [define, start])

    async def destroy(self, name: str) -> None:
        machine = self._machine

        def stop() -> None:
            domain = self._find(name)
            if not domain.defined:
                del machine.domains[name]
            domain.running = False
            machine.changed("stop", name)

        def undefine() -> None:
            if name in machine.domains and not machine.domains[name].running:
                del machine.domains[name]
                machine.changed("undefine", name)

        await self._order("destroy", name, [stop, undefine])

    async def pin(self, name: str, cpus: Sequence[int]) -> frozenset[int]:
        machine, wanted = self._machine, frozenset(cpus)
        if not wanted <= frozenset(machine.topology.cpu_ids):
            raise HypervisorError("no such CPU")
        level = self.level_of(name)

        def some() -> None:
            domain = self._running(name)
            domain.threads[0] = wanted
            machine.changed("pin some of", name)

        def all_of_them() -> None:
            domain = self._running(name)
            domain.threads = [wanted] * len(domain.threads)
            # The order of a daemon that is dead says nothing of where a VM without a record belongs.
            domain.level = level if self.process.alive or domain.record is not None else None
            machine.changed("pin", name)

        await self._order("pin", name, [some, all_of_them])
        return self._running(name).pinned

    async def write_record(self, name: str, record: Record) -> None:
        def write() -> None:
            self._find(name).record = record
            self._machine.note(f"{self._machine.name}: record of {name}: {record.generation} {record.cpus}")

        await self._order("write_record", name, [write])

    def _find(self, name: str) -> Domain:
        try:
            return self._machine.domains[name]
        except KeyError:
            raise VmMissing(f"no domain named '{name}'") from None

    def _running(self, name: str) -> Domain:
        domain = self._find(name)
        if not domain.running:
            raise HypervisorError("domain is not running")
        return domain


def _seen(name: str, domain: Domain, unknown: str) -> ObservedVm:
    return ObservedVm(
        name=name,
        uuid=domain.uuid,
        running=domain.running,
        vcpus=domain.vcpus,
        memory_mib=domain.memory_mib,
        pinned=domain.pinned,
        record=domain.record,
        unknown=unknown,
        uneven=domain.running and len(set(domain.threads)) > 1,
        threads=_by_cpus(domain) if domain.running else {},
    )


def _by_cpus(domain: Domain) -> dict[frozenset[int], tuple[int, ...]]:
    found: dict[frozenset[int], tuple[int, ...]] = {}
    for number, cpus in enumerate(domain.threads):
        found[cpus] = (*found.get(cpus, ()), number)
    return found
