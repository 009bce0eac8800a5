"""What a call costs over each transport: the real daemon, simulated VMs, a client on another core.

Each transport contributes the rows of its own part to one table.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.daemon import HOST
from benchmarks.table import aligned, median, percentile
from tests.running import clean_environment, command
from tests.transports.bus import Bus
from vmstackd import wire
from vmstackd.api import requests
from vmstackd.client import Client
from vmstackd.transports.dbus import NAME as BUS_NAME
from vmstackd.transports.dbus_connection import Connection
from vmstackd.transports.dbus_values import HOST_PATH

CALLS = 5000
FLOOD = 100_000
IN_FLIGHT = 64
CHANGES = 500
VMS = 100
"""On the host when it is not empty; those of the same level are pinned anew when their CPUs change."""
CROWD = 1000
"""Idle connections beside those that do harm."""
LATENCY_LIMIT_S = 150e-6
CHANGE_LIMIT_S = 300e-6
RATE_LIMIT = 20_000
CROWD_LIMIT_S = 50e-3
BUS_FLOOD = 20_000
BUS_LATENCY_LIMIT_S = 400e-6
BUS_RATE_LIMIT = 5_000

PROGRESS = requests.Progress(vcpus=2, memory_mib=4096, level=2000)


@contextmanager
def _daemon(*flags: str) -> Iterator[None]:
    """The daemon, on a core of its own where there are two; its log goes to a file, which nobody reads meanwhile."""
    cores = sorted(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command("--hypervisor", "sim:", "--topology", HOST, "--critical-size", "0", "--http-port", "0", *flags),
            env=clean_environment(),
            stderr=log,
        ) as process,
    ):
        try:
            while b" ready " not in os.pread(log.fileno(), 1 << 16, 0):
                if process.poll() is not None:
                    raise RuntimeError(os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace"))
                time.sleep(0.01)
            if len(cores) > 1:
                os.sched_setaffinity(process.pid, cores[:1])
                os.sched_setaffinity(0, cores[1:])
            yield
        finally:
            os.sched_setaffinity(0, cores)
            process.terminate()


async def _seconds(count: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    """Of each of some calls, one after the other."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - begin)
    return taken


async def _rate(client: Client) -> float:
    """Calls per second, with some in flight at any time."""
    left = FLOOD

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await client.progress(PROGRESS)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return FLOOD / (time.perf_counter() - begin)


async def _changes(client: Client, rounds: int, vms: int) -> tuple[list[float], list[float]]:
    """Seconds of each deployment and of each removal, some VMs at a time."""
    deploys: list[float] = []
    removals: list[float] = []
    for _ in range(rounds):
        for number in range(vms):
            deploy = requests.Deploy(
                name=f"vm{number}",
                vcpus=1 + number % 4,
                memory_mib=2048,
                level=1000 * (1 + number % 3),
                image=f"/images/{number}.qcow2",
            )
            deploys += await _seconds(1, partial(client.deploy, deploy))
        for number in range(vms):
            removals += await _seconds(1, partial(client.remove, requests.Remove(name=f"vm{number}")))
    return deploys, removals


