"""Records half a day of a simulated host in a moment: ``python -m benchmarks.example_trace [FILE]``.

It is the daemon's engine and what writes its recordings; only VMs and clock are made up. Always the same trace.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from core.policy import POLICIES
from core.trace import Sample
from vmstackd import app
from vmstackd.api import requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import NoCapacity
from vmstackd.engine import Engine
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.settings import DEBUG_RECORD, load_settings
from vmstackd.trace_writer import TraceWriteError, TraceWriter

TOPOLOGY = Path("topologies", "EPYC-7662-exp.json")
STEP_S = 60
STEPS = 12 * 60
FEWEST, MOST = 40, 120
"""VMs at any time."""

_SEED = 7662
_SIZES = {(1, 2): 20, (2, 4): 22, (2, 8): 14, (4, 8): 18, (4, 16): 10, (8, 16): 9, (8, 32): 5, (16, 64): 2}
"""vCPUs and GiB, with how many of hundred VMs have them."""
_KINDS = {"db": (1000, 20), "app": (2000, 50), "batch": (3000, 30)}
"""Names of VMs, with their level, and how many of hundred are theirs."""
_SHIFTS = ((30, 240), (400, 600))
"""From which step to which batch VMs are there."""
_ARRIVALS = 4
"""In one step, but the first."""
_NEVER_S = 86400.0
_CALLER = Caller(transport="inproc", identity="example", role=Role.OPERATOR)


class _Vm(msgspec.Struct, frozen=True):
    """until: the step in which it goes."""

    name: str
    until: int


class _Cloud:
    """Those who come and go: many for minutes, some for hours, a few for ever; more at noon than at night."""

    def __init__(self) -> None:
        self._chance = random.Random(_SEED)
        self._present: list[_Vm] = []
        self.came = 0

    def new_uuid(self) -> uuid.UUID:
        """As random as the rest."""
        return uuid.UUID(int=self._chance.getrandbits(128), version=4)

    async def step(self, engine: Engine, step: int) -> None:
        """First some come, then some go: in this order a replay sees them."""
        middle, swing = (FEWEST + MOST) / 2, (MOST - FEWEST) / 2 - 5
        wanted = middle - swing * math.cos(2 * math.pi * step / STEPS) + self._chance.uniform(-5, 5)
        for _ in range(min(round(wanted) - len(self._present), _ARRIVALS if step else MOST)):
            await self._come(engine, step)
        for vm in [vm for vm in self._present if vm.until <= step]:
            if len(self._present) > FEWEST:
                await engine.handle(requests.Remove(name=vm.name), _CALLER, vm.name)
                self._present.remove(vm)

    async def _come(self, engine: Engine, step: int) -> None:
        shift_ends = next((end for begin, end in _SHIFTS if begin <= step < end), 0)
        kinds = [kind for kind in _KINDS if kind != "batch" or shift_ends]
        kind = self._chance.choices(kinds, [_KINDS[kind][1] for kind in kinds])[0]
        vcpus, gib = self._chance.choices(list(_SIZES), list(_SIZES.values()))[0]
        until = step + 5 + round(self._chance.lognormvariate(math.log(60), 1.3))
        vm = _Vm(f"{kind}{self.came}", min(until, shift_ends) if kind == "batch" else until)
        wanted = requests.Deploy(
            name=vm.name, vcpus=vcpus, memory_mib=gib * 1024, level=_KINDS[kind][0], image="/images/any.qcow2"
        )
        try:
            await engine.handle(wanted, _CALLER, vm.name)
        except NoCapacity:
            return
        self._present.append(vm)
        self.came += 1


async def record(path: Path) -> int:
    """Write the trace, moving away what is there; returns how many VMs came. Raises TraceWriteError."""
    flags = {"topology": f"file:{Path(__file__).parent.parent / TOPOLOGY}", "state_dir": "none"}
    settings = load_settings(flags, {}, config_file=Path(os.devnull))
    state, cloud, writer, now = app.host_state(settings), _Cloud(), TraceWriter(path), 0.0
    measured: list[Sample] = []
    hypervisor = SimHypervisor(clock=lambda: now, topology=state.topology, new_uuid=cloud.new_uuid)
    engine = Engine(state, POLICIES[settings.policy], hypervisor, period=_NEVER_S, record=measured.append)
    await engine.start()
    try:
        for step in range(STEPS):
            now = float(step * STEP_S)
            await cloud.step(engine, step)
            await engine.sampler.measure()
            writer.write(measured.pop(), sys.maxsize, settings.record_files)
    finally:
        await engine.stop()
        writer.close()
    return cloud.came


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: python -m benchmarks.example_trace [FILE]", file=sys.stderr)
        return 2
    path = Path(*arguments or [DEBUG_RECORD])
    try:
        came = asyncio.run(record(path))
    except TraceWriteError as error:
        print(f"{path}: {error}; {error.next_step}", file=sys.stderr)
        return 1
    name = shlex.quote(str(path))
    print(
        f"{path}: {STEPS * STEP_S // 3600} hours of {TOPOLOGY.stem} with {came} VMs, {path.stat().st_size >> 20} MiB\n"
        f"Replay it:   .venv/bin/vmstackd --load={name} --topology={TOPOLOGY}\n"
        f"Look at it:  .venv/bin/vmstackctl report {name} -o report.html"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
