"""What holds of every plan, against a plain oracle of both accountings and against the host's own core."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.allocator import free_cpus, plan_deploy, plan_remove
from core.host_policy import HOST_POLICIES, HostPolicy
from core.model import Plan, Vm
from core.packing import ACCOUNTINGS, Events, Packing
from core.status import host_status
from core.workload import Accounting, WorkloadVm
from tests.core.hosts import REFERENCE, build, empty
from tests.core.workloads import LEVELS, PlainServer, workloads

Shape = tuple[int, int, int]

every_policy = pytest.mark.parametrize("policy", HOST_POLICIES.values(), ids=HOST_POLICIES)
every_accounting = pytest.mark.parametrize("accounting", ACCOUNTINGS)
every_critical_size = pytest.mark.parametrize("critical_size", range(7))

SHAPES = st.tuples(st.sampled_from(LEVELS), st.integers(1, 4) | st.integers(1, 9), st.integers(1, 9))
STEPS = st.lists(SHAPES | st.integers(0, 1000), min_size=1, max_size=60)
"""A shape arrives; a number says which of those that are there leaves."""


def check(packing: Packing, cluster: list[PlainServer], accounting: Accounting, may_owe: set[tuple[int, int]]) -> None:
    """Nothing is sold twice, and everybody has what was sold. may_owe: levels of servers that a departure left so."""
    for number, plain in enumerate(cluster):
        status = packing.status(number)
        assert status.allocated_mib == plain.sold_mib() <= status.memory_mib == plain.memory_mib
        assert status.free_mib == status.memory_mib - status.allocated_mib
        assert (status.vms, status.cpus) == (len(plain.vms), plain.cpus)
        assert {level.level: (level.vcpus, level.vms, level.widest) for level in status.levels} == {
            level: (sum(widths), len(widths), max(widths)) for level in LEVELS if (widths := plain.widths(level))
        }
        if accounting == "paper":
            assert status.free_cpus == plain.cpus - plain.used()
            continue
        assert {level.level: level.cpus for level in status.levels} == plain.owned
        assert status.free_cpus == plain.cpus - sum(plain.owned.values()) >= 0
        for level in status.levels:
            assert level.needed == plain.need(level.level)
            assert level.cpus >= level.widest
            assert level.cpus * level.level >= level.vcpus * 1000
            assert not level.degraded or (number, level.level) in may_owe
    cpus, memory_mib, levels = packing.used()
    assert cpus == sum(plain.used() for plain in cluster)
    assert memory_mib == sum(plain.sold_mib() for plain in cluster)
    sold = {level: sum(sum(plain.widths(level)) for plain in cluster) for level in LEVELS}
    assert {level: vcpus for level, (vcpus, _) in levels.items()} == {k: v for k, v in sold.items() if v}


@every_policy
@every_accounting
@given(steps=STEPS, servers=st.integers(1, 4), critical_size=st.integers(0, 6))
@settings(max_examples=100)
def test_no_plan_exceeds_a_server_or_breaks_a_level(
    policy: HostPolicy, accounting: Accounting, steps: list[Shape | int], servers: int, critical_size: int
) -> None:
    sizes = [(8, 24), (12, 16), (5, 40), (8, 24)][:servers]
    packing = Packing(sizes, policy, critical_size=critical_size, accounting=accounting)
    cluster = [PlainServer(*size, critical_size, accounting) for size in sizes]
    there: list[tuple[int, Shape]] = []
    may_owe: set[tuple[int, int]] = set()
    for step in steps:
        if isinstance(step, int):
            if not there:
                continue
            home, gone = there.pop(step % len(there))
            packing.remove(home, *gone)
            cluster[home].release(*gone)
            may_owe.add((home, gone[0]))
        else:
            home = packing.place(*step)
            if home < 0:
                assert not any(plain.admit(*step) for plain in cluster)
            else:
                if policy.name == "first-fit":
                    assert not any(plain.admit(*step) for plain in cluster[:home])
                assert cluster[home].admit(*step)
                there.append((home, step))
                may_owe.discard((home, step[0]))
        check(packing, cluster, accounting, may_owe)


@every_policy
@every_critical_size
@given(steps=STEPS)
@settings(max_examples=40)
def test_a_plan_on_one_server_is_what_the_host_admits(
    policy: HostPolicy, critical_size: int, steps: list[Shape | int]
) -> None:
    state = empty(build(cores=4, memory=24), critical_size)
    packing = Packing([(8, 24)], policy, critical_size=critical_size)
    there: list[Vm] = []
    for turn, step in enumerate(steps):
        if isinstance(step, int):
            if not there:
                continue
            gone = there.pop(step % len(there))
            plan = plan_remove(state, gone.name, REFERENCE)
            state = free_cpus(plan.state, plan.released)
            packing.remove(0, gone.level, gone.vcpus, gone.memory_mib)
        else:
            level, vcpus, memory_mib = step
            new = Vm(f"vm{turn}", vcpus, memory_mib, level)
            answer = plan_deploy(state, new, REFERENCE)
            assert packing.place(*step) == (0 if isinstance(answer, Plan) else -1)
            if isinstance(answer, Plan):
                state = answer.state
                there.append(new)
        planned, told = packing.status(0), host_status(state)
        assert (planned.free_cpus, planned.free_mib, planned.vms) == (told.free_cpus, told.free_mib, told.vms)
        assert planned.levels == told.levels


def first_fit(
    steps: list[Shape | int], sizes: list[tuple[int, int]], critical_size: int, accounting: Accounting
) -> list[int]:
    """Where each VM goes; one that nobody takes is gone, and a departure is that of the VM, wherever it is."""
    packing = Packing(sizes, HOST_POLICIES["first-fit"], critical_size=critical_size, accounting=accounting)
    places: list[int] = []
    shapes: list[Shape] = []
    there: list[int] = []
    for step in steps:
        if not isinstance(step, int):
            there.append(len(places))
            shapes.append(step)
            places.append(packing.place(*step))
        elif there:
            gone = there.pop(step % len(there))
            if places[gone] >= 0:
                packing.remove(places[gone], *shapes[gone])
    return places


@every_accounting
@given(steps=STEPS, servers=st.integers(0, 3), more=st.integers(1, 3), critical_size=st.integers(0, 6))
def test_more_servers_never_place_fewer_under_first_fit(
    accounting: Accounting, steps: list[Shape | int], servers: int, more: int, critical_size: int
) -> None:
    """More than that: whoever has a place keeps it, with departures too, for the first servers never see a
    difference. So VMs are only added, and what one number of servers is enough for, every larger one is.
    """
    sizes = [(8, 24), (12, 16), (5, 40), (8, 24), (16, 16), (8, 8)]
    few = first_fit(steps, sizes[:servers], critical_size, accounting)
    many = first_fit(steps, sizes[: servers + more], critical_size, accounting)
    for before, after in zip(few, many, strict=True):
        assert after == before if before >= 0 else after == -1 or after >= servers


@every_accounting
@given(vms=workloads())
def test_a_run_gets_no_shorter_with_more_servers_under_first_fit(
    accounting: Accounting, vms: tuple[WorkloadVm, ...]
) -> None:
    events = Events(vms)
    refused = [
        Packing([(8, 16)] * number, HOST_POLICIES["first-fit"], accounting=accounting).run(events) % (len(vms) + 1)
        for number in range(8)
    ]
    assert refused == sorted(refused)
