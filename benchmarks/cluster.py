"""A cluster end to end: a client, globald and simulated hosts, in three processes, over sockets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.farm import address
from benchmarks.table import aligned, median, percentile
from tests.running import ROOT, clean_environment
from vmstackd.api import requests
from vmstackd.api.errors import NoCapacity, NotFound
from vmstackd.client import Client

HOSTS = 100
DEPLOYS = 2000
FLOOD = 5000
IN_FLIGHT = 64
MANY = 10_000
LATENCY_LIMIT_S = 1e-3
RATE_LIMIT = 2000
MEMORY_LIMIT_MIB = 500
LEARN_LIMIT_S = 10.0
PORT = 18097


@contextmanager
def _farm(kind: str, count: int) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.farm", kind, str(count), str(PORT)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the simulated hosts have not started")
            yield
        finally:
            process.kill()


class _Globald:
    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self.socket = folder / "globald.sock"
        hosts = folder / "hosts.d"
        hosts.mkdir()
        lines = ",\n".join(f'"{address(number)}:{PORT}"' for number in range(count))
        (hosts / "all.toml").write_text(f"addresses = [{lines}]\n")
        self._log = (folder / "log").open("wb+")
        self.begin = time.perf_counter()
        flags = ["--config", os.devnull, "--hosts-dir", str(hosts), "--socket", str(self.socket)]
        flags += ["--tcp-host", "none", "--http-port", "0", "--patience", "120"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "globald", *flags], cwd=ROOT, env=clean_environment(), stderr=self._log
        )

    def wait_for(self, word: bytes) -> bytes:
        """The log up to a line with this event."""
        while word not in (log := os.pread(self._log.fileno(), 1 << 24, 0)):
            if self.process.poll() is not None:
                raise RuntimeError(log.decode(errors="replace")[-2000:])
            time.sleep(0.01)
        return log

    def resident_mib(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()


@contextmanager
def _globald(count: int) -> Iterator[_Globald]:
    with tempfile.TemporaryDirectory() as folder:
        daemon = _Globald(Path(folder), count)
        try:
            daemon.wait_for(b" learned ")
            yield daemon
        finally:
            daemon.close()


def _deploy(number: int) -> requests.Deploy:
    vcpus = (1, 2, 2, 4, 8)[number % 5]
    return requests.Deploy(
        name=f"vm{number}",
        vcpus=vcpus,
        memory_mib=vcpus * 1024 * (1 + number % 4),
        level=1000 * (1 + number % 3),
        image="/images/x.qcow2",
    )


async def _one_by_one(client: Client, count: int) -> list[float]:
    taken = []
    for number in range(count):
        begin = time.perf_counter()
        await client.deploy(_deploy(number))
        taken.append(time.perf_counter() - begin)
    return taken


async def _at_once(client: Client, first: int, count: int) -> tuple[float, int]:
    """Deployments per second, and how many were refused."""
    numbers = iter(range(first, first + count))
    refused = 0

    async def caller() -> None:
        nonlocal refused
        for number in numbers:
            try:
                await client.deploy(_deploy(number))
            except NoCapacity:
                refused += 1

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - begin), refused


async def _remove_all(client: Client, count: int) -> None:
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            with suppress(NotFound):
                await client.remove(requests.Remove(name=f"vm{number}"))

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))


async def _end_to_end(daemon: _Globald) -> list[list[str]]:
    async with await Client.connect(str(daemon.socket), program="benchmark") as client:
        await _one_by_one(client, 300)  # warm-up
        await _remove_all(client, 300)
        taken = await _one_by_one(client, DEPLOYS)
        await _remove_all(client, DEPLOYS)
        rates = []
        for _ in range(3):
            before = daemon.cpu_s()
            rate, refused = await _at_once(client, 0, FLOOD)
            share = (daemon.cpu_s() - before) * rate / FLOOD
            rates.append((rate, refused, share))
            await _remove_all(client, FLOOD)
    rate, refused, share = sorted(rates)[len(rates) // 2]
    return [
        [
            "deploy, one at a time",
            f"{median(taken) * 1e6:.0f} us (p99 {percentile(taken, 99) * 1e6:.0f} us)",
            f"<= {LATENCY_LIMIT_S * 1e3:.0f} ms",
        ],
        [
            f"deploys, {IN_FLIGHT} in flight",
            f"{rate:.0f}/s ({refused} refused, globald used {share:.0%} of a CPU)",
            f">= {RATE_LIMIT}/s",
        ],
    ]


def _scale() -> list[list[str]]:
    with _farm("light", MANY), _globald(MANY) as daemon:
        learned = time.perf_counter() - daemon.begin
        resident = daemon.resident_mib()
        before, begin = daemon.cpu_s(), time.perf_counter()
        time.sleep(10)
        idle = (daemon.cpu_s() - before) / (time.perf_counter() - begin)
    return [
        [f"{MANY} hosts: learned after the start in", f"{learned:.1f} s", f"<= {LEARN_LIMIT_S:.0f} s"],
        [f"{MANY} hosts: resident memory", f"{resident:.0f} MiB", f"<= {MEMORY_LIMIT_MIB} MiB"],
        [f"{MANY} hosts: idle", f"{idle:.0%} of a CPU", ""],
    ]


def main() -> None:
    """Print the table."""
    rows: list[list[str]] = []
    with _farm("real", HOSTS), _globald(HOSTS) as daemon:
        rows += asyncio.run(_end_to_end(daemon))
    rows += _scale()
    print(f"\nA cluster end to end: client, globald, {HOSTS} simulated hosts in one process, {os.cpu_count()} CPUs\n")
    print(aligned(("", "measured", "target"), rows))


if __name__ == "__main__":
    main()
