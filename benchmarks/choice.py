"""How long it takes to choose a host for a VM, and to tell the inventory what a host has now.

Per call, through the Python API, on one core, the clock's own cost (about 0.05 us) included; the garbage collector
stays on. Hosts have 32 to 256 CPUs and 128 to 1024 GiB, each filled to a level of its own, from empty to full, with VMs
of three levels; and, as the hardest case for bounds, all are the same and empty.

new: each request asks for another amount of memory, so that nothing kept from earlier ones is of use. again: requests
of 36 sizes at random, each host that is chosen takes the VM and is put; the first round over all sizes is not counted.
put: the host that was just chosen. learn: what arrivals teach, looked at anew. ``worth`` alone learns; for a request
that is new it computes every host, for which there is no target. Other load on the machine shows in p99, less in the
median, hardly in the least.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from time import perf_counter_ns

from benchmarks.table import aligned, median, percentile
from core.admission import refusal_on, with_vm
from core.demand import Supply
from core.host_policy import HOST_POLICIES
from core.inventory import Inventory
from core.status import HostStatus
from core.worth import Worth

HOSTS = (1_000, 100_000)
NEW = 1_000
AGAIN = 10_000
TAUGHT = 5_000
"""Arrivals before."""
SEED = 7
LEVELS = (1000, 2000, 3000)
SHAPES = [(level, vcpus, vcpus * each) for level, vcpus, each in product(LEVELS, (1, 2, 4, 8), (2048, 4096, 8192))]
LIMITS = {("new", 1_000): 3.0, ("new", 100_000): 100.0, ("again", 1_000): 3.0, ("again", 100_000): 10.0}
"""Targets for the median in microseconds, by what is measured and how many hosts there are."""
PUT_LIMIT = 2.0
COLUMNS = ["", "hosts", "target", "least", "median", "p90", "p99", "calls"]


def _empty(cpus: int, memory_mib: int) -> HostStatus:
    return HostStatus(
        cpus=cpus,
        free_cpus=cpus,
        held_cpus=0,
        memory_mib=memory_mib,
        allocated_mib=0,
        free_mib=memory_mib,
        vms=0,
        generation=0,
        levels=(),
    )


def _filled(rnd: random.Random) -> HostStatus:
    """A host of some size, filled to some degree."""
    status = _empty(rnd.choice((32, 64, 128, 256)), rnd.randint(128, 1024) * 1024)
    used = rnd.random() * status.cpus
    while status.cpus - status.free_cpus < used:
        level, vcpus, memory = rnd.choice(SHAPES)
        if refusal_on(status, level, vcpus, memory):
            break
        status = with_vm(status, level, vcpus, memory)
    return status


def _memory() -> float:
    """MiB that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / (1 << 20)


def _timed(call: Callable[[], object]) -> float:
    """Microseconds."""
    start = perf_counter_ns()
    call()
    return (perf_counter_ns() - start) / 1000


def _row(name: str, hosts: int, limit: float | None, taken: list[float]) -> list[str]:
    middle = median(taken)
    return [
        name,
        f"{hosts:,}",
        "" if limit is None else f"<= {limit:.0f}",
        f"{min(taken):.2f}",
        f"{'!' if limit is not None and middle > limit else ''}{middle:.2f}",
        f"{percentile(taken, 90):.2f}",
        f"{percentile(taken, 99):.2f}",
        f"{len(taken):,}",
    ]


def _measure(found: list[HostStatus]) -> list[list[str]]:
    """All rows for hosts of these figures."""
    count = len(found)
    rows = []
    for name, policy in HOST_POLICIES.items():
        rnd = random.Random(SEED)
        hosts = list(found)
        inventory = Inventory()
        for number, status in enumerate(hosts):
            inventory.put(number, status)
        for _ in range(TAUGHT):
            inventory.arrived(*rnd.choice(SHAPES))
        new, again, puts = [], [], []
        for turn in range(NEW + 10):
            level, vcpus, memory = rnd.choice(SHAPES)
            taken = _timed(lambda: inventory.choose(policy, level, vcpus, memory + turn + 1))  # noqa: B023  called now
            if turn >= 10:
                new.append(taken)
        for turn in range(AGAIN + len(SHAPES)):
            shape = SHAPES[turn] if turn < len(SHAPES) else rnd.choice(SHAPES)
            start = perf_counter_ns()
            inventory.arrived(*shape)
            chosen = inventory.choose(policy, *shape)
            end = perf_counter_ns()
            if turn >= len(SHAPES):
                again.append((end - start) / 1000)
            if chosen is not None:
                hosts[chosen.host] = status = with_vm(hosts[chosen.host], *shape)
                puts.append(_timed(lambda: inventory.put(chosen.host, status)))  # noqa: B023  called now
        rows += [
            _row(f"{name}, new", count, None if name == "worth" else LIMITS["new", count], new),
            _row(f"{name}, again", count, LIMITS["again", count], again),
            _row(f"{name}, put", count, PUT_LIMIT, puts),
        ]
    rows.append(_row("learn", count, None, [_timed(lambda: _learn(inventory)) for _ in range(20)]))
    rows.append(_row("refusals", count, None, [_timed(lambda: inventory.refusals(3000, 4, 4096)) for _ in range(20)]))
    rows.append(_row("totals", count, None, [_timed(inventory.totals) for _ in range(1000)]))
    return rows


def _learn(inventory: Inventory) -> None:
    inventory.value_by(Worth(inventory.demand.look(Supply(*inventory.supply()))))


def _measure_alike(count: int) -> list[str]:
    """New requests where all hosts are equally good."""
    inventory = Inventory()
    status = _empty(256, 1 << 20)
    for number in range(count):
        inventory.put(number, status)
    policy = HOST_POLICIES["progress"]
    taken = [_timed(lambda: inventory.choose(policy, 2000, 4, 8192 + turn)) for turn in range(110)]  # noqa: B023
    return _row("progress, new, all hosts alike", count, None, taken[10:])


def main() -> None:
    """Measure and print."""
    rnd = random.Random(SEED)
    found = [_filled(rnd) for _ in range(max(HOSTS))]
    before = _memory()
    inventory = Inventory()
    for number, status in enumerate(found):
        inventory.put(number, status)
    used = _memory() - before
    del inventory
    vms = sum(status.vms for status in found)
    print(f"Choosing a host among hosts of 32 to 256 CPUs with {vms / len(found):.0f} VMs on average: microseconds")
    print("new: a request never seen; again: one of 36 sizes, hosts change in between; put: new figures of a host;")
    print(f"'!' marks a median above its target; {used:.0f} MiB for the inventory of {max(HOSTS):,} hosts\n")
    rows: list[list[str]] = []
    for count in HOSTS:
        rows += _measure(found[:count])
        rows.append(_measure_alike(count))
    print(aligned(COLUMNS, rows))
