"""What mixing saves by mix: every mix of three levels, and workloads that have one each."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from core.workload import ServerKind
from vmstackctl.plan.mixes import Heat, heat_of, heats_of, mixes, told
from vmstackctl.plan.question import Question
from vmstackctl.plan.sized import LevelRow, Row, size
from vmstackctl.plan.source import read_workload

QUESTION = Question((ServerKind(32, 131072),), ("worth",), 2, "host", seed=3, over_time=True)


def row(name: str, vms: dict[int, int], saved: float | None) -> Row:
    return Row(
        workload=name,
        policy="worth",
        servers=9,
        dedicated=10,
        lower_bound=9,
        saved_percent=saved,
        gap_percent=0.0,
        accounting="host",
        critical_size=2,
        vms=sum(vms.values()),
        shared=None,
        levels=tuple(LevelRow(level, count, None) for level, count in vms.items()),
        notes=(),
    )


def test_every_mix_of_three_levels_in_steps() -> None:
    found = dict(mixes((1000, 1500, 4000)))
    assert len(found) == 15
    assert found[100, 0] == ((1000, 100_000),)
    assert found[25, 50] == ((1000, 25_000), (1500, 50_000), (4000, 25_000))
    assert all(sum(share for _, share in mix) == 100_000 for mix in found.values())


@pytest.mark.parametrize(("levels", "chosen"), [([1000, 1500, 4000], (1000, 1500, 4000)), ([2000], (1000, 2000, 3000))])
def test_a_workload_in_every_mix(tmp_path: Path, levels: list[int], chosen: tuple[int, int, int]) -> None:
    """VMs short of CPUs at 1:1 and of memory at high levels: a mix of both saves servers, a single level none."""
    path = tmp_path / "week.csv"
    path.write_text("vcpus,mem_gb,level,count\n4,8,2,400\n")
    heat = heat_of(path, read_workload(path), levels, QUESTION, lambda _: None)
    assert heat.levels == chosen
    assert len(heat.saved) == 15
    assert heat.saved[100, 0] == heat.saved[0, 0] == heat.saved[0, 100] == 0
    assert max(heat.saved.values()) > 5
    assert heat == heat_of(path, read_workload(path), levels, QUESTION, lambda _: None)
    assert "week.csv" in heat.of
    assert "seed 3" in heat.of


def test_memory_is_cut_at_the_levels_of_the_mix(tmp_path: Path) -> None:
    """The published figure with its cap: VMs that are rich in memory at 1:1, and are cut where they are sold above."""
    path = tmp_path / "week.csv"
    path.write_text("vcpus,mem_gb,level,count\n1,60,1,40\n")
    asked = msgspec.structs.replace(QUESTION, memory_cap_mib=8192)
    for mix, servers in (((1000, 100_000),), 20), (((3000, 100_000),), 3):
        found = size(path, msgspec.structs.replace(asked, mix=mix), lambda _: None)
        assert [shared.use.servers for shared in found.shared if shared.use is not None] == [servers]


def test_without_enough_servers_there_is_no_figure(tmp_path: Path) -> None:
    path = tmp_path / "week.csv"
    path.write_text("vcpus,mem_gb,level,count\n4,8,2,400\n")
    few = Question((ServerKind(32, 131072, 1),), ("worth",), 2, "host")
    heat = heat_of(path, read_workload(path), [1000], few, lambda _: None)
    assert heat.saved == {}
    assert told(heat) == "There are too few servers for any mix."


def test_workloads_are_placed_by_their_own_mix() -> None:
    found = heats_of(
        [
            row("a_1.csv", {1000: 431, 2000: 429, 3000: 852}, 6.0),  # shares as near to a step as rounding is
            row("a_2.csv", {1000: 25, 2000: 25, 3000: 50}, 8.0),
            row("a_3.csv", {3000: 10}, 0.0),
            row("a_4.csv", {1000: 1, 2000: 2}, None),
            row("b_1.csv", {1500: 5}, 1.0),
            row("c_1.csv", {1000: 30, 1500: 30, 4000: 40}, 2.0),
            row("c_2.csv", {1000: 40, 1500: 30, 4000: 30}, 3.0),
            row("d_1.csv", {1000: 5}, 1.0),
        ]
    )
    assert found == [
        Heat("3 workloads of a", (1000, 2000, 3000), {(25, 25): 7.0, (0, 0): 0.0}),
        Heat("2 workloads of c", (1000, 1500, 4000), {(30, 30): 2.0, (40, 30): 3.0}),
    ]
    assert told(found[1]) == "Most is saved with 40 % at 1:1, 30 % at 1.5:1, 30 % at 4:1: 3.0 %."
