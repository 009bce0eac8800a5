"""Core against the oracle, the invariants and itself, on random hosts and sequences of operations.

The oracle knows the choices of policy "reference" alone; everything else holds under every policy.
"""

from __future__ import annotations

import random
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.allocator import empty_state, free_cpus, hold, plan_deploy, plan_remove, plan_withdraw, progress, restore
from core.capacity import growth, subset_need
from core.invariants import broken
from core.level import UNIT
from core.model import HostState, Plan, Refusal, Vm
from core.policy import POLICIES, Policy
from core.status import LevelStatus, host_status
from tests.core.hosts import LEVELS, REFERENCE, build, empty, facts, oracle_of, states
from tests.oracle import Oracle, OracleVm, Refused

VCPUS = st.integers(1, 3) | st.integers(1, 9)
MEMORY = st.integers(1, 12)
LEVEL = st.sampled_from(LEVELS[:4])
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def same_plan(first: Plan | Refusal, second: Plan | Refusal) -> bool:
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return first == second
    return (first.vm, first.taken, first.released, first.pins, facts(first.state)) == (
        second.vm,
        second.taken,
        second.released,
        second.pins,
        facts(second.state),
    )


def in_debt(state: HostState) -> frozenset[int]:
    return frozenset(level.level for level in host_status(state).levels if level.degraded)


def made_anew(state: HostState) -> HostState:
    """The same state, put together from its own subsets."""
    again = empty_state(state.topology, state.rules)
    for subset in state.subsets:
        again = restore(again, subset.level, subset.cpus, subset.vms.values())
    return hold(again, state.held, state.held_mib)


def as_refusal(refused: Refused, level: int) -> Refusal:
    return msgspec.convert(
        {
            "resource": refused.resource,
            "level": level,
            "needed": refused.needed,
            "free": refused.free,
            "largest_vcpus": refused.largest_vcpus,
            "largest_mib": refused.largest_memory,
        },
        Refusal,
    )


def oracle_status(oracle: Oracle) -> list[LevelStatus]:
    return [
        LevelStatus(
            level=int(level * UNIT),
            ratio=int(oracle.ratio(level, found.vms) * UNIT),
            cpus=len(found.cpus),
            vcpus=found.alloc,
            vms=found.vms,
            needed=found.needed,
            available_thousandths=int(found.available * UNIT),
            potential_thousandths=int(found.potential * UNIT),
            widest=oracle.subsets[level].big,
        )
        for level, found in oracle.figures().items()
    ]


