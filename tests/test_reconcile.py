from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.allocator import empty_state, plan_deploy
from core.invariants import broken
from core.model import HostState, Plan, Rules, Vm
from core.policy import POLICIES
from tests.faulty import outsider
from vmstackd.hypervisor.base import ObservedVm, Record
from vmstackd.reconcile import Reconciliation, reconcile
from vmstackd.topology_source import load_topology

HOST = load_topology("synthetic:sockets=1,numa=1,l3=2,cores=4,smt=2,memory=16384")
POLICY = POLICIES["reference"]
EMPTY = empty_state(HOST, Rules(critical_size=0))


def ours(
    name: str,
    level: int,
    cpus: tuple[int, ...],
    generation: int,
    *,
    arrival: int = 1,
    vcpus: int = 1,
    pinned: Iterable[int] | None = None,
) -> ObservedVm:
    """A VM of ours, as left by an earlier life of the daemon."""
    record = Record(
        level=level, vcpus=vcpus, memory_mib=1024, image="/i", cpus=cpus, generation=generation, arrival=arrival
    )
    return outsider(name, vcpus, cpus if pinned is None else pinned, record=record)


def subsets(state: HostState) -> list[tuple[int, tuple[int, ...], list[str]]]:
    return [(subset.level, subset.cpus, list(subset.vms)) for subset in state.subsets]


def start(*observed: ObservedVm) -> Reconciliation:
    return reconcile(EMPTY, observed, POLICY)


def test_an_empty_hypervisor_and_an_empty_host_agree() -> None:
    result = start()
    assert result.state is EMPTY
    assert (result.gone, result.adopted, dict(result.unplaced), result.stopped) == ((), (), {}, frozenset())


def test_what_is_decided_is_newer_than_the_records_of_vms_that_are_shut_off() -> None:
    """Else one that is started again would bring back the subset of its former life, with CPUs that others have now."""
    off = msgspec.structs.replace(ours("a", 2000, (8, 0), 7), running=False, pinned=frozenset())
    assert start(off).state.generation > 7
    assert start(off, ours("b", 1000, (3,), 2)).state.generation > 7


def test_subsets_come_back_in_attribution_order_from_the_newest_record() -> None:
    result = start(
        ours("b", 2000, (8, 0, 3), 7, arrival=3),
        ours("a", 2000, (8, 0), 5, arrival=2),
        ours("c", 1000, (4,), 4, arrival=1),
    )
    assert subsets(result.state) == [(1000, (4,), ["c"]), (2000, (8, 0, 3), ["a", "b"])]
    assert result.state.generation > 7


def test_of_two_levels_that_claim_a_cpu_the_newer_record_has_it() -> None:
    result = start(ours("old", 2000, (0, 8), 5, vcpus=2), ours("new", 3000, (8, 1), 9, vcpus=2))
    assert subsets(result.state)[0] == (3000, (8, 1), ["new"])
    level, cpus, names = subsets(result.state)[1]
    assert (level, cpus[0], len(cpus), names) == (2000, 0, 2, ["old"])
    assert broken(result.state) == []


def test_cpus_that_no_longer_exist_are_replaced() -> None:
    result = start(ours("a", 1000, (0, 99), 3, vcpus=2))
    (found,) = subsets(result.state)
    assert found[1][0] == 0
    assert len(found[1]) == 2
    assert 99 not in found[1]


def test_a_debt_is_restored_as_it_was() -> None:
    # Below the critical size with too few CPUs: policy reference leaves that, also over a restart.
    state = empty_state(HOST, Rules(critical_size=6))
    result = reconcile(state, [ours(f"v{i}", 3000, (0, 8), 5, arrival=i) for i in range(4)], POLICY)
    assert subsets(result.state) == [(3000, (0, 8), ["v0", "v1", "v2", "v3"])]


def test_a_vm_left_wider_than_its_record_keeps_the_difference_held() -> None:
    result = start(ours("a", 2000, (0,), 5, pinned=(0, 8)), outsider("foreign", 14, range(16)))
    assert result.state.held == (8,) or 8 not in result.state.free.ids()
    assert all(8 not in subset.cpus for subset in result.state.subsets)


def test_vms_that_do_not_run_are_stopped_not_placed() -> None:
    result = start(outsider("off", 2, (), running=False))
    assert result.stopped == {"off"}
    assert result.state.subsets == ()


