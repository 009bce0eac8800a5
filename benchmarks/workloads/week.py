"""Weeks of VMs by the rules of CloudFactory and of the simulator that the SlackVM paper used.

An hour has 360 seconds. 500 VMs are there from the beginning, some 200 more arrive on each of six further days, and
most of all stay: the cluster grows until the end. A week is told apart by its dataset, its mix and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.workloads.batches import DATASETS, sizes_of
from core.level import UNIT
from core.workload import Workload, WorkloadVm

HOUR_S = 360
HOURS_A_DAY = 24
DAYS = 7
END_S = DAYS * HOURS_A_DAY * HOUR_S
"""When all go that stay."""
LEVELS = (UNIT, 2 * UNIT, 3 * UNIT)
CAP_MIB = 8192
"""The most that a VM above 1:1 gets."""

Mix = tuple[int, int, int]
"""Percent of the VMs at each of LEVELS."""
MIXES: tuple[Mix, ...] = tuple(
    (one, two, 100 - one - two) for one in range(0, 101, 25) for two in range(0, 101 - one, 25)
)
"""In steps of a quarter."""

_USAGES = ((36, 0.60), (28, 0.15), (14, 0.57), (21, 0.32))
"""Classes of usage: percent of all VMs, and the share of these that go within a day."""
_BUCKETS = 4096


def name_of(dataset: str, mix: Mix, seed: int) -> str:
    """Of a workload."""
    return f"{dataset}_{mix[0]}-{mix[1]}-{mix[2]}_s{seed}"


def generate(dataset: str, mix: Mix, seed: int) -> Workload:
    """The week of a dataset (KeyError if it is none of DATASETS) with this mix, always the same for a seed."""
    chance = random.Random(name_of(dataset, mix, seed))
    vms: list[WorkloadVm] = []
    for day in range(DAYS):
        vms += _arriving(chance, dataset, mix, day, len(vms))
    return Workload(tuple(sorted(vms, key=_submitted)))


def _arriving(chance: random.Random, dataset: str, mix: Mix, day: int, number: int) -> Iterator[WorkloadVm]:
    """The VMs of a day, numbered from ``number`` on."""
    sizes = sizes_of(DATASETS[dataset].daily if day else DATASETS[dataset].first)
    count = len(sizes)
    levels = _levels(chance, mix, count)
    usages = _usages(chance, count)
    hours = _hours(chance, count) if day else [0] * count
    for (vcpus, memory_mib), level, usage, hour in zip(sizes, levels, usages, hours, strict=True):
        arrival = (day * HOURS_A_DAY + hour) * HOUR_S
        is_short = chance.random() < _USAGES[usage][1]
        departure = arrival + chance.randint(1, HOURS_A_DAY) * HOUR_S if is_short else END_S
        placed_mib = memory_mib if level == UNIT else min(memory_mib, CAP_MIB)
        yield WorkloadVm(str(number), level, vcpus, placed_mib, float(arrival), float(departure))
        number += 1


def _levels(chance: random.Random, mix: Mix, count: int) -> list[int]:
    """Shares are rounded up, so there may be some too many: chance says which."""
    levels = [level for level, percent in zip(LEVELS, mix, strict=True) for _ in range(-(-count * percent // 100))]
    chance.shuffle(levels)
    return levels[:count]


def _usages(chance: random.Random, count: int) -> list[int]:
    """Shares are rounded down; chance fills up."""
    usages = [usage for usage, (percent, _) in enumerate(_USAGES) for _ in range(count * percent // 100)]
    usages += [chance.randrange(len(_USAGES)) for _ in range(count - len(usages))]
    chance.shuffle(usages)
    return usages


def _hours(chance: random.Random, count: int) -> list[int]:
    """Of which few are popular, as bursts are."""
    weights = [chance.expovariate(1) for _ in range(HOURS_A_DAY)]
    return chance.choices(range(HOURS_A_DAY), weights, k=count)


def _submitted(vm: WorkloadVm) -> tuple[float, int, int]:
    """When, and of one moment in which order: that simulator goes through a hash table of names."""
    return vm.arrival, _bucket(f"vm{vm.name}"), int(vm.name)


def _bucket(text: str) -> int:
    """Where Java's HashMap of this many buckets keeps a text."""
    code = 0
    for character in text:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    return (code ^ code >> 16) % _BUCKETS
