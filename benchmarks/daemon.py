"""The daemon as a process: how large it is with 700 VMs on 256 CPUs, how soon it answers, and what it costs idle.

Simulated VMs (``sim:``), so that the figures are the daemon's own. Start to first answer is measured
from the creation of the process to the first reply over HTTP. vmstackctl is measured from its start to its end.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import aligned
from tests.running import Daemon
from tests.transports.bus import Bus

STARTS = 5
VMS = 700
HOST = str(Path(__file__).resolve().parent.parent / "topologies" / "EPYC-7662.json")
MEMORY_LIMIT_MIB = 80.0
START_LIMIT_S = 1.0
COMMANDS = 15
COMMAND_LIMIT_S = 0.25
IDLE_S = 15.0
IDLE_LIMIT_PERCENT = 0.5


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _seconds_to_first_answer() -> float:
    port = _free_port()
    daemon = Daemon("--hypervisor", "sim:", "--topology", HOST, "--http-port", str(port), wait=False)
    daemon.url = f"http://127.0.0.1:{port}"
    begin = time.perf_counter()
    with daemon:
        while True:
            try:
                daemon.get("/status")
                break
            except OSError:
                time.sleep(0.002)
        return time.perf_counter() - begin


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _seconds_of_command(path: str) -> float:
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "vmstackctl", "--socket", path, "status"], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    _seconds_to_first_answer()  # files into the page cache
    starts = [_seconds_to_first_answer() for _ in range(STARTS)]
    with (
        tempfile.TemporaryDirectory() as directory,
        Bus(Path(directory)) as bus,
        Daemon(
            *("--hypervisor", "sim:", "--topology", HOST, "--critical-size", "0"),
            *("--socket", f"{directory}/socket", "--dbus", bus.address),
        ) as daemon,
    ):
        empty = _resident_mib(daemon.process.pid)
        for number in range(VMS):
            level = 1 if number < 16 else 2 if number < 76 else 3  # 254 CPUs in all
            answer = daemon.get(f"/deploy?name=vm{number}&cpu=1&mem=1&oc={level}&qcow2=/images/{number}.qcow2")
            if answer.status != 200:
                raise RuntimeError(f"VM {number}: {answer.text}")
        daemon.get("/metrics")
        full = _resident_mib(daemon.process.pid)
        _seconds_of_command(f"{directory}/socket")
        commands = [_seconds_of_command(f"{directory}/socket") for _ in range(COMMANDS)]
        before, begin = _cpu_seconds(daemon.process.pid), time.perf_counter()
        time.sleep(IDLE_S)
        idle = 100 * (_cpu_seconds(daemon.process.pid) - before) / (time.perf_counter() - begin)
    rows = [
        ["resident memory, no VM", f"{empty:.1f} MiB", "", ""],
        [f"resident memory, {VMS} VMs", f"{full:.1f} MiB", "", f"<= {MEMORY_LIMIT_MIB:.0f} MiB"],
        [
            "start to first answer",
            f"{statistics.median(starts):.2f} s",
            f"{min(starts):.2f} to {max(starts):.2f} s",
            f"<= {START_LIMIT_S:.0f} s",
        ],
        [
            f"vmstackctl status, {VMS} VMs",
            f"{1000 * statistics.median(commands):.0f} ms",
            f"{1000 * min(commands):.0f} to {1000 * max(commands):.0f} ms",
            f"<= {1000 * COMMAND_LIMIT_S:.0f} ms",
        ],
        [f"idle for {IDLE_S:.0f} s, {VMS} VMs", f"{idle:.2f} % of a CPU", "", f"<= {IDLE_LIMIT_PERCENT} %"],
    ]
    print(f"\nvmstackd with 256 CPUs on sim: on D-Bus, the socket and HTTP ({STARTS} starts after one to warm up)\n")
    print(aligned(["", "median", "spread", "target"], rows))
