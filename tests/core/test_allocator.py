import pytest

from core.allocator import (
    empty_state,
    free_cpus,
    hold,
    plan_deploy,
    plan_remove,
    plan_withdraw,
    progress,
    refusal,
    restore,
)
from core.invariants import broken
from core.model import HostState, Pin, Plan, Refusal, Rules, Subset, Vm
from tests.core.hosts import REFERENCE, deploy, empty, epyc, facts, filled, i7, refused, remove


def planned(state: HostState, name: str, vcpus: int, level: int, memory: int = 1) -> Plan:
    plan = plan_deploy(state, Vm(name, vcpus, memory, level), REFERENCE)
    assert isinstance(plan, Plan)
    return plan


def subset(state: HostState, level: int) -> Subset:
    found = state.subset(level)
    assert found is not None
    return found


def cap(state: HostState, level: int) -> int:
    return len(subset(state, level).cpus)


def test_an_empty_host() -> None:
    state = empty_state(i7(), Rules(), reserved_mib=776)
    assert (state.memory_mib, state.free_mib, state.free.count, state.subsets) == (31000, 31000, 8, ())
    assert empty_state(i7(), Rules(), reserved_mib=99999).memory_mib == 0


def test_a_first_vm_makes_its_level() -> None:
    state = empty(i7())
    plan = planned(state, "a", 2, 2000, 100)
    assert plan.before is state
    assert (plan.vm, plan.taken, plan.released) == (Vm("a", 2, 100, 2000), (0, 4), ())
    assert plan.pins == (Pin(("a",), (0, 4)),)
    made = subset(plan.state, 2000)
    assert (made.cpus, made.vms, made.vcpus, made.widths) == ((0, 4), {"a": plan.vm}, 2, {2: 1})
    assert plan.state.free.ids() == (1, 2, 3, 5, 6, 7)
    assert (plan.state.allocated_mib, plan.state.free_mib) == (100, 31676)
    assert plan.state.generation == state.generation + 1


def test_growth_pins_every_vm_of_the_level_and_no_other() -> None:
    state = deploy(deploy(empty(i7()), "other", 1, 1000), "a", 2, 2000)
    plan = planned(state, "b", 3, 2000)
    assert plan.pins == (Pin(("a", "b"), subset(plan.state, 2000).cpus),)
    assert len(plan.taken) == 1


def test_without_growth_only_the_new_vm_is_pinned() -> None:
    state = deploy(empty(i7()), "a", 2, 2000)
    plan = planned(state, "b", 2, 2000)
    assert (plan.taken, plan.pins) == ((), (Pin(("b",), (0, 4)),))


def test_removal_holds_the_cpus_until_they_are_freed() -> None:
    state = deploy(deploy(empty(i7()), "a", 2, 1000, 10), "b", 2, 1000, 20)
    assert subset(state, 1000).cpus == (0, 4, 1, 5)
    plan = plan_remove(state, "a", REFERENCE)
    assert (plan.vm.name, plan.taken, plan.released) == ("a", (), (1, 5))
    assert plan.pins == (Pin(("b",), (0, 4)),)
    assert (plan.state.held, plan.state.free.ids(), plan.state.allocated_mib) == ((1, 5), (2, 3, 6, 7), 20)
    freed = free_cpus(plan.state, plan.released)
    assert (freed.held, freed.free.ids()) == ((), (1, 2, 3, 5, 6, 7))
    assert broken(plan.state) == broken(freed) == []


def test_a_removal_that_moves_nothing_pins_nothing() -> None:
    state = deploy(deploy(empty(i7()), "a", 2, 2000), "b", 2, 2000)
    plan = plan_remove(state, "a", REFERENCE)
    assert (plan.released, plan.pins, plan.state.held) == ((), (), ())


def test_the_last_vm_takes_its_level_with_it() -> None:
    state = deploy(empty(i7()), "a", 3, 2000)
    plan = plan_remove(state, "a", REFERENCE)
    assert (plan.state.subsets, plan.released, plan.pins) == ((), (0, 4, 1), ())
    assert facts(free_cpus(plan.state, plan.released)) == facts(empty(i7()))


def test_an_unknown_vm_cannot_be_removed() -> None:
    with pytest.raises(KeyError, match="ghost"):
        plan_remove(deploy(empty(i7()), "a", 1, 1000), "ghost", REFERENCE)


