"""The files in monitoring/: promtool takes them, they name only what is exported, and the dashboard is in order."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from globald.metrics import ClusterMetrics
from tests.monitoring import prometheus
from tests.running import PATIENCE, SMALL_HOST
from tests.transports.endpoint import VM, endpoint
from vmstackd.daemon.operations import Outcome
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.metrics import Metrics
from vmstackd.topology_source import load_topology

needs_promtool = pytest.mark.skipif(bool(prometheus.missing()), reason=prometheus.missing())

PANELS = prometheus.panels()
RULES = prometheus.RULES.read_text(encoding="utf-8")
SHOWN = "\n".join((*prometheus.expressions(), *prometheus.variables().values()))
"""All that the dashboard asks for."""


PARTS = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
"""Endings of the series of a family, where it has several."""


def _of_a_host() -> str:
    async def ask() -> str:
        async with endpoint(SimHypervisor(topology=load_topology(SMALL_HOST))) as host:
            assert (await host.get(VM)).status == 200
            await host.engine.sampler.measure()
            await host.engine.sampler.measure()
            metrics = Metrics(per_vm=lambda: True, certificate=lambda: 1.0)
            metrics.count(Outcome(operation="deploy", outcome="ok", reason="", seconds=0.1))
            metrics.watch(host.engine)
            return metrics.text().decode()

    return asyncio.run(asyncio.wait_for(ask(), PATIENCE))


def _of_a_cluster() -> str:
    metrics = ClusterMetrics(certificate=lambda: 1.0)
    metrics.count(Outcome(operation="deploy", outcome="ok", reason="", seconds=0.1))
    return metrics.text().decode()


def _exported(text: str) -> set[str]:
    """Names of series, also of families that have none just now."""
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        names |= {f"{name}{part}" for part in PARTS.get(kind, ("",))}
    return names


@needs_promtool
def test_the_example_for_prometheus_is_a_configuration() -> None:
    assert "SUCCESS" in prometheus.promtool("check", "config", prometheus.CONFIG)


@needs_promtool
def test_the_rules_are_rules() -> None:
    assert "SUCCESS" in prometheus.promtool("check", "rules", "--lint=all", "--lint-fatal", prometheus.RULES)


@needs_promtool
def test_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in prometheus.promtool("test", "rules", prometheus.RULES.with_name("vmstack.test.yml"))


@needs_promtool
def test_the_tests_of_the_rules_can_fail(tmp_path: Path) -> None:
    shutil.copy(prometheus.RULES.with_name("vmstack.test.yml"), tmp_path)
    (tmp_path / "vmstack.rules.yml").write_text(RULES.replace("> 10\n", "> 1000\n"))
    with pytest.raises(AssertionError, match="VmstackDriftRising"):
        prometheus.promtool("test", "rules", tmp_path / "vmstack.test.yml")


def test_every_alert_has_a_test_says_how_bad_it_is_and_what_to_do() -> None:
    tests = prometheus.RULES.with_name("vmstack.test.yml").read_text(encoding="utf-8")
    alerts = re.split(r"^ +- alert: ", RULES, flags=re.MULTILINE)[1:]
    assert len(alerts) >= 12
    for alert in alerts:
        name = alert.split("\n", 1)[0]
        assert name in tests
        assert re.search(r"^ +severity: (critical|warning)$", alert, re.MULTILINE), name
        assert re.search(r"^ +summary: ", alert, re.MULTILINE), name
        description = re.search(r"^ +description: >-\n((?: {12}.*\n)+)", alert, re.MULTILINE)
        assert description is not None, name
        assert len(description[1]) > 80, name


@pytest.mark.parametrize("source", ["rules", "dashboard"])
def test_every_series_that_is_named_is_exported_by_one_of_the_daemons(source: str) -> None:
    named = prometheus.series_named(RULES if source == "rules" else SHOWN)
    assert len(named) > 10
    assert named - _exported(_of_a_host()) - _exported(_of_a_cluster()) == set()


def test_every_series_of_a_host_or_a_cluster_can_be_seen_somewhere() -> None:
    """Or is left out for a reason that stands here."""
    named = prometheus.series_named(RULES + SHOWN)
    unseen = (_exported(_of_a_host()) | _exported(_of_a_cluster())) - named
    assert unseen == {
        "vmstack_build_info",  # which version runs where is asked for by hand
        "vmstack_operation_duration_seconds_sum",  # quantiles tell more
        "vmstack_vm_busy_cpus",  # of each VM, and switched off
        "vmstack_vm_delay_ratio",
        "vmstack_vm_memory_bytes",
        "vmstack_vm_memory_resident_bytes",
        "vmstack_vm_vcpus",
    }


def test_what_the_dashboard_has_of_recording_rules_is_recorded() -> None:
    recorded = set(re.findall(r"- record: (\S+)", RULES))
    named = set(re.findall(r"[a-z_]+:vmstack_[a-z_]+:[a-z_]+", "\n".join(prometheus.expressions())))
    assert named
    assert named <= recorded


def test_every_panel_has_a_title_a_unit_and_queries_of_its_own() -> None:
    assert len(PANELS) > 20
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]


def test_panels_have_numbers_of_their_own_and_lie_beside_each_other() -> None:
    everything: list[dict[str, Any]] = prometheus.dashboard()["panels"]
    numbers = [panel["id"] for panel in everything]
    assert len(numbers) == len(set(numbers))
    places = [(panel["title"], panel["gridPos"]) for panel in everything]
    for title, place in places:
        assert place["x"] >= 0, title
        assert place["x"] + place["w"] <= 24, title
    for (title, one), (other_title, other) in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (title, other_title)


def test_every_query_goes_to_the_data_source_that_is_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = prometheus.dashboard()["templating"]["list"]
    assert [variable["name"] for variable in variables] == ["datasource", "globald", "host", "level"]
    assert variables[0]["type"] == "datasource"
    for variable in variables[1:]:
        assert variable["datasource"] == chosen
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_every_query_keeps_to_what_is_chosen() -> None:
    for expression in prometheus.expressions():
        for selector in re.findall(r"vmstack_[a-z0-9_:]+(?:\{([^}]*)\})?", expression):
            bound = "$globald" in selector or "$host" in selector
            assert bound or "on (instance, host) vmstack_host_up" in expression, expression
    for name in ("globald", "host", "level"):
        assert any(f"${name}" in expression for expression in prometheus.expressions())
