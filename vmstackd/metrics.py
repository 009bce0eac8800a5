"""Prometheus metrics of one host, computed from a snapshot when they are asked for.

No series says which host it is about: Prometheus knows whom it asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from core.level import UNIT, format_level
from core.usage import HostUsage, LevelUsage, VmUsage
from vmstackd.api.replies import ListReply, StatusReply
from vmstackd.daemon.metrics import CONTENT_TYPE, MIB, DaemonMetrics
from vmstackd.watch import Checked

__all__ = ["CONTENT_TYPE", "Metrics"]

_REASONS = ("cpu", "memory", "cordoned")


class SamplingFigures(Protocol):
    """See Sampler."""

    @property
    def rounds(self) -> int: ...
    @property
    def failed_rounds(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def delays(self) -> Mapping[int, float]: ...


class HostFigures(Protocol):
    """What is asked of a host at each scrape. See Engine."""

    @property
    def repins(self) -> int: ...
    @property
    def drift(self) -> Mapping[str, int]: ...
    @property
    def checked(self) -> Checked | None: ...
    @property
    def sampler(self) -> SamplingFigures: ...
    def status(self) -> StatusReply: ...
    def vms(self) -> ListReply: ...


class Metrics(DaemonMetrics):
    """All metrics of one vmstackd."""

    def __init__(
        self,
        *,
        per_vm: Callable[[], bool] = lambda: False,
        certificate: Callable[[], float | None] = lambda: None,
    ) -> None:
        """per_vm: whether each VM has series of its own. certificate: as for DaemonMetrics."""
        super().__init__(_REASONS, certificate)
        self._per_vm = per_vm

    def watch(self, host: HostFigures) -> None:
        """Take the figures of the host from here at each scrape."""
        self.registry.register(_Snapshot(host, self._per_vm))


class _Snapshot(Collector):
    def __init__(self, host: HostFigures, per_vm: Callable[[], bool]) -> None:
        self._host = host
        self._per_vm = per_vm

    def collect(self) -> Iterable[Metric]:
        status = self._host.status()
        yield from _of_the_host(status)
        yield from _of_its_levels(status)
        yield CounterMetricFamily("vmstack_repins", "VMs pinned anew since the start.", value=self._host.repins)
        drift = CounterMetricFamily(
            "vmstack_drift", "Things that were found to be otherwise than decided.", labels=("kind",)
        )
        for kind, count in self._host.drift.items():
            drift.add_metric([kind], count)
        yield drift
        if self._host.checked is not None:
            yield from _of_the_check(self._host.checked)
        yield from _of_sampling(self._host.sampler)
        if status.usage is not None:
            yield from _of_the_use(status.usage)
        if self._per_vm():
            yield from _of_its_vms(self._host.vms())


def _of_the_host(status: StatusReply) -> Iterable[Metric]:
    host = status.host
    for name, text, value in (
        ("vmstack_cpus", "CPUs that VMs may use.", host.cpus),
        ("vmstack_free_cpus", "CPUs that no level owns.", host.free_cpus),
        ("vmstack_held_cpus", "CPUs kept back because a VM outside the levels may run there.", host.held_cpus),
        ("vmstack_memory_bytes", "Memory that VMs may use.", host.memory_mib * MIB),
        ("vmstack_memory_allocated_bytes", "Memory sold to VMs.", host.allocated_mib * MIB),
        ("vmstack_memory_free_bytes", "Memory that a new VM may take.", host.free_mib * MIB),
        ("vmstack_vms", "VMs of all levels.", host.vms),
        ("vmstack_starting_vms", "VMs of levels that do not run yet.", len(status.starting)),
        ("vmstack_unplaced_vms", "Running VMs that fit into no level.", len(status.unplaced)),
        ("vmstack_stopped_vms", "Defined VMs that do not run.", len(status.stopped)),
        ("vmstack_problems", "Things that are not as they should be; /healthz names them.", len(status.degraded)),
        ("vmstack_cordoned", "Whether an operator lets no new VMs in.", int(status.cordoned)),
        ("vmstack_hypervisor_up", "Whether the hypervisor answers.", int(status.hypervisor == "up")),
    ):
        yield GaugeMetricFamily(name, text, value=value)


def _of_its_levels(status: StatusReply) -> Iterable[Metric]:
    levels = status.host.levels
    per_level: tuple[tuple[str, str, list[float]], ...] = (
        ("vmstack_level_cpus", "CPUs that a level owns.", [level.cpus for level in levels]),
        ("vmstack_level_needed_cpus", "CPUs that its VMs need.", [level.needed for level in levels]),
        ("vmstack_level_vcpus", "vCPUs sold at a level.", [level.vcpus for level in levels]),
        ("vmstack_level_vms", "VMs of a level.", [level.vms for level in levels]),
        ("vmstack_level_ratio", "vCPUs that a CPU may serve now.", [level.ratio / UNIT for level in levels]),
        ("vmstack_level_degraded", "Whether CPUs are owed.", [int(level.degraded) for level in levels]),
    )
    for name, text, values in per_level:
        family = GaugeMetricFamily(name, text, labels=("level",))
        for level, figure in zip(levels, values, strict=True):
            family.add_metric([format_level(level.level)], figure)
        yield family


def _of_the_check(checked: Checked) -> Iterable[Metric]:
    for name, text, value in (
        ("vmstack_check_timestamp_seconds", "When all VMs were last compared with what was decided.", checked.at),
        ("vmstack_check_duration_seconds", "Time that this took, repairs included.", checked.seconds),
        ("vmstack_check_remaining", "Things that it found and could not repair.", checked.remaining),
    ):
        yield GaugeMetricFamily(name, text, value=value)


def _of_sampling(sampler: SamplingFigures) -> Iterable[Metric]:
    yield CounterMetricFamily("vmstack_sampling_rounds", "Measurements of VMs and CPUs.", value=sampler.rounds)
    yield CounterMetricFamily(
        "vmstack_sampling_failures", "Of these, without the VMs or the host.", value=sampler.failed_rounds
    )
    yield SummaryMetricFamily(
        "vmstack_sampling_duration_seconds",
        "Time that a measurement took, waiting for the hypervisor included.",
        count_value=sampler.rounds,
        sum_value=sampler.seconds,
    )
    delays = CounterMetricFamily(
        "vmstack_level_delay_seconds",
        "Time that vCPUs of a level waited for a CPU though they could have run.",
        labels=("level",),
    )
    for level, seconds in sampler.delays.items():
        delays.add_metric([format_level(level)], seconds)
    yield delays


def _of_the_use(usage: HostUsage) -> Iterable[Metric]:
    """What is not known has no series, rather than one that says nothing is used."""
    if usage.busy_cpus is not None:
        yield GaugeMetricFamily(
            "vmstack_busy_cpus", "CPUs kept busy, of those that VMs may use.", value=usage.busy_cpus
        )
    yield GaugeMetricFamily("vmstack_memory_used_bytes", "Memory in use on the whole host.", value=usage.used_mib * MIB)
    size = GaugeMetricFamily("vmstack_node_memory_bytes", "Memory of a NUMA node.", labels=("node",))
    used = GaugeMetricFamily("vmstack_node_memory_used_bytes", "Memory of a NUMA node in use.", labels=("node",))
    for node in usage.nodes:
        size.add_metric([str(node.node)], node.memory_mib * MIB)
        used.add_metric([str(node.node)], node.used_mib * MIB)
    yield size
    yield used
    for name, text, of in _LEVEL_USE:
        family = GaugeMetricFamily(name, text, labels=("level",))
        for level in usage.levels:
            figure = of(level)
            if figure is not None:
                family.add_metric([format_level(level.level)], figure)
        yield family


_LEVEL_USE: tuple[tuple[str, str, Callable[[LevelUsage], float | None]], ...] = (
    ("vmstack_level_busy_cpus", "CPUs of a level kept busy.", lambda level: level.busy_cpus),
    (
        "vmstack_level_delay_median_ratio",
        "Part of the time that a vCPU waited for a CPU, of the VM in the middle.",
        lambda level: level.delay_median,
    ),
    (
        "vmstack_level_delay_p99_ratio",
        "Part of the time that a vCPU waited for a CPU, which 99 of 100 VMs do not exceed.",
        lambda level: level.delay_p99,
    ),
)


def _of_its_vms(reply: ListReply) -> Iterable[Metric]:
    vcpus = GaugeMetricFamily("vmstack_vm_vcpus", "vCPUs of a VM.", labels=("vm", "level"))
    memory = GaugeMetricFamily("vmstack_vm_memory_bytes", "Memory of a VM.", labels=("vm", "level"))
    uses = [(GaugeMetricFamily(name, text, labels=("vm", "level")), of) for name, text, of in _VM_USE]
    for vm in reply.vms:
        labels = [vm.name, format_level(vm.level)]
        vcpus.add_metric(labels, vm.vcpus)
        memory.add_metric(labels, vm.memory_mib * MIB)
        for family, of in uses:
            figure = None if vm.usage is None else of(vm.usage)
            if figure is not None:
                family.add_metric(labels, figure)
    yield vcpus
    yield memory
    yield from (family for family, _ in uses)


_VM_USE: tuple[tuple[str, str, Callable[[VmUsage], float | None]], ...] = (
    ("vmstack_vm_busy_cpus", "CPUs that a VM kept busy.", lambda vm: vm.busy_cpus),
    ("vmstack_vm_delay_ratio", "Part of the time that a vCPU of a VM waited for a CPU.", lambda vm: vm.delay_ratio),
    (
        "vmstack_vm_memory_resident_bytes",
        "Memory that the host has really given to a VM.",
        lambda vm: None if vm.resident_mib is None else vm.resident_mib * MIB,
    ),
)