class AgainstTheOracle(RuleBasedStateMachine):
    """The same operations on both; every state, plan and refusal is compared in full.

    Held CPUs are, to the oracle, CPUs that are not free.
    """

    @initialize(state=states())
    def begin(self, state: HostState) -> None:
        self.state = state
        self.oracle = oracle_of(state)
        self.names: list[str] = []
        self.count = 0
        self.past: list[tuple[HostState, object]] = []
        self.last: Plan | None = None

    def moved(self, state: HostState) -> None:
        self.past = [*self.past[-3:], (self.state, facts(self.state))]
        assert state.generation > self.state.generation or state is self.state
        self.state = state

    @rule(vcpus=VCPUS, memory=MEMORY, level=LEVEL, again=st.booleans())
    def deploy(self, vcpus: int, memory: int, level: int, again: bool) -> None:
        self.count += 1
        name = self.names[0] if again and self.names else f"vm{self.count}"
        vm = Vm(name, vcpus, memory, level)
        decided = plan_deploy(self.state, vm, REFERENCE)
        assert same_plan(decided, plan_deploy(self.state, vm, REFERENCE))
        refused = self.oracle.deploy(name, vcpus, memory, Fraction(level, UNIT))
        if isinstance(decided, Refusal):
            assert refused is not None
            assert decided == as_refusal(refused, level)
            return
        assert refused is None
        assert decided.before is self.state
        assert set(decided.taken) <= set(self.state.free)
        self.names.append(name)
        self.last = decided
        self.moved(decided.state)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), at_once=st.booleans())
    def remove(self, data: st.DataObject, at_once: bool) -> None:
        name = data.draw(st.sampled_from(self.names))
        plan = plan_remove(self.state, name, REFERENCE)
        assert same_plan(plan, plan_remove(self.state, name, REFERENCE))
        self.names.remove(name)
        assert plan.released == tuple(self.oracle.remove(name))
        self.released(plan.released)
        self.moved(plan.state)
        if at_once:
            self.free(plan.released)

    def released(self, cpus: tuple[int, ...]) -> None:
        self.oracle.free = [cpu for cpu in self.oracle.free if cpu not in cpus]

    def free(self, cpus: tuple[int, ...]) -> None:
        self.moved(free_cpus(self.state, cpus))
        self.oracle.free = [cpu for cpu in self.oracle.host.cpus if cpu in cpus or cpu in self.oracle.free]

    @precondition(lambda self: self.state.held)
    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        self.free(tuple(data.draw(st.lists(st.sampled_from(self.state.held), unique=True))))

    @rule(data=st.data(), memory=st.integers(0, 9))
    def hold(self, data: st.DataObject, memory: int) -> None:
        cpus = data.draw(st.lists(st.sampled_from(self.state.topology.cpu_ids), max_size=3))
        self.moved(hold(self.state, cpus, memory))
        self.oracle.free = [cpu for cpu in self.oracle.free if cpu not in cpus]
        self.oracle.held_memory = memory

    @precondition(lambda self: self.last is not None and self.last.vm.name in self.names)
    @rule()
    def withdraw(self) -> None:
        """The last deployment, whatever came after it. The oracle follows; what must hold is checked here."""
        assert self.last is not None
        vm = self.last.vm
        before = self.state.subset(vm.level)
        assert before is not None
        plan = plan_withdraw(self.state, self.last)
        assert set(plan.released) <= set(self.last.taken) | (set() if plan.state.subset(vm.level) else {*before.cpus})
        after = plan.state.subset(vm.level)
        if after is None:
            del self.oracle.subsets[Fraction(vm.level, UNIT)]
        else:
            left = [OracleVm(other.name, other.vcpus, other.memory_mib) for other in after.vms.values()]
            assert plan.released == () or subset_need(plan.state.rules, after) <= len(after.cpus)
            assert vm.name not in after.vms
            assert after.vms.items() <= before.vms.items()
            assert set(after.cpus) == set(before.cpus) - set(plan.released)
            self.oracle.load(Fraction(vm.level, UNIT), list(after.cpus), left)
        self.names.remove(vm.name)
        self.moved(plan.state)

    @rule(vcpus=VCPUS, memory=MEMORY, level=LEVEL)
    def ask(self, vcpus: int, memory: int, level: int) -> None:
        expected = self.oracle.progress(Fraction(level, UNIT), vcpus, memory)
        assert progress(self.state, level, vcpus, memory) == pytest.approx(expected, rel=1e-9, abs=1e-9)

    @precondition(lambda self: self.state.subsets)
    @rule()
    def read_back(self) -> None:
        """A state made anew from its own subsets is the same."""
        assert facts(made_anew(self.state)) == facts(self.state)

    @invariant()
    def agrees(self) -> None:
        state, oracle = self.state, self.oracle
        assert broken(state, in_debt(state)) == []
        assert in_debt(state) == {int(level * UNIT) for level in oracle.owing()}
        assert [subset.cpus for subset in state.subsets] == [tuple(s.cpus) for s in oracle.subsets.values()]
        assert list(state.free) == oracle.free
        status = host_status(state)
        assert list(status.levels) == oracle_status(oracle)
        assert (status.free_cpus, status.held_cpus) == (len(oracle.free), len(state.held))
        assert (status.free_mib, status.allocated_mib) == (oracle.free_memory, oracle.sold_memory)
        assert status.vms == len(self.names)

    @invariant()
    def earlier_states_are_intact(self) -> None:
        for state, then in self.past:
            assert facts(state) == then


AgainstTheOracle.TestCase.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
TestAgainstTheOracle = AgainstTheOracle.TestCase


