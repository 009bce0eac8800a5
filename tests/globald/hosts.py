"""Real hosts in this process, each an engine on simulated VMs behind TCP, and the cluster of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from core.allocator import empty_state
from core.host_policy import HOST_POLICIES
from core.model import Rules
from core.policy import POLICIES
from globald.cluster import Cluster
from globald.member import Member, State
from tests.faulty import OPERATOR, FaultySim
from tests.running import PATIENCE
from tests.transports.endpoint import until
from vmstackd.api import replies, requests
from vmstackd.api.errors import VmstackError
from vmstackd.daemon import http, stream
from vmstackd.engine import Engine
from vmstackd.local_state import LocalState
from vmstackd.topology_source import load_topology

TINY = "synthetic:sockets=1,l3=1,cores=4,smt=1,memory=8192"
"""4 CPUs, 8 GiB."""
SMALL = "synthetic:sockets=1,l3=2,cores=4,smt=1,memory=65536"
"""8 CPUs, 64 GiB."""
LARGE = "synthetic:sockets=2,l3=2,cores=4,smt=2,memory=262144"
"""32 CPUs, 256 GiB."""

_R = TypeVar("_R", bound=replies.Reply)


class RealHost:
    """Its VMs, its UUID, its cordon and its port outlive its daemon, as those of a real host do."""

    def __init__(self, name: str, topology: str = SMALL, critical_size: int = 0, state_dir: Path | None = None) -> None:
        self.name = name
        self.simulated = FaultySim()
        self.port = 0
        self._topology = load_topology(topology)
        self._rules = Rules(critical_size=critical_size)
        self._folder = state_dir

    @property
    def address(self) -> str:
        """As the cluster calls it."""
        return f"127.0.0.1:{self.port}"

    @property
    def vms(self) -> set[str]:
        """Names of what really runs."""
        return {name for name, vm in self.simulated.vms.items() if vm.running}

    async def start(self) -> None:
        """The daemon, for the first time or again."""
        local = LocalState(self._folder)
        policy = POLICIES["reference"]
        state = empty_state(self._topology, self._rules, 0)
        self.engine = Engine(state, policy, self.simulated, local=local, name=self.name, period=3600.0)
        await self.engine.start()
        listener = http.listen("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        self.transport = stream.StreamTransport(self.engine, listener)
        await self.transport.start()

    async def stop(self) -> None:
        """In order."""
        await self.transport.stop()
        await self.engine.stop()

    async def crash(self) -> None:
        """As SIGKILL: nobody is told anything, and nothing is finished."""
        for connection in list(self.transport._connections):
            connection.close()
        for task in (*self.engine._operations, *self.engine._tasks):
            task.cancel()
        await asyncio.gather(*self.engine._operations, *self.engine._tasks, return_exceptions=True)
        await self.stop()

    async def ask(self, request: requests.Request) -> replies.Reply:
        """Something on the host itself, past the cluster."""
        return await asyncio.wait_for(self.engine.handle(request, OPERATOR, "direct"), PATIENCE)


class Together:
    """A cluster and its hosts."""

    def __init__(self, cluster: Cluster, hosts: dict[str, RealHost]) -> None:
        self.cluster = cluster
        self.hosts = hosts

    async def ask(self, request: requests.Request, answer: type[_R]) -> _R:
        """What the cluster answers."""
        reply = await asyncio.wait_for(self.cluster.handle(request, OPERATOR, "test"), PATIENCE)
        assert isinstance(reply, answer)
        return reply

    async def deploy(self, request: requests.Deploy) -> replies.Deployed:
        return await self.ask(request, replies.Deployed)

    async def refusal(self, request: requests.Request) -> VmstackError:
        """The error of a request that must fail."""
        try:
            reply = await asyncio.wait_for(self.cluster.handle(request, OPERATOR, "test"), PATIENCE)
        except VmstackError as error:
            return error
        raise AssertionError(f"it was answered: {reply}")

    def member(self, name: str) -> Member:
        """What the cluster knows of a host. name: or address."""
        found = self.cluster.members.find(name)
        assert found is not None
        return found

    async def state(self, name: str, *states: str) -> replies.HostReply:
        """Wait until a host is shown in one of these states."""

        def shown() -> list[replies.HostReply]:
            hosts = self.cluster.hosts().hosts
            return [host for host in hosts if name in (host.name, host.address) and host.state in states]

        await until(lambda: bool(shown()))
        return shown()[0]

    async def settled(self) -> None:
        """Wait until the cluster knows exactly what the hosts have."""
        await until(lambda: not self.differences())

    def differences(self) -> list[str]:
        """Where the cluster is wrong about hosts that are up, in words."""
        found = []
        members = self.cluster.members
        if members.claims:
            found.append(f"claims: {sorted(members.claims)}")
        for name, host in self.hosts.items():
            member = members.find(name)
            if member is None or member.state is not State.UP:
                continue
            real = host.vms
            if member.names != real:
                found.append(f"{name} has {sorted(real)}, not {sorted(member.names)}")
            if member.pending:
                found.append(f"{name} is still waited for: {sorted(member.pending)}")
            if members.inventory.status(member.number) != host.engine.status().host:
                found.append(f"{name} has other figures")
            found += [f"{vm} is not known on {name}" for vm in real if member not in members.owners(vm)]
        return found


def vm(name: str, vcpus: int = 2, memory_mib: int = 2048, level: int = 1000, **more: object) -> requests.Deploy:
    """A deployment."""
    image = f"/images/{len(name)}.qcow2"
    return requests.Deploy(name=name, vcpus=vcpus, memory_mib=memory_mib, level=level, image=image, **more)  # type: ignore[arg-type]  # as the caller says


@asynccontextmanager
async def cluster_of(
    addresses: Iterable[str],
    *,
    folder: Path | None = None,
    attempts: int = 3,
    patience: float = PATIENCE,
    policy: str = "progress",
    learn: bool = True,
) -> AsyncIterator[Cluster]:
    """A started cluster. learn: wait until it has heard from all."""
    cluster = Cluster(addresses, folder, HOST_POLICIES[policy], attempts=attempts, patience=patience, tls=None)
    await cluster.start()
    try:
        if learn:
            await until(lambda: cluster.learned)
        yield cluster
        assert cluster.running
    finally:
        await cluster.stop()


@asynccontextmanager
async def started(*hosts: RealHost) -> AsyncIterator[dict[str, RealHost]]:
    """Hosts by name."""
    async with AsyncExitStack() as stack:
        for host in hosts:
            await host.start()
            stack.push_async_callback(_stop, host)
        yield {host.name: host for host in hosts}


async def _stop(host: RealHost) -> None:
    """Whichever life of its daemon is the last one."""
    await host.stop()


@asynccontextmanager
async def together(
    *hosts: RealHost,
    others: Iterable[str] = (),
    attempts: int = 3,
    patience: float = PATIENCE,
    policy: str = "progress",
    folder: Path | None = None,
    learn: bool = True,
) -> AsyncIterator[Together]:
    """A cluster on real hosts. others: addresses of further ones, behind them."""
    async with (
        started(*hosts) as found,
        cluster_of(
            [*(host.address for host in hosts), *others],
            folder=folder,
            attempts=attempts,
            patience=patience,
            policy=policy,
            learn=learn,
        ) as cluster,
    ):
        yield Together(cluster, found)
