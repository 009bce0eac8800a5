"""What simulated VMs do all day: a load made up from their names and the time, and the counters that it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

from core.topology import Topology
from core.usage import HostCounters, NodeMemory, VmCounters
from vmstackd.hypervisor.base import Measured, ObservedVm


class _Kind(NamedTuple):
    """A VM's load goes from low to high, parts of its vCPUs, and back in about ``period`` seconds. The sharper, the
    shorter it is high.
    """

    low: float
    high: float
    period: float
    sharpness: int


_KINDS = (
    _Kind(0.00, 0.12, 90, 1),  # lazy
    _Kind(0.01, 0.06, 300, 1),
    _Kind(0.02, 0.30, 700, 3),
    _Kind(0.00, 1.00, 420, 12),  # with bursts
    _Kind(0.05, 0.85, 1800, 1),  # by day and by night
    _Kind(0.10, 0.95, 3000, 2),
    _Kind(0.75, 1.00, 240, 1),  # busy
)
_GROWTH_S = 120.0
"""In which most of the memory that a VM will ever touch becomes resident."""


def wanted_cpus(name: str, vcpus: int, seconds: float) -> float:
    """How many CPUs a VM wants to keep busy at a moment, 0 to vcpus; the same wherever it is asked."""
    seed = crc32(name.encode())
    kind = _KINDS[seed % len(_KINDS)]
    phase, pace = (seed >> 8 & 0xFF) / 0x100, 1 + (seed >> 16 & 0xFF) / 0x100
    wave = 0.5 - 0.5 * math.cos(2 * math.pi * (seconds / (kind.period * pace) + phase))
    return vcpus * (kind.low + (kind.high - kind.low) * wave**kind.sharpness)


class _Vm:
    """What is kept of one VM between two measurements. since: when it was first seen."""

    __slots__ = ("cpu_s", "delay_s", "resident_mib", "since", "uuid", "vcpus", "wanted")

    vcpus: int
    wanted: float
    resident_mib: int

    def __init__(self, uuid: str, since: float) -> None:
        self.uuid, self.since = uuid, since
        self.cpu_s = self.delay_s = 0.0


class SimLoad:
    """Counters of VMs, and of the host that the topology describes; without one, of no host.

    VMs that may use the same CPUs share them. Sets that only overlap are taken as if each had its CPUs for itself:
    vmstack lets no two levels overlap.
    """

    def __init__(self, topology: Topology | None) -> None:
        self._topology = topology
        self._cpus = {} if topology is None else dict.fromkeys(topology.cpu_ids, 0.0)
        self._node_of = {} if topology is None else {cpu.id: cpu.node for cpu in topology.cpus}
        self._vms: dict[str, _Vm] = {}
        self._at: float | None = None

    def measure(self, at: float, vms: Iterable[ObservedVm]) -> Measured:
        """The counters at a moment, not before that of the call before. vms: all, as they have been since then."""
        since = at if self._at is None else self._at
        self._at = at
        known, self._vms = self._vms, {}
        groups: dict[frozenset[int], list[_Vm]] = {}
        for seen in vms:
            if not seen.running:
                continue
            vm = known.get(seen.name)
            if vm is None or vm.uuid != seen.uuid:
                vm = _Vm(seen.uuid, at)
            vm.vcpus = seen.vcpus
            vm.wanted = wanted_cpus(seen.name, seen.vcpus, (since + at) / 2)
            vm.resident_mib = _resident_mib(seen, at - vm.since)
            self._vms[seen.name] = vm
            groups.setdefault(seen.pinned, []).append(vm)
        for cpus, group in groups.items():
            busy_s = _share(group, len(cpus), at - since)
            for cpu in cpus:
                self._cpus[cpu] = self._cpus.get(cpu, 0.0) + busy_s / len(cpus)
        return Measured(
            at=at,
            vms={name: VmCounters(vm.uuid, vm.cpu_s, vm.delay_s, vm.resident_mib) for name, vm in self._vms.items()},
            host=None if self._topology is None else self._host(at, self._topology, groups),
        )

    def _host(self, at: float, topology: Topology, groups: dict[frozenset[int], list[_Vm]]) -> HostCounters:
        """Memory lies evenly on the nodes of the CPUs that a VM may use, and is as large on each node."""
        used = dict.fromkeys(topology.nodes, 0)
        for cpus, group in groups.items():
            resident = sum([vm.resident_mib for vm in group])
            nodes = {self._node_of[cpu] for cpu in cpus if cpu in self._node_of} or topology.nodes
            for node in nodes:
                used[node] += resident // len(nodes)
        size = topology.memory_mib // len(used)
        return HostCounters(
            at=at,
            cpus=self._cpus.copy(),
            memory_mib=topology.memory_mib,
            used_mib=min(topology.memory_mib, sum([vm.resident_mib for vm in self._vms.values()])),
            nodes=tuple(NodeMemory(node, size, min(size, mib)) for node, mib in used.items()),
        )


def _resident_mib(vm: ObservedVm, age: float) -> int:
    part = 0.3 + 0.6 * (crc32(vm.name.encode()) >> 24) / 0x100
    return round(vm.memory_mib * part * (1 - 0.9 * math.exp(-age / _GROWTH_S)))


def _share(group: list[_Vm], cpus: int, seconds: float) -> float:
    """Give each VM of a group its part of these CPUs; returns the CPU time that all together got.

    A vCPU that wants less than an equal part gets what it wants, and leaves the rest to the others.
    """
    group.sort(key=lambda vm: vm.wanted / vm.vcpus)
    left, vcpus = float(cpus), sum([vm.vcpus for vm in group])
    for vm in group:
        got = min(vm.wanted, left * vm.vcpus / vcpus)
        vm.cpu_s += got * seconds
        vm.delay_s += (vm.wanted - got) * seconds
        left -= got
        vcpus -= vm.vcpus
    return (cpus - left) * seconds
