"""One seed: a world, what happens in it, and what is wrong with it in the end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

import vmstackd.client
from core.model import HostState, Rules
from tests.simulation import audit
from tests.simulation.chaos import Chaos, chance_of
from tests.simulation.clock import Stuck, VirtualLoop
from tests.simulation.ledger import Known
from tests.simulation.world import World
from vmstackd.api import replies
from vmstackd.topology_source import load_topology

TOPOLOGIES = tuple(
    load_topology(text)
    for text in (
        "synthetic:sockets=1,numa=1,l3=2,cores=4,smt=1,memory=32768",
        "synthetic:sockets=1,numa=1,l3=2,cores=4,smt=2,memory=65536",
        "synthetic:sockets=2,numa=1,l3=1,cores=4,smt=1,memory=24576",
    )
)
SETTLE_S = 150.0
"""Until everything has been tried again: looks at the hypervisor, connections, orders whose end nobody knows."""


class Ending(msgspec.Struct, frozen=True):
    """faults: what is wrong, in words. digest: of the whole story, the same for the same seed."""

    seed: int
    faults: tuple[str, ...]
    digest: str
    story: tuple[str, ...]


def tell(seed: int) -> Ending:
    """Live through the story of a seed."""
    loop = VirtualLoop()
    chance = chance_of(seed)
    found: list[str] = []
    with _silence(), _clock_of(loop):
        loop.set_exception_handler(lambda _, context: found.extend(_unhandled(context)))
        random.seed(seed)  # for those who only want to be uneven
        world = World(
            chance,
            [chance.choice(TOPOLOGIES) for _ in range(chance.choice((2, 3)))],
            Rules(critical_size=chance.choice((0, 2, 3, 6))),
            policies=("reference", chance.choice(("progress", "worth"))),
        )
        original = vmstackd.client._connected
        vmstackd.client._connected = world.connected
        try:
            loop.run_until_complete(_live(world, found))
        except Stuck as error:
            found.append(f"stuck: {error}")
        finally:
            vmstackd.client._connected = original
            loop.run_until_complete(_end(world))
            loop.close()
    digest = hashlib.sha256("\n".join(world.story).encode()).hexdigest()[:16]
    return Ending(seed=seed, faults=tuple(found), digest=digest, story=tuple(world.story))


def _unhandled(context: Mapping[str, Any]) -> list[str]:
    """What nobody has taken care of. That a task of a dead process never ended is as it should be."""
    return [f"unhandled: {context['exception']!r}"] if "exception" in context else []


async def _live(world: World, found: list[str]) -> None:
    for host in world.hosts.values():
        await host.start()
    await world.start_globald()
    await asyncio.sleep(3.0)
    chaos = Chaos(world)
    await chaos.run()
    await chaos.calm()
    await asyncio.sleep(SETTLE_S)
    found += [*chaos.internal, *audit.faults(world)]
    if not found:
        found += await _restart(world)
    if not found:
        found += await _drain(world, chaos)


async def _restart(world: World) -> list[str]:
    """The next life of every daemon finds the same."""
    before = {
        name: host.engine.state
        for name, host in world.hosts.items()
        if host.engine is not None and not _may_differ(host.engine.status())
    }
    for host in world.hosts.values():
        host.kill()
        await host.start()
    await asyncio.sleep(20.0)
    found = audit.faults(world)
    for name, host in world.hosts.items():
        if host.engine is not None and name in before:
            now = host.engine.state
            if _summary(now) != _summary(before[name]):
                found.append(f"{name} has {_summary(now)} after a restart, not {_summary(before[name])}")
    return found


def _may_differ(status: replies.StatusReply) -> bool:
    """Whether a restart finds something better: a place for a VM that had none, CPUs that a level was owed."""
    return bool(status.unplaced) or any(level.degraded for level in status.host.levels)


def _summary(state: HostState) -> dict[int, tuple[tuple[int, ...], frozenset[str]]]:
    return {subset.level: (subset.cpus, frozenset(subset.vms)) for subset in state.subsets}


async def _drain(world: World, chaos: Chaos) -> list[str]:
    """Everything can be removed, and nothing of it stays."""
    names = sorted({name for host in world.hosts.values() for name in host.machine.domains})
    for name in names:
        await chaos.remove(name, world.ask)
    await asyncio.sleep(5.0)
    found = [*chaos.internal, *audit.faults(world)]
    found += [f"{name} could not be removed" for name in names if world.ledger.entries[name].known is not Known.GONE]
    for host in world.hosts.values():
        if host.engine is not None:
            state = host.engine.state
            if state.subsets or state.free_mib != state.memory_mib or state.free.count != len(state.topology.cpus):
                found.append(
                    f"{host.name} is not empty: {state.subsets} {state.free_mib} MiB {state.free.count} CPUs free"
                )
    return found


async def _end(world: World) -> None:
    for host in world.hosts.values():
        host.kill()
    world.kill_globald()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.wait(left, timeout=60.0)


@contextmanager
def _clock_of(loop: VirtualLoop) -> Iterator[None]:
    real = time.time
    time.time = loop.wall
    try:
        yield
    finally:
        time.time = real


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
