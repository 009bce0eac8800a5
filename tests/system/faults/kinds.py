"""The faults. Each is injected, holds for a while, and is over when its coroutine ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from tests.system.box import Box
from tests.system.cluster import PATIENCE, Cluster, Server
from tests.system.faults.book import Book
from tests.system.faults.farm import Packaged
from tests.system.faults.figures import Figures
from tests.system.faults.seen import LIBVIRT

VMSTACKD_KILLED, BOTH_KILLED, UPGRADE = "vmstackd killed", "both daemons killed", "package upgraded"
FILL = "/var/fill"
KEPT_BYTES = 4096
"""Of a full disk."""


class Fault(msgspec.Struct, frozen=True):
    """after: so many operations have had a result, and some seconds, ``wait``, have passed since.

    host: that is hit; "" is globald.
    """

    kind: str
    host: str
    after: int
    wait: float
    seed: int


class Scene:
    """Where faults happen. folder: for what they need."""

    def __init__(self, cluster: Cluster, book: Book, figures: Figures, folder: Path) -> None:
        self.cluster = cluster
        self.book = book
        self.figures = figures
        self.folder = folder

    async def inject(self, fault: Fault) -> None:
        """Until it is over, healed where it does not heal by itself."""
        await KINDS[fault.kind](self, fault, random.Random(fault.seed))

    def server(self, fault: Fault) -> Server:
        """The daemon of ours that is hit."""
        return self.cluster.hosts[fault.host] if fault.host else self.cluster.globald

    async def kill(self, server: Server) -> None:
        """Its process, as soon as there is one."""
        await asyncio.to_thread(_kill, server.box, server.unit, "KILL")

    def injected(self, fault: Fault) -> None:
        """Now."""
        self.figures.injected(fault.kind, fault.host)


def plan(rng: random.Random, operations: int, kinds: Sequence[str], hosts: Sequence[str]) -> list[Fault]:
    """Faults for so many operations, in their order: vmstackd is killed in bursts, all others now and then."""
    wanted = {kind: max(1, operations // 100) for kind in kinds}
    if VMSTACKD_KILLED in wanted:
        wanted[VMSTACKD_KILLED] = max(1, operations // 14)
    chosen = [kind for kind, count in wanted.items() for _ in range(count)]
    rng.shuffle(chosen)
    moments = sorted(rng.sample(range(1, max(operations - 2, len(chosen) + 1)), len(chosen)))
    return [
        Fault(kind, _host(rng, kind, hosts), after, rng.uniform(0.0, 0.6), rng.randrange(1 << 30))
        for kind, after in zip(chosen, moments, strict=True)
    ]


def _host(rng: random.Random, kind: str, hosts: Sequence[str]) -> str:
    return "" if kind == "globald killed" else hosts[-1] if kind == UPGRADE else rng.choice(hosts)


async def vmstackd_killed(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """One to three times, also while it starts."""
    for number in range(rng.choice((1, 2, 2, 3))):
        if number:
            await asyncio.sleep(rng.uniform(0.0, 2.0))
        await scene.kill(scene.server(fault))
        scene.injected(fault)


async def globald_killed(scene: Scene, fault: Fault, rng: random.Random) -> None:
    await scene.kill(scene.cluster.globald)
    scene.injected(fault)


async def both_killed(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """globald and the vmstackd of a host, at the same time."""
    await asyncio.gather(scene.kill(scene.server(fault)), scene.kill(scene.cluster.globald))
    scene.injected(fault)


async def libvirtd_killed(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """systemd starts it again."""
    await asyncio.to_thread(_kill, scene.server(fault).box, "libvirtd.service", "KILL")
    scene.injected(fault)


async def libvirtd_hung(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """For some seconds; at times long enough to be given up."""
    box = scene.server(fault).box
    await asyncio.to_thread(_kill, box, "libvirtd.service", "STOP")
    scene.injected(fault)
    try:
        await asyncio.sleep(rng.choice((2.0, 5.0, 9.0)))
    finally:
        await asyncio.to_thread(_kill, box, "libvirtd.service", "CONT")


async def qemu_killed(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """A VM of ours, as soon as there is one; it is that fault's, not ours."""
    box = scene.server(fault).box
    for _ in range(100):
        files = {file.stem: file for file in box.path(LIBVIRT).glob("*.pid")}
        victim = scene.book.victim(rng, sorted(files))
        if victim is not None:
            with contextlib.suppress(OSError, ValueError, AssertionError):
                pid = int(files[victim].read_text())
                scene.book.died(victim)
                box.enter("kill", "-KILL", str(pid))
                scene.injected(fault)
                return
        await asyncio.sleep(0.1)
    raise AssertionError(f"no VM came to {box.name} that could be killed")


