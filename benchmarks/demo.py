"""A simulated cluster filled through the real globald, then drawn: ``python -m benchmarks.demo``.

The hosts are of several kinds, each with an engine as vmstackd has it; all are in this process, and globald is
connected to them over TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from benchmarks.table import median
from core.host_policy import DEFAULT_HOST_POLICY, HOST_POLICIES
from core.level import format_level
from globald.cluster import Cluster
from vmstackctl.cpu_map import CpuMap, bar, marks
from vmstackctl.values import gib, ratio
from vmstackd import app
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import NoCapacity
from vmstackd.daemon.http import listen
from vmstackd.daemon.stream import StreamTransport
from vmstackd.settings import load_settings

TOPOLOGIES = Path(__file__).parent.parent / "topologies"
HOSTS = {
    "epyc1": f"file:{TOPOLOGIES / 'EPYC-7662.json'}",
    "epyc2": f"file:{TOPOLOGIES / 'EPYC-7662.json'}",
    "rack1": "synthetic:sockets=2,numa=1,l3=4,cores=8,smt=1,memory=262144",
    "rack2": "synthetic:sockets=2,numa=1,l3=2,cores=8,smt=2,memory=131072",
    "rack3": "synthetic:sockets=1,numa=2,l3=2,cores=4,smt=2,memory=196608",
    "laptop": f"file:{TOPOLOGIES / 'i7-1185G7.json'}",
}
"""Where each has its CPUs from: 256, 256, 64, 64, 32 and 8."""
DRAWN = ("epyc1", "rack3")
LEVELS = (1000, 2000, 3000)
SIZES = ((1, 1024), (1, 2048), (2, 4096), (2, 8192), (4, 8192), (4, 16384), (8, 16384))
"""vCPUs and MiB."""
CALLERS = 16
"""At the same time."""
REFUSALS = 50
"""After so many, the cluster counts as full."""
PAUSE_S = 0.05
"""Of whoever is refused; in the meantime, hosts tell what has become free."""
PATIENCE_S = 60.0

_SEED = 7662
_CALLER = Caller(transport="inproc", identity="demo", role=Role.OPERATOR)
_WIDE = 110
"""Columns from which on bars are long."""


class Workload(msgspec.Struct):
    """What happened. seconds: of each deployment, from request to reply. rate: per second, until the first refusal."""

    arrived: int = 0
    left: int = 0
    refused: int = 0
    seconds: list[float] = []
    rate: float = 0.0


class Drawing(msgspec.Struct, frozen=True):
    """What one host is like at the end."""

    name: str
    topology: replies.TopologyReply
    status: replies.StatusReply


class Result(msgspec.Struct, frozen=True):
    """What the cluster is like at the end."""

    hosts: replies.HostsReply
    drawings: tuple[Drawing, ...]
    work: Workload


def orders() -> Iterator[requests.Deploy]:
    """New VMs of three levels without end; always the same ones."""
    chance = random.Random(_SEED)
    number = 0
    while True:
        number += 1
        vcpus, memory_mib = chance.choice(SIZES)
        level = chance.choice(LEVELS)
        yield requests.Deploy(
            name=f"vm{number}", vcpus=vcpus, memory_mib=memory_mib, level=level, image="/images/any.qcow2"
        )


async def fill(cluster: Cluster) -> Workload:
    """Deploy until the cluster is full. For every fourth VM that comes, an older one goes."""
    done, new = Workload(), orders()
    present: list[str] = []

    async def caller() -> None:
        while done.refused < REFUSALS:
            request = next(new)
            begin = time.perf_counter()
            try:
                await cluster.handle(request, _CALLER, request.name)
            except NoCapacity:
                done.rate = done.rate or done.arrived / (time.perf_counter() - started)
                done.refused += 1
                await asyncio.sleep(PAUSE_S)
                continue
            done.seconds.append(time.perf_counter() - begin)
            done.arrived += 1
            present.append(request.name)
            if done.arrived % 4 == 0:
                name = present.pop(0)
                await cluster.handle(requests.Remove(name=name), _CALLER, f"remove-{name}")
                done.left += 1

    started = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(caller())
    return done


@contextlib.asynccontextmanager
async def _hosts() -> AsyncIterator[list[str]]:
    """The simulated hosts; gives their addresses."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for name, topology in HOSTS.items():
            flags = {"hypervisor": "sim:", "state_dir": "none", "name": name, "topology": topology}
            engine = app.engine(load_settings(flags, {}, config_file=Path(os.devnull)))
            await engine.start()
            stack.push_async_callback(engine.stop)
            door = StreamTransport(engine, listen("127.0.0.1", 0))
            await door.start()
            stack.push_async_callback(door.stop)
            addresses.append(door.address.removeprefix("tcp:"))
        yield addresses


