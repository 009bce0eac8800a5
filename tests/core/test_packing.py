"""Packing: the compiled servers of a plan choose as a cluster's inventory does, and admit as a host does."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.allocator import free_cpus, plan_deploy, plan_remove
from core.host_policy import HOST_POLICIES, HostPolicy
from core.inventory import Inventory
from core.model import HostState, Plan, Vm
from core.packing import ACCOUNTINGS, Events, Packing
from core.status import host_status
from core.workload import Accounting, WorkloadVm
from tests.core.hosts import REFERENCE, build, empty
from tests.core.test_inventory import PlainProgress

every_policy = pytest.mark.parametrize("policy", HOST_POLICIES.values(), ids=HOST_POLICIES)


def vm(name: int, arrival: float, departure: float, level: int = 2000, vcpus: int = 1, memory: int = 1) -> WorkloadVm:
    return WorkloadVm(str(name), level, vcpus, memory, arrival, departure)


@every_policy
@pytest.mark.parametrize("critical_size", [0, 2, 6])
def test_a_plan_and_a_cluster_decide_alike(policy: HostPolicy, critical_size: int) -> None:
    """The same arrivals and departures, once in a plan, once with real host states in an inventory."""
    rnd = random.Random(critical_size)
    topology = build(cores=4, memory=64)
    states: list[HostState] = [empty(topology, critical_size) for _ in range(70)]
    inventory = Inventory()
    for number, state in enumerate(states):
        inventory.put(number, host_status(state))
    packing = Packing([(8, 64)] * 70, policy, critical_size=critical_size)
    alive: list[tuple[int, Vm]] = []
    refused = 0
    for turn in range(900):
        if alive and rnd.random() < turn / 2000:
            number, gone = alive.pop(rnd.randrange(len(alive)))
            plan = plan_remove(states[number], gone.name, REFERENCE)
            states[number] = free_cpus(plan.state, plan.released)
            inventory.put(number, host_status(states[number]))
            packing.remove(number, gone.level, gone.vcpus, gone.memory_mib)
        wish = rnd.choice((1000, 2000, 3000, 1500)), rnd.choice((1, 2, 3, 6)), rnd.choice((2, 4, 7, 16))
        inventory.arrived(*wish)
        choice = inventory.choose(policy, *wish)
        server = packing.place(*wish)
        assert server == (-1 if choice is None else choice.host)
        if choice is None:
            refused += 1
            continue
        new = Vm(f"vm{turn}", wish[1], wish[2], wish[0])
        plan_or_refusal = plan_deploy(states[choice.host], new, REFERENCE)
        assert isinstance(plan_or_refusal, Plan)
        states[choice.host] = plan_or_refusal.state
        inventory.put(choice.host, host_status(states[choice.host]))
        alive.append((choice.host, new))
    assert refused > 20
    for number, state in enumerate(states):
        shown = packing.status(number)
        told = host_status(state)
        assert (shown.free_cpus, shown.free_mib, shown.levels) == (told.free_cpus, told.free_mib, told.levels)
    if policy.name == "worth":
        assert packing.demand.lesson() == inventory.demand.lesson()


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@every_policy
@given(data=st.data())
@settings(max_examples=25)
def test_a_run_is_its_steps(policy: HostPolicy, accounting: Accounting, data: st.DataObject) -> None:
    vms, now = [], 0
    for number in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.integers(0, 2))
        life = data.draw(st.sampled_from([0, 1, 2, 5, math.inf]))
        level = data.draw(st.sampled_from((1000, 2000, 3000)))
        vms.append(
            vm(number, now, now + life, level, data.draw(st.integers(1, 4)), data.draw(st.sampled_from((1, 2, 5))))
        )
    servers = [(8, 12)] * data.draw(st.integers(1, 4)) + [(4, 20)]
    refused = Packing(servers, policy, accounting=accounting).run(Events(vms))
    step_by_step = Packing(servers, policy, accounting=accounting)
    places: dict[int, int] = {}
    for number, one in enumerate(vms):
        ended = [other for other in places if vms[other].departure < one.arrival]
        for other in sorted(ended, key=lambda other: (vms[other].departure, other)):
            gone = vms[other]
            step_by_step.remove(places.pop(other), gone.level, gone.vcpus, gone.memory_mib)
        server = step_by_step.place(one.level, one.vcpus, one.memory_mib)
        if server < 0:
            assert number == refused
            return
        places[number] = server
    assert refused == -1


def test_who_leaves_at_an_instant_is_there_for_those_who_come_then() -> None:
    first = vm(1, 0, 5, level=1000, vcpus=4)
    for arrival, refused in ((5, 1), (5.5, -1)):
        second = vm(2, arrival, 9, level=1000, vcpus=1)
        assert Packing([(4, 64)], HOST_POLICIES["first-fit"]).run(Events([first, second])) == refused


def test_a_run_may_be_repeated_and_events_shared() -> None:
    vms = [
        vm(number, number // 10, number // 10 + 30, 1000 * (1 + number % 3), 1 + number % 4) for number in range(400)
    ]
    events = Events(vms)
    assert len(events) == 400
    found = {Packing([(8, 64)] * 20, HOST_POLICIES["worth"]).run(shared) for shared in (events, Events(vms), events)}
    assert len(found) == 1


def test_without_servers_nothing_is_placed() -> None:
    for policy in HOST_POLICIES.values():
        packing = Packing([], policy)
        assert packing.place(1000, 1, 1) == -1
        assert packing.run(Events([vm(1, 0, 1)])) == 0
        assert packing.run(Events([])) == -1


def test_what_is_in_use() -> None:
    packing = Packing([(8, 64)], HOST_POLICIES["first-fit"])
    for level, vcpus in ((2000, 4), (2000, 2), (1000, 1)):
        assert packing.place(level, vcpus, 10) == 0
    assert packing.used() == (5, 30, {1000: (1, 1), 2000: (6, 4)})
    packing.remove(0, 2000, 4, 10)
    assert packing.used() == (3, 20, {1000: (1, 1), 2000: (2, 2)})


def test_the_paper_lets_two_levels_share() -> None:
    """3 vCPUs at 2:1 and 3 at 3:1, two VMs each: apart 2 + 1 CPUs, together 3; 1 and 1: apart 1 + 1, together 1."""
    packing = Packing([(4, 64)], HOST_POLICIES["first-fit"], accounting="paper")
    for level in (2000, 3000):
        packing.place(level, 1, 1)
    assert packing.used()[0] == 1
    packing.place(2000, 2, 1)
    assert packing.used()[0] == 2
    packing.place(3000, 2, 1)
    assert packing.used()[0] == 3


def test_a_departure_may_owe_cpus_under_the_paper_s_rule() -> None:
    packing = Packing([(2, 64)], HOST_POLICIES["first-fit"], accounting="paper")
    for vcpus in (4, 1):
        assert packing.place(3000, vcpus, 1) == (-1 if vcpus == 4 else 0)
    assert packing.place(3000, 2, 1) == 0
    assert packing.place(3000, 2, 1) == 0
    packing.remove(0, 3000, 1, 1)
    packing.remove(0, 3000, 2, 1)
    assert packing.used()[0] == 2
    assert packing.place(1000, 1, 1) == -1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Packing([(4, 4)], PlainProgress()), "no kernel"),
        (lambda: Packing([(0, 4)], HOST_POLICIES["worth"]), "cpus is 0"),
        (lambda: Packing([(4, -1)], HOST_POLICIES["worth"]), "memory_mib is -1"),
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"], critical_size=-1), "critical_size is -1"),
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"], accounting="house"), "accounting is 'house'"),  # type: ignore[arg-type]
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"], accounting="paper").place(1500, 1, 1), "level 1500"),
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"]).place(999, 1, 1), "level is 999"),
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"]).place(1000, 0, 1), "vcpus is 0"),
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"]).remove(0, 1000, 1, 1), "server 0 has no VM"),
        (lambda: Packing([(4, 4)], HOST_POLICIES["worth"]).remove(-1, 1000, 1, 1), "server -1 has no VM"),
        (lambda: Events([vm(1, 5, 4)]), "VM 0 arrives"),
        (lambda: Events([vm(1, 5, 6), vm(2, 4, 6)]), "VM 1 arrives"),
        (lambda: Events([vm(1, math.nan, 6)]), "VM 0 arrives"),
    ],
)
def test_what_cannot_be_is_a_value_error(make: object, text: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=text):
        make()
