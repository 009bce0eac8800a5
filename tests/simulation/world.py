"""Machines with their daemons, globald, and the network between them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Coroutine
from typing import Any, cast

from core.allocator import empty_state
from core.host_policy import HOST_POLICIES
from core.invariants import broken
from core.model import Rules
from core.policy import POLICIES
from core.topology import Topology
from globald.cluster import Cluster
from tests.simulation.clock import Process, VirtualLoop
from tests.simulation.ledger import Ledger
from tests.simulation.machine import Machine, SimulatedHypervisor
from tests.simulation.network import Network, Wire
from vmstackd.address import Address
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.client import _Link
from vmstackd.daemon.callers import Visitor
from vmstackd.daemon.stream import StreamTransport, _Connection
from vmstackd.engine import Engine
from vmstackd.local_state import LocalState

USER = Caller(transport="simulated", identity="user", role=Role.OPERATOR)
GLOBALD = "globald"
PERIOD_S = 15.0
PATIENCE_S = 20.0


class Died(Exception):
    """The daemon that was asked is no more, and nobody will ever know its answer."""


class _Listener:
    """What StreamTransport wants to know of a socket."""

    family = socket.AF_INET

    def __init__(self, name: str) -> None:
        self._name = name

    def getsockname(self) -> tuple[str, int]:
        return self._name, 8097

    def setblocking(self, blocking: bool) -> None:
        """It never waits."""

    def fileno(self) -> int:
        return -1


class _Globald(Visitor):
    """Who comes over the network."""

    key = GLOBALD
    limited = False
    name = GLOBALD
    role = Role.OPERATOR
    refusal = ""


class Host:
    """A machine and its daemon, which comes and goes."""

    def __init__(self, machine: Machine, rules: Rules, policy: str, network: Network) -> None:
        self.machine = machine
        self.name = machine.name
        self._rules = rules
        self._policy = policy
        self._network = network
        self._local = LocalState(None)
        self._local.uuid = f"uuid-of-{machine.name}"
        self.process: Process | None = None
        self.engine: Engine | None = None
        self._wires: list[Wire] = []
        self.broken: list[str] = []

    async def start(self) -> None:
        """The daemon, unless it runs or the machine is off."""
        if self.process is not None or not self.machine.powered:
            return
        process = self.process = Process()
        self.machine.forget_levels()
        await self._ends(process, process.run(self._begin(process)))

    async def _begin(self, process: Process) -> None:
        hypervisor = SimulatedHypervisor(self.machine, process, self._level_of)
        state = empty_state(self.machine.topology, self._rules)
        engine = self.engine = Engine(
            state, POLICIES[self._policy], hypervisor, local=self._local, name=self.name, period=PERIOD_S
        )
        transport = StreamTransport(engine, cast("socket.socket", _Listener(self.name)))
        transport._may_stay_awake = False  # time stands still meanwhile
        await transport.start()
        self._network.doors[self.name] = lambda wire: self._let_in(process, transport, wire)
        await engine.start(require_hypervisor=False)

    def _let_in(self, process: Process, transport: StreamTransport, wire: Wire) -> None:
        self._wires = [*(known for known in self._wires if not known.closed), wire]

        def admit() -> None:
            connection = _Connection(transport, transport._operations, _Globald())
            transport._connections.add(connection)
            transport._users[GLOBALD] += 1
            wire.attach(connection)

        process.inside(admit)

    def kill(self) -> None:
        """The daemon, as SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process = self.engine = None
            self._network.doors.pop(self.name, None)
            for wire in self._wires:
                wire.break_off()
            self._wires = []

    async def stop(self) -> None:
        """The daemon, in order."""
        process, engine = self.process, self.engine
        if process is not None and engine is not None and engine.started:
            await self._ends(process, process.run(engine.stop()))
        self.kill()

    def power_off(self) -> None:
        self._network.vanish(self.name)
        self.kill()
        self.machine.power_off()

    async def ask(self, request: requests.Request) -> replies.Reply:
        """Raises a VmstackError, or Died."""
        process, engine = self.process, self.engine
        if process is None or engine is None:
            raise Died
        return await _answer(process, engine.handle(request, USER, "direct"))

    @staticmethod
    async def _ends(process: Process, task: asyncio.Task[Any]) -> None:
        """Until this is done or the process has died."""
        with contextlib.suppress(Died):
            await _first(process, task)

    def _level_of(self, name: str) -> int | None:
        subset = None if self.engine is None else self.engine.state.subset_of(name)
        return None if subset is None else subset.level

    def look(self) -> None:
        """Whether what is decided could ever be right."""
        if self.engine is not None:
            state = self.engine.state
            self.broken += broken(state, may_owe=frozenset(subset.level for subset in state.subsets))