async def simulate() -> Result:
    """Fill the simulated cluster; returns what it is like then."""
    async with _hosts() as addresses:
        policy = HOST_POLICIES[DEFAULT_HOST_POLICY]
        cluster = Cluster(addresses, None, policy, attempts=len(HOSTS), patience=PATIENCE_S, tls=None)
        await cluster.start()
        try:
            await _until(lambda: cluster.learned)
            work = await fill(cluster)
            await _until(lambda: cluster.status().host.vms == work.arrived - work.left)
            drawings = [await _draw(cluster, name) for name in DRAWN]
            return Result(cluster.hosts(), tuple(drawings), work)
        finally:
            await cluster.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  what hosts tell sets no event
            await asyncio.sleep(0.01)


async def _draw(cluster: Cluster, name: str) -> Drawing:
    topology = await cluster.handle(requests.Topology(host=name), _CALLER, "topology")
    status = await cluster.handle(requests.Status(host=name), _CALLER, "status")
    if not isinstance(topology, replies.TopologyReply) or not isinstance(status, replies.StatusReply):
        raise TypeError("requests were answered with the replies of others")
    return Drawing(name, topology, status)


class Fill:
    """A table of hosts, to be printed by rich: how full each is, its CPUs in the colours of their levels."""

    def __init__(self, hosts: Iterable[replies.HostReply]) -> None:
        self._hosts = [(host.name, host.status) for host in hosts if host.status is not None]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        look = marks({level.level for _, status in self._hosts for level in status.levels})
        columns = 36 if options.max_width >= _WIDE else 10
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
        for name in ("host", "CPUs taken", "", "memory (GiB)", "", "VMs"):
            table.add_column(
                name, no_wrap=True, justify="left" if name.startswith(("host", "CPUs", "mem")) else "right"
            )
        for level in LEVELS:
            table.add_column(Text(ratio(level), look[format_level(level)].colour), justify="right", no_wrap=True)
        for name, status in self._hosts:
            taken = status.cpus - status.free_cpus
            owned = {level.level: level.cpus for level in status.levels}
            pieces = [(owned[level] / status.cpus, look[format_level(level)].colour) for level in sorted(owned)]
            sold = status.allocated_mib / status.memory_mib
            table.add_row(
                Text(name, "bold"),
                bar(pieces, columns, ascii_only=options.ascii_only),
                f"{taken}/{status.cpus}",
                bar([(sold, "bold")], columns, ascii_only=options.ascii_only),
                f"{gib(status.allocated_mib)}/{gib(status.memory_mib)}",
                str(status.vms),
                *(str(owned.get(level, "")) for level in LEVELS),
            )
        yield table


def main() -> int:
    """Show the demo; returns the exit code."""
    result = asyncio.run(simulate())
    work, console = result.work, Console(highlight=False)
    console.print(
        f"{work.arrived} VMs deployed, {work.left} removed, {work.refused} refused when {len(HOSTS)} hosts were full\n"
        f"{work.rate:.0f} deployments/s with {CALLERS} in flight, each {median(work.seconds) * 1000:.1f} ms (median)",
    )
    console.print()
    console.print(Fill(result.hosts.hosts))
    for drawing in result.drawings:
        console.print()
        console.print(CpuMap(drawing.topology, drawing.status, host=drawing.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
