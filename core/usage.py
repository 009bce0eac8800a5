"""What a host really did: counters of two moments in, figures of the time between them out.

CPU time is in seconds of one CPU, memory in MiB. None stands for what is not known: no counter, or no earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from core.model import HostState, Subset


class NodeMemory(msgspec.Struct, frozen=True, gc=False):
    """Memory of one NUMA node, and how much of it is used."""

    node: int
    memory_mib: int
    used_mib: int


class HostCounters(msgspec.Struct, frozen=True):
    """at: seconds on a clock that never jumps. cpus: for how many seconds each CPU, by its id, has been busy since some
    fixed moment. nodes: ascending.
    """

    at: float
    cpus: Mapping[int, float]
    memory_mib: int
    used_mib: int
    nodes: tuple[NodeMemory, ...] = ()


class VmCounters(msgspec.Struct, frozen=True, gc=False):
    """cpu_s: CPU time of all its threads. delay_s: for how long its vCPUs together waited for a CPU though they
    could have run. Both since its start. resident_mib: of its memory, what the host really has given. started: with
    the UUID, tells its lives apart.
    """

    uuid: str
    cpu_s: float | None = None
    delay_s: float | None = None
    resident_mib: int | None = None
    started: int = 0


class Counters(msgspec.Struct, frozen=True):
    """Everything of one round. at: when those of the VMs were read, as in HostCounters. vms: by name.
    read_before: of the VMs that could not be read in this round, when they were.
    """

    at: float
    host: HostCounters
    vms: Mapping[str, VmCounters]
    read_before: Mapping[str, float] = {}


class VmUsage(msgspec.Struct, frozen=True, gc=False):
    """busy_cpus: CPUs kept busy on average. delay_s: waited within the time. delay_ratio: the same as a share of
    that time, per vCPU, 0 to 1 (hypervisors elsewhere call it CPU ready).
    """

    busy_cpus: float | None = None
    delay_s: float | None = None
    delay_ratio: float | None = None
    resident_mib: int | None = None


class LevelUsage(msgspec.Struct, frozen=True, gc=False):
    """busy_cpus: of the CPUs of the level. delay_s: waited by all its VMs within the time. delay_median, delay_p99:
    of the delay_ratio of its VMs.
    """

    level: int
    busy_cpus: float | None = None
    delay_s: float | None = None
    delay_median: float | None = None
    delay_p99: float | None = None


class HostUsage(msgspec.Struct, frozen=True):
    """Of a host, within the last ``seconds``. time: of its end, seconds since 1970. busy_cpus: of the usable CPUs.
    memory_mib: all that the host has. levels: as in the status.
    """

    time: float
    seconds: float
    busy_cpus: float | None
    memory_mib: int
    used_mib: int
    nodes: tuple[NodeMemory, ...] = ()
    levels: tuple[LevelUsage, ...] = ()

    def of_level(self, level: int) -> LevelUsage:
        """Of a level, in thousandths; of one that has come since, nothing is known."""
        return next((found for found in self.levels if found.level == level), LevelUsage(level=level))


class Usage(msgspec.Struct, frozen=True):
    """The figures of a host and of its VMs, by name; of a VM that was not seen nothing is there."""

    host: HostUsage
    vms: Mapping[str, VmUsage]


def usage(before: Counters | None, now: Counters, state: HostState, time: float) -> Usage:
    """What happened between two moments, on the subsets as they are in ``state``. time: as in HostUsage."""
    seconds = 0.0 if before is None else now.at - before.at
    vms: dict[str, VmUsage] = {}
    levels: list[LevelUsage] = []
    for subset in state.subsets:
        for name, vm in subset.vms.items():
            counters = now.vms.get(name)
            if counters is not None and name not in now.read_before:
                if before is None:
                    vms[name] = _of_vm(None, counters, 0.0, vm.vcpus)
                else:
                    began = before.read_before.get(name, before.at)
                    vms[name] = _of_vm(before.vms.get(name), counters, now.at - began, vm.vcpus)
        levels.append(_of_level(subset, vms, _busy(before, now, subset.cpus)))
    return Usage(
        host=HostUsage(
            time=time,
            seconds=max(0.0, seconds),
            busy_cpus=_busy(before, now, state.topology.cpu_ids),
            memory_mib=now.host.memory_mib,
            used_mib=now.host.used_mib,
            nodes=now.host.nodes,
            levels=tuple(levels),
        ),
        vms=vms,
    )


def quantile(ascending: list[float], share: float) -> float:
    """The value that this share of the values does not exceed (nearest rank); of at least one value."""
    rank = -(-len(ascending) * share // 1)
    return ascending[max(0, int(rank) - 1)]


def _busy(before: Counters | None, now: Counters, cpus: tuple[int, ...]) -> float | None:
    seconds = 0.0 if before is None else now.host.at - before.host.at
    if before is None or seconds <= 0:
        return None
    old, new = before.host.cpus, now.host.cpus
    total, known = 0.0, False
    for cpu in cpus:
        ended, began = new.get(cpu), old.get(cpu)
        if ended is not None and began is not None:
            known = True
            # A counter that goes back (a CPU that was offline) tells nothing; one CPU is never more than one busy.
            total += min(max(ended - began, 0.0), seconds)
    return total / seconds if known else None


def _of_vm(before: VmCounters | None, now: VmCounters, seconds: float, vcpus: int) -> VmUsage:
    if before is None or (before.uuid, before.started) != (now.uuid, now.started) or seconds <= 0:
        return VmUsage(resident_mib=now.resident_mib)
    busy = _since(before.cpu_s, now.cpu_s)
    delay = _since(before.delay_s, now.delay_s)
    return VmUsage(
        busy_cpus=None if busy is None else busy / seconds,
        delay_s=delay,
        delay_ratio=None if delay is None else min(1.0, delay / seconds / vcpus),
        resident_mib=now.resident_mib,
    )


def _since(before: float | None, now: float | None) -> float | None:
    """How much a counter has grown; None where it began anew."""
    return None if before is None or now is None or now < before else now - before


def _of_level(subset: Subset, vms: Mapping[str, VmUsage], busy: float | None) -> LevelUsage:
    ratios: list[float] = []
    total = 0.0
    for name in subset.vms:
        vm = vms.get(name)
        if vm is not None and vm.delay_ratio is not None and vm.delay_s is not None:
            ratios.append(vm.delay_ratio)
            total += vm.delay_s
    if not ratios:
        return LevelUsage(level=subset.level, busy_cpus=busy)
    ratios.sort()
    return LevelUsage(
        level=subset.level,
        busy_cpus=busy,
        delay_s=total,
        delay_median=quantile(ratios, 0.5),
        delay_p99=quantile(ratios, 0.99),
    )
