"""One run: clients, faults between their operations, and an audit after each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.system.cluster import Cluster
from tests.system.faults.audit import audit
from tests.system.faults.book import IMPOSSIBLE, Book
from tests.system.faults.clients import Office, Worker
from tests.system.faults.figures import Figures
from tests.system.faults.kinds import Scene, plan
from tests.system.faults.sampler import Sampler
from tests.system.network import run_in

CLIENTS = 4
"""The last two ask the hosts themselves."""
MOST_S = 3600.0


def run(
    cluster: Cluster, folder: Path, seed: int, operations: int, kinds: Sequence[str], tell: Callable[[str], object]
) -> Figures:
    """folder: for what faults need. tell: is told in lines how far it is. The cluster has no VM before."""
    figures = Figures(time.monotonic)
    book = Book()
    with Sampler((server.box for server in cluster.hosts.values()), book.levels) as sampler:
        scene = Scene(cluster, book, figures, folder)
        run_in(cluster.lab, lambda: _run(scene, seed, operations, kinds, tell), MOST_S)
    if sampler.error is not None:
        raise sampler.error
    figures.samples, figures.overlaps = sampler.samples, sampler.overlaps
    figures.wrong += [(IMPOSSIBLE, text) for text in book.impossible]
    figures.killed_vms = book.killed
    return figures


async def _run(scene: Scene, seed: int, operations: int, kinds: Sequence[str], tell: Callable[[str], object]) -> None:
    cluster, figures = scene.cluster, scene.figures
    await cluster.all_up()
    begin = time.monotonic()
    office = Office(cluster, scene.book, figures, operations)
    hosts = list(cluster.hosts.values())
    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            server = hosts[number % len(hosts)] if number >= CLIENTS - 2 else None
            clients.create_task(Worker(office, server, random.Random(f"{seed}, client {number}")).work())
        for fault in plan(random.Random(f"{seed}, faults"), operations, kinds, list(cluster.hosts)):
            await office.reached(fault.after)
            await asyncio.sleep(fault.wait)
            await scene.inject(fault)
            await office.served_again()
            where = fault.host or "globald"
            tell(f"{time.monotonic() - begin:5.0f} s, {figures.tried} operations: {fault.kind}, {where}")
            async with office.closed():
                await _check(scene, tell)
        office.longer = False
    await _check(scene, tell)


async def _check(scene: Scene, tell: Callable[[str], object]) -> None:
    figures = scene.figures
    done = await audit(scene.cluster, scene.book)
    figures.audits.append((done.seconds, done.last))
    for difference in done.found:
        if difference not in figures.wrong:
            figures.wrong.append(difference)
            tell("wrong: " + ": ".join(difference))
