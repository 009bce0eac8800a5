from __future__ import annotations

import itertools

import msgspec
import pytest

from core.topology import NO_CACHE
from core.usage import HostUsage, LevelUsage
from tests.vmstackctl.hosts import ESCAPE, PIPE, cpu, drawn, host, signs, terminal
from vmstackctl.cpu_map import CpuMap, marks
from vmstackctl.terminal import Look
from vmstackd.api.replies import StatusReply, TopologyReply


def large(sockets: int, groups: int, cores: int) -> tuple[TopologyReply, StatusReply]:
    """CPUs numbered as on real hosts: first one of every core, then their siblings. Every third CPU is taken."""
    total = sockets * groups * cores
    uses = itertools.cycle(("2.0", "free", "free"))
    cpus = tuple(
        cpu(core + sibling * total, core, next(uses), package=core // (groups * cores), cache=core // cores)
        for core in range(total)
        for sibling in (0, 1)
    )
    return host(cpus, (2000,))


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize(("sockets", "groups", "cores"), [(2, 16, 4), (2, 1, 64), (1, 2, 4), (8, 2, 8)])
def test_every_cpu_of_every_host_is_drawn_once(width: int, sockets: int, groups: int, cores: int) -> None:
    topology, status = large(sockets, groups, cores)
    text = drawn(CpuMap(topology, status), terminal(width))
    assert signs(text, topology) == {cpu.id: {"2.0": "2", "free": "."}[cpu.use] for cpu in topology.cpus}
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_wide_places_make_it_shorter() -> None:
    topology, status = large(2, 16, 4)
    heights = [len(drawn(CpuMap(topology, status), terminal(width)).splitlines()) for width in (80, 200)]
    assert heights[0] - heights[1] == 4


def test_a_map_in_a_pipe_is_as_wide_as_it_is_told() -> None:
    topology, status = large(2, 16, 4)
    picture = CpuMap(topology, status, width=80)
    assert drawn(picture, PIPE) == drawn(picture, terminal(80))


def test_cpus_that_are_not_numbered_in_a_row_are_named_from_which_to_which() -> None:
    cpus = tuple(cpu(number, number, package=number % 2) for number in range(32))
    text = drawn(CpuMap(*host(cpus)), terminal(80))
    assert "\n0..30 " in text
    assert "\n1..31 " in text


def test_cores_of_different_width_and_cpus_without_a_cache_have_their_place() -> None:
    wide = tuple(cpu(number, number // 2, "1.0" if number < 3 else "free") for number in range(4))
    narrow = tuple(cpu(number, number, "held", cache=1) for number in (8, 9))
    bare = (msgspec.structs.replace(cpu(12, 12, "1.5"), caches=(12, NO_CACHE)),)
    topology, status = host((*wide, *narrow, *bare, cpu(16, 0, package=1)), (1000, 1500))
    assert signs(drawn(CpuMap(topology, status), terminal(80)), topology) == {
        0: "1", 1: "1", 2: "1", 3: ".", 8: "#", 9: "#", 12: "a", 16: ".",
    }  # fmt: skip


def test_levels_have_different_signs() -> None:
    found = marks([1000, 1500, 9000, 10000, 12500])
    assert {name: mark.symbol for name, mark in found.items()} == {
        "free": ".", "held": "#", "1.0": "1", "1.5": "a", "9.0": "9", "10.0": "b", "12.5": "c",
    }  # fmt: skip


def test_the_table_has_the_figures_of_each_level() -> None:
    topology, status = host((cpu(0, 0, "2.0"), cpu(1, 1), cpu(2, 2, "held")), (2000, 1500))
    rows = [line.split() for line in drawn(CpuMap(topology, status), terminal(80)).splitlines()]
    assert ["22", "2:1", "3", "5", "4", "1", "2:1", "-0.5", "+4.5"] in rows
    assert ["aa", "1.5:1", "3", "5", "4", "1", "1.5:1", "-0.5", "+4.5"] in rows
    assert ["..", "free", "1"] in rows
    assert ["##", "held", "1"] in rows


def measured(status: StatusReply, *levels: LevelUsage, busy: float | None = 102.34) -> StatusReply:
    usage = HostUsage(time=0, seconds=15, busy_cpus=busy, memory_mib=5000, used_mib=3072, levels=levels)
    return msgspec.structs.replace(status, usage=usage)


USED = (
    LevelUsage(level=1500, busy_cpus=60.06, delay_s=9, delay_median=0.031, delay_p99=0.124),
    LevelUsage(level=1000, busy_cpus=12.34, delay_s=0, delay_median=0, delay_p99=1),
)


def test_measurements_are_beside_what_is_decided() -> None:
    topology, status = host((cpu(0, 0, "2.0"), cpu(1, 1)), (2000, 1500, 1000))
    lines = drawn(CpuMap(topology, measured(status, *USED)), terminal(80)).splitlines()
    assert lines[1].endswith("   1 of 2 taken, 1 free, 102.3 busy")
    assert lines[2].endswith("   2 of 4 GiB sold, 2 GiB free, 3 GiB used")
    rows = {row[0]: row for row in (line.split() for line in lines) if row}
    assert rows["11"] == ["11", "1:1", "3", "5", "4", "1", "1:1", "-0.5", "+4.5", "12.3", "0.0/100"]
    assert rows["aa"][-2:] == ["60.1", "3.1/12"]
    assert rows["22"][-2:] == ["-", "-"]  # deployed since the last measurement
    assert rows[".."] == ["..", "free", "1"]
    heading = next(line for line in lines if line.startswith("    level"))
    assert heading.split()[-4:] == ["free", "CPUs", "busy", "p50/p99"]
    assert lines[lines.index(heading) - 1].split() == ["ratio", "fit", "fit", "on", "CPUs", "waits,", "%"]
    assert {len(line) for line in lines if line.startswith(("11", "aa", "22"))} == {len(heading)}


def test_before_there_is_something_to_compare_with_only_memory_is_known() -> None:
    topology, status = host((cpu(0, 0, "2.0"),), (2000,))
    lines = drawn(CpuMap(topology, measured(status, LevelUsage(level=2000), busy=None)), terminal(80)).splitlines()
    assert lines[1].endswith("   1 of 1 taken, 0 free")
    assert lines[2].endswith(", 3 GiB used")
    assert next(line for line in lines if line.startswith("22")).split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(("width", "shown"), [(60, False), (79, False), (80, True), (200, True)])
def test_measurements_are_shown_where_there_is_room_for_them(width: int, shown: bool) -> None:
    topology, status = large(2, 16, 4)
    levels = tuple(
        msgspec.structs.replace(
            status.host.levels[0],
            level=level,
            ratio=1333,
            cpus=128,
            vcpus=2048,
            vms=700,
            needed=128,
            available_thousandths=-12500,
            potential_thousandths=16384000,
        )
        for level in (1500, 64000)
    )
    full = msgspec.structs.replace(status, host=msgspec.structs.replace(status.host, levels=levels))
    text = drawn(CpuMap(topology, measured(full, LevelUsage(1500, 128.0, 9.0, 0.1, 1.0))), terminal(width))
    assert max(len(line) for line in text.splitlines()) <= width
    assert ("p50/p99" in text) == ("10/100" in text) == shown
    if shown:
        assert "…" not in text
    else:
        before = drawn(CpuMap(topology, full), terminal(width))
        assert text.splitlines()[-8:] == before.splitlines()[-8:]


def test_a_level_that_only_one_of_both_answers_knows_is_drawn() -> None:
    topology, status = host((cpu(0, 0, "2.0"), cpu(1, 1, "something new")), ())
    assert signs(drawn(CpuMap(topology, status), terminal(80)), topology) == {0: "2", 1: "?"}


def test_what_is_wrong_with_the_host_is_said() -> None:
    topology, status = host((cpu(0, 0),), degraded=("level 1.0 has 3 CPUs and needs 5",))
    down = msgspec.structs.replace(status, hypervisor="down", stopped=("old1", "old2"))
    text = drawn(CpuMap(topology, down), terminal(80))
    assert "\n! level 1.0 has 3 CPUs and needs 5\n" in text
    assert "hypervisor down" in text
    assert "\nshut off: old1, old2\n" in text


def test_cpus_that_are_not_for_vms_are_counted() -> None:
    topology, status = host((cpu(0, 0),))
    text = drawn(CpuMap(msgspec.structs.replace(topology, host_cpus=3), status), terminal(80))
    assert "0 of 1 taken, 1 free (2 more not for VMs)" in text


def test_nothing_that_somebody_named_moves_the_cursor() -> None:
    topology, status = host((cpu(0, 0),), degraded=("VM \033[2J",))
    evil = msgspec.structs.replace(topology, name="\033]0;x\a", cache_names=("L2", "\033[1m"))
    stopped = msgspec.structs.replace(status, stopped=("\x9b2J",), hypervisor="\r")
    text = drawn(CpuMap(evil, stopped, host="\033c"), terminal(80))
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("usage", [False, True])
def test_colours_are_whole_and_lines_begin_and_end_without(usage: bool) -> None:
    topology, status = large(2, 16, 4)
    status = measured(status, LevelUsage(2000, 3.0, 9.0, 0.1, 1.0)) if usage else status
    coloured = drawn(CpuMap(topology, status), terminal(80, colour=True))
    assert ESCAPE.sub("", coloured).replace("\n", "").isprintable()
    for line in coloured.splitlines():
        codes: list[str] = ESCAPE.findall(line)
        assert not codes or codes[-1] == "\033[0m"
        assert codes.count("\033[0m") * 2 == len(codes)
    plain = drawn(CpuMap(topology, status), terminal(80))
    assert [line.rstrip() for line in ESCAPE.sub("", coloured).splitlines()] == plain.splitlines()


def test_bars_show_little_as_something_and_need_no_unicode() -> None:
    topology, status = large(2, 16, 4)
    text = drawn(CpuMap(topology, status), Look(width=80, colour=False, encoding="ascii"))
    assert text.isascii()
    assert "?" not in text
    assert "====" in text
    one = msgspec.structs.replace(status.host, allocated_mib=1)
    little = drawn(CpuMap(topology, msgspec.structs.replace(status, host=one)), terminal(80))
    assert "memory   ━─" in little
