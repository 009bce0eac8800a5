"""The host where the VM costs least of what the cluster can still sell.

1. The free CPUs of a host are counted in fractions (a VM takes vCPUs / level), its free memory as it is.
2. What the free room of a host is *worth*: the most that copies of popular shapes which it would take now can use of
   it, in shares of a host, where of CPU and memory the scarcer one counts, the other only if it is nearly as scarce.
3. Popular are the shapes that have arrived most often so far (``core.demand``).
4. What of the room is *wasted*: what stays free when it is filled with copies of one popular shape, on average over
   these, weighted by how often they arrive.
5. A VM costs the worth that is lost, 0.05 times the waste that is added,
6. and 0.005 times the share that stays free, so that of hosts that are equally good the fuller one gets it.
7. The lowest cost wins; of equals, the first host.
8. What is popular and scarce is looked at anew whenever the number of arrivals has grown by a quarter.

Whether a VM fits is decided by the exact rules alone. Measured: docs/sizing.md.
"""

from __future__ import annotations

import math

from core.admission import copies_on, with_vm
from core.demand import Market
from core.level import UNIT
from core.status import HostStatus
from core.worth import FRAGMENTATION, PACKING, Worth

GRID = 1 << 30
"""Costs are whole numbers of these parts of 1, so that errors of computing make no difference."""


class WorthPolicy:
    """See the module."""

    name = "worth"
    kernel: str | None = "worth"

    def score(self, status: HostStatus, level: int, vcpus: int, memory_mib: int, market: Market | None) -> float:
        table = Worth(market)
        after = with_vm(status, level, vcpus, memory_mib)
        cost = _standing(status, market, table) - _standing(after, market, table)
        cpu_use, memory_use = (market.cpu_use, market.memory_use) if market is not None else (1.0, 1.0)
        idle_cpus = max(_unsold(after), 0.0) / after.cpus
        idle_mib = after.free_mib / after.memory_mib if after.memory_mib else 0.0
        cost += PACKING * (cpu_use * idle_cpus + memory_use * idle_mib)
        return -math.floor(cost * GRID + 0.5) / GRID


def _unsold(status: HostStatus) -> float:
    """CPUs, fractions included; negative on a host with debts."""
    sold = 0.0
    for found in status.levels:
        sold += found.vcpus * float(UNIT) / found.level
    return status.cpus - status.held_cpus - sold


def _standing(status: HostStatus, market: Market | None, table: Worth) -> float:
    """Worth of the room, less what of it is wasted."""
    refused = _refused(status, market) if market is not None else []
    return table.of(_unsold(status), status.free_mib, refused) - FRAGMENTATION * _waste(status, market)


def _refused(status: HostStatus, market: Market) -> list[int]:
    """Places of the popular shapes above 1:1 for which CPUs are too few; to ask at 1:1 too made no difference."""
    return [
        place
        for place, shape in enumerate(market.shapes)
        if shape.level > UNIT and copies_on(status, shape.level, shape.vcpus, 0) == 0
    ]


def _waste(status: HostStatus, market: Market | None) -> float:
    waste = 0.0
    if market is None:
        return waste
    arrivals = sum([shape.count for shape in market.shapes])
    free_cpus = max(_unsold(status), 0.0)
    for shape in market.shapes:
        copies = copies_on(status, shape.level, shape.vcpus, shape.memory_mib)
        idle_cpus = max(free_cpus - copies * (shape.vcpus * UNIT / shape.level), 0.0)
        idle_mib = status.free_mib - copies * shape.memory_mib
        shares = market.cpu_use * idle_cpus / market.cpus + market.memory_use * idle_mib / (market.memory_mib or 1.0)
        waste += shape.count / arrivals * shares
    return waste