def test_memory_beyond_the_host_leaves_the_youngest_without_a_place() -> None:
    vms = [msgspec.structs.replace(ours(f"v{i}", 1000, (0, 8, 1), 5, arrival=i), memory_mib=6000) for i in (3, 1, 2)]
    result = start(*vms)
    assert subsets(result.state) == [(1000, (0, 8, 1), ["v1", "v2"])]
    assert list(result.unplaced) == ["v3"]
    assert result.state.free_mib == 0
    assert broken(result.state) == []


def test_what_is_out_of_scope_or_in_an_operation_is_left_alone() -> None:
    first = start(ours("a", 1000, (0,), 3), ours("b", 2000, (8,), 4))
    scoped = reconcile(first.state, [], POLICY, scope=frozenset({"b"}))
    assert subsets(scoped.state) == [(1000, (0,), ["a"])]
    assert scoped.gone == ("b",)
    busy = reconcile(first.state, [], POLICY, ignore=frozenset({"a", "b"}))
    assert busy.state is first.state
    newcomer = reconcile(first.state, [outsider("c", 1, (5,))], POLICY, scope=frozenset({"c"}), ignore=frozenset({"c"}))
    assert newcomer.state is first.state


def test_a_vm_without_a_place_in_another_scope_keeps_its_cpus_held() -> None:
    full = start(ours("a", 1000, tuple(range(14)), 3, vcpus=14), outsider("wide", 4, (14, 15)))
    assert list(full.unplaced) == ["wide"]
    assert full.state.held == (14, 15)
    again = reconcile(full.state, [outsider("x", 1, (3,))], POLICY, scope=frozenset({"x"}), unplaced=full.unplaced)
    assert set(again.unplaced) >= {"wide"}
    subset = again.state.subset_of("x")
    assert subset is None or not {14, 15} & set(subset.cpus)


def test_a_vm_that_cannot_be_looked_at_keeps_its_place() -> None:
    first = start(ours("a", 1000, (0,), 3), ours("b", 2000, (8,), 4))
    again = reconcile(first.state, [ours("b", 2000, (8,), 4)], POLICY, unknown={"a": "it is dying"})
    assert again.state is first.state
    assert (again.gone, dict(again.unplaced)) == ((), {})


def test_nothing_is_free_while_an_unknown_vm_may_be_anywhere() -> None:
    first = reconcile(EMPTY, [ours("b", 2000, (8,), 4)], POLICY, unknown={"a": "it is dying"})
    assert first.state.free.count == 0
    assert len(first.state.held) == 15
    assert "it is dying" in first.unplaced["a"].reason
    again = reconcile(first.state, [ours("a", 1000, (0,), 3)], POLICY, scope=frozenset("a"), unplaced=first.unplaced)
    assert subsets(again.state) == [(2000, (8,), ["b"]), (1000, (0,), ["a"])]
    assert again.state.held == ()


def test_while_a_vm_may_be_anywhere_nobody_else_gets_a_new_cpu() -> None:
    outsider_only = reconcile(EMPTY, [outsider("y", 2, range(16))], POLICY, unknown={"x": "it is dying"})
    assert outsider_only.state.subsets == ()
    lost = reconcile(EMPTY, [ours("a", 1000, (0, 99), 3, vcpus=2)], POLICY, unknown={"x": "it is dying"})
    assert subsets(lost.state) == [(1000, (0,), ["a"])]
    for result in (outsider_only, lost):
        assert result.state.free.count == 0
        assert result.state.free_mib == 0


def test_a_vm_without_a_place_that_becomes_unknown_keeps_its_memory() -> None:
    first = start(ours("a", 1000, tuple(range(14)), 3, vcpus=14), outsider("wide", 4, (14, 15), memory_mib=5000))
    again = reconcile(
        first.state,
        [ours("a", 1000, tuple(range(14)), 3, vcpus=14)],
        POLICY,
        unknown={"wide": "it is dying"},
        unplaced=first.unplaced,
    )
    assert again.unplaced["wide"].memory_mib == 5000
    assert again.state.free_mib == first.state.free_mib


def test_a_record_narrower_than_its_vm_is_not_believed() -> None:
    narrow = start(ours("b", 2000, (5,), 3, vcpus=8))
    ((_, cpus, _),) = subsets(narrow.state)
    assert cpus[0] == 5
    assert len(cpus) == 8


