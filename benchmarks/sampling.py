"""What one measurement of a host costs that has 256 CPUs and 700 VMs, and what reading the kernel's files does.

Simulated VMs, in this process, with a clock of their own on which the rounds are 15 s apart. CPU: of the whole process
within a round, with what the simulation needs to make up its counters, and a sample for a trace. Hold: the longest
time for which the event loop got to nothing else, as seen by a task that only waits for its next turn; in rounds of
their own, because that task uses the CPU all the time. A first round of each warms up and is not counted. The files of
the kernel are those of this machine, whose CPUs may be fewer.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

from benchmarks.table import aligned, median, percentile
from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from core.usage import Usage
from tests.faulty import OPERATOR
from vmstackd.api import requests
from vmstackd.engine import Engine
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.kernel_counters import kernel_counters
from vmstackd.topology_source import load_topology

ROUNDS = 300
VMS = 700
DELAY_S = 15.0
CPU_LIMIT_MS = 20.0
TOPOLOGY = Path(__file__).resolve().parent.parent / "topologies" / "EPYC-7662.json"


async def _filled() -> Engine:
    """A started engine with all VMs, 254 CPUs in three levels."""
    topology = load_topology(f"file:{TOPOLOGY}")
    state = empty_state(topology, Rules(critical_size=0))
    moments = itertools.count(0.0, DELAY_S)
    hypervisor = SimHypervisor(clock=lambda: next(moments), topology=topology)
    engine = Engine(state, POLICIES["reference"], hypervisor, period=3600)
    await engine.start()
    for number in range(VMS):
        level = 1000 if number < 16 else 2000 if number < 76 else 3000
        vm = requests.Deploy(name=f"vm{number}", vcpus=1, memory_mib=1024, level=level, image="/images/vm")
        await engine.handle(vm, OPERATOR, f"bench-{number}")
    return engine


class _Turns:
    """longest: seconds between two turns of a task in the event loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def take(self) -> None:
        """Take one turn after the other until cancelled."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now


async def _rounds() -> tuple[list[float], list[float], list[float], Usage | None]:
    """Seconds of CPU, on the clock, and held, of each round; and what the last one found."""
    engine = await _filled()
    cpu: list[float] = []
    wall: list[float] = []
    held: list[float] = []
    for _ in range(ROUNDS + 1):
        cpu_begin, begin = time.process_time(), time.perf_counter()
        await engine.sampler.measure()
        cpu.append(time.process_time() - cpu_begin)
        wall.append(time.perf_counter() - begin)
    for _ in range(ROUNDS + 1):
        turns = _Turns()
        taking = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        await engine.sampler.measure()
        await asyncio.sleep(0)
        taking.cancel()
        held.append(turns.longest)
    found = engine.sampler.usage
    await engine.stop()
    return cpu[1:], wall[1:], held[1:], found


def _files() -> list[float]:
    taken = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        counters = kernel_counters()
        taken.append(time.perf_counter() - begin)
    assert counters.cpus
    return taken[1:]


def main() -> None:
    """Print the table."""
    cpu, wall, held, found = asyncio.run(_rounds())
    assert found is not None
    assert len(found.vms) == VMS
    files = _files()
    rows = []
    for name, seconds, limit in (
        ("CPU of a round", cpu, f"<= {CPU_LIMIT_MS:.0f}"),
        ("the same on the clock", wall, ""),
        ("event loop held at once", held, ""),
        (f"files of the kernel, {len(kernel_counters().cpus)} CPUs", files, ""),
    ):
        figures = (median(seconds), percentile(seconds, 99), max(seconds))
        rows.append([name, *(f"{1000 * figure:.2f}" for figure in figures), limit])
    print(f"\nMeasuring 256 CPUs and {VMS} VMs on sim: ({ROUNDS} rounds), ms\n")
    print(aligned(["", "median", "p99", "max", "target"], rows))
