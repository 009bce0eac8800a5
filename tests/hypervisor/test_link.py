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


def test_aside_goes_on_while_all_workers_are_busy() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        go = threading.Event()
        calls = [asyncio.create_task(made.call(lambda connection: go.wait(WAIT_S))) for _ in range(2)]
        for _ in range(3):
            assert await made.call_aside(lambda connection: connection) not in driver.watched
        assert driver.open == 4
        go.set()
        assert await asyncio.gather(*calls) == [True, True]
        with pytest.raises(HypervisorError):
            await made.call_aside(lambda connection: _refuse())
        await made.close()
        assert driver.open == 0
        with pytest.raises(HypervisorUnreachable):
            await made.call_aside(lambda connection: 1)

    asyncio.run(scenario())


def test_aside_is_given_up_and_the_next_one_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        go = threading.Event()
        for _ in range(link.ASIDE_LIMIT):
            with pytest.raises(HypervisorError, match=r"has not answered for 0\.05 seconds") as raised:
                await made.call_aside(lambda connection: go.wait(WAIT_S))
            assert raised.type is HypervisorError
            assert await made.call(lambda connection: 1) == 1
        asked: list[int] = []
        for _ in range(2):
            with pytest.raises(HypervisorError, match="yet to answer 4 earlier questions"):
                await made.call_aside(lambda connection: asked.append(1))
        assert asked == []
        go.set()
        async with asyncio.timeout(WAIT_S):
            while asked == []:
                with contextlib.suppress(HypervisorError):
                    await made.call_aside(lambda connection: asked.append(1))
                await asyncio.sleep(0.01)
        assert events.seen == []
        await made.close()
        for thread in threading.enumerate():
            if thread.name.startswith("hypervisor-aside"):
                thread.join(WAIT_S)
        assert driver.open == 0

    monkeypatch.setattr(link, "ASIDE_TIMEOUT_S", 0.05)
    asyncio.run(scenario())


def test_nothing_aside_loses_the_link() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        with pytest.raises(HypervisorUnreachable, match="broke"):
            await made.call_aside(lambda connection: 1 // 0)
        driver.down = True
        with pytest.raises(HypervisorUnreachable, match="down"):
            await made.call_aside(lambda connection: 1)
        driver.down = False
        assert await made.call_aside(lambda connection: 1) == 1
        assert events.seen == []
        await made.close()
        assert driver.open == 0

    asyncio.run(scenario())


def test_aside_ends_with_the_link_and_returns_with_it() -> None:
    async def scenario() -> None:
        driver, events = FakeDriver(), Events()
        made = await opened(driver, events)
        first = await made.call_aside(lambda connection: connection)
        go = threading.Event()
        call = asyncio.create_task(made.call_aside(lambda connection: go.wait(WAIT_S)))
        await asyncio.sleep(0)
        driver.watched[0].on_lost("cut")
        with pytest.raises(HypervisorUnreachable, match="cut"):
            await call
        go.set()
        await events.wait("restored")
        assert await made.call_aside(lambda connection: connection) is not first
        await made.close()
        assert driver.open == 0

    asyncio.run(scenario())


def test_closing_does_not_wait_for_ever_for_what_is_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        made = await opened(FakeDriver(), Events())
        go = threading.Event()
        call = asyncio.create_task(made.call_aside(lambda connection: go.wait(WAIT_S)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(WAIT_S / 2):
            await made.close()
        assert not call.done()
        go.set()
        assert await call

    monkeypatch.setattr(link, "CLOSE_TIMEOUT_S", 0.1)
    asyncio.run(scenario())


def _refuse() -> None:
    raise HypervisorError("no")
