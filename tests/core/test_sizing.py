"""How many servers: at least, in one cluster for all levels, and in one for each level."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.course import Course, by_level
from core.host_policy import HOST_POLICIES, HostPolicy
from core.packing import ACCOUNTINGS, Packing
from core.sizing import ONE_BY_ONE, dedicated, lower_bound, servers_of, smallest, without_first
from core.workload import Accounting, ServerKind, WorkloadVm
from tests.core.test_course import there
from tests.core.workloads import vm, workloads

FIRST_FIT = HOST_POLICIES["first-fit"]
SERVER = ServerKind(8, 16)
every_policy = pytest.mark.parametrize("policy", HOST_POLICIES.values(), ids=HOST_POLICIES)
every_accounting = pytest.mark.parametrize("accounting", ACCOUNTINGS)


@st.composite
def kinds(draw: st.DrawFn) -> tuple[ServerKind, ...]:
    """Some that are counted, and mostly one that is not and takes every VM of ``workloads``."""
    size, memory = st.integers(1, 16), st.integers(1, 32)
    counted = draw(st.lists(st.builds(ServerKind, size, memory, st.integers(1, 4)), max_size=3))
    endless = draw(st.lists(st.builds(ServerKind, st.integers(8, 16), st.integers(16, 32)), max_size=1))
    return (*counted, *endless)


def enough(course: Course, of: tuple[ServerKind, ...], number: int, policy: HostPolicy, accounting: Accounting) -> bool:
    return Packing(servers_of(of, number), policy, accounting=accounting).run(course.events) < 0


# The list of servers


def test_servers_are_taken_in_order() -> None:
    of = (ServerKind(4, 8, 2), ServerKind(16, 32, 1), SERVER)
    assert servers_of(of, 5) == [(4, 8), (4, 8), (16, 32), (8, 16), (8, 16)]
    assert servers_of(of, 1) == [(4, 8)]
    assert servers_of(of[:2], 9) == [(4, 8), (4, 8), (16, 32)]
    assert servers_of((), 3) == []


@given(kinds(), st.integers(0, 20), st.integers(0, 20))
def test_what_is_left_follows_what_was_taken(of: tuple[ServerKind, ...], taken: int, more: int) -> None:
    assert servers_of(of, taken) + servers_of(without_first(of, taken), more) == servers_of(of, taken + more) or (
        taken > len(servers_of(of, taken))
    )


@pytest.mark.parametrize(
    "of", [(SERVER, SERVER), (ServerKind(0, 1),), (ServerKind(1, 0),), (ServerKind(1, 1, 0),)], ids=repr
)
def test_kinds_that_cannot_be_are_a_value_error(of: tuple[ServerKind, ...]) -> None:
    for ask in (lambda: servers_of(of, 1), lambda: without_first(of, 1), lambda: lower_bound(Course([]), of)):
        with pytest.raises(ValueError, match="kind"):
            ask()


# The bound


@pytest.mark.parametrize(("vms", "bound"), [(3, 1), (4, 2), (48, 6), (0, 0)])
def test_the_bound_counts_cpus_in_fractions(vms: int, bound: int) -> None:
    """Servers of one and then of eight CPUs would be wrong if 1/3 were rounded."""
    course = Course([vm(number, level=3000) for number in range(vms)])
    assert lower_bound(course, [ServerKind(1, 64, 4), ServerKind(8, 64)]) == bound


def test_who_leaves_at_an_instant_counts_for_those_who_come_then() -> None:
    for arrival, bound in ((5, 2), (6, 1)):
        course = Course([vm(0, 0, 5, vcpus=8), vm(1, arrival, 9, vcpus=8)])
        assert lower_bound(course, [SERVER]) == bound


@every_accounting
@given(vms=workloads(most=15), of=kinds())
def test_the_bound_is_the_smallest_number_that_has_what_is_sold(
    accounting: Accounting, vms: tuple[WorkloadVm, ...], of: tuple[ServerKind, ...]
) -> None:
    def needs(one: WorkloadVm) -> int:
        return math.ceil(one.vcpus * 1000 / one.level) if accounting == "paper" else one.vcpus

    def suffices(number: int) -> bool:
        servers = servers_of(of, number)
        cpus, memory_mib = sum(cpus for cpus, _ in servers), sum(memory_mib for _, memory_mib in servers)
        return all(
            sum(Fraction(one.vcpus * 1000, one.level) for one in there(vms, time)) <= cpus
            and sum(one.memory_mib for one in there(vms, time)) <= memory_mib
            for time in {one.arrival for one in vms}
        ) and all(any(needs(one) <= c and one.memory_mib <= m for c, m in servers) for one in vms)

    found = [number for number in range(len(servers_of(of, 8 * len(vms) + 12)) + 1) if suffices(number)]
    assert lower_bound(Course(vms), of, accounting) == (found[0] if found else None)


def test_the_paper_lets_a_vm_be_wider_than_its_server() -> None:
    """Next to another VM of its level, where both are oversubscribed."""
    course = Course([vm(0, level=2000), vm(1, level=2000, vcpus=8)])
    of = [ServerKind(5, 64)]
    assert lower_bound(course, of) is None
    assert lower_bound(course, of, "paper") == 1
    assert smallest(course, of, FIRST_FIT, accounting="paper") == 1


@every_policy
@every_accounting
@given(vms=workloads(), of=kinds(), critical_size=st.integers(0, 6))
@settings(max_examples=60)
def test_no_policy_needs_less_than_the_bound(
    policy: HostPolicy,
    accounting: Accounting,
    vms: tuple[WorkloadVm, ...],
    of: tuple[ServerKind, ...],
    critical_size: int,
) -> None:
    """Tried with every smaller number of servers, not only by the search, which begins at the bound."""
    course = Course(vms)
    bound = lower_bound(course, of, accounting)
    most = len(servers_of(of, len(vms) + 12))
    for number in range(most + 1 if bound is None else bound):
        packing = Packing(servers_of(of, number), policy, critical_size=critical_size, accounting=accounting)
        assert packing.run(course.events) >= 0
    found = smallest(course, of, policy, critical_size=critical_size, accounting=accounting)
    assert found is None or (bound is not None and found >= bound)


# The search


@every_policy
@every_accounting
@given(vms=workloads(), of=kinds())
@settings(max_examples=60)
def test_the_search_finds_the_smallest(
    policy: HostPolicy, accounting: Accounting, vms: tuple[WorkloadVm, ...], of: tuple[ServerKind, ...]
) -> None:
    """Where it is within ONE_BY_ONE of the bound, as it is here but for the odd case, it is the first of all."""
    course = Course(vms)
    found = smallest(course, of, policy, accounting=accounting)
    most = len(servers_of(of, len(vms) + 12))
    by_hand = next((number for number in range(most + 1) if enough(course, of, number, policy, accounting)), None)
    bound = lower_bound(course, of, accounting)
    if by_hand is not None and bound is not None and by_hand > bound + ONE_BY_ONE:
        assert found is not None
        assert enough(course, of, found, policy, accounting)
        assert not enough(course, of, found - 1, policy, accounting)
    else:
        assert found == by_hand


@pytest.mark.parametrize("vms", [10, 35, 36, 40, 100, 1000])
def test_far_above_the_bound_steps_double_and_are_halved(vms: int) -> None:
    """Each VM needs a server of its own, of which it fills little more than a half."""
    course = Course([vm(number, vcpus=5) for number in range(vms)])
    tried: list[int] = []
    assert smallest(course, [SERVER], FIRST_FIT, tried=tried.append) == vms
    bound = lower_bound(course, [SERVER])
    assert bound is not None
    one_by_one = [number for number in range(bound, bound + ONE_BY_ONE + 1) if number <= vms]
    assert tried[: len(one_by_one)] == one_by_one
    assert len(tried) <= len(one_by_one) + 2 * math.ceil(math.log2(vms))
    assert len({*tried}) == len(tried)


def test_an_endless_kind_does_not_help_who_only_fits_on_a_counted_one() -> None:
    course = Course([vm(0, vcpus=16), vm(1, vcpus=16)])
    assert lower_bound(course, [ServerKind(16, 64, 1), SERVER]) == 3
    assert smallest(course, [ServerKind(16, 64, 1), SERVER], FIRST_FIT) is None
    assert smallest(course, [ServerKind(16, 64, 2), SERVER], FIRST_FIT) == 2


def test_no_servers() -> None:
    assert smallest(Course([]), [], FIRST_FIT) == 0
    assert smallest(Course([]), [SERVER], FIRST_FIT) == 0
    assert smallest(Course([vm(0)]), [], FIRST_FIT) is None


# Dedicated clusters


@every_policy
@every_accounting
@given(vms=workloads())
@settings(max_examples=40)
def test_without_counts_each_level_is_as_if_it_were_alone(
    policy: HostPolicy, accounting: Accounting, vms: tuple[WorkloadVm, ...]
) -> None:
    levels = by_level(vms)
    found = dedicated(levels, [SERVER], policy, accounting=accounting)
    assert {one.level: None if one.use is None else one.use.servers for one in found} == {
        level: smallest(course, [SERVER], policy, accounting=accounting) for level, course in levels.items()
    }


def test_levels_take_counted_servers_one_after_the_other() -> None:
    vms = [vm("a", vcpus=8), vm("b", level=2000, vcpus=8), vm("c", level=3000, vcpus=8)]
    levels = by_level(vms)
    of = (ServerKind(8, 16, 2), ServerKind(32, 64))
    uses = [one.use for one in dedicated(levels, of, FIRST_FIT)]
    assert [None if use is None else (use.servers, use.cpus) for use in uses] == [(1, 8), (1, 8), (1, 32)]
    assert [(one.level, one.use is None) for one in dedicated(levels, of[:1], FIRST_FIT)] == [
        (1000, False),
        (2000, False),
        (3000, True),
    ]
    assert smallest(Course(vms), [ServerKind(24, 64, 1)], FIRST_FIT) == 1


def test_one_cluster_for_all_may_do_where_dedicated_ones_do_not() -> None:
    vms = [vm("a", vcpus=4), vm("b", level=2000, vcpus=4)]
    of = [ServerKind(8, 16, 1)]
    assert smallest(Course(vms), of, FIRST_FIT) == 1
    assert [one.use is None for one in dedicated(by_level(vms), of, FIRST_FIT)] == [False, True]
