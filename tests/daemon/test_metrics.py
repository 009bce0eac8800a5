"""What the metrics of both daemons have in common: operations, refusals, what runs, the certificate."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from vmstackd.daemon.metrics import DaemonMetrics
from vmstackd.daemon.operations import Outcome
from vmstackd.version import VERSION


def _samples(metrics: DaemonMetrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == name
    }


def _outcome(outcome: str, reason: str = "", seconds: float = 0.002) -> Outcome:
    return Outcome(operation="deploy", outcome=outcome, reason=reason, seconds=seconds)


def test_operations_are_counted_and_timed_by_outcome() -> None:
    metrics = DaemonMetrics(("cpu",))
    for seconds in (0.002, 0.002, 0.5):
        metrics.count(_outcome("ok", seconds=seconds))
    metrics.count(_outcome("NotFound"))
    name = "vmstack_operation_duration_seconds"
    assert _samples(metrics, f"{name}_count") == {("deploy", "ok"): 3, ("deploy", "NotFound"): 1}
    assert _samples(metrics, f"{name}_sum")["deploy", "ok"] == 0.504
    buckets = _samples(metrics, f"{name}_bucket")
    counts = [buckets[limit, "deploy", "ok"] for limit in ("0.001", "0.003", "0.3", "1.0", "+Inf")]
    assert counts == [0, 2, 2, 3, 3]


def test_refusals_are_there_from_the_start_and_counted_by_reason() -> None:
    metrics = DaemonMetrics(("cpu", "memory", "cordoned"))
    name = "vmstack_refusals_total"
    assert _samples(metrics, name) == {("cpu",): 0, ("memory",): 0, ("cordoned",): 0, ("other",): 0}
    metrics.count(_outcome("ok"))
    metrics.count(_outcome("NotFound"))
    for reason in ("cpu", "cpu", "memory"):
        metrics.count(_outcome("NoCapacity", reason))
    metrics.count(_outcome("Cordoned"))
    assert _samples(metrics, name) == {("cpu",): 2, ("memory",): 1, ("cordoned",): 1, ("other",): 0}


def test_reasons_that_nobody_knows_make_no_series_of_their_own() -> None:
    metrics = DaemonMetrics(("cpu",))
    for number in range(100):
        metrics.count(_outcome("NoCapacity", f"reason-{number}"))
    assert _samples(metrics, "vmstack_refusals_total") == {("cpu",): 0, ("other",): 100}


def test_the_version_is_told() -> None:
    assert _samples(DaemonMetrics(()), "vmstack_build_info") == {(VERSION,): 1}


def test_the_certificate_is_there_only_where_there_is_one_and_asked_for_each_time() -> None:
    name = "vmstack_certificate_expiry_timestamp_seconds"
    assert _samples(DaemonMetrics(()), name) == {}
    expiry = [1_800_000_000.0]
    renewed = DaemonMetrics((), certificate=lambda: expiry[0])
    assert _samples(renewed, name) == {(): 1_800_000_000.0}
    expiry[0] = 1_900_000_000.5
    assert _samples(renewed, name) == {(): 1_900_000_000.5}
