"""HTTP clients that do nothing, or only half of something."""

from __future__ import annotations

import asyncio

import pytest

from tests.running import PATIENCE
from tests.transports.endpoint import endpoint
from vmstackd.daemon import http, http_connections

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


def test_beyond_the_limit_clients_are_closed_and_let_in_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MOST", 3)

    async def run() -> None:
        async with endpoint() as host:
            idle = [await asyncio.open_connection(host.host, host.port) for _ in range(3)]
            assert await host.raw_until_cut(b"GET / HTTP/1.0\r\n\r\n") == b""
            for _, writer in idle:
                writer.close()
            async with asyncio.timeout(PATIENCE):
                while not await host.raw_until_cut(b"GET / HTTP/1.0\r\n\r\n"):
                    pass

    asyncio.run(run())