async def _crowded(path: str, client: Client) -> list[float]:
    """Seconds of a status while others are idle, say half a thing, talk nonsense and do not read."""
    half = wire.request(1, requests.Describe(name="x" * 100_000))[:-1]
    async with AsyncExitStack() as stack:
        for number in range(CROWD + 100):
            idle = await Client.connect(path, program="crowd")
            await stack.enter_async_context(idle)
            transport = idle._link._transport
            assert transport is not None
            if number >= CROWD + 50:
                transport.pause_reading()
                transport.write(wire.request(1, requests.Topology()) * 10_000)
            elif number >= CROWD:
                transport.write(half)
        taken = []
        for _ in range(CALLS // 5):
            _, nonsense = await asyncio.open_unix_connection(path)
            nonsense.write(b"\xdd\x40\x00\x00\x00" + b"\x91" * 1000)
            taken += await _seconds(1, client.status)
            nonsense.close()
        return taken


def _row(what: str, taken: list[float], target: str) -> list[str]:
    return [what, f"{median(taken) * 1e6:.0f} us", f"{percentile(taken, 99) * 1e6:.0f} us", target]


async def _socket_rows(path: str) -> list[list[str]]:
    async with await Client.connect(path, program="benchmark") as client:
        await _seconds(CALLS // 5, lambda: client.progress(PROGRESS))  # to warm up
        single = await _seconds(CALLS, lambda: client.progress(PROGRESS))
        rate = await _rate(client)
        deploys, removals = await _changes(client, CHANGES, 1)
        filling, emptying = await _changes(client, CHANGES // VMS, VMS)
        crowded = await _crowded(path, client)
    change = f"median <= {CHANGE_LIMIT_S * 1e6:.0f} us"
    return [
        _row("socket: progress", single, f"median <= {LATENCY_LIMIT_S * 1e6:.0f} us"),
        [f"socket: progress, {IN_FLIGHT} in flight", f"{rate:,.0f}/s", "", f">= {RATE_LIMIT:,}/s"],
        _row("socket: deploy, host empty", deploys, change),
        _row("socket: remove, host empty", removals, ""),
        _row(f"socket: deploy, up to {VMS} VMs to be pinned anew", filling, ""),
        _row(f"socket: remove, up to {VMS} VMs to be pinned anew", emptying, ""),
        _row(f"socket: status beside {CROWD} idle and 100 bad", crowded, f"p99 <= {CROWD_LIMIT_S * 1e3:.0f} ms"),
    ]


async def _bus_rows(address: str) -> list[list[str]]:
    """Over D-Bus; the bus is a third process, which every call and every answer goes through."""
    connection = await Connection.open(address)
    bus = connection._open_bus

    async def call(member: str, signature: str = "", *values: Any) -> None:  # noqa: ANN401  whatever D-Bus takes
        message = bus.new_method_call_message(BUS_NAME, HOST_PATH, BUS_NAME, member)
        if signature:
            message.append_data(signature, *values)
        await bus.call_async(message)

    async def caller() -> None:
        for _ in range(BUS_FLOOD // IN_FLIGHT):
            await progress()

    progress = partial(call, "Progress", "udd", 2, 4.0, 2.0)
    await _seconds(CALLS // 5, progress)  # to warm up
    single = await _seconds(CALLS, progress)
    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    rate = BUS_FLOOD / (time.perf_counter() - begin)
    deploys, removals = [], []
    for _ in range(CHANGES):
        deploys += await _seconds(1, partial(call, "Deploy", "sudds", "vm", 2, 2.0, 2.0, "/images/vm.qcow2"))
        removals += await _seconds(1, partial(call, "Remove", "s", "vm"))
    for number in range(VMS):
        await call("Deploy", "sudds", f"vm{number}", 1, 2.0, float(1 + number % 3), "/images/vm.qcow2")
    listed = await _seconds(CALLS // 5, partial(call, "List"))
    for number in range(VMS):
        await call("Remove", "s", f"vm{number}")
    connection.close()
    return [
        _row("D-Bus: progress", single, f"median <= {BUS_LATENCY_LIMIT_S * 1e6:.0f} us"),
        [f"D-Bus: progress, {IN_FLIGHT} in flight", f"{rate:,.0f}/s", "", f">= {BUS_RATE_LIMIT:,}/s"],
        _row("D-Bus: deploy, host empty", deploys, ""),
        _row("D-Bus: remove, host empty", removals, ""),
        _row(f"D-Bus: list of {VMS} VMs", listed, ""),
    ]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "vmstackd.sock"))
        with _daemon("--socket", path):
            rows = asyncio.run(_socket_rows(path))
    if shutil.which("dbus-daemon"):
        with tempfile.TemporaryDirectory() as folder, Bus(Path(folder)) as bus, _daemon("--dbus", bus.address):
            rows += asyncio.run(_bus_rows(bus.address))
    print(f"\nCalls to vmstackd with 256 CPUs on sim: ({CALLS} calls, {CHANGES} changes)\n")
    print(aligned(["", "median", "p99", "target"], rows))