@pytest.mark.parametrize("seed", range(4))
def test_a_long_life_on_a_large_host(seed: int) -> None:
    """Hundreds of operations with all levels side by side, which examples found by chance seldom reach."""
    dice = random.Random(seed)
    rows = [[10 if a == b else dice.randint(11, 40) for b in range(4)] for a in range(4)]
    topology = build(sockets=2, nodes=2, l3=2, cores=4, memory=700, distances=rows, without_l3=frozenset({1, 9, 30}))
    state = empty(topology, critical_size=seed)
    oracle = oracle_of(state)
    names: list[str] = []
    for number in range(400):
        if names and dice.random() < (0.3 if number % 100 < 60 else 0.7):
            name = names.pop(dice.randrange(len(names)))
            plan = plan_remove(state, name, REFERENCE)
            state = free_cpus(plan.state, plan.released)
            assert plan.released == tuple(oracle.remove(name))
        else:
            vcpus, memory, level = dice.choice((1, 1, 2, 3, 6)), dice.randint(1, 20), dice.choice(LEVELS)
            decided = plan_deploy(state, Vm(f"vm{number}", vcpus, memory, level), REFERENCE)
            refused = oracle.deploy(f"vm{number}", vcpus, memory, Fraction(level, UNIT))
            if isinstance(decided, Plan):
                assert refused is None
                state = decided.state
                names.append(f"vm{number}")
            else:
                assert refused is not None
                assert decided == as_refusal(refused, level)
        assert [subset.cpus for subset in state.subsets] == [tuple(s.cpus) for s in oracle.subsets.values()]
        assert list(host_status(state).levels) == oracle_status(oracle)
        assert broken(state, in_debt(state)) == []


