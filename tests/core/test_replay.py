"""Recorded samples decided anew: who arrives and departs when, what is summed up, and what never happens."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.allocator import empty_state
from core.invariants import broken
from core.level import UNIT
from core.model import HostState, Rules
from core.policy import POLICIES, Policy
from core.replay import LevelSummary, Moment, Replay, Summary
from core.status import host_status
from core.trace import Sample, TracedLevel, TracedVm
from tests.core.hosts import REFERENCE, build, empty, facts, oracle_of, states
from tests.oracle import Refused

every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def traced(
    name: str,
    level: int = 2000,
    vcpus: int = 1,
    memory: int | None = 1024,
    *,
    uuid: str | None = None,
    cpu: float | None = None,
    resident: float | None = None,
    delay: float | None = None,
) -> TracedVm:
    """Its uuid is "id-" and its name unless given."""
    return TracedVm(f"id-{name}" if uuid is None else uuid, name, level, vcpus, memory, cpu, resident, delay)


def sample(time: int, *vms: TracedVm, cpu: float | None = None, memory: float | None = None) -> Sample:
    return Sample(time=time, cpus=8, memory_mib=65536, cpu=cpu, memory=memory, levels=(), vms=vms)


def replay(state: HostState | None = None, relevel: dict[int, int] | None = None) -> Replay:
    """8 CPUs of 4 cores and 64 GiB, unless given."""
    return Replay(empty(build()) if state is None else state, REFERENCE, relevel)


def told(moment: Moment) -> list[str]:
    """Decisions in short: "+a" and "-a", and "a cpu" for one that is refused for CPUs."""
    return [
        f"{decision.vm.name} {decision.refusal.resource}"
        if decision.refusal is not None
        else f"{'+' if decision.operation == 'deploy' else '-'}{decision.vm.name}"
        for decision in moment.decisions
    ]


def steps(replayed: Replay, *samples: Sample) -> list[list[str]]:
    return [told(replayed.step(each)) for each in samples]


def test_arrivals_come_in_the_order_of_the_file_and_departures_in_that_of_arrival() -> None:
    a, b, c, d = (traced(name) for name in "abcd")
    found = steps(replay(), sample(0), sample(10, b, a), sample(20, c, a, b), sample(30, d), sample(40, d))
    assert found == [[], ["+b", "+a"], ["+c"], ["+d", "-b", "-a", "-c"], []]


def test_a_vm_of_the_first_sample_alone_departs_once_and_one_of_the_last_stays() -> None:
    replayed = replay()
    assert steps(replayed, sample(5, traced("a")), sample(6, traced("b")), sample(7)) == [["+a"], ["+b", "-a"], ["-b"]]
    assert steps(replayed, sample(8, traced("c"))) == [["+c"]]
    assert replayed.state.vm("c") is not None


def test_after_a_gap_a_vm_arrives_anew() -> None:
    a, b = traced("a"), traced("b")
    assert steps(replay(), sample(0, a, b), sample(1, b), sample(2, a, b)) == [["+a", "+b"], ["-a"], ["+a"]]


def test_decisions_are_those_of_the_allocator() -> None:
    replayed = replay()
    first = replayed.step(sample(0, traced("a", 2000, 3), traced("b", 1000, 2)))
    second = replayed.step(sample(1, traced("b", 1000, 2)))
    assert [(decision.taken, decision.cpus) for decision in first.decisions] == [((0, 4, 1),) * 2, ((2, 6),) * 2]
    assert [(decision.released, decision.cpus) for decision in second.decisions] == [((0, 4, 1), ())]
    assert [decision.vm.memory_mib for decision in first.decisions] == [1024, 1024]
    assert [decision.uuid for decision in first.decisions] == ["id-a", "id-b"]
    assert replayed.state.held == (), "nothing runs, so what is given back is free at once"


@pytest.mark.parametrize(
    "other",
    [traced("a", vcpus=2), traced("a", memory=2048), traced("a", 3000)],
    ids=["vcpus", "memory", "level"],
)
def test_a_vm_that_changes_departs_with_the_others_and_arrives_behind_them(other: TracedVm) -> None:
    b, c, d = (traced(name) for name in "bcd")
    found = steps(replay(), sample(0, b, traced("a"), c), sample(1, other, d), sample(2))
    assert found == [["+b", "+a", "+c"], ["+d", "-b", "-a", "-c", "+a"], ["-d", "-a"]]


def test_a_vm_that_grows_may_use_what_it_had() -> None:
    full = sample(0, traced("a", 1000, 4), traced("b", 1000, 4))
    assert steps(replay(), full, sample(1, traced("a", 1000, 4, 60000), traced("b", 1000, 4))) == [
        ["+a", "+b"],
        ["-a", "+a"],
    ]


def test_a_vm_is_not_placed_before_its_memory_is_told_and_keeps_its_place_after() -> None:
    unknown, known = traced("a", memory=None), traced("a", memory=10)
    replayed = replay()
    assert steps(replayed, sample(0, unknown)) == [[]]
    assert replayed.summary().untold == 1
    assert steps(replayed, sample(1, known), sample(2, unknown), sample(3)) == [["+a"], [], ["-a"]]
    assert (replayed.summary().untold, replayed.summary().vms) == (0, 1)


def test_vms_whose_memory_is_never_told_are_counted_and_nothing_else() -> None:
    replayed = replay()
    gone = [sample(0, traced("a", memory=None)), sample(1, traced("b", memory=None)), sample(2)]
    assert steps(replayed, *gone) == [[], [], []]
    assert (replayed.summary().untold, replayed.summary().vms, replayed.summary().levels) == (2, 0, ())
    grown = [sample(3, traced("c", memory=None)), sample(4, traced("c", vcpus=2, memory=None))]
    assert steps(replayed, *grown, sample(5, traced("c", vcpus=2))) == [[], [], ["+c"]]


def test_who_is_refused_is_not_tried_again_and_departs_silently() -> None:
    small, large = traced("s", 1000, 4), traced("l", 1000, 5)
    replayed = replay()
    samples = [sample(0, small, large), sample(1, small, large), sample(2, large), sample(3, large), sample(4)]
    assert steps(replayed, *samples) == [["+s", "l cpu"], [], ["-s"], [], []]
    assert steps(replayed, sample(5, large)) == [["+l"]], "it has come back"


def test_a_refusal_is_a_decision_with_its_numbers_and_changes_nothing() -> None:
    replayed = replay()
    replayed.step(sample(0, traced("a")))
    before = replayed.state
    moment = replayed.step(sample(1, traced("a"), traced("b", memory=70000)))
    refusal = moment.decisions[0].refusal
    assert refusal is not None
    assert (refusal.resource, refusal.needed, refusal.free) == ("memory", 70000, 65536 - 1024)
    assert replayed.state is before
    assert not moment.changed
    assert moment.decisions[0].cpus == (0,), "those of the level, as it stays"


def test_who_is_refused_is_tried_again_once_it_is_another() -> None:
    found = steps(
        replay(),
        sample(0, traced("a", vcpus=9)),
        sample(1, traced("a", vcpus=9, memory=None)),
        sample(2, traced("b"), traced("a", vcpus=2)),
    )
    assert found == [["a cpu"], [], ["+b", "+a"]]


def test_two_vms_of_one_name_are_both_there() -> None:
    first, second = traced("a", uuid="one"), traced("a", uuid="two")
    nameless = traced("a", uuid="")
    found = steps(replay(), sample(0, first, second, nameless), sample(1, second), sample(2, second, first), sample(3))
    assert found == [
        ["+a", "+a (two)", "+a (no uuid)"],
        ["-a", "-a (no uuid)"],
        ["+a"],
        ["-a (two)", "-a"],
    ]


def test_a_name_that_looks_like_what_tells_two_apart_is_no_obstacle() -> None:
    found = steps(replay(), sample(0, traced("a (two)"), traced("a", uuid="one"), traced("a", uuid="two")))
    assert found == [["+a (two)", "+a", "+a (two) (two)"]]


def test_a_uuid_that_is_the_name_of_another_is_not_mistaken() -> None:
    found = steps(replay(), sample(0, traced("a", uuid=""), traced("b", uuid="a")), sample(1, traced("a", uuid="")))
    assert found == [["+a", "+b"], ["-b"]]


def test_levels_can_be_placed_at_others_even_in_a_circle() -> None:
    replayed = replay(relevel={2000: 3000, 3000: 2000})
    replayed.step(sample(0, traced("a", 2000), traced("b", 3000), traced("c", 1000)))
    assert {subset.level: list(subset.vms) for subset in replayed.state.subsets} == {
        3000: ["a"],
        2000: ["b"],
        1000: ["c"],
    }
    assert [level.level for level in replayed.summary().levels] == [1000, 2000, 3000]


def test_a_moment_tells_whether_the_state_has_changed() -> None:
    replayed = replay()
    moments = [replayed.step(each) for each in (sample(0), sample(7), sample(9, traced("a")), sample(11, traced("a")))]
    assert [(moment.time, moment.changed) for moment in moments] == [(0, True), (7, False), (9, True), (11, False)]
    assert moments[-1].state is replayed.state


def test_the_summary_before_anything_has_come() -> None:
    assert replay().summary() == Summary(
        samples=0,
        seconds=0,
        cpus=8,
        memory_mib=65536,
        vms=0,
        refused_cpu=0,
        refused_memory=0,
        untold=0,
        fewest_free_cpus=8,
        most_memory_mib=0,
        most_busy=None,
        levels=(),
    )


def test_each_sample_stands_for_the_time_before_it_in_the_summary() -> None:
    replayed = replay()
    a, b = traced("a", 2000, 4, cpu=0.5), traced("b", 2000, 4, cpu=1.0, delay=3.0)
    samples = (
        sample(100, traced("a", 2000, 4, cpu=1.0)),  # stands for no time
        sample(110, a, b),  # 6 busy on 4 CPUs for 10 s
        sample(140, a, traced("b", 2000, 4, delay=2.0)),  # 2 busy on 4 CPUs for 30 s
        sample(200, traced("big", 1000, 9), traced("fat", 3000, 1, 70000)),  # nothing for 60 s
    )
    for each in samples:
        replayed.step(each)
    summary = replayed.summary()
    assert summary == Summary(
        samples=4,
        seconds=100,
        cpus=8,
        memory_mib=65536,
        vms=4,
        refused_cpu=1,
        refused_memory=1,
        untold=0,
        fewest_free_cpus=4,
        most_memory_mib=2048,
        most_busy=6.0,
        levels=(
            LevelSummary(
                level=1000,
                vms=1,
                refused_cpu=1,
                refused_memory=0,
                most_vms=0,
                most_vcpus=0,
                most_cpus=0,
                mean_cpus=0.0,
                mean_busy=None,
                most_busy=None,
                busy_share=None,
                overloaded=0,
                delay_s=None,
            ),
            LevelSummary(
                level=2000,
                vms=2,
                refused_cpu=0,
                refused_memory=0,
                most_vms=2,
                most_vcpus=8,
                most_cpus=4,
                mean_cpus=(4 * 10 + 4 * 30) / 100,
                mean_busy=(6 * 10 + 2 * 30) / 100,
                most_busy=6.0,
                busy_share=(6 * 10 + 2 * 30) / (4 * 10 + 4 * 30),
                overloaded=1,
                delay_s=5.0,
            ),
            LevelSummary(
                level=3000,
                vms=1,
                refused_cpu=0,
                refused_memory=1,
                most_vms=0,
                most_vcpus=0,
                most_cpus=0,
                mean_cpus=0.0,
                mean_busy=None,
                most_busy=None,
                busy_share=None,
                overloaded=0,
                delay_s=None,
            ),
        ),
    )


def test_what_is_known_of_one_moment_alone_has_no_means() -> None:
    replayed = replay()
    replayed.step(sample(3, traced("a", cpu=0.5)))
    level = replayed.summary().levels[0]
    assert (level.mean_cpus, level.mean_busy, level.busy_share, level.most_busy) == (0.0, None, None, 0.5)


def test_levels_that_take_turns_in_a_sample_are_summed_up_all_the_same() -> None:
    replayed = replay()
    vms = [traced(str(number), 1000 * (1 + number % 2), cpu=0.5, delay=1.0) for number in range(6)]
    for time in range(3):
        replayed.step(sample(time, *vms))
    summary = replayed.summary()
    assert [(level.most_busy, level.delay_s) for level in summary.levels] == [(1.5, 9.0), (1.5, 9.0)]
    assert summary.most_busy == 3.0


def test_a_rounded_value_is_not_more_than_what_is_owned() -> None:
    replayed = replay()
    vms = [traced(str(number), 1000, cpu=1.0) for number in range(3)]
    replayed.step(sample(0, *vms))
    replayed.step(sample(1, *(msgspec.structs.replace(vm, cpu=1.0 + 1e-9) for vm in vms)))
    assert replayed.summary().levels[0].overloaded == 0


def test_values_of_those_that_are_not_on_the_host_count_for_nothing() -> None:
    replayed = replay()
    for time in range(2):
        replayed.step(sample(time, traced("a", vcpus=9, cpu=1.0, delay=1.0), traced("b", memory=None, cpu=1.0)))
    summary = replayed.summary()
    assert summary.most_busy is None
    assert (summary.levels[0].most_busy, summary.levels[0].delay_s) == (None, None)


def test_what_the_host_would_have_recorded() -> None:
    replayed = replay(relevel={2000: 3000})
    here = traced("a", 2000, 3, 1000, cpu=0.5, resident=0.25, delay=1.5)
    there = traced("z", 1500, 9, 4096, cpu=0.25, resident=0.5)
    recorded = sample(60, there, here, traced("u", memory=None, cpu=1.0), cpu=0.75, memory=0.5)
    replayed.step(recorded)
    found = replayed.recomputed(recorded)
    assert found == Sample(
        time=60,
        cpus=8,
        memory_mib=65536,
        cpu=(0.75 * 8 - 0.25 * 9 - 1.0) / 8,
        memory=(0.5 * 65536 - 0.5 * 4096) / 65536,
        levels=(
            TracedLevel(
                level=3000,
                cpus=3,
                busy_cpus=1.5,
                unused=0,
                description=b'{"res_list":[0,4,1],"consumer_list":["a"]}',
                delay_s=1.5,
            ),
        ),
        vms=(msgspec.structs.replace(here, level=3000),),
    )


def test_what_another_host_would_have_recorded_is_in_parts_of_that_host() -> None:
    replayed = replay(empty(build(cores=2, memory=32768)))
    for recorded, parts in (
        (sample(0, cpu=0.25, memory=0.25), (0.5, 0.5)),
        (sample(1, cpu=0.9, memory=0.9), (1.0, 1.0)),
        (sample(2), (None, None)),
        (sample(3, traced("a", vcpus=5, cpu=1.0), cpu=0.5), (0.0, None)),
    ):
        replayed.step(recorded)
        found = replayed.recomputed(recorded)
        assert (found.cpu, found.memory, found.cpus, found.memory_mib) == (*parts, 4, 32768)


def test_memory_that_was_told_before_is_in_what_is_recorded() -> None:
    replayed = replay()
    replayed.step(sample(0, traced("a", memory=7)))
    recorded = sample(1, traced("a", memory=None))
    replayed.step(recorded)
    assert [vm.memory_mib for vm in replayed.recomputed(recorded).vms] == [7]


def test_nothing_is_kept_of_vms_that_have_gone() -> None:
    replayed = replay()
    for time in range(500):
        replayed.step(sample(time, traced(f"a{time}"), traced(f"b{time}", vcpus=99), traced(f"c{time}", memory=None)))
    assert len(replayed._known) == 3
    assert len(replayed._levels) == 1
    assert replayed.summary().vms == 1000


VCPUS = st.integers(1, 4)
MEMORY = st.none() | st.integers(1, 12)
VALUES = st.none() | st.floats(0, 1)


@st.composite
def traces(draw: st.DrawFn) -> list[Sample]:
    """VMs of a few uuids and names come, go and change; often nothing does."""
    names = st.sampled_from([("a", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("d", "5"), ("a", ""), ("e", "")])
    levels = st.sampled_from((1000, 1500, 2000, 3300))
    living: dict[tuple[str, str], TracedVm] = {}
    samples: list[Sample] = []
    time = 0
    for _ in range(draw(st.integers(1, 8))):
        for name, uuid in draw(st.lists(names, max_size=4, unique=True)):
            if (name, uuid) in living and draw(st.booleans()):
                del living[name, uuid]
            else:
                living[name, uuid] = traced(name, draw(levels), draw(VCPUS), draw(MEMORY), uuid=uuid)
        time += draw(st.integers(1, 60))
        order = draw(st.permutations(list(living.values())))
        values = [msgspec.structs.replace(vm, cpu=draw(VALUES), delay_s=draw(VALUES)) for vm in order]
        samples.append(sample(time, *values, cpu=draw(VALUES), memory=draw(VALUES)))
    return samples


def key_of(vm: TracedVm) -> str:
    return vm.uuid or f"name {vm.name}"


class Plain:
    """The rules once more, on top of the oracle of placement: slow and obvious. VMs are known by their key alone."""

    def __init__(self, state: HostState) -> None:
        self.oracle = oracle_of(state)
        self.order: list[str] = []  # those on the host, in the order of arrival
        self.sizes: dict[str, tuple[int, int, int | None]] = {}

    def step(self, now: Sequence[TracedVm]) -> list[tuple[str, str, str | None]]:
        """(operation, key, what was short) of each decision."""
        sizes: dict[str, tuple[int, int, int | None]] = {}
        for vm in now:
            before = self.sizes.get(key_of(vm), (0, 0, None))
            sizes[key_of(vm)] = (vm.level, vm.vcpus, before[2] if vm.memory_mib is None else vm.memory_mib)
        other = [key for key in sizes if sizes[key] != self.sizes.get(key) and sizes[key][2] is not None]
        decisions = [self.deploy(key, sizes[key]) for key in other if key not in self.order]
        arrived = [key for operation, key, short in decisions if short is None]
        resized = [key for key in other if key in self.order and key not in arrived]
        for key in [key for key in self.order if key not in sizes or key in resized]:
            self.oracle.remove(key)
            self.order.remove(key)
            decisions.append(("remove", key, None))
        decisions += [self.deploy(key, sizes[key]) for key in resized]
        self.sizes = sizes
        return decisions

    def deploy(self, key: str, size: tuple[int, int, int | None]) -> tuple[str, str, str | None]:
        level, vcpus, memory = size
        assert memory is not None
        answer = self.oracle.deploy(key, vcpus, memory, Fraction(level, UNIT))
        if isinstance(answer, Refused):
            return ("deploy", key, answer.resource)
        self.order.append(key)
        return ("deploy", key, None)


@given(state=states(), samples=traces())
def test_the_plain_rules_decide_the_same(state: HostState, samples: list[Sample]) -> None:
    replayed, plain = replay(state), Plain(state)
    for each in samples:
        moment = replayed.step(each)
        found = [
            (
                decision.operation,
                decision.uuid or f"name {decision.vm.name.partition(' ')[0]}",
                decision.refusal and decision.refusal.resource,
            )
            for decision in moment.decisions
        ]
        assert found == plain.step(each.vms)
        subsets = {Fraction(subset.level, UNIT): subset.cpus for subset in moment.state.subsets}
        assert subsets == {level: found.cpus for level, found in plain.oracle.figures().items()}


@every_policy
@given(state=states(), samples=traces())
def test_every_state_keeps_the_rules_and_has_all_who_were_not_refused(
    policy: Policy, state: HostState, samples: list[Sample]
) -> None:
    replayed = Replay(state, policy)
    away: set[str] = set()
    for each in samples:
        moment = replayed.step(each)
        owing = frozenset(level.level for level in host_status(moment.state).levels if level.degraded)
        assert broken(moment.state, owing) == []
        assert moment.state.held == ()
        for decision in moment.decisions:
            name = decision.uuid or f"name {decision.vm.name.partition(' ')[0]}"
            away.discard(name)
            if decision.refusal is not None:
                away.add(name)
        away &= {key_of(vm) for vm in each.vms}
        placed = sum(len(subset.vms) for subset in moment.state.subsets)
        waiting = sum(known.memory_mib == 0 for known in replayed._known.values())
        assert placed + len(away) + waiting == len(each.vms)
        summary = replayed.summary()
        assert summary.vms == sum(level.vms for level in summary.levels)
        assert summary.fewest_free_cpus <= moment.state.free.count


@given(state=states(), samples=traces(), relevel=st.sampled_from([{}, {2000: 3000}, {1000: 1500, 1500: 1000}]))
def test_the_recomputed_trace_replayed_gives_the_same_again(
    state: HostState, samples: list[Sample], relevel: dict[int, int]
) -> None:
    """Without those that were refused, for they are not on that host. Where two levels become one, a VM that goes from
    one to the other leaves and comes back, which cannot be seen afterwards.
    """
    first, second = replay(state, relevel), replay(state)
    for each in samples:
        moment = first.step(each)
        again = first.recomputed(each)
        repeated = second.step(again)
        accepted = [decision for decision in moment.decisions if decision.refusal is None]
        assert list(repeated.decisions) == accepted
        assert facts(repeated.state) == facts(moment.state)
        assert second.recomputed(again).vms == again.vms
        assert second.recomputed(again).levels == again.levels
    for one, other in zip(
        [level for level in first.summary().levels if level.most_vms], second.summary().levels, strict=True
    ):
        assert (one.most_cpus, one.mean_cpus, one.mean_busy) == (other.most_cpus, other.mean_cpus, other.mean_busy)


@given(samples=traces(), critical_size=st.integers(0, 4))
def test_a_host_that_has_room_for_all_refuses_nobody(samples: list[Sample], critical_size: int) -> None:
    replayed = replay(empty_state(build(l3=4, memory=10_000), Rules(critical_size)))
    for each in samples:
        replayed.step(each)
    assert (replayed.summary().refused_cpu, replayed.summary().refused_memory) == (0, 0)
