from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys

import pytest

from benchmarks import demo
from tests.running import PATIENCE, ROOT
from tests.vmstackctl.hosts import drawn, signs, terminal
from vmstackctl.cpu_map import CpuMap


@pytest.fixture(scope="module")
def filled() -> demo.Result:
    return asyncio.run(demo.simulate())


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_cpu_of_the_drawn_hosts_is_drawn_once_with_the_sign_of_its_level(filled: demo.Result, width: int) -> None:
    assert [drawing.name for drawing in filled.drawings] == list(demo.DRAWN)
    for drawing in filled.drawings:
        text = drawn(CpuMap(drawing.topology, drawing.status), terminal(width))
        names = {"1.0": "1", "2.0": "2", "3.0": "3", "free": "."}
        assert signs(text, drawing.topology) == {cpu.id: names[cpu.use] for cpu in drawing.topology.cpus}
        assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", [80, 200])
def test_every_host_has_a_line_with_its_figures_whole(filled: demo.Result, width: int) -> None:
    text = drawn(demo.Fill(filled.hosts.hosts), terminal(width))
    head, *lines = text.splitlines()
    assert head.split() == ["host", "CPUs", "taken", "memory", "(GiB)", "VMs", "1:1", "2:1", "3:1"]
    assert [line.split()[0] for line in lines] == list(demo.HOSTS)
    for line, host in zip(lines, filled.hosts.hosts, strict=True):
        assert host.status is not None
        assert f" {host.status.cpus - host.status.free_cpus}/{host.status.cpus} " in line
        assert len(line) <= width
    assert "…" not in text


def test_it_ends_when_the_cluster_is_full_of_three_levels(filled: demo.Result) -> None:
    work = filled.work
    statuses = [host.status for host in filled.hosts.hosts if host.status is not None]
    assert len(statuses) == len(demo.HOSTS)
    assert {host.state for host in filled.hosts.hosts} == {"up"}
    assert filled.hosts.duplicates == ()
    assert {level.level for status in statuses for level in status.levels} == set(demo.LEVELS)
    assert work.refused >= demo.REFUSALS
    assert work.arrived - work.left == sum(status.vms for status in statuses)
    assert work.left > 0
    assert work.rate > 0
    for drawing in filled.drawings:  # where VMs leave, a level can come to owe CPUs to those that stay, and says so
        owing = [level for level in drawing.status.host.levels if level.cpus < level.needed]
        assert len(drawing.status.degraded) == len(owing)


def test_the_orders_are_always_the_same() -> None:
    first, second = (list(itertools.islice(demo.orders(), 500)) for _ in range(2))
    assert first == second
    assert len({order.name for order in first}) == 500


def run_demo(**environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.demo"],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    ).stdout


def test_no_escape_codes_when_piped_and_no_colours_when_unwanted() -> None:
    assert "\033" not in run_demo()
    # On a terminal without colours, bold and dim remain.
    coloured = re.compile(r"\033\[[0-9;]*[34][0-7]m")
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm"}
    assert coloured.search(run_demo(**terminal))
    assert not coloured.search(run_demo(**terminal, NO_COLOR="1"))