class UnderAPolicy(RuleBasedStateMachine):
    """What must hold whichever CPUs are chosen."""

    policy: Policy

    @initialize(state=states())
    def begin(self, state: HostState) -> None:
        self.state = state
        self.plans: dict[str, Plan] = {}
        self.count = 0
        self.may_owe: set[int] = set()
        self.past: list[tuple[HostState, object]] = []

    def moved(self, state: HostState) -> None:
        self.past = [*self.past[-3:], (self.state, facts(self.state))]
        self.state = state

    def left(self, plan: Plan) -> None:
        """A level may owe from when a VM leaves and the critical size is no longer reached."""
        level, rules = plan.vm.level, plan.state.rules
        before, after = self.state.subset(level), plan.state.subset(level)
        assert before is not None
        if after is None:
            self.may_owe.discard(level)
        else:
            assert list(after.vms) == [name for name in before.vms if name != plan.vm.name]
            if rules.ratio(level, len(after.vms)) < rules.ratio(level, len(before.vms)):
                self.may_owe.add(level)
            if plan.released:
                assert len(after.cpus) >= subset_need(rules, after), "CPUs were given up that are needed"
        self.moves_only(plan)
        del self.plans[plan.vm.name]
        self.moved(plan.state)

    def moves_only(self, plan: Plan) -> None:
        """The plan says all that it changes; CPUs come from the free ones and go to the held ones."""
        before, after = self.state, plan.state
        assert set(plan.taken) <= set(before.free)
        assert set(before.free) - set(after.free) == set(plan.taken)
        assert set(after.held) - set(before.held) == set(plan.released)
        others = [subset for subset in before.subsets if subset.level != plan.vm.level]
        assert [subset for subset in after.subsets if subset.level != plan.vm.level] == others
        rest = after.subset(plan.vm.level)
        pinned = [(pin.vms, pin.cpus) for pin in plan.pins]
        if rest is not None and (plan.taken or plan.released):
            assert pinned == [(tuple(rest.vms), rest.cpus)]
        elif rest is not None and plan.vm.name in rest.vms:
            assert pinned == [((plan.vm.name,), rest.cpus)]
        else:
            assert pinned == []

    @rule(vcpus=VCPUS, memory=MEMORY, level=LEVEL, again=st.booleans())
    def deploy(self, vcpus: int, memory: int, level: int, again: bool) -> None:
        self.count += 1
        name = next(iter(self.plans)) if again and self.plans else f"vm{self.count}"
        vm = Vm(name, vcpus, memory, level)
        then = facts(self.state)
        needed = growth(self.state.rules, self.state.subset(level), level, vcpus)
        decided = plan_deploy(self.state, vm, self.policy)
        assert facts(self.state) == then, "a decision changes nothing"
        assert same_plan(decided, plan_deploy(self.state, vm, self.policy))
        assert same_plan(decided, plan_deploy(made_anew(self.state), vm, self.policy))
        fits = name not in self.plans and needed <= self.state.free.count and memory <= self.state.free_mib
        assert isinstance(decided, Plan) == fits
        if isinstance(decided, Plan):
            assert len(decided.taken) == needed
            assert decided.released == ()
            self.moves_only(decided)
            self.may_owe.discard(level)
            self.plans[name] = decided
            self.moved(decided.state)

    @precondition(lambda self: self.plans)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.plans)))
        then = facts(self.state)
        plan = plan_remove(self.state, name, self.policy)
        assert facts(self.state) == then, "a decision changes nothing"
        assert same_plan(plan, plan_remove(self.state, name, self.policy))
        assert same_plan(plan, plan_remove(made_anew(self.state), name, self.policy))
        self.left(plan)

    @rule()
    def remove_a_stranger(self) -> None:
        then = facts(self.state)
        with pytest.raises(KeyError):
            plan_remove(self.state, "stranger", self.policy)
        assert facts(self.state) == then

    @precondition(lambda self: self.plans)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """Any earlier deployment, whatever came after it; at once it is undone altogether."""
        made = self.plans[data.draw(st.sampled_from(list(self.plans)))]
        plan = plan_withdraw(self.state, made)
        assert same_plan(plan, plan_withdraw(self.state, made))
        assert plan.taken == ()
        if self.state is made.state:
            assert facts(free_cpus(plan.state, plan.released)) == facts(made.before)
        self.left(plan)

    @precondition(lambda self: self.state.held)
    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        self.moved(free_cpus(self.state, data.draw(st.lists(st.sampled_from(self.state.held), unique=True))))

    @invariant()
    def invariants_hold(self) -> None:
        assert broken(self.state, frozenset(self.may_owe)) == []
        assert {name for subset in self.state.subsets for name in subset.vms} == self.plans.keys()

    @invariant()
    def earlier_states_are_intact(self) -> None:
        for state, then in self.past:
            assert facts(state) == then


