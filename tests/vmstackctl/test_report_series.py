from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.trace import Sample, TracedLevel, TracedVm, described_cpus
from core.usage import quantile
from tests.vmstackctl.recorded import any_samples, level, samples
from vmstackctl.report.series import MOST_STEPS, LevelStep, Mean, Series, Step, series


def of(recorded: Iterable[Sample], most_steps: int = MOST_STEPS) -> Series:
    found = series(recorded, most_steps)
    assert found is not None
    return found


def vm(delay_s: float | None = None, *, vcpus: int = 1, at: int = 2000) -> TracedVm:
    return TracedVm(uuid="", name="", level=at, vcpus=vcpus, memory_mib=1024, delay_s=delay_s)


def sample(time: int, levels: Iterable[TracedLevel] = (), vms: Iterable[TracedVm] = ()) -> Sample:
    return Sample(
        time=time, cpus=16, memory_mib=1000, cpu=0.5, memory=0.25, levels=tuple(levels), vms=tuple(vms), line=1
    )


# One sample


def test_a_sample_becomes_a_step_with_its_sums() -> None:
    first = sample(0, [level(2000, [3, 1], 1.5)], [vm(vcpus=4)])
    second = sample(60, [level(1000, [0]), level(2000, [3, 1], 1.5)], [vm(12.0, vcpus=4), vm(6.0), vm(None, at=1000)])
    assert of([first, second]).steps[1] == Step(
        time=60,
        cpus=16,
        memory_mib=1000,
        owned_cpus=3,
        sold_mib=3072,
        vms=3,
        busy_cpus=Mean(8.0, 1),
        used_mib=Mean(250.0, 1),
        levels={
            1000: LevelStep(cpus=1, vcpus=1, vms=1),
            2000: LevelStep(cpus=2, vcpus=5, vms=2, busy_cpus=Mean(1.5, 1), delay_median=Mean(0.05, 1), delay_p99=0.1),
        },
        owners={1000: (0,), 2000: (3, 1)},
    )


def test_a_level_without_a_row_of_its_own_has_sold_without_owning() -> None:
    found = of([sample(0, (), [vm(vcpus=3)])])
    assert found.steps[0].levels == {2000: LevelStep(cpus=0, vcpus=3, vms=1)}
    assert found.cpu_ids == ()


def test_nobody_waits_for_longer_than_all_of_the_time() -> None:
    assert of([sample(0), sample(10, (), [vm(99.0)])]).summaries[0].delay_p99 == 1.0


def test_the_first_sample_tells_no_delay_because_nobody_knows_since_when() -> None:
    found = of([sample(0, (), [vm(5.0)])])
    assert not found.has_delay
    assert of([sample(0), sample(10, (), [vm(5.0)])]).has_delay


@pytest.mark.parametrize("description", [b"", b"{}", b"nonsense"])
def test_owners_are_unknown_where_a_level_with_cpus_tells_none(description: bytes) -> None:
    silent = msgspec.structs.replace(level(1000, [5]), description=description)
    empty = TracedLevel(level=3000, cpus=0, description=description)
    assert of([sample(0, [level(2000, [1]), silent])]).steps[0].owners is None
    assert of([sample(0, [level(2000, [1]), empty])]).steps[0].owners == {2000: (1,), 3000: ()}


def test_descriptions_of_the_prototype_are_understood() -> None:
    cpus = [{"cpu_id": 12, "numa": 0}, {"cpu_id": 140, "numa": 0}]
    traced = TracedLevel(level=1000, cpus=2, description=msgspec.json.encode({"res_list": cpus}))
    assert of([sample(0, [traced])]).cpu_ids == (12, 140)


# All of them


