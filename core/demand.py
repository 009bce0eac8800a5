"""What a cluster is asked for, learnt from the VMs that arrive: which shapes are popular, which resource is scarce.

Nothing here knows of departures to come. Everything follows from the order of arrivals and the cluster at a few of
them, so that the same arrivals always teach the same.
"""

from __future__ import annotations

import msgspec

from core.level import UNIT

POPULAR = 24
"""Shapes that are looked at."""
EPOCH = 64
"""Fewest arrivals between two looks at the cluster; later ones are a quarter of all arrivals apart."""
REMEMBERED = 1 << 16
"""Arrivals. With more, all counts are halved, so that what was popular long ago is forgotten."""


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What VMs are sold as, and how many of them there are, or have arrived."""

    level: int
    vcpus: int
    memory_mib: int
    count: int


class Supply(msgspec.Struct, frozen=True):
    """Sums over the servers of a cluster. most_cpus, most_mib: of a single one. sold: (level, vCPUs), ascending."""

    servers: int
    cpus: int
    memory_mib: int
    most_cpus: int
    most_mib: int
    sold: tuple[tuple[int, int], ...]
    sold_mib: int


class Market(msgspec.Struct, frozen=True):
    """What has been learnt at one moment.

    shapes: popular ones, the most popular first. cpus, memory_mib: of a server, on average. most_cpus, most_mib: of
    the largest. cpu_use, memory_use: how much of each is sold, in shares of the one that is scarcer: the greater is 1.
    """

    shapes: tuple[Shape, ...]
    cpus: float
    memory_mib: float
    most_cpus: int
    most_mib: int
    cpu_use: float
    memory_use: float


class Lesson(msgspec.Struct, frozen=True):
    """All that a Demand knows. seen: arrivals in all; due: at how many of them the market is looked at again."""

    shapes: tuple[Shape, ...]
    seen: int
    due: int
    market: Market | None


class Demand:
    """Counts arrivals; says when to look at the cluster again, and what is to be learnt from it then."""

    def __init__(self, lesson: Lesson | None = None) -> None:
        self._counts: dict[tuple[int, int, int], int] = {}
        self._seen = 0
        self._due = 0
        self.market: Market | None = None
        """None until the first arrival."""
        if lesson is not None:
            for shape in lesson.shapes:
                self._counts[shape.level, shape.vcpus, shape.memory_mib] = shape.count
            self._seen, self._due, self.market = lesson.seen, lesson.due, lesson.market

    def arrived(self, level: int, vcpus: int, memory_mib: int) -> bool:
        """Count a VM, before its place is chosen. Whether ``look`` is due, before that too."""
        shape = (level, vcpus, memory_mib)
        self._counts[shape] = self._counts.get(shape, 0) + 1
        self._seen += 1
        return self._seen > self._due

    def look(self, supply: Supply) -> Market:
        """Learn from a cluster with at least one server."""
        self._due = self._seen - 1 + max(EPOCH, (self._seen - 1) // 4)
        popular = sorted(self._counts.items(), key=_count, reverse=True)[:POPULAR]  # of equals, who came first
        cpus = supply.cpus / supply.servers
        memory_mib = supply.memory_mib / supply.servers
        sold = 0.0
        for level, vcpus in supply.sold:
            sold += vcpus * UNIT / level
        cpu_use, memory_use = sold / cpus, supply.sold_mib / memory_mib if memory_mib else 0.0
        scarcer = max(cpu_use, memory_use)
        self.market = Market(
            shapes=tuple([Shape(*shape, count) for shape, count in popular]),
            cpus=cpus,
            memory_mib=memory_mib,
            most_cpus=supply.most_cpus,
            most_mib=supply.most_mib,
            cpu_use=cpu_use / scarcer if scarcer else 1.0,
            memory_use=memory_use / scarcer if scarcer else 1.0,
        )
        if sum(self._counts.values()) > REMEMBERED:
            self._counts = {shape: count // 2 for shape, count in self._counts.items() if count > 1}
        return self.market

    def lesson(self) -> Lesson:
        """What has been learnt, to go on from it elsewhere."""
        shapes = tuple([Shape(*shape, count) for shape, count in self._counts.items()])
        return Lesson(shapes, self._seen, self._due, self.market)


def _count(item: tuple[tuple[int, int, int], int]) -> int:
    return item[1]
