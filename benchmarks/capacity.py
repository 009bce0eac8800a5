"""How long it takes to say how many more VMs a cluster takes, as it is and with any one host lost.

Through the Python API, on one core, the garbage collector on. Hosts of 96 to 256 CPUs and 4 GiB per CPU hold up to 50
VMs of ten sizes at three levels, and each of these is asked for. known: the VMs on each host are told; presumed: only
its figures.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import product
from time import perf_counter

from benchmarks.table import aligned, median
from core.admission import refusal_on, with_vm
from core.spare import SpareHost, spare
from core.status import HostStatus

HOSTS = 10_000
VMS = 50
"""On each host, if they fit."""
RUNS = 7
SEED = 7
LIMIT = 1.0
"""Seconds, the target for the median."""
LEVELS = (1000, 2000, 3000)
SIZES = (
    (1, 1024),
    (1, 2048),
    (1, 4096),
    (2, 4096),
    (2, 7168),
    (2, 8192),
    (4, 8192),
    (4, 15360),
    (8, 16384),
    (8, 32768),
)
WANTED = [(level, *size) for level, size in product(LEVELS, SIZES)]


def _host(rnd: random.Random) -> SpareHost:
    cpus = rnd.choice((96, 128, 192, 256))
    status = HostStatus(
        cpus=cpus,
        free_cpus=cpus,
        held_cpus=0,
        memory_mib=cpus * 4096,
        allocated_mib=0,
        free_mib=cpus * 4096,
        vms=0,
        generation=0,
        levels=(),
    )
    vms: Counter[tuple[int, int, int]] = Counter()
    while status.vms < VMS:
        size = rnd.choice(WANTED)
        if refusal_on(status, *size) is not None:
            size = LEVELS[-1], *SIZES[0]
            if refusal_on(status, *size) is not None:
                break
        status = with_vm(status, *size)
        vms[size] += 1
    return SpareHost(status, True, tuple([(*size, count) for size, count in vms.items()]))


def _row(name: str, hosts: list[SpareHost], lost: int) -> list[str]:
    taken = []
    for _ in range(RUNS):
        start = perf_counter()
        spare(hosts, WANTED, lost)
        taken.append(perf_counter() - start)
    middle = median(taken)
    return [
        name,
        f"<= {LIMIT:.1f}",
        f"{min(taken):.3f}",
        f"{'!' if middle > LIMIT else ''}{middle:.3f}",
        f"{max(taken):.3f}",
        str(RUNS),
    ]


def main() -> None:
    """Measure and print."""
    rnd = random.Random(SEED)
    hosts = [_host(rnd) for _ in range(HOSTS)]
    vms = sum(host.status.vms for host in hosts)
    print(f"Capacity of {HOSTS:,} hosts with {vms:,} VMs for {len(WANTED)} sizes: seconds; '!': median above target\n")
    presumed = [SpareHost(host.status, True, None) for host in hosts]
    print(
        aligned(
            ["", "target", "least", "median", "most", "runs"],
            [
                _row("as it is", hosts, 0),
                _row("any one host lost, VMs known", hosts, 1),
                _row("any one host lost, VMs presumed", presumed, 1),
                _row("100 hosts lost together", hosts, 100),
            ],
        )
    )
