from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

import pytest

from benchmarks import demo
from tests.running import PATIENCE, ROOT
from tests.vmstackctl.hosts import drawn, signs, terminal
from vmstackctl.cpu_map import CpuMap
from vmstackd.api.replies import StatusReply, TopologyReply


@pytest.fixture(scope="module")
def filled() -> tuple[TopologyReply, StatusReply, demo.Workload]:
    return asyncio.run(demo.simulate())


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_cpu_is_drawn_once_with_the_sign_of_its_level(
    filled: tuple[TopologyReply, StatusReply, demo.Workload], width: int
) -> None:
    topology, status, _ = filled
    text = drawn(CpuMap(topology, status), terminal(width))
    names = {"1.0": "1", "2.0": "2", "3.0": "3", "free": "."}
    assert signs(text, topology) == {cpu.id: names[cpu.use] for cpu in topology.cpus}
    assert max(len(line) for line in text.splitlines()) <= width


def test_the_demo_has_three_levels_and_room_left(filled: tuple[TopologyReply, StatusReply, demo.Workload]) -> None:
    topology, status, work = filled
    assert len(topology.cpus) == 256
    assert {level.level for level in status.host.levels} == {1000, 2000, 3000}
    assert status.host.free_cpus > 0
    assert not status.degraded
    assert work.arrived - work.left == status.host.vms
    assert work.left > 0


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