@every_policy
def test_what_holds_under_every_policy(policy: Policy) -> None:
    machine = type("Machine", (UnderAPolicy,), {"policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=30))


@st.composite
def used(draw: st.DrawFn, policy: Policy = REFERENCE) -> HostState:
    """A host after some deployments and removals."""
    state = draw(states())
    wishes = draw(st.lists(st.tuples(VCPUS, MEMORY, LEVEL, st.integers(0, 3)), max_size=12))
    names: list[str] = []
    for number, (vcpus, memory, level, leaving) in enumerate(wishes):
        decided = plan_deploy(state, Vm(f"vm{number}", vcpus, memory, level), policy)
        if isinstance(decided, Plan):
            state = decided.state
            names.append(f"vm{number}")
        if leaving == 0 and names:
            plan = plan_remove(state, names.pop(len(names) // 2), policy)
            state = free_cpus(plan.state, plan.released)
    return state


@every_policy
@given(data=st.data(), vcpus=VCPUS, memory=MEMORY, level=LEVEL)
def test_withdraw_after_deploy_restores_always(
    policy: Policy, data: st.DataObject, vcpus: int, memory: int, level: int
) -> None:
    state = data.draw(used(policy))
    plan = plan_deploy(state, Vm("new", vcpus, memory, level), policy)
    if isinstance(plan, Plan):
        undone = plan_withdraw(plan.state, plan)
        assert undone.released == plan.taken
        assert facts(free_cpus(undone.state, undone.released)) == facts(state)


@every_policy
@given(level=LEVEL, widths=st.lists(VCPUS, min_size=2, max_size=4), data=st.data())
def test_withdraw_leaves_the_later_vms_of_the_level_what_they_need(
    policy: Policy, level: int, widths: list[int], data: st.DataObject
) -> None:
    """CPUs that the failed VM took are given up as far as the others can spare them, and not one more."""
    state = data.draw(used(policy))
    plans = []
    for number, vcpus in enumerate(widths):
        decided = plan_deploy(state, Vm(f"new{number}", vcpus, 1, level), policy)
        if isinstance(decided, Plan):
            plans.append(decided)
            state = decided.state
    if not plans:
        return
    failed = data.draw(st.sampled_from(plans))
    before = state.subset(level)
    undone = plan_withdraw(state, failed)
    after = undone.state.subset(level)
    assert before is not None
    assert broken(undone.state, in_debt(undone.state)) == []
    if failed is plans[-1] or after is None:
        return
    spare = max(0, len(before.cpus) - subset_need(undone.state.rules, after))
    assert len(undone.released) == min(spare, len(failed.taken))
    assert set(undone.released) <= set(failed.taken)
    assert after.cpus == tuple(cpu for cpu in before.cpus if cpu not in undone.released)


@given(used(), VCPUS, MEMORY, LEVEL)
def test_remove_after_deploy_restores_a_level_that_had_just_what_it_needed(
    state: HostState, vcpus: int, memory: int, level: int
) -> None:
    """With CPUs to spare the removal gives up more than was taken; of a debt, what was paid stays paid."""
    plan = plan_deploy(state, Vm("new", vcpus, memory, level), REFERENCE)
    subset = state.subset(level)
    if isinstance(plan, Refusal):
        return
    left = plan_remove(plan.state, "new", REFERENCE)
    after = free_cpus(left.state, left.released)
    if subset is None or len(subset.cpus) == subset_need(state.rules, subset):
        assert facts(after) == facts(state)
    else:
        rest = after.subset(level)
        assert rest is not None
        need = subset_need(after.rules, rest)
        assert len(rest.cpus) == need or need > len(rest.cpus) >= len(subset.cpus)


@every_policy
@given(data=st.data(), level=LEVEL)
def test_the_largest_fit_is_tight(policy: Policy, data: st.DataObject, level: int) -> None:
    state = data.draw(used(policy))
    refused = plan_deploy(state, Vm("huge", 10**6, 1, level), policy)
    assert isinstance(refused, Refusal)
    largest = refused.largest_vcpus

    def short_of(vcpus: int, memory: int) -> str | None:
        answer = plan_deploy(state, Vm("new", vcpus, memory, level), policy)
        return answer.resource if isinstance(answer, Refusal) else None

    assert short_of(largest + 1, 1) == "cpu"
    if largest and state.free_mib:
        assert short_of(largest, 1) is None
        assert short_of(1, state.free_mib) is None
    if largest:
        assert short_of(1, state.free_mib + 1) == "memory"
    assert refused.largest_mib == state.free_mib


@every_policy
@given(level=LEVEL, sizes=st.lists(st.tuples(VCPUS, MEMORY), min_size=1, max_size=4), data=st.data())
def test_a_restored_level_gets_what_it_needs(
    policy: Policy, level: int, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    state = data.draw(used(policy))
    if state.subset(level) is not None:
        return
    found = data.draw(st.lists(st.sampled_from(state.free.ids()), unique=True, max_size=3)) if state.free.count else []
    vms = [Vm(f"old{number}", *size, level) for number, size in enumerate(sizes)]
    try:
        after = restore(state, level, found, vms, policy)
    except ValueError:
        assert not found
        assert state.free.count == 0
        return
    subset = after.subset(level)
    assert subset is not None
    assert subset.cpus[: len(found)] == tuple(found)
    need = subset_need(after.rules, subset)
    assert len(subset.cpus) == max(len(found), need) or (len(subset.cpus) < need and after.free.count == 0)
    memory = [line for line in broken(after, in_debt(after)) if "MiB are allocated of" not in line]
    assert memory == []  # memory that was found in use is counted, whatever there is
