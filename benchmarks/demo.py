"""A simulated EPYC 7662 filled by the real engine, then drawn: ``python -m benchmarks.demo``."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console

from vmstackctl.cpu_map import CpuMap
from vmstackd import app
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import NoCapacity
from vmstackd.engine import Engine
from vmstackd.settings import load_settings

TOPOLOGY = Path(__file__).parent.parent / "topologies" / "EPYC-7662.json"
LEVELS = (1000, 2000, 3000)
WIDTHS = (1, 2, 2, 4, 4, 8)
MIB_PER_VCPU = 2048
STEPS = 320

_SEED = 7662
_CALLER = Caller(transport="inproc", identity="demo", role=Role.OPERATOR)


class Workload(msgspec.Struct):
    """What happened. seconds: of each change, from request to reply."""

    arrived: int = 0
    left: int = 0
    refused: int = 0
    seconds: list[float] = []


async def fill(engine: Engine) -> Workload:
    """VMs of three levels come, and one in three steps an older one goes; always the same ones."""
    chance = random.Random(_SEED)
    done = Workload()
    present: list[str] = []
    for step in range(STEPS):
        begin = time.perf_counter()
        if present and chance.random() < 1 / 3:
            name = present.pop(chance.randrange(len(present)))
            await engine.handle(requests.Remove(name=name), _CALLER, f"demo-{step}")
            done.left += 1
        else:
            vcpus = chance.choice(WIDTHS)
            request = requests.Deploy(
                name=f"vm{step}",
                vcpus=vcpus,
                memory_mib=vcpus * MIB_PER_VCPU,
                level=chance.choice(LEVELS),
                image="/images/any.qcow2",
            )
            try:
                await engine.handle(request, _CALLER, f"demo-{step}")
            except NoCapacity:
                done.refused += 1
            else:
                present.append(request.name)
                done.arrived += 1
        done.seconds.append(time.perf_counter() - begin)
    return done


async def simulate() -> tuple[replies.TopologyReply, replies.StatusReply, Workload]:
    """Fill the simulated host; returns what it is like then."""
    flags = {"hypervisor": "sim:", "state_dir": "none", "topology": f"file:{TOPOLOGY}"}
    engine = app.engine(load_settings(flags, {}, config_file=Path(os.devnull)))
    await engine.start()
    try:
        done = await fill(engine)
        topology = await engine.handle(requests.Topology(), _CALLER, "demo-topology")
        status = await engine.handle(requests.Status(), _CALLER, "demo-status")
    finally:
        await engine.stop()
    if not isinstance(topology, replies.TopologyReply) or not isinstance(status, replies.StatusReply):
        raise TypeError("requests were answered with the replies of others")
    return topology, status, done


def main() -> int:
    """Show the demo; returns the exit code."""
    topology, status, done = asyncio.run(simulate())
    console = Console(highlight=False)
    console.print(
        f"{done.arrived} VMs arrived, {done.left} left, {done.refused} were refused; "
        f"a change took {statistics.median(done.seconds) * 1000:.2f} ms (median)",
    )
    console.print()
    console.print(CpuMap(topology, status))
    return 0


if __name__ == "__main__":
    sys.exit(main())
