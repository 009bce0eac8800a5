"""A real Prometheus with our configuration and rules scrapes a real globald and real hosts.

Every query of the dashboard and every rule has to work there, and the queries have to find something.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring import prometheus
from tests.monitoring.prometheus import Prometheus, promtool, until
from tests.running import SMALL_HOST, Daemon
from vmstackd.metrics import CONTENT_TYPE

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(prometheus.missing()), reason=prometheus.missing()),
]

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
"""Addresses, and names too: a host's name is what Prometheus calls it."""
REPLACED = {"$globald": ".*", "$host": ".*", "$level": ".*", "$__rate_interval": "20s"}


class Globald(Daemon):
    """The daemon of a cluster of these hosts."""

    def __init__(self, hosts: str, socket: Path) -> None:
        """hosts: as for its flag. socket: where it may have its own."""
        super().__init__()
        flags = {"--config": "/dev/null", "--hosts-dir": "none", "--tcp-host": "none", "--http-port": "0"}
        flags |= {"--hosts": hosts, "--socket": str(socket)}
        self.command = [sys.executable, "-m", "globald", *(word for pair in flags.items() for word in pair)]


class Cluster:
    """Everything that runs. hosts: in the order of HOSTS."""

    def __init__(self, hosts: list[Daemon], globald: Globald, watched_by: Prometheus) -> None:
        self.hosts = hosts
        self.globald = globald
        self.prometheus = watched_by

    def deploy(self, name: str, cpu: int, level: str) -> int:
        """Over globald; the HTTP status."""
        target = f"/deploy?name={name}&cpu={cpu}&mem=1&oc={level}&qcow2=/images/{name}.qcow2"
        return self.globald.get(target).status


def _configuration(folder: Path, hosts: list[Daemon], globald: Globald) -> Path:
    """The one in monitoring/, for these daemons, and in a hurry."""
    shutil.copytree(prometheus.RULES.parent, folder / "rules")
    text = prometheus.CONFIG.read_text(encoding="utf-8")
    targets = [f'"{daemon.url.removeprefix("http://")}"' for daemon in hosts]
    for example, real in (
        ("_interval: 15s", "_interval: 1s"),
        ('"globald1:8100"', f'"127.0.0.1:{globald.port}"'),
        ('"server1:8099", "server2:8099"', ", ".join(targets)),
    ):
        assert example in text
        text = text.replace(example, real)
    file = folder / "prometheus.yml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("monitoring")
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(
                Daemon(
                    *("--hypervisor", "sim:", "--topology", SMALL_HOST, "--critical-size", "0", "--name", address),
                    *("--http-host", address, "--tcp-host", address, "--tcp-port", "0", "--delay", "0.5"),
                )
            )
            for address in HOSTS
        ]
        addresses = [host.wait_for(r" ready .*\btcp=(?:tcp:)?([0-9.:]+)")[1] for host in hosts]
        globald = stack.enter_context(Globald(",".join(addresses), folder / "globald.sock"))
        assert until(lambda: globald.get("/readyz").status == 200)
        watched_by = stack.enter_context(Prometheus(_configuration(folder, hosts, globald), folder / "data"))
        cluster = Cluster(hosts, globald, watched_by)
        _work(cluster)
        yield cluster


def _work(cluster: Cluster) -> None:
    """VMs of three levels on each host, others through globald; some refused, one removed."""
    levels = ("1.0", "1.5", "2.0")
    for number, host in enumerate(cluster.hosts):
        for level in levels:
            target = f"/deploy?name=own-{number}-{level}&cpu=1&mem=1&oc={level}&qcow2=/images/own.qcow2"
            assert host.get(target).status == 200
    for number in range(18):
        assert cluster.deploy(f"vm{number}", 1 + number % 3, levels[number % 3]) == 200
    assert cluster.deploy("giant", 99, "1.0") == 409
    assert cluster.globald.get("/remove?name=vm3").status == 200


def _replaced(expression: str) -> str:
    for variable, value in REPLACED.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def test_every_daemon_is_scraped_under_its_own_name(cluster: Cluster) -> None:
    def all_up() -> bool:
        targets = cluster.prometheus.ask("targets")["activeTargets"]
        return len(targets) == 1 + len(HOSTS) and all(target["health"] == "up" for target in targets)

    assert until(all_up), cluster.prometheus.ask("targets")
    found = until(lambda: cluster.prometheus.query("up == 1"))
    assert {sample["metric"]["instance"] for sample in found} == {*HOSTS, f"127.0.0.1:{cluster.globald.port}"}