@given(any_samples())
def test_while_they_fit_each_sample_is_a_step(recorded: list[Sample]) -> None:
    found = of(recorded)
    assert found.samples_per_step == 1
    assert [step.time for step in found.steps] == [one.time for one in recorded]
    for step, one in zip(found.steps, recorded, strict=True):
        assert step.owned_cpus == sum(traced.cpus for traced in one.levels)
        assert sum(part.vms for part in step.levels.values()) == step.vms == len(one.vms)
        assert sum(part.vcpus for part in step.levels.values()) == sum(vm.vcpus for vm in one.vms)
        assert step.busy_cpus.value == (None if one.cpu is None else one.cpu * one.cpus)
        if step.owners is not None:
            assert step.owners == {traced.level: described_cpus(traced.description) for traced in one.levels}


@given(any_samples(), st.sampled_from([2, 4, 8]))
def test_however_many_steps_there_are_nothing_is_lost(recorded: list[Sample], most_steps: int) -> None:
    whole, found = of(recorded), of(recorded, most_steps)
    assert len(found.steps) <= most_steps
    assert found.samples_per_step & (found.samples_per_step - 1) == 0
    width = found.samples_per_step
    assert len(found.steps) == -(-len(recorded) // width)
    assert (found.summaries, found.cpu_ids, found.end) == (whole.summaries, whole.cpu_ids, whole.end)
    for number, step in enumerate(found.steps):
        parts = whole.steps[number * width : (number + 1) * width]
        assert step.time == parts[0].time
        assert step.owners == parts[-1].owners
        assert step.owned_cpus == max(part.owned_cpus for part in parts)
        assert step.sold_mib == max(part.sold_mib for part in parts)
        assert step.busy_cpus.count == sum(part.busy_cpus.count for part in parts)
        assert step.busy_cpus.total == pytest.approx(sum(part.busy_cpus.total for part in parts))
        for value, merged in step.levels.items():
            of_level = [part.levels[value] for part in parts if value in part.levels]
            assert merged.cpus == max(one.cpus for one in of_level)
            assert merged.vcpus == max(one.vcpus for one in of_level)
            known = [one.delay_p99 for one in of_level if one.delay_p99 is not None]
            assert merged.delay_p99 == max(known, default=None)
            assert merged.busy_cpus.count == sum(one.busy_cpus.count for one in of_level)


@given(any_samples())
def test_summaries_are_what_plain_sums_over_the_samples_give(recorded: list[Sample]) -> None:
    found = {summary.level: summary for summary in of(recorded).summaries}
    for value, summary in found.items():
        subsets = [traced for one in recorded for traced in one.levels if traced.level == value]
        told = [traced for traced in subsets if traced.busy_cpus is not None]
        busy = sum(traced.busy_cpus or 0 for traced in told)
        assert summary.cpu_samples == sum(traced.cpus for traced in subsets)
        assert summary.most_cpus == max((traced.cpus for traced in subsets), default=0)
        assert summary.most_vms == max(sum(vm.level == value for vm in one.vms) for one in recorded)
        assert summary.busy_cpus == (pytest.approx(busy / len(told)) if told else None)
        owned = sum(traced.cpus for traced in told)
        assert summary.busy_share == (pytest.approx(busy / owned) if owned else None)
        ratios = sorted(
            min(1.0, vm.delay_s / (now.time - before.time) / vm.vcpus)
            for before, now in pairwise(recorded)
            for vm in now.vms
            if vm.level == value and vm.delay_s is not None
        )
        expected = pytest.approx(quantile(ratios, 0.99), abs=0.0001) if ratios else None
        assert summary.delay_p99 == expected
    seen = {traced.level for one in recorded for traced in one.levels}
    assert found.keys() == seen | {vm.level for one in recorded for vm in one.vms}


def test_no_sample_gives_nothing() -> None:
    assert series([]) is None


def test_the_last_step_ends_as_far_away_as_the_others_did() -> None:
    assert of(samples(5, step=15)).edges == [0, 15, 30, 45, 60, 75]
    assert of(samples(1)).edges == [0, 1]


def test_a_long_trace_is_no_more_than_a_picture_can_show() -> None:
    found = of(samples(3 * MOST_STEPS))
    assert MOST_STEPS / 2 <= len(found.steps) <= MOST_STEPS
    assert found.samples == 3 * MOST_STEPS
