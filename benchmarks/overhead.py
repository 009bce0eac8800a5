"""What the daemon adds to the libvirt calls that a real deployment makes anyway.

Real QEMU through the embedded driver. Each deployment is timed as a whole and, inside it, the libvirt
calls that start and define the VM; the difference is the daemon's: validation, the image check, the
decision, the hops between threads. One VM at a time, so that no other VM needs to be pinned anew.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.table import aligned, median, percentile
from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from tests import real
from vmstackd.api import requests
from vmstackd.api.caller import Caller, Role
from vmstackd.engine import Engine
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor import libvirt as libvirt_driver
from vmstackd.hypervisor.libvirt_types import Connection
from vmstackd.topology_source import load_topology

ROUNDS = 30
LIMIT_MS, LIMIT_PERCENT = 10.0, 5.0
OPERATOR = Caller(transport="inproc", identity="benchmark", role=Role.OPERATOR)


class _Stopwatch:
    """Replaces the function that makes the libvirt calls, and adds up the time spent in it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._create = libvirt_driver._create
        libvirt_driver._create = self

    def __call__(self, connection: Connection, xml: str) -> None:
        begin = time.perf_counter()
        try:
            self._create(connection, xml)
        finally:
            self.seconds += time.perf_counter() - begin


async def _measure(uri: str, image: Path) -> tuple[list[float], list[float]]:
    topology = load_topology("sysfs")
    options = HypervisorOptions(image_roots=(str(image.parent),), virt_type="qemu")
    engine = Engine(empty_state(topology, Rules()), POLICIES["reference"], open_hypervisor(uri, options), period=3600)
    await engine.start()
    calls = _Stopwatch()
    inside: list[float] = []
    whole: list[float] = []
    for number in range(ROUNDS + 1):
        calls.seconds = 0.0
        begin = time.perf_counter()
        request = requests.Deploy(name="vm", vcpus=1, memory_mib=64, level=1000, image=str(image))
        await engine.handle(request, OPERATOR, f"bench-{number}")
        took = time.perf_counter() - begin
        await engine.handle(requests.Remove(name="vm"), OPERATOR, f"bench-{number}")
        if number:
            inside.append(calls.seconds)
            whole.append(took)
    await engine.stop()
    return inside, whole


def main() -> None:
    """Print the table, or why this machine cannot run it."""
    missing = real.missing_embedded()
    if missing:
        print(f"\noverhead over libvirt: skipped: {missing}")
        return
    root = Path(tempfile.mkdtemp(prefix="vmstack-bench-", dir="/tmp"))
    try:
        with real.embedded_root(root) as uri:
            inside, whole = asyncio.run(_measure(uri, real.make_image(root / "idle.qcow2")))
    finally:
        shutil.rmtree(root)
    added = [all_of_it - calls for all_of_it, calls in zip(whole, inside, strict=True)]
    rows = [
        [name, *(f"{1000 * value:.2f}" for value in (median(values), percentile(values, 99), min(values), max(values)))]
        for name, values in (("deployment", whole), ("libvirt calls in it", inside), ("added by the daemon", added))
    ]
    share = 100 * median(added) / median(inside)
    print(f"\nA real deployment (QEMU, {ROUNDS} rounds after one to warm up), ms\n")
    print(aligned(["", "median", "p99", "min", "max"], rows))
    print(f"added: {share:.1f} % of the libvirt calls (target: <= {LIMIT_MS:.0f} ms or {LIMIT_PERCENT:.0f} %)")
