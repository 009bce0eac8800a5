"""A message bus of the tests' own, the D-Bus transport on it, and a client that is told everything."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from sdbus.sd_bus_internals import SdBusMessage, SdBusSlot

from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from tests.running import PATIENCE, SMALL_HOST
from vmstackd.engine import Engine
from vmstackd.hypervisor.base import Hypervisor
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.topology_source import load_topology
from vmstackd.transports.dbus import NAME, DbusTransport
from vmstackd.transports.dbus_connection import CallFailed, Connection
from vmstackd.transports.dbus_values import HOST_PATH

NOBODY = 65534
"""The user of an unprivileged caller."""

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <{calls} send_type="method_call"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
  <policy user="{user}"><allow own="*"/></policy>
  <limit name="max_replies_per_connection">100000</limit>
  {more}
</busconfig>
"""
"""The tests' user may have any name. calls: "allow" or, as on the system's bus, "deny"."""


class Bus:
    """A dbus-daemon that everybody may connect to; it can be ended and started again at the same address.

    policy: a file of it, for a bus on which it alone allows calls. Otherwise everybody may call everybody.
    """

    def __init__(self, directory: Path, policy: str = "") -> None:
        directory.chmod(0o755)
        self._socket = directory / "bus"
        self._config = directory / "bus.conf"
        more = ""
        if policy:
            (directory / "policy.conf").write_text(policy)
            more = f"<include>{directory / 'policy.conf'}</include>"
        calls = "deny" if policy else "allow"
        self._config.write_text(CONFIG.format(socket=self._socket, user=os.getuid(), calls=calls, more=more))
        self.address = f"unix:path={self._socket}"
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Return when it takes connections."""
        self._socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("unix:path=")

    def kill(self) -> None:
        """With SIGKILL."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


@contextlib.contextmanager
def running_bus(directory: Path, policy: str = "") -> Iterator[Bus]:
    """A bus in this directory, see Bus; skips the test where there is no dbus-daemon."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    # A directory of pytest's is closed to other users.
    for parent in (directory, *directory.parents):
        if parent.stat().st_uid == os.getuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o111)
    with Bus(directory, policy) as bus:
        yield bus


class Told(NamedTuple):
    """A signal."""

    path: str
    name: str
    values: tuple[Any, ...]


class Client:
    """Another connection to the bus. signals: all from vmstackd, in their order."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.signals: list[Told] = []
        self._slots: list[SdBusSlot] = []

    async def listen(self) -> None:
        """Be told of signals from now on."""
        bus = self.connection._open_bus
        self._slots.append(await bus.match_signal_async(NAME, None, None, None, self._told))

    def _told(self, message: SdBusMessage) -> None:
        values = message.parse_to_tuple()
        self.signals.append(Told(message.path or "", message.member or "", values))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The values of the signals of this name."""
        return [signal.values for signal in self.signals if signal.name == name]

    async def call(self, member: str, signature: str = "", *values: object, path: str = HOST_PATH) -> Any:  # noqa: ANN401
        """What a method of the host, or of a VM's object, answers. Raises CallFailed."""
        interface = NAME if path == HOST_PATH else "org.vmstack.VM1"
        answers = await self.connection.call((NAME, path, interface), member, signature, *values, patience=PATIENCE)
        return answers[0] if answers else None

    async def properties(self, path: str = HOST_PATH, interface: str = NAME) -> dict[str, Any]:
        """All of them; None for no number."""
        (found,) = await self.connection.call((NAME, path, "org.freedesktop.DBus.Properties"), "GetAll", "s", interface)
        return _plain(found)

    async def managed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Our interfaces of every object, with their properties."""
        (found,) = await self.connection.call(
            (NAME, HOST_PATH, "org.freedesktop.DBus.ObjectManager"), "GetManagedObjects", ""
        )
        return {path: ours(interfaces) for path, interfaces in found.items()}

    async def introspect(self, path: str) -> str:
        """The XML of an object."""
        (xml,) = await self.connection.call((NAME, path, "org.freedesktop.DBus.Introspectable"), "Introspect", "")
        return str(xml)

    def close(self) -> None:
        """Leave the bus."""
        for slot in self._slots:
            slot.close()
        self._slots.clear()
        self.connection.close()


def ours(interfaces: dict[str, dict[str, tuple[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Without those of D-Bus, and without signatures; None for no number."""
    return {
        interface: _plain(properties)
        for interface, properties in interfaces.items()
        if interface.startswith("org.vmstack.")
    }


def _plain(properties: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """What can be compared: no number is like another."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, (_, value) in properties.items()
    }


@contextlib.asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    """A client that listens."""
    client = Client(await Connection.open(address))
    try:
        await client.listen()
        yield client
    finally:
        client.close()


class Served(NamedTuple):
    """An engine on a bus, and somebody who calls it."""

    engine: Engine
    transport: DbusTransport
    client: Client


def measured_sim() -> SimHypervisor:
    """A simulated SMALL_HOST of which everything is measured, with 15 s between two rounds however soon they come."""
    return SimHypervisor(clock=itertools.count(0.0, 15.0).__next__, topology=load_topology(SMALL_HOST))


def new_engine(hypervisor: Hypervisor | None = None, topology: str = SMALL_HOST) -> Engine:
    """Not started; its levels hold from the first VM on."""
    return Engine(
        empty_state(load_topology(topology), Rules(critical_size=0), 0),
        POLICIES["reference"],
        SimHypervisor() if hypervisor is None else hypervisor,
        period=3600.0,
    )


@contextlib.asynccontextmanager
async def served(bus: Bus, hypervisor: Hypervisor | None = None, *, spec: str = "") -> AsyncIterator[Served]:
    """A started engine on the bus. spec: how it is told of the bus, its address unless given."""
    engine = new_engine(hypervisor)
    transport = DbusTransport(engine, spec or bus.address)
    await transport.start()
    await engine.start()
    try:
        async with client_of(bus.address) as client:
            yield Served(engine, transport, client)
    finally:
        await engine.stop()
        await transport.stop()


async def run(*command: str, user: int | None = None) -> tuple[int, str, str]:
    """Run a program, as another user if one is given: code, output and errors."""
    as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    process = await asyncio.create_subprocess_exec(
        *as_user, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/"
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode or 0, out.decode().strip(), err.decode().strip()


async def busctl(bus: Bus, *arguments: str, user: int | None = None) -> tuple[int, str, str]:
    """Run busctl on this bus."""
    if shutil.which("busctl") is None:
        pytest.skip("busctl is not installed")
    return await run("busctl", f"--address={bus.address}", *arguments, user=user)


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """For the tests of one module, which have to name it to use it."""
    with running_bus(tmp_path_factory.mktemp("bus")) as found:
        yield found


def on(bus: Bus, check: Callable[[Served], Awaitable[None]], hypervisor: SimHypervisor | None = None) -> None:
    """Run a check with a started engine on the bus."""

    async def main() -> None:
        async with served(bus, hypervisor) as found:
            await check(found)

    asyncio.run(main())


async def refused(call: Awaitable[Any]) -> CallFailed:
    """The error that a call must end with."""
    with pytest.raises(CallFailed) as caught:
        await call
    return caught.value