class TestRefusal:
    def test_for_cpus_of_a_new_level(self) -> None:
        state = deploy(empty(i7()), "a", 5, 1000)
        assert refused(state, "b", 4, 2000) == Refusal("cpu", 2000, 4, 3, 3, 31775)

    def test_for_cpus_of_a_growing_level(self) -> None:
        state = deploy(empty(i7()), "a", 6, 2000)
        assert refused(state, "b", 11, 2000) == Refusal("cpu", 2000, 5, 2, 8, 31775)

    def test_for_memory(self) -> None:
        state = deploy(empty(i7()), "a", 1, 1000, 31000)
        assert refused(state, "b", 1, 2000, 777) == Refusal("memory", 2000, 777, 776, 7, 776)
        assert isinstance(plan_deploy(state, Vm("b", 1, 776, 2000), REFERENCE), Plan)

    def test_for_cpus_before_memory(self) -> None:
        assert refused(empty(i7()), "b", 9, 2000, 99999) == Refusal("cpu", 2000, 9, 8, 8, 31776)

    def test_for_a_name_that_is_taken_at_any_level_and_size(self) -> None:
        state = deploy(empty(i7()), "a", 2, 1000)
        assert refused(state, "a", 99, 2000) == Refusal("name", 2000, 1, 0, 6, 31775)
        assert refused(state, "a", 2, 1000) == Refusal("name", 1000, 1, 0, 6, 31775)

    def test_changes_nothing(self) -> None:  # "failchg"
        state = filled(empty(i7(), critical_size=3), "vm", 3, 1, 3000)
        before = facts(state)
        for vcpus, level, memory in ((1, 2500, 10**6), (1, 3000, 10**6), (9, 3000, 1), (9, 1000, 1)):
            refused(state, "new", vcpus, level, memory)
        assert facts(state) == before

    def test_can_be_asked_for_without_a_vm(self) -> None:
        state = deploy(empty(i7()), "a", 5, 1000)
        assert refusal(state, 2000, 3, 1) is None
        assert refusal(state, 2000, 4, 1) == refused(state, "b", 4, 2000)


class TestCriticalSize:
    def test_reaching_it_does_not_grow_the_subset(self) -> None:  # "over"
        five = filled(empty(epyc(), critical_size=6), "vm", 5, 4, 3000)
        six = deploy(five, "vm5", 4, 3000)
        assert (cap(five, 3000), cap(six, 3000)) == (20, 20)
        assert cap(filled(six, "more", 2, 4, 3000), 3000) == 20
        assert cap(remove(deploy(six, "vm6", 4, 3000), "vm6"), 3000) == 8

    def test_reaching_it_needs_no_free_cpu(self) -> None:  # "overref"
        state = deploy(deploy(empty(i7(), critical_size=3), "a", 2, 2000), "b", 1, 2000)
        full = deploy(state, "c", 5, 1000)
        assert full.free.count == 0
        assert cap(deploy(full, "d", 2, 2000), 2000) == 3

    def test_falling_below_it_leaves_a_debt_that_the_next_vm_pays(self) -> None:  # "under"
        state = filled(empty(epyc(), critical_size=6), "vm", 7, 4, 3000)
        for name in ("vm0", "vm1", "vm2"):
            state = remove(state, name)
        assert (cap(state, 3000), subset(state, 3000).vcpus) == (8, 16)
        assert broken(state) == ["level 3.0 has 8 CPUs and needs 16"]
        assert broken(state, frozenset({3000})) == []
        assert cap(deploy(state, "payer", 1, 3000), 3000) == 17


class TestRounding:
    @pytest.mark.parametrize(
        ("level", "cpus", "widths", "vcpus", "after"),
        [
            (1200, 3, [1, 1], 4, 5),
            (1400, 45, [5] * 11, 8, 45),
            (2800, 45, [10] * 11, 16, 45),
        ],
    )
    def test_levels_are_exact(self, level: int, cpus: int, widths: list[int], vcpus: int, after: int) -> None:
        vms = [Vm(f"vm{number}", width, 1, level) for number, width in enumerate(widths)]
        state = restore(empty(epyc()), level, range(cpus), vms)
        assert cap(deploy(state, "new", vcpus, level), level) == after

    def test_a_drained_level_keeps_nothing(self) -> None:
        state = filled(empty(epyc()), "vm", 33, 1, 3300)
        for number in range(33):
            state = remove(state, f"vm{number}")
        assert facts(state) == facts(empty(epyc()))