@st.composite
def observed_vms(draw: st.DrawFn) -> list[ObservedVm]:
    """Whatever a hypervisor might show, records that contradict each other and the host included."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8))
    cpu = st.integers(0, 20)
    found = []
    for name in names:
        record = draw(
            st.none()
            | st.builds(
                Record,
                level=st.sampled_from([1000, 1500, 2000, 3000]),
                vcpus=st.integers(1, 6),
                memory_mib=st.integers(1, 9000),
                image=st.just("/i"),
                cpus=st.lists(cpu, unique=True, min_size=1, max_size=8).map(tuple),
                generation=st.integers(0, 9),
                arrival=st.integers(0, 9),
            )
        )
        found.append(
            outsider(
                name,
                draw(st.integers(1, 20)),
                draw(st.frozensets(st.integers(0, 15), max_size=16)),
                memory_mib=draw(st.integers(1, 9000)),
                running=draw(st.booleans()),
                record=record,
                foreign_level=draw(st.sampled_from([None, 2000])),
            )
        )
    return found


@settings(deadline=None)
@given(
    st.lists(st.tuples(observed_vms(), st.sets(st.sampled_from("abcdefgh"))), max_size=4), st.sampled_from([0, 2, 6])
)
def test_whatever_is_seen_the_state_is_sound_and_every_running_vm_is_accounted_for(
    looks: list[tuple[list[ObservedVm], set[str]]], critical_size: int
) -> None:
    result = reconcile(empty_state(HOST, Rules(critical_size=critical_size)), [], POLICY)
    for everything, hidden in looks:
        observed = [vm for vm in everything if vm.name not in hidden]
        before = result.state
        result = reconcile(
            before,
            observed,
            POLICY,
            unknown=dict.fromkeys(hidden, "hidden"),
            unplaced=result.unplaced,
            stopped=result.stopped,
        )
        may_owe = frozenset(subset.level for subset in result.state.subsets)
        assert broken(result.state, may_owe) == []
        running = {vm.name: vm for vm in observed if vm.running}
        placed = {name for subset in result.state.subsets for name in subset.vms}
        assert placed | set(result.unplaced) == set(running) | hidden
        assert not placed & set(result.unplaced)
        for name in hidden:
            assert result.state.vm(name) == before.vm(name)
        for name in placed - hidden:
            decided = result.state.vm(name)
            assert decided is not None
            assert (decided.vcpus, decided.memory_mib) == (running[name].vcpus, running[name].memory_mib)
        # No CPU that a VM may really run on is free for others.
        for vm in observed:
            if vm.running:
                assert not vm.pinned & set(result.state.free.ids())
        assert result.stopped - hidden == {vm.name for vm in observed if not vm.running}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1000, 2000, 3000])), max_size=12))
def test_a_restart_finds_what_was_decided(sizes: list[tuple[int, int]]) -> None:
    state, seen = EMPTY, []
    for number, (vcpus, level) in enumerate(sizes):
        plan = plan_deploy(state, Vm(name=f"v{number}", vcpus=vcpus, memory_mib=64, level=level), POLICY)
        if isinstance(plan, Plan):
            state = plan.state
            seen.append((plan.vm, plan.pins[0].cpus, state.generation))
    observed = []
    for vm, cpus, generation in seen:
        owned = state.subset(vm.level)
        assert owned is not None
        record = Record(
            level=vm.level,
            vcpus=vm.vcpus,
            memory_mib=64,
            image="/i",
            cpus=cpus,
            generation=generation,
            arrival=generation,
        )
        observed.append(outsider(vm.name, vm.vcpus, owned.cpus, memory_mib=64, record=record))
    result = reconcile(EMPTY, reversed(observed), POLICY)
    assert subsets(result.state) == subsets(state)
    assert result.state.free.ids() == state.free.ids()
    assert dict(result.unplaced) == {}


@pytest.mark.parametrize("level", [1000, 2500])
def test_adoption_takes_the_level_of_the_prototype(level: int) -> None:
    result = start(outsider("v", 2, (3, 4), foreign_level=level))
    assert result.adopted == (Vm(name="v", vcpus=2, memory_mib=1024, level=level),)