async def _first(process: Process, task: asyncio.Task[Any]) -> Any:  # noqa: ANN401
    """What the task returns. Raises Died if the process does."""
    dying = asyncio.ensure_future(process.dead.wait())
    try:
        await asyncio.wait((task, dying), return_when=asyncio.FIRST_COMPLETED)
        if not process.alive or task.cancelled():
            raise Died
        return task.result()
    finally:
        dying.cancel()


async def _answer(process: Process, work: Coroutine[Any, Any, replies.Reply]) -> replies.Reply:
    task = process.run(work)
    reply = await _first(process, task)
    return cast("replies.Reply", reply)


class World:
    """hosts: by name. story: what has happened, in order, with the moment of each."""

    def __init__(
        self, chance: random.Random, topologies: list[Topology], rules: Rules, *, policies: tuple[str, str]
    ) -> None:
        """policies: of hosts, and of globald."""
        self.chance = chance
        self.story: list[str] = []
        self.ledger = Ledger()
        self.network = Network(chance, self.note)
        self.hosts: dict[str, Host] = {}
        for number, topology in enumerate(topologies):
            machine = Machine(f"host{number}", topology, chance, self.note)
            machine.ended = self.ledger.died
            self.hosts[machine.name] = Host(machine, rules, policies[0], self.network)
        self._host_policy = policies[1]
        self.process: Process | None = None
        self.cluster: Cluster | None = None
        self._wires: list[Wire] = []

    def note(self, what: str) -> None:
        """Something has happened."""
        self.story.append(f"{asyncio.get_running_loop().time():10.4f} {what}")
        for host in self.hosts.values():
            host.look()

    @property
    def loop(self) -> VirtualLoop:
        return cast("VirtualLoop", asyncio.get_running_loop())

    async def connected(self, address: str, where: Address, tls: object) -> _Link:
        """In place of the one of vmstackd.client: a connection over the simulated network. Raises OSError."""
        name, process = where.host, self.process
        assert process is not None, "only globald connects"
        await asyncio.sleep(self.network.latency())
        host = self.hosts[name]
        cut = {(GLOBALD, name), (name, GLOBALD)} & self.network.blocked
        if cut or not host.machine.powered:
            await asyncio.Event().wait()  # whoever waits gives up some day
        door = self.network.doors.get(name)
        if door is None or host.process is None:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = self.network.connection((GLOBALD, process), (name, host.process))
        self._wires = [*(known for known in self._wires if not known.closed), ours]
        link = _Link(address)
        ours.attach(link)
        door(theirs)
        return link

    async def start_globald(self) -> None:
        """Unless it runs."""
        if self.process is None:
            process = self.process = Process()
            await process.run(self._begin_globald())

    async def _begin_globald(self) -> None:
        self.cluster = Cluster(
            [f"{name}:8097" for name in self.hosts],
            None,
            HOST_POLICIES[self._host_policy],
            attempts=3,
            patience=PATIENCE_S,
            tls=None,
        )
        await self.cluster.start()

    def kill_globald(self) -> None:
        """As SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process = self.cluster = None
            for wire in self._wires:
                wire.break_off()
            self._wires = []

    async def ask(self, request: requests.Request) -> replies.Reply:
        """Of globald. Raises a VmstackError, or Died."""
        process, cluster = self.process, self.cluster
        if process is None or cluster is None:
            raise Died
        return await _answer(process, cluster.handle(request, USER, "simulated"))
