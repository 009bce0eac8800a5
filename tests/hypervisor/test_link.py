"""Losing and restoring a link, over a driver without a hypervisor."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.hypervisor.backends import Events
from tests.real import WAIT_S
from vmstackd.hypervisor import link
from vmstackd.hypervisor.base import HypervisorError, HypervisorUnreachable
from vmstackd.hypervisor.link import Link


class FakeConnection:
    """on_lost, on_changed: set when watched."""

    on_lost: Callable[[str], None]
    on_changed: Callable[[str], None]


class FakeDriver:
    """watched: connections for events, in order. hang: what connecting waits for."""

    def __init__(self) -> None:
        self.down = False
        self.hang: threading.Event | None = None
        self.watched: list[FakeConnection] = []
        self.open = 0

    def connect(self) -> FakeConnection:
        """As in link.Driver."""
        if self.hang is not None:
            self.hang.wait(WAIT_S)
        if self.down:
            raise HypervisorUnreachable("down")
        self.open += 1
        return FakeConnection()

    def disconnect(self, connection: FakeConnection) -> None:
        """As in link.Driver."""
        self.open -= 1

    def watch(
        self, connection: FakeConnection, on_lost: Callable[[str], None], on_changed: Callable[[str], None]
    ) -> None:
        """As in link.Driver."""
        connection.on_lost, connection.on_changed = on_lost, on_changed
        self.watched.append(connection)

    def unwatch(self, connection: FakeConnection) -> None:
        """As in link.Driver."""

    @contextlib.contextmanager
    def errors(self, connection: FakeConnection) -> Iterator[None]:
        """As in link.Driver."""
        try:
            yield
        except ZeroDivisionError as error:
            raise HypervisorUnreachable("broke") from error


async def opened(driver: FakeDriver, events: Events) -> Link[FakeConnection]:
    made = Link(driver, 2)
    await made.open(events)
    return made


def test_lost_and_restored() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        driver.watched[0].on_changed("a")
        await events.wait("changed", "a")
        driver.down = True
        driver.watched[0].on_lost("cut")
        driver.watched[0].on_lost("cut again")
        assert (await events.wait("lost")).reason == "cut"
        with pytest.raises(HypervisorUnreachable):
            await made.call(lambda connection: connection)
        await asyncio.sleep(0.5)
        assert events.seen == []
        driver.down = False
        await events.wait("restored")
        driver.watched[0].on_changed("stale")
        driver.watched[0].on_lost("stale")
        driver.watched[1].on_changed("b")
        assert (await events.wait("changed", "b")).vm == "b"
        assert await made.call(lambda connection: 1) == 1
        assert events.seen == []
        await made.close()
        assert driver.open == 0

    asyncio.run(scenario())


def test_a_broken_call_loses_the_link() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        with pytest.raises(HypervisorUnreachable, match="broke"):
            await made.call(lambda connection: 1 // 0)
        await events.wait("lost")
        await events.wait("restored")
        await made.close()

    asyncio.run(scenario())


def test_lost_again_before_it_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        watch = driver.watch

        def watch_and_lose(
            connection: FakeConnection, on_lost: Callable[[str], None], on_changed: Callable[[str], None]
        ) -> None:
            watch(connection, on_lost, on_changed)
            if len(driver.watched) == 2:
                on_lost("at once")

        monkeypatch.setattr(driver, "watch", watch_and_lose)
        driver.watched[0].on_lost("cut")
        await events.wait("lost")
        assert (await events.wait("restored")).kind == "restored"
        assert len(driver.watched) == 3
        assert events.seen == []
        await made.close()

    asyncio.run(scenario())


def test_no_call_outlasts_the_link() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        driver.hang = threading.Event()
        calls = [asyncio.create_task(made.call(lambda connection: connection)) for _ in range(5)]
        await asyncio.sleep(0)
        driver.watched[0].on_lost("no answer")
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(result) for result in results] == ["no answer"] * 5
        driver.hang.set()
        driver.hang = None
        await events.wait("restored")
        assert await made.call(lambda connection: 1) == 1
        await made.close()

    asyncio.run(scenario())


def test_a_hypervisor_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        driver = FakeDriver()
        driver.hang = threading.Event()
        with pytest.raises(HypervisorUnreachable, match="does not answer"):
            await opened(driver, Events())
        driver.hang.set()

    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(link, "CLOSE_TIMEOUT_S", 0.1)
    asyncio.run(scenario())


def test_a_cancelled_call() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        go = threading.Event()
        call = asyncio.create_task(made.call(lambda connection: go.wait(WAIT_S)))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go.set()
        with pytest.raises(HypervisorError):
            await made.call(lambda connection: _refuse())
        assert events.seen == []
        await made.close()

    asyncio.run(scenario())


def _refuse() -> None:
    raise HypervisorError("no")
