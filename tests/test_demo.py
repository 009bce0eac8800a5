from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys

import msgspec
import pytest
from rich.console import Console

from benchmarks import demo
from benchmarks.cpu_map import CpuMap, marks
from core.cpuset import parse_cpu_list
from core.status import HostStatus, LevelStatus
from core.topology import NO_CACHE
from tests.daemon import PATIENCE, ROOT
from vmstackd.api.replies import CpuReply, StatusReply, TopologyReply

ROW = re.compile(r"([0-9][0-9,-]*) {2,}([0-9a-z.# ]+)")


def drawn(topology: TopologyReply, status: StatusReply, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(CpuMap(topology, status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def signs(text: str, topology: TopologyReply) -> dict[int, str]:
    """The sign of each CPU, read from the map: a row names its CPUs, its cores are in ascending order."""
    core_of = {cpu.id: (cpu.package, cpu.core) for cpu in topology.cpus}
    found: dict[int, str] = {}
    for line in text.splitlines():
        match = ROW.fullmatch(line.rstrip())
        if match is None:
            continue
        cores: dict[tuple[int, int], list[int]] = {}
        for cpu in parse_cpu_list(match[1]):
            cores.setdefault(core_of[cpu], []).append(cpu)
        blocks = match[2].split()
        assert [len(block) for block in blocks] == [len(cpus) for cpus in cores.values()]
        for block, cpus in zip(blocks, cores.values(), strict=True):
            for cpu, sign in zip(cpus, block, strict=True):
                assert cpu not in found
                found[cpu] = sign
    return found


def cpu(number: int, core: int, use: str = "free", *, package: int = 0, cache: int = 0) -> CpuReply:
    return CpuReply(id=number, package=package, node=package, core=core, caches=(core, cache), use=use)


def host(
    cpus: tuple[CpuReply, ...], levels: tuple[int, ...] = (), degraded: tuple[str, ...] = ()
) -> tuple[TopologyReply, StatusReply]:
    topology = TopologyReply(
        name="a host",
        host_cpus=len(cpus),
        cache_names=("L2", "L3"),
        nodes=(0,),
        node_distances=((10,),),
        memory_mib=4096,
        cpus=cpus,
    )
    status = StatusReply(
        host=HostStatus(
            cpus=len(cpus),
            free_cpus=sum(cpu.use == "free" for cpu in cpus),
            held_cpus=sum(cpu.use == "held" for cpu in cpus),
            memory_mib=4096,
            allocated_mib=2048,
            free_mib=2048,
            vms=len(levels),
            generation=1,
            levels=tuple(
                LevelStatus(
                    level=level,
                    ratio=level,
                    cpus=3,
                    vcpus=4,
                    vms=1,
                    needed=5,
                    available_thousandths=0,
                    potential_thousandths=0,
                )
                for level in levels
            ),
        ),
        hypervisor="up",
        unplaced=(),
        stopped=(),
        degraded=degraded,
    )
    return topology, status


@pytest.fixture(scope="module")
def filled() -> tuple[TopologyReply, StatusReply, demo.Workload]:
    return asyncio.run(demo.simulate())


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_cpu_is_drawn_once_with_the_sign_of_its_level(
    filled: tuple[TopologyReply, StatusReply, demo.Workload], width: int
) -> None:
    topology, status, _ = filled
    text = drawn(topology, status, width)
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


def test_the_table_has_the_figures_of_each_level(filled: tuple[TopologyReply, StatusReply, demo.Workload]) -> None:
    topology, status, _ = filled
    rows = {row[0]: row[1:] for line in drawn(topology, status).splitlines() if len(row := line.split()) == 7}
    for level in status.host.levels:
        whole = level.level // 1000
        figures = [str(figure) for figure in (level.cpus, level.needed, level.vcpus, level.vms)]
        assert rows[str(whole) * 2] == [f"{whole}:1", *figures, f"{level.ratio // 1000}:1"]


def test_cores_of_different_width_and_cpus_without_a_cache_have_their_place() -> None:
    wide = tuple(cpu(number, number // 2, "1.0" if number < 3 else "free") for number in range(4))
    narrow = tuple(cpu(number, number, "held", cache=1) for number in (8, 9))
    bare = (msgspec.structs.replace(cpu(12, 12, "1.5"), caches=(12, NO_CACHE)),)
    topology, status = host((*wide, *narrow, *bare, cpu(16, 0, package=1)), (1000, 1500))
    assert signs(drawn(topology, status), topology) == {
        0: "1", 1: "1", 2: "1", 3: ".", 8: "#", 9: "#", 12: "a", 16: ".",
    }  # fmt: skip


def test_levels_have_different_signs() -> None:
    found = marks([1000, 1500, 9000, 10000, 12500])
    assert {name: mark.symbol for name, mark in found.items()} == {
        "free": ".", "held": "#", "1.0": "1", "1.5": "a", "9.0": "9", "10.0": "b", "12.5": "c",
    }  # fmt: skip


def test_what_is_wrong_with_the_host_is_said() -> None:
    topology, status = host((cpu(0, 0),), degraded=("level 1.0 has 3 CPUs and needs 5",))
    assert "\nlevel 1.0 has 3 CPUs and needs 5\n" in drawn(topology, status)


def test_cpus_that_are_not_for_vms_are_counted() -> None:
    topology, status = host((cpu(0, 0),))
    text = drawn(msgspec.structs.replace(topology, host_cpus=3), status)
    assert "1 CPUs (2 more not for VMs)" in text


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
