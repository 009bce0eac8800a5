"""Faults of boxes and of the network between them: what they do, and that they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.system.box import Box
from tests.system.keeper import ADDRESS
from tests.system.lab import PATIENCE, Lab, missing
from tests.system.network import delaying_proxy, run_in

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}")]

HOST, PORT = "10.77.0.20", 7
ECHO = f"""
import asyncio
async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()
async def main():
    async with await asyncio.start_server(echo, "{HOST}", {PORT}) as server:
        open("/run/echoes", "w")
        await server.serve_forever()
asyncio.run(main())
"""
QUIET = 0.5
"""Seconds in which nothing may come."""


@pytest.fixture(scope="module")
def echo(lab: Lab) -> Iterator[Box]:
    """A box that sends back what it gets."""
    with Box(lab, "echo", address=HOST) as box:
        box.run("systemd-run", "--quiet", "/usr/bin/python3", "-c", ECHO)
        deadline = time.monotonic() + PATIENCE
        while not box.path("/run/echoes").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield box


class Talk:
    """A connection to the box."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, host: str = HOST, port: int = PORT) -> Talk:
        return cls(*await asyncio.open_connection(host, port))

    def say(self, text: bytes) -> None:
        self._writer.write(text)

    async def hears(self, text: bytes) -> bool:
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(len(text)) == text

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(QUIET):
                await self._reader.read(1)
        except TimeoutError:
            return True
        return False

    def end(self) -> None:
        self._writer.close()


def test_a_box_that_is_cut_off_is_silent_and_connections_outlive_it(lab: Lab, echo: Box) -> None:
    async def talk() -> None:
        old = await Talk.begin()
        old.say(b"one")
        assert await old.hears(b"one")
        echo.cut()
        old.say(b"two")
        assert await old.hears_nothing()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET):
                await Talk.begin()
        echo.heal()
        assert await old.hears(b"two")
        old.end()

    try:
        run_in(lab, talk, PATIENCE)
    finally:
        echo.heal()


def test_a_frozen_box_accepts_connections_and_answers_when_it_thaws(lab: Lab, echo: Box) -> None:
    async def talk() -> None:
        echo.freeze()
        assert echo.journal("--lines=1"), "its journal can still be read"
        frozen = await Talk.begin()
        frozen.say(b"hello")
        assert await frozen.hears_nothing()
        echo.thaw()
        assert await frozen.hears(b"hello")
        frozen.end()

    try:
        run_in(lab, talk, PATIENCE)
    finally:
        echo.thaw()


def test_a_frozen_box_can_lose_its_power(lab: Lab) -> None:
    with Box(lab, "brittle") as box:
        box.freeze()
        box.crash()
        box.start()
        assert box.run("systemctl", "is-system-running").stdout == "running\n"


def test_the_proxy_is_late_both_ways_and_keeps_the_order(lab: Lab, echo: Box) -> None:
    async def talk() -> None:
        clock = asyncio.get_running_loop().time
        async with delaying_proxy(HOST, PORT, 0.3) as address:
            host, _, port = address.partition(":")
            assert host == ADDRESS
            late = await Talk.begin(host, int(port))
            begin = clock()
            for number in range(10):
                late.say(b"%d" % number)
                await asyncio.sleep(0.01)
            assert await late.hears(b"0123456789")
            assert clock() - begin >= 0.6
            late.end()

    run_in(lab, talk, PATIENCE)
