"""What a status says about admission is what the host then does."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import admission
from core.admission import copies_on, fault, growth_on, progress_on, refusal_on, with_vm
from core.allocator import (
    free_cpus,
    hold,
    plan_deploy,
    plan_remove,
    plan_withdraw,
    progress,
    refusal,
    restore,
)
from core.capacity import growth
from core.model import HostState, Plan, Refusal, Vm
from core.status import HostStatus, LevelStatus, host_status, level_status
from tests.cluster_oracle import plain
from tests.core.hosts import LEVELS, REFERENCE, empty, epyc, filled, i7, remove, restored, states

VCPUS = st.integers(1, 3) | st.integers(1, 12)
MEMORY = st.integers(1, 12)
LEVEL = st.sampled_from(LEVELS[:5]) | st.sampled_from(LEVELS)


@st.composite
def lived(draw: st.DrawFn) -> HostState:
    """A host after all that may happen to one: debts, held CPUs, VMs found too wide and too large for it."""
    state = draw(states())
    names: list[str] = []
    for number in range(draw(st.integers(0, 12))):
        match draw(st.sampled_from(["deploy"] * 6 + ["remove", "remove", "withdraw", "hold", "free", "restore"])):
            case "deploy":
                plan = plan_deploy(state, Vm(f"vm{number}", draw(VCPUS), draw(MEMORY), draw(LEVEL)), REFERENCE)
                if isinstance(plan, Plan):
                    state = plan.state
                    names.append(f"vm{number}")
            case "withdraw":
                plan = plan_deploy(state, Vm(f"vm{number}", draw(VCPUS), draw(MEMORY), draw(LEVEL)), REFERENCE)
                if isinstance(plan, Plan):
                    state = plan_withdraw(plan.state, plan).state
            case "remove" if names:
                name = names.pop(draw(st.integers(0, len(names) - 1)))
                state = plan_remove(state, name, REFERENCE).state
            case "hold":
                state = hold(state, draw(st.lists(st.sampled_from(state.topology.cpu_ids))), draw(st.integers(0, 80)))
            case "free" if state.held:
                state = free_cpus(state, draw(st.lists(st.sampled_from(state.held), unique=True)))
            case "restore" if state.free.count:
                level = draw(LEVEL)
                cpus = draw(st.lists(st.sampled_from(state.free.ids()), min_size=1, max_size=3, unique=True))
                sizes = draw(st.lists(st.tuples(VCPUS, st.integers(1, 50)), min_size=1, max_size=4))
                if state.subset(level) is None:
                    found = [Vm(f"found{number}-{k}", *size, level) for k, size in enumerate(sizes)]
                    state = restore(state, level, cpus, found, draw(st.sampled_from([None, REFERENCE])))
                    names += [vm.name for vm in found]
    return state


@given(lived(), LEVEL, VCPUS, MEMORY)
def test_a_status_alone_decides_what_the_host_decides(state: HostState, level: int, vcpus: int, memory: int) -> None:
    status = host_status(state)
    refused = refusal(state, level, vcpus, memory)
    assert refusal_on(status, level, vcpus, memory) == (None if refused is None else refused.resource)
    assert growth_on(status, level, vcpus) == growth(state.rules, state.subset(level), level, vcpus)
    assert progress_on(status, level, vcpus, memory) == progress(state, level, vcpus, memory)


@given(lived(), LEVEL, VCPUS, MEMORY)
def test_the_oracle_decides_the_same(state: HostState, level: int, vcpus: int, memory: int) -> None:
    status, host, exact = host_status(state), plain(state), Fraction(level, 1000)
    assert (refusal_on(status, level, vcpus, memory) or "") == host.refusal(exact, vcpus, memory)
    assert growth_on(status, level, vcpus) == host.extra(exact, vcpus)
    assert progress_on(status, level, vcpus, memory) == host.progress(exact, vcpus, memory)


@given(lived(), st.lists(st.tuples(LEVEL, VCPUS, MEMORY), min_size=1, max_size=5))
def test_with_vm_is_the_next_status(state: HostState, wishes: list[tuple[int, int, int]]) -> None:
    foreseen = host_status(state)
    generation = foreseen.generation
    for number, (level, vcpus, memory) in enumerate(wishes):
        plan = plan_deploy(state, Vm(f"new{number}", vcpus, memory, level), REFERENCE)
        if isinstance(plan, Refusal):
            continue
        state = plan.state
        foreseen = with_vm(foreseen, level, vcpus, memory)
        assert foreseen == msgspec.structs.replace(host_status(state), generation=generation)


def counted(status: HostStatus, level: int, vcpus: int, memory: int) -> int:
    """How many VMs go, one after the other."""
    copies = 0
    while refusal_on(status, level, vcpus, memory) is None:
        status = with_vm(status, level, vcpus, memory)
        copies += 1
    return copies


@given(lived(), LEVEL, VCPUS, st.just(0) | MEMORY)
def test_copies_are_those_that_go_one_after_the_other(state: HostState, level: int, vcpus: int, memory: int) -> None:
    status = host_status(state)
    assert copies_on(status, level, vcpus, memory) == counted(status, level, vcpus, memory)


@given(
    cpus=st.integers(1, 24),
    free=st.integers(0, 24),
    held=st.integers(0, 4),
    sizes=st.lists(VCPUS, min_size=1, max_size=9),
    critical=st.integers(0, 12),
    exception=st.none() | st.integers(0, 12),
    level=st.sampled_from(LEVELS),
    vcpus=VCPUS,
    told=st.booleans(),
)
def test_copies_near_the_critical_size(
    *,
    cpus: int,
    free: int,
    held: int,
    sizes: list[int],
    critical: int,
    exception: int | None,
    level: int,
    vcpus: int,
    told: bool,
) -> None:
    """Levels with debts or to spare, and hosts that do not tell the widest VM."""
    one = level_status(
        level=level,
        ratio=level,
        following=level,
        cpus=cpus,
        vcpus=sum(sizes),
        vms=len(sizes),
        widest=max(sizes) if told else 0,
        free_cpus=free,
    )
    status = HostStatus(
        cpus=cpus + free + held,
        free_cpus=free,
        held_cpus=held,
        memory_mib=100,
        allocated_mib=40,
        free_mib=60,
        vms=len(sizes),
        generation=0,
        levels=(one,),
        critical_size=critical,
        critical_sizes=() if exception is None else ((level, exception),),
    )
    for memory in (0, 1, 7, 61):
        assert copies_on(status, level, vcpus, memory) == counted(status, level, vcpus, memory)


def test_copies_below_the_critical_size_are_not_oversubscribed() -> None:
    status = host_status(empty(i7(), critical_size=3))
    assert copies_on(status, 2000, 4, 0) == 4
    assert copies_on(status, 2000, 5, 0) == 1
    assert copies_on(status, 2000, 9, 0) == 0
    assert copies_on(status, 2000, 4, status.memory_mib // 3) == 3


@given(lived())
def test_an_honest_host_is_never_called_a_liar(state: HostState) -> None:
    assert fault(host_status(state)) == ""


def test_an_old_host_does_not_tell_the_widest_vm_and_is_believed() -> None:
    status = host_status(filled(empty(i7()), "a", 2, 2, 1500))
    told = msgspec.to_builtins(status)
    del told["critical_size"], told["critical_sizes"], told["levels"][0]["widest"]
    old = msgspec.convert(told, HostStatus)
    assert (old.critical_size, old.critical_sizes, old.levels[0].widest) == (6, (), 0)
    assert fault(old) == ""


def test_memory_beyond_the_total_and_debts_are_honest() -> None:
    state = restored(empty(i7()), 3000, 2, [4, 4])
    state = hold(state, (7,), 1 << 20)
    status = host_status(state)
    assert status.free_mib == 0
    assert status.levels[0].degraded
    assert fault(status) == ""


def test_the_width_rule() -> None:
    """SEMANTICS 11: the prototype sends 12 vCPUs to the level with 4 CPUs and 4 free ones, where they do not fit."""
    state = hold(restored(empty(epyc()), 3000, 4, [4, 4, 4]), range(8, 256), 0)
    status = host_status(state)
    assert status.free_cpus == 4
    assert refusal_on(status, 3000, 12, 1) == "cpu"
    assert refusal_on(status, 3000, 8, 1) is None


def test_a_debt_is_foreseen() -> None:
    state = filled(empty(epyc(), critical_size=6), "vm", 7, 4, 3000)
    for name in ("vm0", "vm1", "vm2"):
        state = remove(state, name)
    assert growth_on(host_status(state), 3000, 4) == 12


HONEST = host_status(filled(filled(empty(i7(), 1, {2000: 0}), "a", 2, 2, 1500), "b", 1, 1, 2000))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": admission.MAX_CPUS + 1}, "cpus is 1048577"),
        ({"free_cpus": -1}, "free_cpus is -1"),
        ({"held_cpus": -1}, "held_cpus is -1"),
        ({"free_cpus": HONEST.free_cpus + 1}, "CPUs are not 8"),
        ({"free_cpus": 9, "held_cpus": 0}, "CPUs are not 8"),
        ({"memory_mib": admission.MAX_MEMORY_MIB + 1}, "memory_mib is"),
        ({"allocated_mib": -1}, "allocated_mib is -1"),
        ({"free_mib": -1}, "free_mib is -1"),
        ({"free_mib": HONEST.free_mib + 1}, "MiB are free of"),
        ({"allocated_mib": HONEST.memory_mib}, "MiB are free of"),
        ({"vms": 4}, "4 VMs, but 3"),
        ({"generation": -1}, "generation is -1"),
        ({"critical_size": -1}, "critical_size is -1"),
        ({"critical_sizes": ((999, 1),)}, "critical size 1 for level 999"),
        ({"critical_sizes": ((2000, 1), (1500, 1))}, "critical size 1 for level 1500"),
        ({"critical_sizes": ((2000, -1),)}, "critical size -1"),
        ({"levels": (HONEST.levels[0], HONEST.levels[0])}, "twice"),
        ({"levels": ()}, "CPUs are not 8"),
    ],
)
def test_a_host_that_cannot_be(changes: dict[str, Any], why: str) -> None:
    assert fault(HONEST) == ""
    assert why in fault(msgspec.structs.replace(HONEST, **changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"level": 999}, "999 thousandths are no level"),
        ({"level": 64001}, "64001 thousandths are no level"),
        ({"ratio": 1200}, "serves at ratio 1200"),
        ({"cpus": 0}, "cpus is 0"),
        ({"vms": 0}, "vms is 0"),
        ({"vcpus": 1}, "vcpus is 1"),
        ({"vcpus": admission.MAX_VCPUS + 1}, "vcpus is"),
        ({"needed": 0}, "needed is 0"),
        ({"widest": 4}, "the widest with 4"),
        ({"widest": 1}, "the widest with 1"),
        ({"widest": -1}, "the widest with -1"),
        ({"potential_thousandths": -1}, "potential_thousandths is -1"),
        ({"available_thousandths": 1 << 50}, "available_thousandths is"),
    ],
)
def test_a_level_that_cannot_be(changes: dict[str, Any], why: str) -> None:
    level: LevelStatus = msgspec.structs.replace(HONEST.levels[0], **changes)
    assert why in fault(msgspec.structs.replace(HONEST, levels=(level, *HONEST.levels[1:])))
