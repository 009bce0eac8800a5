"""What is made of counters: figures by hand, and rules that hold for all of them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core.model import HostState
from core.usage import (
    Counters,
    HostCounters,
    HostUsage,
    LevelUsage,
    NodeMemory,
    Usage,
    VmCounters,
    VmUsage,
    quantile,
    usage,
)
from tests.core.hosts import build, deploy, empty, i7, remove

NODES = (NodeMemory(node=0, memory_mib=31776, used_mib=9000),)


def host(at: float, cpus: dict[int, float], used: int = 9000) -> HostCounters:
    return HostCounters(at=at, cpus=cpus, memory_mib=31776, used_mib=used, nodes=NODES)


def counters(at: float, cpus: dict[int, float], vms: dict[str, VmCounters], *, vms_at: float | None = None) -> Counters:
    return Counters(at=at if vms_at is None else vms_at, host=host(at, cpus), vms=vms)


def two_levels() -> HostState:
    """a (2 vCPUs) and b (1) at 1.0, c and d (2 each) at 2.0."""
    state = empty(i7())
    for name, vcpus, level in (("a", 2, 1000), ("b", 1, 1000), ("c", 2, 2000), ("d", 2, 2000)):
        state = deploy(state, name, vcpus, level)
    return state


def test_every_figure() -> None:
    state = two_levels()
    first, second = state.subsets
    before = counters(100, dict.fromkeys(range(8), 50.0), {name: VmCounters(name, 10, 1, 5) for name in "abc"})
    busy = dict.fromkeys(range(8), 50.0)
    busy |= {first.cpus[0]: 60.0, first.cpus[1]: 55.0, second.cpus[0]: 52.5, state.free.ids()[0]: 51.0}
    now = counters(
        110,
        busy,
        {
            "a": VmCounters("a", 25, 3, 512),
            "b": VmCounters("b", 12, 1.5, 256),
            "c": VmCounters("c", 12.5, 6, None),
            "d": VmCounters("d", 1, 1, 128),
            "stranger": VmCounters("stranger", 1, 1, 1),
        },
    )
    assert usage(before, now, state, 1e9) == Usage(
        host=HostUsage(
            time=1e9,
            seconds=10,
            busy_cpus=1.85,
            memory_mib=31776,
            used_mib=9000,
            nodes=NODES,
            levels=(
                LevelUsage(level=1000, busy_cpus=1.5, delay_s=2.5, delay_median=0.05, delay_p99=0.1),
                LevelUsage(level=2000, busy_cpus=0.25, delay_s=5, delay_median=0.25, delay_p99=0.25),
            ),
        ),
        vms={
            "a": VmUsage(busy_cpus=1.5, delay_s=2, delay_ratio=0.1, resident_mib=512),
            "b": VmUsage(busy_cpus=0.2, delay_s=0.5, delay_ratio=0.05, resident_mib=256),
            "c": VmUsage(busy_cpus=0.25, delay_s=5, delay_ratio=0.25, resident_mib=None),
            "d": VmUsage(resident_mib=128),
        },
    )


def nothing_of(state: HostState, found: Usage) -> None:
    """Memory is known without an interval, all else is not."""
    assert found.host.seconds == 0
    assert found.host.busy_cpus is None
    assert (found.host.memory_mib, found.host.used_mib, found.host.nodes) == (31776, 9000, NODES)
    assert found.host.levels == tuple(LevelUsage(level=subset.level) for subset in state.subsets)
    assert found.vms == {name: VmUsage(resident_mib=7) for name in "abcd"}


@pytest.mark.parametrize("elapsed", [None, 0.0, -5.0])
def test_without_an_interval_nothing_is_known_but_memory(elapsed: float | None) -> None:
    state = two_levels()
    vms = {name: VmCounters(name, 3, 1, 7) for name in "abcd"}
    now = counters(100, dict.fromkeys(range(8), 9.0), vms)
    before = None if elapsed is None else counters(100 - elapsed, dict.fromkeys(range(8), 1.0), vms)
    nothing_of(state, usage(before, now, state, 0))


def of_a(before: VmCounters | None, now: VmCounters) -> VmUsage:
    """What becomes of one VM of two vCPUs within ten seconds."""
    state = deploy(empty(i7()), "a", 2, 1000)
    earlier = counters(0, {}, {} if before is None else {"a": before})
    return usage(earlier, counters(10, {}, {"a": now}), state, 0).vms["a"]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, VmCounters("u", 5, 5, 9), VmUsage(resident_mib=9)),
        (VmCounters("old", 1, 1, 1), VmCounters("new", 5, 5, 9), VmUsage(resident_mib=9)),
        (VmCounters("u", 9, 1), VmCounters("u", 5, 3), VmUsage(delay_s=2, delay_ratio=0.1)),
        (VmCounters("u", 1, 9), VmCounters("u", 6, 3), VmUsage(busy_cpus=0.5)),
        (VmCounters("u", 1, None), VmCounters("u", 6, 3), VmUsage(busy_cpus=0.5)),
        (VmCounters("u", 1, 1), VmCounters("u", None, None), VmUsage()),
        (VmCounters("u", 1, 1), VmCounters("u", 1, 1, 0), VmUsage(0, 0, 0, 0)),
        (VmCounters("u", 0, 0), VmCounters("u", 1, 21), VmUsage(busy_cpus=0.1, delay_s=21, delay_ratio=1)),
    ],
    ids=["new", "another-life", "cpu-back", "delay-back", "delay-new", "none", "idle", "more-than-there-was"],
)
def test_counters_of_a_vm_that_are_new_missing_or_began_anew(
    before: VmCounters | None, now: VmCounters, expected: VmUsage
) -> None:
    assert of_a(before, now) == expected


def test_a_vm_that_is_missing_in_one_round_is_known_again_after_the_next() -> None:
    state = deploy(deploy(empty(i7()), "a", 1, 1000), "b", 1, 1000)
    rounds = [
        counters(at, {}, {name: VmCounters(name, at / 2, at / 10) for name in names})
        for at, names in ((0, "ab"), (10, "a"), (20, "ab"), (30, "ab"))
    ]
    found = [usage(before, now, state, 0) for before, now in itertools.pairwise(rounds)]
    assert [set(each.vms) for each in found] == [{"a"}, {"a", "b"}, {"a", "b"}]
    assert [each.vms["b"] for each in found[1:]] == [VmUsage(), VmUsage(busy_cpus=0.5, delay_s=1, delay_ratio=0.1)]
    assert [each.host.levels[0].delay_s for each in found] == pytest.approx([1, 1, 2])


def test_cpus_that_come_go_or_count_backwards_are_left_out() -> None:
    state = empty(i7())
    before = counters(0, {0: 5.0, 1: 5.0, 2: 5.0, 99: 0.0}, {})
    now = counters(10, {0: 10.0, 1: 1.0, 3: 8.0, 99: 10.0}, {})
    assert usage(before, now, state, 0).host.busy_cpus == 0.5
    assert usage(counters(0, {2: 1.0}, {}), now, state, 0).host.busy_cpus is None


def test_a_cpu_that_was_given_or_taken_counts_whole_for_whom_it_has_now() -> None:
    before = deploy(deploy(empty(i7()), "a", 2, 1000), "b", 2, 1000)
    start = counters(0, dict.fromkeys(range(8), 0.0), {})
    end = counters(10, dict.fromkeys(range(8), 5.0), {})
    assert usage(start, end, before, 0).host.levels[0].busy_cpus == 2
    after = deploy(remove(before, "b"), "c", 2, 2000)
    assert [level.busy_cpus for level in usage(start, end, after, 0).host.levels] == [1, 1]


def test_vms_and_host_may_have_been_read_at_other_moments() -> None:
    state = deploy(empty(i7()), "a", 1, 1000)
    [cpu] = state.subsets[0].cpus
    before = counters(0, {cpu: 0.0}, {"a": VmCounters("a", 0, 0)}, vms_at=1)
    now = counters(10, {cpu: 5.0}, {"a": VmCounters("a", 5, 1)}, vms_at=21)
    found = usage(before, now, state, 0)
    assert (found.host.seconds, found.host.levels[0].busy_cpus) == (20, 0.5)
    assert found.vms["a"] == VmUsage(busy_cpus=0.25, delay_s=1, delay_ratio=0.05)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_the_quantile_is_one_of_the_values(share: float, expected: float) -> None:
    assert quantile([1, 2, 3, 4], share) == expected


# Rules

SECONDS = st.floats(0, 1e6)


@given(st.lists(SECONDS, min_size=1, max_size=300), st.sampled_from(["0.5", "0.99"]))
def test_the_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], share: str) -> None:
    wanted = Fraction(share) * len(values)
    expected = min(value for value in values if sum(other <= value for other in values) >= wanted)
    assert quantile(sorted(values), float(share)) == expected


@st.composite
def moments(draw: st.DrawFn) -> tuple[HostState, Counters | None, Counters]:
    """A host with VMs, and two moments of it with any counters at all."""
    state = empty(build(l3=2, cores=4))
    for number in range(draw(st.integers(0, 6))):
        level = draw(st.sampled_from((1000, 1500, 3000)))
        state = deploy(state, f"vm{number}", draw(st.integers(1, 2)), level)

    def vm() -> VmCounters:
        known = st.none() | SECONDS
        return VmCounters(draw(st.sampled_from("uv")), draw(known), draw(known), draw(st.none() | st.integers(0, 99)))

    def moment() -> Counters:
        names = [f"vm{number}" for number in range(7) if draw(st.integers(0, 9))]
        cpus = {cpu: draw(SECONDS) for cpu in state.topology.cpu_ids if draw(st.integers(0, 9))}
        return counters(draw(SECONDS), cpus, {name: vm() for name in names}, vms_at=draw(SECONDS))

    return state, draw(st.none() | st.builds(moment)), moment()


@given(moments(), st.floats(1, 1e6))
def test_levels_and_free_cpus_add_up_to_the_host(
    drawn: tuple[HostState, Counters | None, Counters], seconds: float
) -> None:
    state, before, now = drawn
    before = before or now
    before = replace(before, host=replace(before.host, at=now.host.at - seconds))
    found = usage(before, now, state, 0).host
    if found.busy_cpus is None:
        assert not before.host.cpus.keys() & now.host.cpus.keys()
        return
    elapsed = now.host.at - before.host.at

    def busy(cpu: int) -> float:
        grown = now.host.cpus.get(cpu, 0) - before.host.cpus.get(cpu, math.inf)
        return min(max(grown, 0), elapsed) / elapsed

    free = sum(busy(cpu) for cpu in state.free.ids())
    assert sum(level.busy_cpus or 0 for level in found.levels) + free == pytest.approx(found.busy_cpus)
    assert 0 <= found.busy_cpus <= len(state.topology.cpu_ids) + 1e-9
    for level, subset in zip(found.levels, state.subsets, strict=True):
        assert 0 <= (level.busy_cpus or 0) <= len(subset.cpus) + 1e-9


@given(moments())
def test_no_figure_is_out_of_its_bounds(drawn: tuple[HostState, Counters | None, Counters]) -> None:
    state, before, now = drawn
    found = usage(before, now, state, 0)
    assert found.host.seconds >= 0
    assert [level.level for level in found.host.levels] == [subset.level for subset in state.subsets]
    assert found.vms.keys() <= {name for subset in state.subsets for name in subset.vms} & now.vms.keys()
    for vm in found.vms.values():
        assert (vm.delay_ratio is None) == (vm.delay_s is None)
        assert 0 <= (vm.delay_ratio or 0) <= 1
        assert (vm.busy_cpus or 0) >= 0
        assert (vm.delay_s or 0) >= 0
    for level, subset in zip(found.host.levels, state.subsets, strict=True):
        ratios = [found.vms[name].delay_ratio for name in subset.vms if name in found.vms]
        known = [ratio for ratio in ratios if ratio is not None]
        assert (level.delay_median is None) == (level.delay_p99 is None) == (level.delay_s is None) == (not known)
        if level.delay_median is not None and level.delay_p99 is not None:
            assert min(known) <= level.delay_median <= level.delay_p99 <= max(known)


@given(moments())
def test_a_vm_of_another_life_tells_nothing_of_the_one_before(
    drawn: tuple[HostState, Counters | None, Counters],
) -> None:
    state, before, now = drawn
    found = usage(before, now, state, 0).vms
    for name, vm in found.items():
        same = before is not None and name in before.vms and before.vms[name].uuid == now.vms[name].uuid
        if not same:
            assert vm == VmUsage(resident_mib=now.vms[name].resident_mib)


def test_a_vm_that_was_started_anew_tells_nothing_of_the_time_before() -> None:
    state = deploy(empty(i7()), "a", 2, 1000)
    before = counters(100, {}, {"a": VmCounters("u", 1, 1, 5, started=7)})
    now = counters(110, {}, {"a": VmCounters("u", 9, 3, 6, started=8)})
    assert usage(before, now, state, 1e9).vms == {"a": VmUsage(resident_mib=6)}
