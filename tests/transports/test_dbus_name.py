"""The name on the bus: who has it, and how it is taken back when the bus was away."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from tests.faulty import FaultySim
from tests.running import PATIENCE
from tests.transports.bus import (
    Bus,
    Served,
    bus,
    client_of,
    new_engine,
    on,
    refused,
    running_bus,
    served,
)
from tests.transports.endpoint import until
from vmstackd.daemon import log
from vmstackd.transports import dbus
from vmstackd.transports.dbus import NAME, DbusTransport, NameTaken
from vmstackd.transports.dbus_connection import Connection
from vmstackd.transports.dbus_values import subset_path, vm_path

__all__ = ["bus"]


IMAGE = "/var/lib/libvirt/images/hello.qcow2"
EXAMPLE = ("example", 2, 2.0, 2.0, IMAGE)

COMMAND = Path("/proc/self/comm").read_text(encoding="utf-8").strip()


def test_a_second_owner_is_refused_and_told_who_has_the_name(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        second = DbusTransport(new_engine(), bus.address)
        with pytest.raises(NameTaken) as caught:
            await second.start()
        assert str(caught.value) == f"process {os.getpid()} ({COMMAND}) has the name {NAME}"
        assert not second.owned
        assert on_bus.transport.owned
        assert await on_bus.client.call("List") == []

    on(bus, check)


@pytest.mark.parametrize("spec", ["unix:path=/nowhere/bus", "session", "tcp:host=nowhere.invalid,port=1", "nonsense:x"])
def test_no_bus_is_an_error(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/session")

    async def main() -> None:
        transport = DbusTransport(new_engine(), spec)
        with pytest.raises(OSError, match="bus"):
            await transport.start()
        assert not transport.owned
        await transport.stop()

    asyncio.run(main())
    assert os.environ["DBUS_SESSION_BUS_ADDRESS"] == "unix:path=/nowhere/session"


@pytest.mark.parametrize("spec", ["system", "session"])
def test_buses_known_by_name(bus: Bus, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"DBUS_{spec.upper()}_BUS_ADDRESS", bus.address)

    async def main() -> None:
        async with served(bus, spec=spec) as on_bus:
            assert on_bus.transport.address == spec
            assert await on_bus.client.call("List") == []

    asyncio.run(main())


def test_after_the_bus_was_killed_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dbus, "LAST_RETRY_S", 0.2)
    caplog.set_level(logging.INFO, log.logger.name)

    async def main(bus: Bus) -> None:
        engine = new_engine()
        transport = DbusTransport(engine, bus.address)
        await transport.start()
        await engine.start()
        async with client_of(bus.address) as client:
            await client.call("Deploy", "sudds", *EXAMPLE)
        open_before = descriptors()
        for _ in range(5):
            bus.kill()
            await until(lambda: not transport.owned)
            # Whoever gets the numbers of the descriptors that are gone must keep them.
            ours_, theirs = os.pipe()
            heard = asyncio.Event()
            asyncio.get_running_loop().add_reader(ours_, heard.set)
            await asyncio.sleep(0.3)
            bus.start()
            await until(lambda: transport.owned)
            os.write(theirs, b"x")
            await asyncio.wait_for(heard.wait(), PATIENCE)
            asyncio.get_running_loop().remove_reader(ours_)
            os.close(ours_)
            os.close(theirs)
            async with client_of(bus.address) as client:
                assert [vm[0] for vm in await client.call("List")] == ["example"]
                assert set(await client.managed()) == {subset_path(2000), vm_path("example")}
            assert transport.address == bus.address
        await until(lambda: descriptors() == open_before)
        await engine.stop()
        await transport.stop()

    with running_bus(tmp_path) as bus:
        asyncio.run(main(bus))
    events = [record.getMessage() for record in caplog.records]
    assert events.count("dbus-lost") == events.count("dbus-restored") == 5


def test_an_operation_survives_the_bus(tmp_path: Path) -> None:
    sim = FaultySim()

    async def main(bus: Bus) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def plan(operation: str, _: str) -> None:
            if operation == "create":
                begun.set()
                await go_on.wait()

        async with served(bus, sim) as on_bus:
            sim.plan = plan
            call = asyncio.create_task(on_bus.client.call("Deploy", "sudds", *EXAMPLE))
            await begun.wait()
            bus.kill()
            await refused(call)
            go_on.set()
            await until(lambda: "example" in sim.vms)
            bus.start()
            await until(lambda: on_bus.transport.owned)
            async with client_of(bus.address) as again:
                assert (await again.call("List"))[0][0] == "example"

    with running_bus(tmp_path) as bus:
        asyncio.run(main(bus))


def test_a_name_that_was_lost_is_taken_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "CHECK_S", 0.05)

    async def check(on_bus: Served) -> None:
        before = on_bus.transport._connection
        assert before is not None
        await before.give_name(NAME)
        await until(lambda: on_bus.transport._connection not in (None, before))
        assert await on_bus.client.call("List") == []

    on(bus, check)


def test_a_name_that_somebody_else_has_meanwhile_is_waited_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dbus, "CHECK_S", 0.05)
    monkeypatch.setattr(dbus, "LAST_RETRY_S", 0.2)

    async def check(on_bus: Served) -> None:
        thief = await Connection.open(bus.address)
        assert on_bus.transport._connection is not None
        await on_bus.transport._connection.give_name(NAME)
        assert await thief.take_name(NAME)
        await until(lambda: "dbus-unreachable" in caplog.text)
        assert not on_bus.transport.owned
        thief.close()
        await until(lambda: on_bus.transport.owned)
        assert await on_bus.client.call("List") == []

    on(bus, check)
