"""What all tasks of the run share: the daemons, what was acknowledged, how long calls took, and when to end."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from tests.running import PATIENCE
from tests.soak.daemons import Server, Servers
from tests.soak.ledger import Ledger
from tests.soak.samples import Call
from vmstackd.api.errors import VmstackError
from vmstackd.client import Client

HURRY = 1 / 6
"""Of the run, at its begin: VMs come and go as fast as they can, so that caches are full before anything counts."""


class Clients:
    """calls: that were answered. done: of what was done, how often."""

    def __init__(self, servers: Servers, seconds: float) -> None:
        """seconds: that the run lasts."""
        self.servers = servers
        self._hurry_s = HURRY * seconds
        self.ledger = Ledger()
        self.calls: list[Call] = []
        self.done: Counter[str] = Counter()
        self.ending = asyncio.Event()
        self.restarting = asyncio.Lock()
        """Held while a host is: nothing is sampled then."""
        self._numbers = 0

    def new_name(self, prefix: str) -> str:
        """Of a VM; never the same twice, and all of one length."""
        self._numbers += 1
        return f"{prefix}-{self._numbers:08}"

    async def pause(self, mean: float) -> bool:
        """Wait a random time, this many seconds on average; returns whether the run goes on."""
        try:
            await asyncio.wait_for(self.ending.wait(), random.expovariate(1 / mean))
        except TimeoutError:
            return True
        return not self.ending.is_set()

    @property
    def hurrying(self) -> bool:
        """Whether it is still the begin."""
        return self.servers.now < self._hurry_s

    @contextmanager
    def timed(self, door: str) -> Iterator[None]:
        """One call, which counts if it is answered: with an error of the table, too."""
        begin = time.perf_counter()
        try:
            yield
        except VmstackError as error:
            self._count(door, begin, error.code)
            raise
        self._count(door, begin, "ok")

    def _count(self, door: str, begin: float, outcome: str) -> None:
        self.calls.append(Call(at=self.servers.now, door=door, seconds=time.perf_counter() - begin))
        self.done[f"{door}: {outcome}"] += 1

    def error(self, text: str) -> None:
        """Something was answered that cannot be."""
        if len(self.ledger.wrong) < 1000:
            self.ledger.wrong.append(text)


@asynccontextmanager
async def connected(server: Server, program: str) -> AsyncIterator[Client]:
    """A connection to its Unix socket, over which it is held for long. Raises VmstackError."""
    async with await Client.connect(f"unix:{server.socket}", program=program) as client:
        server.held += 1
        try:
            yield client
        finally:
            server.held -= 1


async def fetch(session: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, str]:
    """GET; the status and the text. Raises aiohttp.ClientError, TimeoutError."""
    async with session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(PATIENCE)) as answer:
        return answer.status, await answer.text()


def parsed(text: str) -> dict[str, object]:
    """The body of an answer."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found
