"""The metrics of a cluster: families and values from what the hosts have told, for any number of hosts."""

from __future__ import annotations

import re

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.status import HostStatus, LevelStatus
from globald.metrics import STATES, ClusterMetrics
from vmstackd.api.replies import DuplicateVm, HostReply, HostsReply
from vmstackd.daemon.operations import Outcome

LEVEL = LevelStatus(
    level=1500, ratio=1000, cpus=4, vcpus=6, vms=3, needed=5, available_thousandths=0, potential_thousandths=0
)
STATUS = HostStatus(
    cpus=16,
    free_cpus=3,
    held_cpus=1,
    memory_mib=1024,
    allocated_mib=512,
    free_mib=256,
    vms=7,
    generation=9,
    levels=(LEVEL, msgspec.structs.replace(LEVEL, level=2000, ratio=2000, needed=4)),
)


def _host(name: str, state: str = "up", *, age: float | None = 0.25, status: HostStatus | None = STATUS) -> HostReply:
    address = f"{name}.example:8097"
    return HostReply(
        name=name,
        address=address,
        uuid=name,
        state=state,
        reason="",
        since=0.0,
        age=age,
        source="static",
        status=status,
    )


def _text(*hosts: HostReply, duplicates: tuple[DuplicateVm, ...] = ()) -> str:
    metrics = ClusterMetrics()
    metrics.watch(lambda: HostsReply(hosts=hosts, duplicates=duplicates))
    return metrics.text().decode()


def _samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_hosts_are_counted_in_every_state_there_is() -> None:
    text = _text(_host("a"), _host("b"), _host("c", "unknown"))
    assert _samples(text, "vmstack_hosts") == {(state,): 0 for state in STATES} | {("up",): 2, ("unknown",): 1}


def test_without_hosts_there_is_the_cluster() -> None:
    text = ClusterMetrics().text().decode()
    assert set(_samples(text, "vmstack_hosts").values()) == {0}
    assert _samples(text, "vmstack_duplicate_vms") == {(): 0}
    assert _samples(text, "vmstack_deploy_retries_total") == {(): 0}


def test_the_figures_of_a_host_are_those_that_it_told() -> None:
    mib = 1024 * 1024
    expected = {
        "cpus": 16,
        "free_cpus": 3,
        "held_cpus": 1,
        "memory_bytes": 1024 * mib,
        "memory_allocated_bytes": 512 * mib,
        "memory_free_bytes": 256 * mib,
        "vms": 7,
        "up": 1,
        "inventory_age_seconds": 0.25,
    }
    text = _text(_host("a"))
    assert {name: _samples(text, f"vmstack_host_{name}")["a",] for name in expected} == expected


def test_the_figures_of_a_level_are_those_that_the_host_told() -> None:
    text = _text(_host("a"))
    one, two = ("a", "1.5"), ("a", "2.0")
    assert _samples(text, "vmstack_host_level_cpus") == {one: 4, two: 4}
    assert _samples(text, "vmstack_host_level_needed_cpus") == {one: 5, two: 4}
    assert _samples(text, "vmstack_host_level_vcpus") == {one: 6, two: 6}
    assert _samples(text, "vmstack_host_level_vms") == {one: 3, two: 3}
    assert _samples(text, "vmstack_host_level_ratio") == {one: 1, two: 2}
    assert _samples(text, "vmstack_host_level_degraded") == {one: 1, two: 0}


@pytest.mark.parametrize("state", STATES)
def test_a_host_is_up_where_its_vms_can_be_managed(state: str) -> None:
    text = _text(_host("a", state))
    assert _samples(text, "vmstack_host_up") == {("a",): int(state in {"up", "cordoned"})}
    assert _samples(text, "vmstack_host_info") == {("a.example:8097", "a", state): 1}


def test_a_host_that_has_told_nothing_has_a_state_and_no_figures() -> None:
    text = _text(_host("new", "connecting", age=None, status=None))
    named = {line.partition("{")[0] for line in text.splitlines() if 'host="new"' in line}
    assert named == {"vmstack_host_info", "vmstack_host_up"}


def test_the_moment_of_the_scrape_counts() -> None:
    metrics = ClusterMetrics()
    hosts = [_host("a")]
    metrics.watch(lambda: HostsReply(hosts=tuple(hosts)))
    assert b'vmstack_host_up{host="a"} 1' in metrics.text()
    hosts[:] = [_host("b")]
    assert b'host="a"' not in metrics.text()
    assert b'vmstack_host_up{host="b"} 1' in metrics.text()


def test_duplicates_and_retries_are_counted() -> None:
    assert _samples(_text(duplicates=(DuplicateVm("x", ("a", "b")),)), "vmstack_duplicate_vms") == {(): 1}
    assert _samples(_text(), "vmstack_hosts_file_problems") == {(): 0}
    metrics = ClusterMetrics()
    metrics.retries(2)
    metrics.retries()
    assert _samples(metrics.text().decode(), "vmstack_deploy_retries_total") == {(): 3}


def test_operations_and_reasons_of_a_cluster_are_counted() -> None:
    metrics = ClusterMetrics(certificate=lambda: 5.0)
    for reason in ("cpu", "unknown", "hypervisor-down", "what a host makes up"):
        metrics.count(Outcome(operation="deploy", outcome="NoCapacity", reason=reason, seconds=0.001))
    text = metrics.text().decode()
    counted = {labels[0]: value for labels, value in _samples(text, "vmstack_refusals_total").items() if value}
    assert counted == {"cpu": 1, "unknown": 1, "hypervisor-down": 1, "other": 1}
    assert _samples(text, "vmstack_operation_duration_seconds_count") == {("deploy", "NoCapacity"): 4}
    assert _samples(text, "vmstack_certificate_expiry_timestamp_seconds") == {(): 5}


def test_names_that_hosts_choose_cannot_break_the_exposition() -> None:
    evil = 'a"} 1\nvmstack_hosts{state="up"} 99\\'
    text = _text(_host(evil), _host("twice"), _host("twice", "unknown"))
    assert _samples(text, "vmstack_host_up") == {(evil,): 1, ("twice",): 0}
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert not [line for line in series if not re.match(r"vmstack_[a-z_]+(\{.*\})?$", line)]
    assert _samples(text, "vmstack_hosts")["up",] == 2


def test_ten_thousand_hosts_are_exposed() -> None:
    text = _text(*(_host(f"host{number}") for number in range(10_000)))
    assert text.count("\nvmstack_host_level_vcpus{") == 20_000
    assert text.endswith("\n")
