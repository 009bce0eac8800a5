"""What users, faults and strangers do, one thing after the other and many at once. Everything follows from chance."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from tests.simulation.ledger import Known
from tests.simulation.machine import Domain
from tests.simulation.world import GLOBALD, Died, Host, World
from vmstackd.api import replies, requests
from vmstackd.api.errors import HypervisorFailed, Internal, VmstackError

LEVELS = (1000, 1500, 2000, 3000)
STEPS = 60
PAUSE_S = 0.15
"""Between two steps, on average; now and then a hundred times as long."""
FAULT_SHARE = 0.2
"""Of the steps, that are faults; those of a story are half of all kinds."""

Asks = Callable[[requests.Request], Awaitable[replies.Reply]]


class Chaos:
    """internal: errors that nobody should ever see."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._count = 0
        self.orders: set[asyncio.Task[None]] = set()
        self.internal: list[str] = []
        kinds: list[Callable[[], Awaitable[None] | None]] = [
            self._kill_host,
            self._kill_at_effect,
            self._kill_globald,
            self._kill_both,
            self._stop_host,
            self._power_cut,
            self._lose_link,
            self._stall,
            self._trouble,
            self._partition,
            self._vm_dies,
            self._stranger_starts,
            self._stranger_pins,
            self._stranger_erases,
            self._stranger_restarts,
            self._set_clock,
            self._cordon,
            self._check,
        ]
        self._faults = [kind for kind in kinds if self._chance.random() < 0.5]

    async def run(self) -> None:
        """Everything that happens until all is to become calm."""
        for _ in range(STEPS):
            pause = self._chance.expovariate(1 / PAUSE_S) * (100 if self._chance.random() < 0.03 else 1)
            await asyncio.sleep(pause)
            if self._faults and self._chance.random() < FAULT_SHARE:
                self._begin(self._fault(self._chance.choice(self._faults)))
            else:
                self._order()

    async def calm(self) -> None:
        """End all faults."""
        self._faults = []
        await asyncio.sleep(0.0)  # those that have just begun
        world = self._world
        world.network.heal()
        for host in world.hosts.values():
            host.machine.trouble, host.machine.effects = 0.0, None
            if not host.machine.powered:
                host.machine.power_on()
            self._begin(host.start())
        self._begin(world.start_globald())

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.orders.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.orders.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.internal.append(repr(error))

    async def _fault(self, kind: Callable[[], Awaitable[None] | None]) -> None:
        done = kind()
        if done is not None:
            await done

    # Users

    def _order(self) -> None:
        world, chance = self._world, self._chance
        there = world.ledger.settled(Known.THERE)
        kind = chance.random()
        if kind < 0.45 or not there:
            self._begin(self.deploy(self._new_name(), world.ask))
        elif kind < 0.52:
            name = self._new_name()  # somebody is impatient
            for _ in range(chance.choice((2, 2, 3))):
                self._begin(self.deploy(name, world.ask))
        elif kind < 0.6:
            self._begin(self.deploy(self._new_name("direct"), self._host().ask))
        elif kind < 0.64:
            self._begin(self.deploy(self._new_name(), world.ask, dry_run=True))
        elif kind < 0.67:
            name = chance.choice(there)
            if world.cluster is not None and world.cluster.members.owners(name):
                # It exists. After a restart, globald cannot know names on hosts that are silent since.
                self._begin(self.deploy(name, world.ask))
        elif kind < 0.69:
            self._begin(self.remove(chance.choice(there), world.ask, dry_run=True))
        elif kind < 0.72:
            name = chance.choice([*world.ledger.settled(Known.UNCLEAR), *there])
            self._begin(self.remove(name, world.ask))
        else:
            name = chance.choice(there)
            owner = next((host for host in world.hosts.values() if name in host.machine.domains), None)
            direct = owner is not None and chance.random() < 0.2
            self._begin(self.remove(name, owner.ask if direct and owner is not None else world.ask))

    def _new_name(self, prefix: str = "vm") -> str:
        gone = [name for name in self._world.ledger.settled(Known.GONE) if name.startswith(prefix)]
        if gone and self._chance.random() < 0.2:
            return self._chance.choice(gone)
        self._count += 1
        return f"{prefix}{self._count}"

    async def deploy(self, name: str, ask: Asks, *, dry_run: bool = False) -> None:
        """Order a VM of any size, and keep in the ledger what is answered."""
        vcpus, level = self._chance.choice((1, 1, 2, 2, 4, 7)), self._chance.choice(LEVELS)
        memory = self._chance.choice((1024, 2048, 4096))
        request = requests.Deploy(
            name=name, vcpus=vcpus, memory_mib=memory, level=level, image="/images/any.qcow2", dry_run=dry_run
        )
        before = self._world.ledger.begin(name)
        told, new = Known.UNCLEAR, False
        try:
            reply = await ask(request)
            told, new = (before, False) if dry_run else (Known.THERE, True)
            if not dry_run:
                self._world.ledger.sized(name, vcpus, memory, level)
            if not isinstance(reply, replies.Deployed) or (reply.name, reply.level, reply.dry_run) != (
                name,
                level,
                dry_run,
            ):
                self.internal.append(f"{request} was answered {reply}")
        except Died:
            told = before if dry_run else Known.UNCLEAR
        except VmstackError as error:
            self._look_at(error, request)
            told = Known.UNCLEAR if error.details.get("outcome") == "unknown" else before
        finally:
            self._world.ledger.end(name, told, new=new)
            self._world.note(f"deploy {name} {vcpus} {level}: {told.value}{' (dry run)' if dry_run else ''}")

    async def remove(self, name: str, ask: Asks, *, dry_run: bool = False) -> None:
        """Have a VM removed, and keep in the ledger what is answered."""
        request = requests.Remove(name=name, dry_run=dry_run)
        before = self._world.ledger.begin(name)
        told = Known.UNCLEAR
        try:
            await ask(request)
            told = before if dry_run else Known.GONE
        except Died:
            told = before if dry_run else Known.UNCLEAR
        except VmstackError as error:
            self._look_at(error, request)
            unclear = error.details.get("outcome") == "unknown" or isinstance(error, HypervisorFailed | Internal)
            told = Known.UNCLEAR if unclear else before
        finally:
            self._world.ledger.end(name, told)
            self._world.note(f"remove {name}: {told.value}")

    def _look_at(self, error: VmstackError, request: requests.Request) -> None:
        self._world.note(f"{type(request).__name__} {getattr(request, 'name', '')} refused: {error.message}")
        if isinstance(error, Internal):
            self.internal.append(f"{request}: {error.message}")

    # Faults

    def _host(self) -> Host:
        return self._chance.choice(list(self._world.hosts.values()))

    async def _kill_host(self) -> None:
        host = self._host()
        self._world.note(f"{host.name}: daemon killed")
        host.kill()
        await asyncio.sleep(self._chance.choice((0.0, 0.3, 3.0)))
        await host.start()

    async def _kill_at_effect(self) -> None:
        host, killed = self._host(), asyncio.Event()

        def kill() -> None:
            self._world.note(f"{host.name}: daemon killed at once")
            host.kill()
            killed.set()

        host.machine.effects = kill
        try:
            async with asyncio.timeout(5.0):
                await killed.wait()
        except TimeoutError:
            if host.machine.effects is kill:
                host.machine.effects = None
            return
        await asyncio.sleep(self._chance.choice((0.0, 0.3)))
        await host.start()

    async def _kill_globald(self) -> None:
        self._world.note("globald killed")
        self._world.kill_globald()
        await asyncio.sleep(self._chance.choice((0.0, 0.3, 3.0)))
        await self._world.start_globald()

    async def _kill_both(self) -> None:
        self._world.kill_globald()
        await self._kill_host()
        await self._world.start_globald()

    async def _stop_host(self) -> None:
        host = self._host()
        await host.stop()
        await asyncio.sleep(self._chance.choice((0.0, 1.0)))
        await host.start()

    async def _power_cut(self) -> None:
        host = self._host()
        host.power_off()
        await asyncio.sleep(self._chance.choice((1.0, 20.0)))
        if not host.machine.powered:
            host.machine.power_on()
        await host.start()

    def _lose_link(self) -> None:
        self._host().machine.lose_link(self._chance.choice((0.3, 3.0, 8.0)))

    def _stall(self) -> None:
        self._host().machine.stall(self._chance.choice((1.0, 3.0, 8.0, 20.0)))

    async def _trouble(self) -> None:
        machine = self._host().machine
        machine.trouble = self._chance.choice((0.05, 0.3))
        await asyncio.sleep(5.0)
        machine.trouble = 0.0

    async def _partition(self) -> None:
        network, name = self._world.network, self._host().name
        ways = self._chance.choice((((GLOBALD, name), (name, GLOBALD)), ((GLOBALD, name),), ((name, GLOBALD),)))
        for way in ways:
            network.block(*way)
        self._world.note(f"cut: {ways}")
        await asyncio.sleep(self._chance.choice((0.5, 3.0, 12.0, 40.0)))
        network.heal(name)
        self._world.note(f"{name}: healed")

    def _running(self) -> tuple[Host, str] | None:
        found = [(host, name) for host in self._world.hosts.values() for name in sorted(host.machine.running)]
        return self._chance.choice(found) if found else None

    def _vm_dies(self) -> None:
        found = self._running()
        if found is not None:
            host, name = found
            host.machine.end(name)

    def _stranger_starts(self) -> None:
        machine = self._host().machine
        if machine.powered:
            self._count += 1
            cpus = frozenset(self._chance.sample(sorted(machine.topology.cpu_ids), self._chance.choice((1, 3))))
            domain = Domain(machine.new_uuid(), self._chance.choice((1, 2)), 1024, cpus, None)
            domain.defined = self._chance.random() < 0.5
            name = f"foreign{self._count}"
            machine.domains[name] = domain
            self._world.ledger.appeared(name)
            machine.changed("foreign start", name)

    def _stranger_pins(self) -> None:
        found = self._running()
        if found is not None:
            host, name = found
            domain = host.machine.domains[name]
            if self._chance.random() < 0.5:  # one thread, to one of the CPUs that it may use
                domain.threads[0] = frozenset({self._chance.choice(sorted(domain.pinned))})
            else:
                cpus = frozenset(self._chance.sample(sorted(host.machine.topology.cpu_ids), 2))
                domain.threads = [cpus] * len(domain.threads)
            domain.level = None
            host.machine.changed("foreign pin", name)

    def _stranger_erases(self) -> None:
        found = self._running()
        if found is not None:
            host, name = found
            domain = host.machine.domains[name]
            domain.record = domain.level = None  # to whom it belongs is for the daemon to find out
            self._world.ledger.erased(name)
            host.machine.changed("foreign metadata", name)

    def _stranger_restarts(self) -> None:
        off = [
            (host, name)
            for host in self._world.hosts.values()
            for name, domain in host.machine.domains.items()
            if not domain.running and host.machine.powered and not self._world.ledger.entries[name].asked
        ]
        if off:
            host, name = self._chance.choice(off)
            domain = host.machine.domains[name]
            domain.running, domain.level = True, None
            self._world.ledger.entries[name].ended = False
            host.machine.changed("foreign restart", name)

    def _set_clock(self) -> None:
        by = self._chance.choice((-86400.0, -3.0, 3.0, 86400.0))
        self._world.loop.set_wall(by)
        self._world.note(f"clocks are set by {by} s")

    async def _check(self) -> None:
        with contextlib.suppress(VmstackError, Died):
            await self._host().ask(requests.Check(dry_run=self._chance.random() < 0.5))

    async def _cordon(self) -> None:
        host = self._host()
        for request in (requests.Cordon(host=host.name, reason="simulated"), requests.Uncordon(host=host.name)):
            try:
                await self._world.ask(request)
            except (VmstackError, Died):
                with contextlib.suppress(VmstackError, Died):
                    await host.ask(request)
            await asyncio.sleep(2.0)


def chance_of(seed: int) -> random.Random:
    """Everything of a story comes from here."""
    return random.Random(seed)