def test_globald_and_the_hosts_tell_the_same_of_each_host(cluster: Cluster) -> None:
    """Joined by name, as rules and panels do."""

    def differences(name: str, by: str) -> list[dict[str, Any]] | None:
        own = f'label_replace(vmstack_{name}, "host", "$1", "instance", "(.+)")'
        both = cluster.prometheus.query(f"{own} - on ({by}) vmstack_host_{name}")
        if len(both) < len(HOSTS) or any(sample["value"][1] != "0" for sample in both):
            return None  # one of the two may be a scrape behind
        return both

    for name in ("cpus", "free_cpus", "memory_allocated_bytes", "vms"):
        assert until(partial(differences, name, "host")), name
    for name in ("level_cpus", "level_vcpus", "level_vms", "level_ratio"):
        assert until(partial(differences, name, "host, level")), name
    assert len(differences("level_vms", "host, level") or ()) == 3 * len(HOSTS)


@pytest.mark.parametrize("panel", prometheus.panels(), ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_every_query_of_the_dashboard_finds_something(cluster: Cluster, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = _replaced(target["expr"])
        found = until(partial(cluster.prometheus.query, expression))
        assert found, expression
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert all(labels <= sample["metric"].keys() for sample in found), (expression, target["legendFormat"])


@pytest.mark.parametrize(("variable", "query"), list(prometheus.variables().items()))
def test_every_variable_has_values_to_choose_from(cluster: Cluster, variable: str, query: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert match is not None
    expected = {
        "globald": [f"127.0.0.1:{cluster.globald.port}"],
        "host": list(HOSTS),
        "level": ["1.0", "1.5", "2.0"],
    }[variable]

    def values() -> bool:
        return bool(cluster.prometheus.ask(f"label/{match[2]}/values", **{"match[]": match[1]}) == expected)

    assert until(values), cluster.prometheus.ask(f"label/{match[2]}/values", **{"match[]": match[1]})


def test_every_rule_can_be_evaluated_and_nothing_is_wrong(cluster: Cluster) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = cluster.prometheus.ask("rules")["groups"]
        rules: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else []

    rules = until(evaluated)
    assert len(rules) > 12
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
    assert firing == []


def _of_globald(cluster: Cluster) -> Daemon:
    return cluster.globald


def _of_a_host(cluster: Cluster) -> Daemon:
    return cluster.hosts[0]


@pytest.mark.parametrize("daemon", [_of_globald, _of_a_host])
def test_promtool_finds_nothing_in_what_the_daemons_export(
    cluster: Cluster, daemon: Callable[[Cluster], Daemon]
) -> None:
    answer = daemon(cluster).get("/metrics")
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    assert promtool("check", "metrics", text=answer.text) == ""


def test_work_and_refusals_are_seen(cluster: Cluster) -> None:
    """The numbers of what was done, by globald's own count."""
    operations = 'vmstack_operation_duration_seconds_count{job="globald"}'
    expected = {("deploy", "ok"): "18", ("deploy", "NoCapacity"): "1", ("remove", "ok"): "1"}

    def counted() -> bool:
        found = {
            (sample["metric"]["operation"], sample["metric"]["outcome"]): sample["value"][1]
            for sample in cluster.prometheus.query(operations)
        }
        return found.items() >= expected.items()

    assert until(counted), cluster.prometheus.query(operations)
    refused = cluster.prometheus.query('vmstack_refusals_total{job="globald"} > 0')
    assert [(sample["metric"]["reason"], sample["value"][1]) for sample in refused] == [("cpu", "1")]


def test_a_host_that_dies_is_noticed_by_both_and_known_by_name(cluster: Cluster) -> None:
    """The last test, because the host stays dead."""
    cluster.hosts[2].process.send_signal(signal.SIGKILL)
    cluster.hosts[2].wait()
    for alert, label in (("VmstackHostUnknown", "host"), ("VmstackdDown", "instance")):
        found = until(partial(cluster.prometheus.query, f'ALERTS{{alertname="{alert}"}}'))
        assert [sample["metric"][label] for sample in found] == [HOSTS[2]], alert
    states = cluster.prometheus.query("vmstack_hosts > 0")
    assert {sample["metric"]["state"]: sample["value"][1] for sample in states} == {"up": "2", "unknown": "1"}
    assert cluster.prometheus.query(f'vmstack_host_level_vms{{host="{HOSTS[2]}"}}')  # what it last told stays known