class TestWithdraw:
    def test_right_after_the_deployment_it_restores_everything(self) -> None:
        state = filled(empty(i7(), critical_size=3), "vm", 3, 1, 2000)  # three CPUs, two needed
        plan = planned(state, "new", 4, 2000, 50)
        undone = plan_withdraw(plan.state, plan)
        assert facts(free_cpus(undone.state, undone.released)) == facts(state)
        assert undone.released == plan.taken
        assert undone.pins == (Pin(("vm0", "vm1", "vm2"), subset(state, 2000).cpus),)

    def test_a_level_of_its_own_goes(self) -> None:
        plan = planned(empty(i7()), "new", 4, 2000)
        undone = plan_withdraw(plan.state, plan)
        assert (undone.state.subsets, undone.released, undone.pins) == ((), plan.taken, ())

    def test_a_decision_elsewhere_in_between_does_not_matter(self) -> None:
        plan = planned(deploy(empty(i7()), "a", 1, 2000), "new", 3, 2000)
        state = deploy(plan.state, "elsewhere", 2, 1000)
        undone = plan_withdraw(state, plan)
        assert undone.released == plan.taken
        assert subset(undone.state, 2000) is subset(plan.before, 2000)
        assert subset(undone.state, 1000) is subset(state, 1000)

    def test_a_later_vm_of_the_level_keeps_what_it_needs(self) -> None:
        first = planned(empty(i7()), "a", 2, 1000)
        state = deploy(first.state, "b", 3, 1000)
        assert subset(state, 1000).cpus == (0, 4, 1, 5, 2)
        undone = plan_withdraw(state, first)
        left = subset(undone.state, 1000)
        assert (left.cpus, list(left.vms), undone.released) == ((1, 5, 2), ["b"], (0, 4))
        assert undone.pins == (Pin(("b",), (1, 5, 2)),)
        assert broken(undone.state) == []

    def test_cpus_that_a_later_vm_came_to_need_stay(self) -> None:
        first = planned(deploy(empty(i7()), "a", 2, 2000), "b", 4, 2000)  # 2 CPUs, then 4
        state = deploy(first.state, "c", 2, 2000)  # 8 vCPUs on 4 CPUs
        undone = plan_withdraw(state, first)
        assert (subset(undone.state, 2000).cpus, undone.released) == ((0, 4), first.taken)
        wide = plan_withdraw(deploy(first.state, "c", 4, 2000), first)
        assert (cap(wide.state, 2000), len(wide.released)) == (4, 1)
        assert broken(undone.state) == broken(wide.state) == []

    def test_after_all_others_left_everything_goes(self) -> None:
        first = planned(deploy(empty(i7()), "a", 2, 1000), "b", 1, 1000)
        undone = plan_withdraw(remove(first.state, "a"), first)
        assert facts(free_cpus(undone.state, undone.released)) == facts(empty(i7()))

    def test_falling_below_the_critical_size_leaves_the_debt_that_a_removal_would(self) -> None:
        last = planned(filled(empty(i7(), critical_size=3), "vm", 3, 2, 3000), "last", 2, 3000)
        state = remove(last.state, "vm0")
        undone = plan_withdraw(state, last).state
        assert facts(undone) == facts(remove(state, "last"))
        assert broken(undone) == ["level 3.0 has 2 CPUs and needs 4"]

    def test_a_vm_that_is_gone_cannot_be_withdrawn(self) -> None:
        plan = planned(empty(i7()), "a", 2, 1000)
        with pytest.raises(KeyError, match="a"):
            plan_withdraw(remove(plan.state, "a"), plan)