async def disk_full(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """That of the whole host, for some seconds."""
    box = scene.server(fault).box
    await asyncio.to_thread(fill, box.path(FILL))
    scene.injected(fault)
    try:
        await asyncio.sleep(rng.uniform(1.0, 3.0))
    finally:
        box.path(FILL).unlink()


async def network_cut(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """So shortly that it is bridged, or so long that the host is given up."""
    await _cut(scene, fault, rng.choice((2.0, 12.0)))


async def network_cut_shortly(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """So shortly that it is bridged."""
    await _cut(scene, fault, rng.uniform(1.0, 2.0))


async def upgraded(scene: Scene, fault: Fault, rng: random.Random) -> None:
    """The package of the host, while it is asked for VMs; what hits it is the restart."""
    server = scene.server(fault)
    assert isinstance(server, Packaged)
    before = server.pid
    upgrading = asyncio.create_task(asyncio.to_thread(server.upgrade, scene.folder / f"upgrade{fault.after}"))
    while not upgrading.done() and await asyncio.to_thread(lambda: server.pid) == before:
        await asyncio.wait((upgrading,), timeout=0.1)
    scene.injected(fault)
    await upgrading


async def _cut(scene: Scene, fault: Fault, seconds: float) -> None:
    box = scene.server(fault).box
    async with _parted(box):
        scene.injected(fault)
        await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def _parted(box: Box) -> AsyncIterator[None]:
    await asyncio.to_thread(box.cut)
    try:
        yield
    finally:
        await asyncio.to_thread(box.heal)


def _kill(box: Box, unit: str, signal: str) -> None:
    """The main process of a unit, once it has one; the unit may be between two of them."""
    script = f"""for try in $(seq {PATIENCE * 10:.0f}); do
    pid=$(systemctl show --property=MainPID --value {unit})
    [ "$pid" != 0 ] && kill -{signal} "$pid" && exit 0
    sleep 0.1
done
exit 1"""
    box.enter("systemctl", "reset-failed", unit, check=False)
    box.enter("sh", "-c", script, timeout=2 * PATIENCE)


def fill(path: Path) -> None:
    """Leave no room on a file system."""
    with path.open("wb") as file:
        size = 0
        step = 1 << 28
        while step >= KEPT_BYTES:
            try:
                os.posix_fallocate(file.fileno(), size, step)
            except OSError:
                step //= 2
            else:
                size += step


KINDS: dict[str, Callable[[Scene, Fault, random.Random], Awaitable[None]]] = {
    VMSTACKD_KILLED: vmstackd_killed,
    "libvirtd killed": libvirtd_killed,
    "libvirtd hung": libvirtd_hung,
    "QEMU killed": qemu_killed,
    "disk full": disk_full,
    "network cut": network_cut,
    "network cut shortly": network_cut_shortly,
    "globald killed": globald_killed,
    BOTH_KILLED: both_killed,
    UPGRADE: upgraded,
}
QUICK = tuple(kind for kind in KINDS if kind not in ("libvirtd hung", "network cut", UPGRADE))
"""Those that take little time."""
