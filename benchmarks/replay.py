"""How fast a recorded trace is replayed, and whether the memory for it grows with the file.

The trace is that of an EPYC-7662 with some 250 VMs of three levels, of which a few come and go from sample to sample.
Rows per second: in this process, of the reader alone, of reader and decisions, and with the recomputed trace written as
well; and of the whole command, its start included. A first run of each warms up and is not counted. Memory: the most
that the command, as a fresh process, has had.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import aligned, median
from core.allocator import empty_state
from core.model import HostState, Rules
from core.policy import POLICIES
from core.replay import Replay
from core.trace import HEADER, Sample, TracedVm, format_sample
from vmstackd.replay_record import ReplayRecord
from vmstackd.topology_source import load_topology
from vmstackd.trace_file import TraceFile

SEED = 7
ROWS = 1_000_000
FEWER_ROWS = 100_000
RUNS = 3
VMS = 250
COMING = 2
"""VMs that come with each sample; so many go on average."""
DELAY_S = 15
ROWS_LIMIT = 300_000
"""Target: rows per second, reader and decisions."""
POLICY = POLICIES["reference"]
TOPOLOGY = Path(__file__).resolve().parent.parent / "topologies" / "EPYC-7662.json"


def _state() -> HostState:
    return empty_state(load_topology(f"file:{TOPOLOGY}"), Rules(critical_size=0))


def write_trace(path: Path, rows: int) -> int:
    """A trace of at least so many rows; returns how many it has."""
    chance = random.Random(SEED)
    replay = Replay(_state(), POLICY)
    vms: list[TracedVm] = []
    written = number = moment = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER)
        while written < rows:
            vms = [vm for vm in vms if chance.random() > COMING / VMS]
            while len(vms) < VMS:
                number += 1
                uuid = f"{chance.getrandbits(128):032x}"
                vcpus = chance.choice((1, 1, 2, 4))
                vms.append(TracedVm(uuid, f"vm{number}", chance.choice((1000, 2000, 3000)), vcpus, 1024 * vcpus))
            measured = [
                TracedVm(
                    vm.uuid,
                    vm.name,
                    vm.level,
                    vm.vcpus,
                    vm.memory_mib,
                    chance.random(),
                    chance.random(),
                    chance.random(),
                )
                for vm in vms
            ]
            host = Sample(moment * DELAY_S, 256, 1031752, chance.random(), chance.random(), (), tuple(measured))
            replay.step(host)
            text = format_sample(replay.recomputed(host))
            file.write(text)
            written += text.count("\n")
            moment += 1
    return written


def _read(path: Path) -> None:
    with TraceFile(path) as trace:
        for _ in trace:
            pass


def _decide(path: Path) -> None:
    replay = Replay(_state(), POLICY)
    with TraceFile(path) as trace:
        for sample in trace:
            replay.step(sample)


def _decide_and_record(path: Path) -> None:
    replay = Replay(_state(), POLICY)
    with TraceFile(path) as trace, ReplayRecord(path.with_suffix(".again")) as record:
        for sample in trace:
            replay.step(sample)
            record.add(replay.recomputed(sample))


def _command(path: Path) -> int:
    """Run the whole command; returns the most memory that it has had, in KiB."""
    flags = ["--config", os.devnull, f"--load={path}", f"--topology={TOPOLOGY}", "--critical-size=0", "--output=none"]
    process = subprocess.Popen([sys.executable, "-m", "vmstackd", *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


def _speed(run: Callable[[Path], object], path: Path, rows: int) -> float:
    """Rows per second, the median run."""
    taken = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        run(path)
        taken.append(time.perf_counter() - start)
    return rows / median(taken[1:])


def main() -> None:
    """Measure and print."""
    print(f"Replay of a trace, policy {POLICY.name}: median of {RUNS} runs; '!' marks what misses its target\n")
    with tempfile.TemporaryDirectory() as folder:
        path, shorter = Path(folder, "trace.csv"), Path(folder, "shorter.csv")
        rows, fewer = write_trace(path, ROWS), write_trace(shorter, FEWER_ROWS)
        table = [["target", f">= {ROWS_LIMIT:,}"]]
        for name, run, limit in (
            ("read", _read, 0),
            ("read, decide", _decide, ROWS_LIMIT),
            ("read, decide, record", _decide_and_record, 0),
            ("the command", _command, 0),
        ):
            speed = _speed(run, path, rows)
            table.append([name, f"{'!' if speed < limit else ''}{speed:,.0f}"])
        print(aligned([f"{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB", "rows/s"], table))
        most = [[f"{count:,} rows", f"{_command(file) / 1024:.1f}"] for count, file in ((fewer, shorter), (rows, path))]
        print(f"\n{aligned(['peak memory of the command', 'MiB'], most)}")
