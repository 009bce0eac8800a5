"""HTTP clients that do nothing, or only half of something."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from aiohttp import web

from tests.running import PATIENCE
from tests.transports.endpoint import endpoint
from vmstackd.daemon import http, http_connections
from vmstackd.transports.http import HostHttp

SILENT = {
    "nothing": b"",
    "half a line": b"GET /sta",
    "half a head": b"GET /status HTTP/1.1\r\nHost: localhost\r\n",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the endpoint is, but in hundredths of seconds."""
    monkeypatch.setattr(http_connections, "PERIOD_S", 0.01)
    monkeypatch.setattr(http_connections, "FIRST_S", 0.05)
    monkeypatch.setattr(http_connections, "IDLE_S", 0.05)
    monkeypatch.setattr(http, "FORM_PATIENCE_S", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", SILENT.values(), ids=list(SILENT))
def test_who_sends_no_whole_request_is_cut_off(sent: bytes) -> None:
    async def run() -> None:
        async with endpoint() as host:
            assert await host.raw_until_cut(sent) == b""

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_who_asks_nothing_more_is_cut_off() -> None:
    async def run() -> None:
        async with endpoint() as host:
            answer = await host.raw_until_cut(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_a_form_that_does_not_come_is_refused() -> None:
    head = b"POST /remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    head += b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname="

    async def run() -> None:
        async with endpoint() as host:
            answer = await host.raw_until_cut(head)
            assert answer.startswith(b"HTTP/1.1 400")
            assert b"did not come in time" in answer

    asyncio.run(run())


def test_a_thousand_idle_clients_keep_nobody_from_being_served() -> None:
    async def run() -> None:
        async with endpoint() as host:
            idle = [await asyncio.open_connection(host.host, host.port) for _ in range(1000)]
            assert (await host.get("/status")).status == 200
            for _, writer in idle:
                writer.close()

    asyncio.run(run())


HALF_A_FORM = (
    b"POST /remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname="
)


@pytest.mark.parametrize("sent", [*SILENT.values(), HALF_A_FORM], ids=[*SILENT, "half a form"])
def test_beyond_the_limit_who_asks_nothing_makes_room(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MOST", 3)

    async def run() -> None:
        async with endpoint() as host:
            idle = [await asyncio.open_connection(host.host, host.port) for _ in range(3)]
            for _, writer in idle:
                writer.write(sent)
                await writer.drain()
            for _ in range(3):
                assert (await host.raw_until_cut(b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200")
            async with asyncio.timeout(PATIENCE):
                with suppress(ConnectionError):
                    assert await idle[0][0].read() == b""  # the oldest
            for _, writer in idle:
                writer.close()

    asyncio.run(run())


def test_beyond_the_limit_of_those_at_work_clients_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MOST", 3)
    at_work, release = asyncio.Event(), asyncio.Event()
    working = 0

    async def slow(self: HostHttp, _: web.Request) -> web.Response:
        nonlocal working
        working += 1
        if working == 3:
            at_work.set()
        await release.wait()
        return web.Response()

    monkeypatch.setattr(HostHttp, "list", slow)

    async def run() -> None:
        async with endpoint() as host, asyncio.timeout(PATIENCE):
            asking = [asyncio.create_task(host.raw_until_cut(b"GET /listvm HTTP/1.0\r\n\r\n")) for _ in range(3)]
            await at_work.wait()
            assert await host.raw_until_cut(b"GET / HTTP/1.0\r\n\r\n") == b""
            release.set()
            assert all(answer.startswith(b"HTTP/1.0 200") for answer in await asyncio.gather(*asking))
            while not await host.raw_until_cut(b"GET / HTTP/1.0\r\n\r\n"):
                pass

    asyncio.run(run())
