"""The metrics: their names and units keep the conventions, and their values are those of the status."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.level import format_level
from core.status import LevelStatus
from tests.transports.endpoint import VM, endpoint
from vmstackd.api.replies import StatusReply

NAME = re.compile(r"vmstack_[a-z][a-z0-9_]*")
UNITS_TO_AVOID = ("_mib", "_mb", "_kb", "_gb", "_ms", "_milliseconds", "_minutes", "_percent", "_thousandths")


def _scrape() -> tuple[str, StatusReply]:
    """The exposition and the status of a host that has taken, refused and removed VMs of three levels."""

    async def ask() -> tuple[str, StatusReply]:
        async with endpoint(critical_size=2) as host:
            await host.get(VM)
            for name, cpu, level in (("a", 2, "2"), ("b", 1, "1.5"), ("c", 3, "1"), ("d", 1, "3")):
                target = f"/deploy?name={name}&cpu={cpu}&mem=1.5&oc={level}&qcow2=/images/a"
                assert (await host.get(target)).status == 200
            await host.get("/remove?name=d")
            for refused in ("cpu=99&mem=1", "cpu=99&mem=1", "cpu=1&mem=99"):
                assert (await host.get(f"/deploy?name=e&{refused}&oc=2&qcow2=/images/a")).status == 409
            return (await host.get("/metrics")).text, host.engine.status()

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def scraped() -> tuple[str, StatusReply]:
    return _scrape()


def _values(text: str, name: str, label: str = "") -> dict[str, Any]:
    return {
        sample.labels.get(label, ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_the_exposition_parses_and_promtool_where_there_is_one_finds_nothing(scraped: tuple[str, StatusReply]) -> None:
    assert len(list(text_string_to_metric_families(scraped[0]))) > 15
    if promtool := shutil.which("promtool"):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=scraped[0].encode(), capture_output=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_metric_has_our_prefix_a_help_text_and_base_units(scraped: tuple[str, StatusReply]) -> None:
    for family in text_string_to_metric_families(scraped[0]):
        assert NAME.fullmatch(family.name)
        assert family.documentation.endswith(".")
        assert family.type in {"gauge", "counter", "histogram", "info"}
        assert not family.name.endswith(UNITS_TO_AVOID)
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_total", family.type))
        if "memory" in family.name:
            assert family.name.endswith("_bytes")
        if "duration" in family.name:
            assert family.name.endswith("_seconds")
        assert all(re.fullmatch(r"[a-z]+", label) for sample in family.samples for label in sample.labels)


def test_no_metric_is_given_twice(scraped: tuple[str, StatusReply]) -> None:
    series = [line.rpartition(" ")[0] for line in scraped[0].splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_only_counters_end_in_total_and_nothing_tells_when_it_was_made(scraped: tuple[str, StatusReply]) -> None:
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", scraped[0], re.MULTILINE))
    assert {name for name, kind in types.items() if kind == "counter"} == {
        name for name in types if name.endswith("_total")
    }
    assert not [name for name in types if name.endswith("_created")]


def test_the_figures_of_the_host_are_those_of_the_status(scraped: tuple[str, StatusReply]) -> None:
    text, status = scraped
    mib = 1024 * 1024
    expected = {
        "vmstack_cpus": status.host.cpus,
        "vmstack_free_cpus": status.host.free_cpus,
        "vmstack_held_cpus": status.host.held_cpus,
        "vmstack_memory_bytes": status.host.memory_mib * mib,
        "vmstack_memory_allocated_bytes": status.host.allocated_mib * mib,
        "vmstack_memory_free_bytes": status.host.free_mib * mib,
        "vmstack_unplaced_vms": 0,
        "vmstack_stopped_vms": 0,
        "vmstack_hypervisor_up": 1,
    }
    assert {name: _values(text, name)[""] for name in expected} == expected
    assert status.host.free_cpus < status.host.cpus


def test_the_figures_of_each_level_are_those_of_the_status(scraped: tuple[str, StatusReply]) -> None:
    text, status = scraped
    assert [format_level(level.level) for level in status.host.levels] == ["2.0", "1.5", "1.0"]
    figures: dict[str, Callable[[LevelStatus], float]] = {
        "vmstack_level_cpus": lambda level: level.cpus,
        "vmstack_level_needed_cpus": lambda level: level.needed,
        "vmstack_level_vcpus": lambda level: level.vcpus,
        "vmstack_level_vms": lambda level: level.vms,
        "vmstack_level_ratio": lambda level: level.ratio / 1000,
        "vmstack_level_degraded": lambda level: level.degraded,
    }
    for name, of in figures.items():
        assert _values(text, name, "level") == {format_level(level.level): of(level) for level in status.host.levels}
    assert _values(text, "vmstack_level_ratio", "level") == {"2.0": 2.0, "1.5": 1.0, "1.0": 1.0}


def test_requests_and_refusals_are_counted(scraped: tuple[str, StatusReply]) -> None:
    text, _ = scraped
    assert _values(text, "vmstack_refusals_total", "resource") == {"cpu": 2.0, "memory": 1.0}
    counted = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vmstack_operation_duration_seconds_count"
    ]
    assert ({"operation": "deploy", "outcome": "ok"}, 5.0) in counted
    assert ({"operation": "deploy", "outcome": "NoCapacity"}, 3.0) in counted
    assert ({"operation": "remove", "outcome": "ok"}, 1.0) in counted


def test_the_version_is_told(scraped: tuple[str, StatusReply]) -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+.*", next(iter(_values(scraped[0], "vmstack_build_info", "version"))))
