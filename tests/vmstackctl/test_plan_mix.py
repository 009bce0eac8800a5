"""Shares of levels: as people write them, and as VMs get them."""

from __future__ import annotations

from collections import Counter
from math import inf

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.workload import Workload, WorkloadVm
from vmstackctl.plan.mix import CHUNK, Mix, parse_mix, relevel


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("1=50,3=50", ((1000, 50_000), (3000, 50_000))),
        ("3=100", ((3000, 100_000),)),
        (" 2:1 = 12.5 , 1.5=87.5", ((2000, 12_500), (1500, 87_500))),
        ("1=33.333,2=33.333,3=33.334", ((1000, 33_333), (2000, 33_333), (3000, 33_334))),
        ("1=0,2=100.0,3=0.000", ((2000, 100_000),)),
    ],
)
def test_levels_are_read_with_their_shares(text: str, mix: Mix) -> None:
    assert parse_mix(text) == mix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no level with a share; write"),
        ("1=50,3", "'3' is no level with a share; write"),
        ("1=50,,3=50", "'' is no level with a share; write"),
        ("0.5=100", "'0.5' is not an oversubscription level"),
        ("=100", "'' is not an oversubscription level"),
        ("1=50,1.0=50", "level 1:1 is there twice; write"),
        ("1=-50,2=150", "'-50' is no share from 0 to 100 with at most 3 decimals; write"),
        ("1=50%,2=50%", "'50%' is no share"),
        ("1=33.3333,2=66.6667", "'33.3333' is no share"),
        ("1=nan", "'nan' is no share"),
        ("1=\x1b", r"'\\\\x1b' is no share"),
        ("1=50,3=49.999", "the shares are 99.999 % in all, not 100; write"),
        ("1=100,3=50", "the shares are 150 % in all, not 100; write"),
        ("1=0", "the shares are 0 % in all, not 100; write"),
    ],
)
def test_what_is_no_mix_is_refused_with_what_is(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        parse_mix(text)
    assert "as 1=50,3=50" in str(caught.value) or "as 2, 1.5 or 2:1" in str(caught.value)


@given(st.text("0123456789=,.:- n\x00é", max_size=20))
def test_any_text_is_a_mix_or_is_refused(text: str) -> None:
    try:
        mix = parse_mix(text)
    except ValueError:
        return
    assert sum(share for _, share in mix) == 100_000
    assert all(share > 0 for _, share in mix)


def workload(vms: int) -> Workload:
    """VMs whose names tell their places, of two sizes in turn, in the order of their arrivals."""
    return Workload(
        tuple(
            WorkloadVm(str(place), 1000, 1 + place % 2 * 15, 1024 * (1 + place % 2 * 59), float(place // 7), inf)
            for place in range(vms)
        ),
        ("a note",),
    )


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    """Of one to six levels."""
    levels = draw(st.lists(st.integers(1000, 64_000), min_size=1, max_size=6, unique=True))
    cuts = draw(st.lists(st.integers(1, 99_999), min_size=len(levels) - 1, max_size=len(levels) - 1, unique=True))
    edges = [0, *sorted(cuts), 100_000]
    return tuple((level, after - before) for level, before, after in zip(levels, edges[:-1], edges[1:], strict=True))


@given(mixes(), st.integers(0, 350), st.integers())
def test_only_levels_change_and_the_shares_hold_after_every_chunk(mix: Mix, vms: int, seed: int) -> None:
    before = workload(vms)
    after = relevel(before, mix, seed)
    assert after.notes == before.notes
    assert [msgspec.structs.replace(vm, level=1000) for vm in after.vms] == list(before.vms)
    for end in (*range(CHUNK, vms, CHUNK), vms):
        counts = Counter(vm.level for vm in after.vms[:end])
        assert counts.keys() <= {level for level, _ in mix}
        for level, share in mix:
            assert abs(counts[level] - share * end / 100_000) < 2


@given(st.integers(0, 100), st.integers())
def test_whole_percents_hold_exactly_in_every_chunk(share: int, seed: int) -> None:
    mix = parse_mix(f"1={share},3={100 - share}")
    after = relevel(workload(500), mix, seed)
    for start in range(0, 500, CHUNK):
        assert sum(vm.level == 1000 for vm in after.vms[start : start + CHUNK]) == share


def test_what_a_chunk_cannot_share_out_is_made_good_by_the_next() -> None:
    after = relevel(workload(400), parse_mix("1=99.75,2=0.25"), 1)
    places = [place for place, vm in enumerate(after.vms) if vm.level == 2000]
    assert len(places) == 1
    after = relevel(workload(300), parse_mix("1=33.333,2=33.333,3=33.334"), 1)
    assert sorted(Counter(vm.level for vm in after.vms).values()) == [100, 100, 100]


def test_the_same_seed_gives_the_same_levels_and_another_gives_others() -> None:
    mix = parse_mix("1=50,3=50")
    first = relevel(workload(1000), mix, 1)
    assert first == relevel(workload(1000), mix, 1)
    assert first != relevel(workload(1000), mix, 2)
    halves = [[vm.level for vm in first.vms[start : start + CHUNK]] for start in range(0, 1000, CHUNK)]
    assert len({tuple(half) for half in halves}) == len(halves), "every chunk is shuffled anew"


def test_levels_do_not_depend_on_sizes() -> None:
    after = relevel(workload(10_000), parse_mix("1=50,3=50"), 1)
    large = [vm.level for vm in after.vms if vm.vcpus == 16]
    assert 0.47 < sum(level == 1000 for level in large) / len(large) < 0.53
