"""Other workloads made from one: harder for a policy, or larger. Each follows from the workload and a seed.

shuffled: memory does not go with vCPUs any more. steady: as many VMs come as go, for several lifetimes. churn: the
same, harder. wide: some VMs are as wide as a server or half of it. large: the same for many servers.
turnover: the shapes and lifetimes of the workload, for many servers, as many come as go.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from math import inf

from msgspec.structs import replace

from benchmarks.workloads.week import CAP_MIB, HOUR_S, HOURS_A_DAY
from core.level import UNIT
from core.workload import Workload, WorkloadVm

STEADY_VMS = 700
STEADY_LIFETIMES = 5
"""Mean ones, after the beginning."""
CHURN_VMS = 1000
CHURN_LIFETIMES = 15
MEAN_S = (1 + HOURS_A_DAY) / 2 * HOUR_S
"""Of lifetimes in steady and churn."""
WIDE_PERCENT = 3
WIDE_VCPUS = (16, 24, 32)
WIDE_MIB = (2048, 4096)
"""For each vCPU, at 1:1."""
LARGE_TIMES = 48
"""Weeks in one: some 50,000 VMs are there at the end."""
TURNOVER_VMS = 50_000
TURNOVER_ARRIVALS = 170_000

Variant = Callable[[Workload, random.Random], Workload]


def vary(variant: str, name: str, workload: Workload, seed: int) -> Workload:
    """A variant of a workload; ``name`` is the workload's, so that each gets a chance of its own.

    KeyError if it is none of VARIANTS.
    """
    return VARIANTS[variant](workload, random.Random(f"{variant} {name} {seed}"))


def shuffled(workload: Workload, chance: random.Random) -> Workload:
    """The memory sizes of all VMs in a random order."""
    sizes = [vm.memory_mib for vm in workload.vms]
    chance.shuffle(sizes)
    vms = zip(workload.vms, sizes, strict=True)
    return Workload(tuple(replace(vm, memory_mib=memory_mib) for vm, memory_mib in vms))


def steady(
    workload: Workload, chance: random.Random, alive: int = STEADY_VMS, lifetimes: float = STEADY_LIFETIMES
) -> Workload:
    """On average so many VMs, arriving independently of each other, each for one hour to a day.

    Sizes and levels are those of random VMs of the workload, here and in ``churn``.
    """
    # Those that are there already: at a random moment of a life, and longer lives have more moments.
    spans = [(0.0, chance.random() * chance.uniform(1, HOURS_A_DAY**2) ** 0.5 * HOUR_S) for _ in range(alive)]
    arrival = chance.expovariate(alive / MEAN_S)
    while arrival < lifetimes * MEAN_S:
        spans.append((arrival, arrival + chance.uniform(1, HOURS_A_DAY) * HOUR_S))
        arrival += chance.expovariate(alive / MEAN_S)
    return _sized(workload, chance, spans)


def churn(
    workload: Workload, chance: random.Random, alive: int = CHURN_VMS, lifetimes: float = CHURN_LIFETIMES
) -> Workload:
    """Always so many VMs: where one goes, another comes a moment later. Of the same mean lifetime as in ``steady``, but
    as different as lifetimes without memory are.
    """
    spans = [(0.0, chance.expovariate(1 / MEAN_S)) for _ in range(alive)]
    ends = [departure for _, departure in spans]
    heapq.heapify(ends)
    while (arrival := ends[0] + _MOMENT_S) < lifetimes * MEAN_S:
        departure = arrival + chance.expovariate(1 / MEAN_S)
        spans.append((arrival, departure))
        heapq.heapreplace(ends, departure)
    return _sized(workload, chance, spans)


def wide(workload: Workload, chance: random.Random) -> Workload:
    """Some VMs get many vCPUs, and memory as such VMs are sold."""
    return Workload(tuple(_widened(vm, chance) if chance.random() * 100 < WIDE_PERCENT else vm for vm in workload.vms))


def large(workload: Workload, chance: random.Random, times: int = LARGE_TIMES) -> Workload:
    """Each VM so many times, for its lifetime; but levels and sizes change places, among the VMs of the beginning and
    among all others.
    """
    vms = [replace(vm, name=f"{vm.name}-{copy}") for vm in workload.vms for copy in range(times)]
    first = [vm for vm in vms if vm.arrival == vms[0].arrival]
    later = vms[len(first) :]
    return Workload(tuple(_exchanged(first, chance) + _exchanged(later, chance)))


def turnover(
    workload: Workload, chance: random.Random, alive: int = TURNOVER_VMS, arrivals: int = TURNOVER_ARRIVALS
) -> Workload:
    """On average so many VMs, and so many in all, with lifetimes of random VMs that leave.

    ValueError if none of the workload's does.
    """
    lives = [vm.departure - vm.arrival for vm in workload.vms if vm.arrival < vm.departure < inf]
    if not lives:
        raise ValueError("no VM leaves, so it is unknown how long VMs stay")
    # As in ``steady``: a VM that is there already is more likely one with a long life.
    spans = [(0.0, chance.random() * life) for life in chance.choices(lives, weights=lives, k=alive)]
    arrival, mean = 0.0, sum(lives) / len(lives)
    while len(spans) < arrivals:
        arrival += chance.expovariate(alive / mean)
        spans.append((arrival, arrival + chance.choice(lives)))
    return _sized(workload, chance, spans)


def pooled(workloads: Mapping[str, Workload]) -> Workload:
    """All VMs of workloads in one, by their arrival; of one moment, in the order of the workloads.

    Names of VMs begin with that of their workload.
    """
    vms = [replace(vm, name=f"{name}-{vm.name}") for name, workload in workloads.items() for vm in workload.vms]
    return Workload(tuple(sorted(vms, key=lambda vm: vm.arrival)))


VARIANTS: Mapping[str, Variant] = {
    "shuffled": shuffled,
    "steady": steady,
    "churn": churn,
    "wide": wide,
    "large": large,
    "turnover": turnover,
}

_MOMENT_S = 0.001


def _sized(workload: Workload, chance: random.Random, spans: Sequence[tuple[float, float]]) -> Workload:
    """VMs that are there in these spans, ascending, with sizes and levels of random VMs."""
    sizes = chance.choices(workload.vms, k=len(spans))
    vms = [
        replace(size, name=str(number), arrival=arrival, departure=departure)
        for number, (size, (arrival, departure)) in enumerate(zip(sizes, spans, strict=True))
    ]
    return Workload(tuple(vms))


def _widened(vm: WorkloadVm, chance: random.Random) -> WorkloadVm:
    vcpus = chance.choice(WIDE_VCPUS)
    memory_mib = vcpus * chance.choice(WIDE_MIB) if vm.level == UNIT else CAP_MIB
    return replace(vm, vcpus=vcpus, memory_mib=memory_mib)


def _exchanged(vms: Sequence[WorkloadVm], chance: random.Random) -> list[WorkloadVm]:
    sizes = list(vms)
    chance.shuffle(sizes)
    return [
        replace(vm, level=size.level, vcpus=size.vcpus, memory_mib=size.memory_mib)
        for vm, size in zip(vms, sizes, strict=True)
    ]
