"""Prometheus metrics of one host, computed from a snapshot when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from core.level import UNIT, format_level
from vmstackd.api.replies import StatusReply
from vmstackd.daemon.operations import Outcome
from vmstackd.version import VERSION

CONTENT_TYPE = CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here

_MIB = 1024 * 1024
_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """All metrics of one daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._durations = Histogram(
            "vmstack_operation_duration_seconds",
            "Time from request to reply.",
            ("operation", "outcome"),
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._refusals = Counter(
            "vmstack_refusals",
            "Requests refused for lack of capacity, by the resource that was short.",
            ("resource",),
            registry=self._registry,
        )
        for resource in ("cpu", "memory"):
            self._refusals.labels(resource)
        Info("vmstack_build", "What runs.", registry=self._registry).info({"version": VERSION})

    def watch(self, status: Callable[[], StatusReply], repins: Callable[[], int]) -> None:
        """Take the figures of the host from here at each scrape."""
        self._registry.register(_Snapshot(status, repins))

    def count(self, outcome: Outcome) -> None:
        """Take note of a finished request."""
        self._durations.labels(outcome.operation, outcome.outcome).observe(outcome.seconds)
        if outcome.reason:
            self._refusals.labels(outcome.reason).inc()

    def text(self) -> bytes:
        """The exposition, in CONTENT_TYPE."""
        return generate_latest(self._registry)


class _Snapshot(Collector):
    def __init__(self, status: Callable[[], StatusReply], repins: Callable[[], int]) -> None:
        self._status = status
        self._repins = repins

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        host = status.host
        for name, text, value in (
            ("vmstack_cpus", "CPUs that VMs may use.", host.cpus),
            ("vmstack_free_cpus", "CPUs that no level owns.", host.free_cpus),
            ("vmstack_held_cpus", "CPUs kept back because a VM outside the levels may run there.", host.held_cpus),
            ("vmstack_memory_bytes", "Memory that VMs may use.", host.memory_mib * _MIB),
            ("vmstack_memory_allocated_bytes", "Memory sold to VMs.", host.allocated_mib * _MIB),
            ("vmstack_memory_free_bytes", "Memory that a new VM may take.", host.free_mib * _MIB),
            ("vmstack_unplaced_vms", "Running VMs that fit into no level.", len(status.unplaced)),
            ("vmstack_stopped_vms", "Defined VMs that do not run.", len(status.stopped)),
            ("vmstack_hypervisor_up", "Whether the hypervisor answers.", int(status.hypervisor == "up")),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily("vmstack_repins", "VMs pinned anew since the start.", value=self._repins())
        per_level: tuple[tuple[str, str, list[float]], ...] = (
            ("vmstack_level_cpus", "CPUs that a level owns.", [level.cpus for level in host.levels]),
            ("vmstack_level_needed_cpus", "CPUs that its VMs need.", [level.needed for level in host.levels]),
            ("vmstack_level_vcpus", "vCPUs sold at a level.", [level.vcpus for level in host.levels]),
            ("vmstack_level_vms", "VMs of a level.", [level.vms for level in host.levels]),
            ("vmstack_level_ratio", "vCPUs that a CPU may serve now.", [level.ratio / UNIT for level in host.levels]),
            ("vmstack_level_degraded", "Whether CPUs are owed.", [int(level.degraded) for level in host.levels]),
        )
        for name, text, values in per_level:
            family = GaugeMetricFamily(name, text, labels=("level",))
            for level, figure in zip(host.levels, values, strict=True):
                family.add_metric([format_level(level.level)], figure)
            yield family
