"""The daemon as a process: how large it is with 700 VMs on 256 CPUs, and how soon it answers.

Simulated VMs (``sim:``), so that the figures are the daemon's own. Start to first answer is measured
from the creation of the process to the first reply over HTTP.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from pathlib import Path

from benchmarks.table import aligned
from tests.daemon import Daemon

STARTS = 5
VMS = 700
HOST = str(Path(__file__).resolve().parent.parent / "topologies" / "EPYC-7662.json")
MEMORY_LIMIT_MIB = 80.0
START_LIMIT_S = 1.0


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


def main() -> None:
    """Print the table."""
    _seconds_to_first_answer()  # files into the page cache
    starts = [_seconds_to_first_answer() for _ in range(STARTS)]
    with Daemon("--hypervisor", "sim:", "--topology", HOST, "--critical-size", "0") as daemon:
        empty = _resident_mib(daemon.process.pid)
        for number in range(VMS):
            level = 1 if number < 16 else 2 if number < 76 else 3  # 254 CPUs in all
            answer = daemon.get(f"/deploy?name=vm{number}&cpu=1&mem=1&oc={level}&qcow2=/images/{number}.qcow2")
            if answer.status != 200:
                raise RuntimeError(f"VM {number}: {answer.text}")
        daemon.get("/metrics")
        full = _resident_mib(daemon.process.pid)
    rows = [
        ["resident memory, no VM", f"{empty:.1f} MiB", "", ""],
        [f"resident memory, {VMS} VMs", f"{full:.1f} MiB", "", f"<= {MEMORY_LIMIT_MIB:.0f} MiB"],
        [
            "start to first answer",
            f"{statistics.median(starts):.2f} s",
            f"{min(starts):.2f} to {max(starts):.2f} s",
            f"<= {START_LIMIT_S:.0f} s",
        ],
    ]
    print(f"\nvmstackd with 256 CPUs on sim: ({STARTS} starts after one to warm up)\n")
    print(aligned(["", "median", "spread", "target"], rows))
