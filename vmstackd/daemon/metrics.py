"""Prometheus metrics that every daemon has: its operations, its refusals, what runs, and its certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vmstackd.api.errors import Cordoned
from vmstackd.daemon.operations import Outcome
from vmstackd.version import VERSION

CONTENT_TYPE = CONTENT_TYPE_LATEST
MIB = 1024 * 1024
"""Bytes."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here

_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds: a simulated VM takes a tenth of a millisecond, a real one half a second."""
_OTHER = "other"


class DaemonMetrics:
    """All metrics of one daemon."""

    def __init__(self, reasons: Iterable[str], certificate: Callable[[], float | None] = lambda: None) -> None:
        """reasons: for which it refuses. certificate: until when its own is valid, in seconds since 1970; None: none.

        Any other reason counts as "other": some come from other programs, which must not make up series.
        """
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "vmstack_operation_duration_seconds",
            "Time from request to reply.",
            ("operation", "outcome"),
            registry=self.registry,
            buckets=_BUCKETS,
        )
        refusals = Counter(
            "vmstack_refusals",
            "Requests that nothing could be found for, by what was short or in the way.",
            ("reason",),
            registry=self.registry,
        )
        self._refusals = {reason: refusals.labels(reason) for reason in (*reasons, _OTHER)}
        Info("vmstack_build", "What runs.", registry=self.registry).info({"version": VERSION})
        self.registry.register(_Certificate(certificate))

    def count(self, outcome: Outcome) -> None:
        """Take note of a finished request."""
        self._durations.labels(outcome.operation, outcome.outcome).observe(outcome.seconds)
        reason = outcome.reason or ("cordoned" if outcome.outcome == Cordoned.code else "")
        if reason:
            self._refusals.get(reason, self._refusals[_OTHER]).inc()

    def text(self) -> bytes:
        """The exposition, in CONTENT_TYPE."""
        return generate_latest(self.registry)


class _Certificate(Collector):
    def __init__(self, expires: Callable[[], float | None]) -> None:
        self._expires = expires

    def collect(self) -> Iterable[Metric]:
        expires = self._expires()
        if expires is not None:
            yield GaugeMetricFamily(
                "vmstack_certificate_expiry_timestamp_seconds",
                "Until when the certificate that is in use is valid.",
                value=expires,
            )
