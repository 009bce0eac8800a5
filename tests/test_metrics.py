"""The metrics: their names and units keep the conventions, and their values are those of the status."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.level import format_level
from core.status import LevelStatus
from core.usage import LevelUsage
from tests.faulty import OPERATOR, FaultySim, failing, outsider
from tests.running import PATIENCE, SMALL_HOST, Daemon
from tests.transports.endpoint import VM, Endpoint, endpoint, until
from vmstackd.api import requests
from vmstackd.api.replies import StatusReply
from vmstackd.host import DRIFT
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.kernel_counters import kernel_counters
from vmstackd.metrics import Metrics
from vmstackd.topology_source import load_topology

NAME = re.compile(r"vmstack_[a-z][a-z0-9_]*")
UNITS_TO_AVOID = ("_mib", "_mb", "_kb", "_gb", "_ms", "_milliseconds", "_minutes", "_percent", "_thousandths")


def _simulated() -> SimHypervisor:
    """With a host that is measured, too."""
    return SimHypervisor(topology=load_topology(SMALL_HOST))


def _scrape() -> tuple[str, StatusReply]:
    """The exposition and the status of a measured host that has taken, refused and removed VMs of three levels."""

    async def ask() -> tuple[str, StatusReply]:
        async with endpoint(_simulated(), critical_size=2) as host:
            await host.get(VM)
            for name, cpu, level in (("a", 2, "2"), ("b", 1, "1.5"), ("c", 3, "1"), ("d", 1, "3")):
                target = f"/deploy?name={name}&cpu={cpu}&mem=1.5&oc={level}&qcow2=/images/a"
                assert (await host.get(target)).status == 200
            await host.get("/remove?name=d")
            for refused in ("cpu=99&mem=1", "cpu=99&mem=1", "cpu=1&mem=99"):
                assert (await host.get(f"/deploy?name=e&{refused}&oc=2&qcow2=/images/a")).status == 409
            for _ in range(3):
                await host.engine.sampler.measure()
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
        assert family.type in {"gauge", "counter", "histogram", "info", "summary"}
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
        "vmstack_vms": 4,
        "vmstack_starting_vms": 0,
        "vmstack_problems": 0,
        "vmstack_cordoned": 0,
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


def test_what_was_measured_is_that_of_the_status(scraped: tuple[str, StatusReply]) -> None:
    text, status = scraped
    usage, mib = status.usage, 1024 * 1024
    assert usage is not None
    assert _values(text, "vmstack_busy_cpus") == {"": usage.busy_cpus}
    assert _values(text, "vmstack_memory_used_bytes") == {"": usage.used_mib * mib}
    assert len(usage.nodes) == 1
    assert _values(text, "vmstack_node_memory_bytes", "node") == {"0": usage.nodes[0].memory_mib * mib}
    assert _values(text, "vmstack_node_memory_used_bytes", "node") == {"0": usage.nodes[0].used_mib * mib}
    figures: dict[str, Callable[[LevelUsage], float | None]] = {
        "vmstack_level_busy_cpus": lambda level: level.busy_cpus,
        "vmstack_level_delay_median_ratio": lambda level: level.delay_median,
        "vmstack_level_delay_p99_ratio": lambda level: level.delay_p99,
    }
    for name, of in figures.items():
        found = _values(text, name, "level")
        assert found == {format_level(level.level): of(level) for level in usage.levels}
        assert set(found) == {"2.0", "1.5", "1.0"}
        assert all(value is not None for value in found.values())
    assert set(_values(text, "vmstack_level_delay_seconds_total", "level")) == {"2.0", "1.5", "1.0"}
    assert _values(text, "vmstack_sampling_rounds_total") == {"": 3}
    assert _values(text, "vmstack_sampling_failures_total") == {"": 0}
    assert _values(text, "vmstack_sampling_duration_seconds_count") == {"": 3}
    assert 0 < _values(text, "vmstack_sampling_duration_seconds_sum")[""] < PATIENCE


def test_requests_and_refusals_are_counted(scraped: tuple[str, StatusReply]) -> None:
    text, _ = scraped
    assert _values(text, "vmstack_refusals_total", "reason") == {"cpu": 2.0, "memory": 1.0, "cordoned": 0, "other": 0}
    counted = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vmstack_operation_duration_seconds_count"
    ]
    assert ({"operation": "deploy", "outcome": "ok"}, 5.0) in counted
    assert ({"operation": "deploy", "outcome": "NoCapacity"}, 3.0) in counted
    assert ({"operation": "remove", "outcome": "ok"}, 1.0) in counted


def _asked(test: Callable[[Endpoint], Awaitable[None]], hypervisor: SimHypervisor | None = None) -> None:
    async def ask() -> None:
        async with endpoint(hypervisor) as host:
            await test(host)

    asyncio.run(ask())


def test_a_host_that_is_cordoned_says_so_and_counts_whom_it_turned_away() -> None:
    async def test(host: Endpoint) -> None:
        await host.engine.handle(requests.Cordon(reason="new disks"), OPERATOR, "test")
        assert (await host.get(VM)).status == 503
        text = (await host.get("/metrics")).text
        assert _values(text, "vmstack_cordoned") == {"": 1}
        assert _values(text, "vmstack_refusals_total", "reason")["cordoned"] == 1

    _asked(test)


def test_a_vm_that_is_about_to_run_is_counted_as_starting() -> None:
    hypervisor = FaultySim()
    created, counted = asyncio.Event(), asyncio.Event()

    async def plan(operation: str, _name: str) -> None:
        if operation == "create":
            created.set()
            await counted.wait()

    hypervisor.plan = plan

    async def test(host: Endpoint) -> None:
        deploying = asyncio.create_task(host.get(VM))
        await created.wait()
        assert _values((await host.get("/metrics")).text, "vmstack_starting_vms") == {"": 1}
        counted.set()
        assert (await deploying).status == 200
        assert _values((await host.get("/metrics")).text, "vmstack_starting_vms") == {"": 0}

    _asked(test, hypervisor)


def test_what_the_hypervisor_had_in_another_way_is_counted_by_kind() -> None:
    hypervisor = SimHypervisor()

    async def test(host: Endpoint) -> None:
        assert set(_values((await host.get("/metrics")).text, "vmstack_drift_total", "kind")) == set(DRIFT)
        hypervisor.put(outsider("stranger", 1, {3}))
        hypervisor.put(outsider("giant", 64, {4}))
        await until(lambda: host.engine.drift["adopted"] == 1 and host.engine.drift["unplaced"] == 1)
        text = (await host.get("/metrics")).text
        expected = dict.fromkeys(DRIFT, 0) | {"adopted": 1, "unplaced": 1}
        assert _values(text, "vmstack_drift_total", "kind") == expected
        assert _values(text, "vmstack_unplaced_vms") == _values(text, "vmstack_problems") == {"": 1}

    _asked(test, hypervisor)


def test_the_last_comparison_of_all_vms_is_told() -> None:
    hypervisor = SimHypervisor()

    async def test(host: Endpoint) -> None:
        begin = time.time()
        hypervisor.put(outsider("giant", 64, {4}))
        await host.engine.handle(requests.Check(), OPERATOR, "test")
        text = (await host.get("/metrics")).text
        assert begin <= _values(text, "vmstack_check_timestamp_seconds")[""] <= time.time()
        assert 0 < _values(text, "vmstack_check_duration_seconds")[""] < PATIENCE
        assert _values(text, "vmstack_check_remaining") == {"": 1}
        before = _values(text, "vmstack_check_timestamp_seconds")
        await host.engine.handle(requests.Check(dry_run=True), OPERATOR, "test")
        assert _values((await host.get("/metrics")).text, "vmstack_check_timestamp_seconds") == before

    _asked(test, hypervisor)


def test_vms_have_series_only_when_that_is_switched_on() -> None:
    on = [False]
    metrics = Metrics(per_vm=lambda: on[0])

    async def test(host: Endpoint) -> None:
        assert (await host.get(VM)).status == 200
        metrics.watch(host.engine)
        assert "vmstack_vm_" not in metrics.text().decode()
        on[0] = True
        text = metrics.text().decode()
        assert _values(text, "vmstack_vm_vcpus", "vm") == {"here": 2}
        assert _values(text, "vmstack_vm_memory_bytes", "level") == {"2.0": 2 * 1024**3}

    _asked(test)


_SAMPLING = {"sampling_rounds_total", "sampling_failures_total", "sampling_duration_seconds_count"}
_SAMPLING |= {"sampling_duration_seconds_sum"}


def _measured(text: str) -> set[str]:
    """Names of the series that measuring gives, without our prefix."""
    found = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    kinds = ("busy", "delay", "used", "resident", "node", "sampling")
    return {name.removeprefix("vmstack_") for name in found if any(kind in name for kind in kinds)}


def test_what_is_not_known_has_no_series() -> None:
    metrics = Metrics(per_vm=lambda: True)
    hypervisor = FaultySim(topology=load_topology(SMALL_HOST))

    async def test(host: Endpoint) -> None:
        assert (await host.get(VM)).status == 200
        metrics.watch(host.engine)
        assert _measured(metrics.text().decode()) == _SAMPLING
        await host.engine.sampler.measure()
        memory = {"memory_used_bytes", "node_memory_bytes", "node_memory_used_bytes", "vm_memory_resident_bytes"}
        assert _measured(metrics.text().decode()) == _SAMPLING | memory
        await host.engine.sampler.measure()
        everything = _measured(metrics.text().decode())
        levels = {"level_busy_cpus", "level_delay_median_ratio", "level_delay_p99_ratio", "level_delay_seconds_total"}
        assert everything == _SAMPLING | memory | levels | {"busy_cpus", "vm_busy_cpus", "vm_delay_ratio"}
        hypervisor.plan = failing("measure")
        await host.engine.sampler.measure()
        text = metrics.text().decode()
        assert _measured(text) == _SAMPLING | {"level_delay_seconds_total"}, "a counter stays what it was"
        assert _values(text, "vmstack_sampling_failures_total") == {"": 1}

    _asked(test, hypervisor)


def test_of_a_real_host_the_kernel_tells() -> None:
    async def test(host: Endpoint) -> None:
        await host.engine.sampler.measure()
        text = (await host.get("/metrics")).text
        nodes = {str(node.node): node.memory_mib * 1024**2 for node in kernel_counters().nodes}
        assert _values(text, "vmstack_node_memory_bytes", "node") == nodes
        assert _values(text, "vmstack_memory_used_bytes")[""] > 0

    _asked(test)


def test_the_delay_of_a_level_is_a_counter() -> None:
    async def test(host: Endpoint) -> None:
        for number in range(30):
            target = f"/deploy?name=busy{number}&cpu=1&mem=1&oc=64&qcow2=/images/a"
            assert (await host.get(target)).status == 200
        before = 0.0
        await host.engine.sampler.measure()
        for _ in range(3):
            await asyncio.sleep(0.01)
            await host.engine.sampler.measure()
            found = _values((await host.get("/metrics")).text, "vmstack_level_delay_seconds_total", "level")
            assert set(found) == {"64.0"}
            assert found["64.0"] > before
            before = found["64.0"]

    _asked(test, _simulated())


def test_a_vm_has_series_of_what_it_does() -> None:
    metrics = Metrics(per_vm=lambda: True)

    async def test(host: Endpoint) -> None:
        assert (await host.get(VM)).status == 200
        metrics.watch(host.engine)
        for _ in range(2):
            await host.engine.sampler.measure()
        [vm] = host.engine.vms().vms
        assert vm.usage is not None
        text = metrics.text().decode()
        assert _values(text, "vmstack_vm_busy_cpus", "vm") == {"here": vm.usage.busy_cpus}
        assert _values(text, "vmstack_vm_delay_ratio", "level") == {"2.0": vm.usage.delay_ratio}
        assert _values(text, "vmstack_vm_memory_resident_bytes", "vm") == {
            "here": (vm.usage.resident_mib or 0) * 1024**2
        }

    _asked(test, _simulated())


def test_the_daemon_has_series_for_vms_from_the_reload_on_that_switches_them_on(tmp_path: Path) -> None:
    file = tmp_path / "vmstackd.toml"
    file.write_text("metrics_per_vm = false\n")
    with Daemon("--config", str(file), "--hypervisor", "sim:", "--topology", SMALL_HOST) as daemon:
        assert daemon.get(VM).status == 200
        assert "vmstack_vm_" not in daemon.get("/metrics").text
        file.write_text("metrics_per_vm = true\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded changed=metrics_per_vm")
        assert 'vmstack_vm_vcpus{level="2.0",vm="here"} 2.0' in daemon.get("/metrics").text


def test_the_daemon_has_no_series_of_what_it_measures_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "vmstackd.toml"
    file.write_text("delay = 0.1\n")
    with Daemon("--config", str(file), "--hypervisor", "sim:", "--topology", SMALL_HOST) as daemon:
        assert daemon.get(VM).status == 200

        def counting() -> bool:
            return "vmstack_level_delay_seconds_total{" in daemon.get("/metrics").text

        deadline = time.monotonic() + PATIENCE
        while not counting() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _measured(daemon.get("/metrics").text) > _SAMPLING | {"busy_cpus", "level_busy_cpus"}
        file.write_text("delay = 0\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded changed=delay")
        assert _measured(daemon.get("/metrics").text) == _SAMPLING


def test_the_version_is_told(scraped: tuple[str, StatusReply]) -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+.*", next(iter(_values(scraped[0], "vmstack_build_info", "version"))))