class TestRestore:
    VMS = (Vm("a", 2, 10, 2000), Vm("b", 3, 20, 2000))

    def test_puts_back_what_was(self) -> None:
        state = deploy(deploy(deploy(empty(i7()), "x", 1, 1000), "a", 2, 2000, 10), "b", 3, 2000, 20)
        again = deploy(empty(i7()), "x", 1, 1000)
        again = restore(again, 2000, subset(state, 2000).cpus, self.VMS)
        assert facts(again) == facts(state)

    def test_judges_nothing_without_a_policy(self) -> None:
        state = restore(empty(i7()), 2000, (5,), self.VMS)
        assert subset(state, 2000).cpus == (5,)
        assert broken(state) == ["level 2.0 has 1 CPUs and needs 3"]

    def test_adds_what_is_missing_with_a_policy(self) -> None:
        state = restore(empty(i7()), 2000, (5,), self.VMS, REFERENCE)
        assert subset(state, 2000).cpus == (5, 1, 0)
        fresh = restore(empty(i7()), 2000, (), self.VMS, REFERENCE)
        assert subset(fresh, 2000).cpus == (0, 4, 1)
        assert broken(state) == broken(fresh) == []

    def test_adds_what_is_free_when_that_is_too_little(self) -> None:
        state = deploy(empty(i7()), "x", 6, 1000)
        state = restore(state, 2000, (), self.VMS, REFERENCE)
        assert (cap(state, 2000), state.free.count) == (2, 0)

    def test_keeps_more_than_is_needed(self) -> None:
        assert cap(restore(empty(i7()), 2000, range(8), self.VMS, REFERENCE), 2000) == 8

    def test_refuses_what_cannot_be(self) -> None:
        state = deploy(empty(i7()), "x", 8, 1000)
        for level, cpus, vms, why in (
            (2000, (), (), "no VM, or the level or a VM is there"),
            (1000, (), self.VMS, "no VM, or the level or a VM is there"),
            (2000, (), (Vm("x", 1, 1, 2000),), "no VM, or the level or a VM is there"),
            (2000, (), self.VMS, "no CPU is free for it"),
            (2000, (3,), self.VMS, "CPU 3 is not in the pool"),
        ):
            with pytest.raises(ValueError, match=why):
                restore(state, level, cpus, vms)
        with pytest.raises(ValueError, match="no CPU is free for it"):
            restore(state, 2000, (), self.VMS, REFERENCE)


class TestHeld:
    def test_only_free_cpus_are_held_and_memory_is_as_told(self) -> None:
        state = deploy(empty(i7()), "a", 2, 1000, 1776)
        state = hold(state, (7, 0, 3, 7, 99), 10000)
        assert (state.held, state.free.ids(), state.free_mib) == ((3, 7), (1, 2, 5, 6), 20000)
        assert hold(state, (7, 0), 10000) is state
        state = hold(state, (1,), 40000)
        assert (state.held, state.free_mib) == ((1, 3, 7), 0)
        assert broken(state) == []

    def test_only_held_cpus_are_freed(self) -> None:
        state = hold(empty(i7()), (3, 7), 0)
        assert free_cpus(state, (7,)).held == (3,)
        assert free_cpus(state, ()) is state
        with pytest.raises(ValueError, match=r"CPUs \[1\] are not held"):
            free_cpus(state, (1, 3))
        assert state.held == (3, 7)

    def test_held_cpus_are_given_to_nobody(self) -> None:
        state = hold(empty(i7()), (0, 1, 2), 0)
        assert refused(state, "a", 6, 1000).largest_vcpus == 5
        assert subset(deploy(state, "a", 5, 1000), 1000).cpus == (3, 7, 4, 5, 6)


class TestProgress:
    def test_examples(self) -> None:
        """A line of the recorded traces: i7, one 2-vCPU VM of 4 GB at 3.0, then three probes."""
        state = deploy(empty(i7(), critical_size=3), "v1", 2, 3000, 4096)
        probes = [(1000, 1, 2048), (2000, 2, 8192), (3000, 4, 4096)]
        assert [progress(state, *probe) for probe in probes] == pytest.approx([0.0, 1024.0, -853.3333333333337])

    def test_an_empty_host_is_balanced(self) -> None:
        assert progress(empty(i7()), 1000, 2, 2 * 3972) == 0
        assert progress(empty(i7()), 1000, 2, 0) == -3972

    def test_changes_nothing_and_does_not_ask_whether_it_fits(self) -> None:
        state = deploy(empty(i7()), "a", 8, 1000)
        before = facts(state)
        assert progress(state, 1000, 300, 1) < 0
        assert facts(state) == before
