"""Clients that order VMs and remove them again, of globald and of the hosts themselves, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from tests.simulation.ledger import Known
from tests.system.cluster import Cluster, Server, vm
from tests.system.faults.book import Book
from tests.system.faults.figures import DONE, REFUSED, UNKNOWN, Figures
from vmstackd.api import requests
from vmstackd.api.errors import NoCapacity, VmstackError
from vmstackd.client import Client

MOST_ALIVE = 7
"""VMs at once on both hosts: QEMU emulates on two CPUs."""
PAUSE_S = 0.4
"""Before the next operation, where one was refused: what refused it may last."""
ANSWERED_S = 120.0
"""Later than this, an answer is not waited for."""
SHAPES = [(1, 1000), (1, 2000), (1, 2000), (2, 2000), (1, 4000), (2, 4000), (3, 4000)]
"""vCPUs and levels; a host has two CPUs."""


def images_for(operations: int) -> int:
    """Images that so many operations need at most: a VM that is certainly not there gives its own back."""
    return operations // 2 + 2 * MOST_ALIVE


class Office:
    """What clients share. They go on until so many operations have had a result, and longer if told to.

    An operation that was refused has had none. images: numbers of the disk images in use, by VM.
    """

    def __init__(self, cluster: Cluster, book: Book, figures: Figures, operations: int) -> None:
        self.cluster = cluster
        self.book = book
        self.figures = figures
        self.operations = operations
        self.longer = True
        self.ordered = 0
        self.free_images = list(range(images_for(operations)))
        self.images: dict[str, int] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._news = asyncio.Condition()
        self._busy = 0

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nobody asks for anything meanwhile."""
        self._open.clear()
        async with self._news:
            await self._news.wait_for(lambda: not self._busy)
        yield
        self._open.set()

    async def reached(self, count: int) -> None:
        """Return when so many operations have had a result."""
        async with self._news:
            await self._news.wait_for(lambda: self.figures.changes >= count)

    async def served_again(self) -> None:
        """Return when all that faults have hit has served somebody again, or never will."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWERED_S), self._news:
                await self._news.wait_for(lambda: not self.figures.hit)

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[bool]:
        """While an operation is under way; False if it is time to go."""
        await self._open.wait()
        self._busy += 1
        try:
            yield self.longer or self.figures.changes < self.operations
        finally:
            self._busy -= 1
            async with self._news:
                self._news.notify_all()


class Worker:
    """One client. server: that it asks; None: globald."""

    def __init__(self, office: Office, server: Server | None, rng: random.Random) -> None:
        self._office = office
        self._book = office.book
        self._server = server
        self._host = "" if server is None else server.name
        self._rng = rng
        self._client: Client | None = None

    async def work(self) -> None:
        """Until the office closes for good."""
        figures = self._office.figures
        try:
            while True:
                async with self._office.inside() as on:
                    if not on:
                        return
                    with figures.wanted():
                        end = await self._operate(await self._connected())
                        figures.operations[end] += 1
                        if end != DONE:
                            await asyncio.sleep(PAUSE_S)
                await asyncio.sleep(self._rng.uniform(0.0, 0.2))
        finally:
            if self._client is not None:
                await self._client.close()

    async def _connected(self) -> Client:
        while self._client is None or self._client.lost is not None:
            try:
                self._client = await self._office.cluster.connect(self._server)
            except VmstackError:
                await asyncio.sleep(0.1)
        return self._client

    async def _operate(self, client: Client) -> str:
        alive = len(self._book.alive())
        removable = self._book.removable(self._host)
        if removable and (alive >= MOST_ALIVE or self._rng.random() < 0.6 * alive / MOST_ALIVE):
            return await self._remove(client, self._rng.choice(removable))
        return await self._deploy(client)

    async def _deploy(self, client: Client) -> str:
        office = self._office
        office.ordered += 1
        vcpus, level = self._rng.choice(SHAPES)
        image = office.free_images.pop(0)
        order = vm(f"vm{office.ordered}", vcpus, 64, level, image=f"image{image}")
        office.images[order.name] = image
        begun = self._begun()
        self._book.ordered(order)
        try:
            reply = await client.deploy(order, timeout=ANSWERED_S)
        except VmstackError as error:
            if isinstance(error, NoCapacity) and error.details.keys().isdisjoint({"unknown", "hypervisor-down"}):
                office.figures.served({self._host}, begun)  # a full cluster says so
            known = self._book.not_deployed(order.name, error, hung_up=error is client.lost)
            if known is Known.GONE:
                office.free_images.append(office.images.pop(order.name))
            return _end(known)
        self._book.deployed(order.name, self._host or reply.host, self._host)
        office.figures.served({self._host, reply.host or self._host}, begun)
        return DONE

    async def _remove(self, client: Client, name: str) -> str:
        begun = self._begun()
        before = self._book.leaving(name)
        try:
            reply = await client.remove(requests.Remove(name=name), timeout=ANSWERED_S)
        except VmstackError as error:
            hung_up = error is client.lost
            return _end(self._book.not_removed(name, before, error, hung_up=hung_up, door=self._host))
        self._book.removed(name)
        self._office.free_images.append(self._office.images.pop(name))
        self._office.figures.served({self._host, reply.host or self._host}, begun)
        return DONE

    def _begun(self) -> float:
        return asyncio.get_running_loop().time()


def _end(known: Known) -> str:
    return UNKNOWN if known is Known.UNCLEAR else REFUSED
