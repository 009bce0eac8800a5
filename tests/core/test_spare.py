"""What is said to fit does fit: hosts take the VMs, one after the other, by the rules of the allocator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.admission import fault
from core.allocator import plan_deploy, refusal
from core.model import HostState, Plan, Vm
from core.spare import TRIED, Size, Spare, SpareHost, Uncovered, presumed, spare
from core.status import HostStatus, host_status
from tests.core.hosts import LEVELS, REFERENCE, build, deploy, empty, filled
from tests.core.test_admission import LEVEL, MEMORY, VCPUS, lived

WANTED = st.lists(st.tuples(LEVEL, VCPUS, MEMORY), min_size=1, max_size=3)


def server(cpus: int = 8, memory: int = 64) -> HostState:
    """An empty host that oversubscribes from the second VM of a level on."""
    return empty(build(cores=cpus, smt=1, memory=memory), critical_size=2)


def host(state: HostState, *, opened: bool = True, known: bool = True) -> SpareHost:
    alike = Counter((vm.level, vm.vcpus, vm.memory_mib) for subset in state.subsets for vm in subset.vms.values())
    vms = tuple((*size, count) for size, count in alike.items()) if known else None
    return SpareHost(host_status(state), opened, vms)


class Machines:
    """The rule in words: real hosts, on which VMs are deployed one by one."""

    def __init__(self, states: Sequence[HostState], opened: Sequence[bool]) -> None:
        self._before = states
        self._states = list(states)
        self._cpus = sum(len(state.topology.cpu_ids) for state in states)
        self._mib = sum(state.memory_mib for state in states)
        self._open = [place for place, one in enumerate(opened) if one]

    def _share(self, cpus: int, mib: int) -> Fraction:
        return Fraction(cpus, self._cpus) + Fraction(mib, self._mib)

    def lose(self, gone: Sequence[int]) -> int:
        """Place their VMs on the others; how many find no place."""
        self._open = [place for place in self._open if place not in gone]
        before = self._before
        order = sorted(self._open, key=lambda place: self._share(before[place].free.count, before[place].free_mib))
        vms = [vm for place in gone for subset in before[place].subsets for vm in subset.vms.values()]
        vms.sort(key=lambda vm: (-self._share(vm.vcpus, vm.memory_mib), vm.level, vm.vcpus, vm.memory_mib))
        homeless = 0
        for number, vm in enumerate(vms):
            able = [p for p in order if refusal(before[p], vm.level, vm.vcpus, vm.memory_mib) is None]
            homeless += not any(self._deploy(place, Vm(f"moved{number}", *_size(vm))) for place in able)
        return homeless

    def _deploy(self, place: int, vm: Vm) -> bool:
        plan = plan_deploy(self._states[place], vm, REFERENCE)
        if not isinstance(plan, Plan):
            return False
        self._states[place] = plan.state
        return True

    def fill(self, size: Size) -> int:
        """Deploy VMs of this size, until nobody takes one."""
        level, vcpus, memory = size
        count = 0
        for place in self._open:
            while self._deploy(place, Vm(f"new{count}", vcpus, memory, level)):
                count += 1
        return count


def _size(vm: Vm) -> tuple[int, int, int]:
    return vm.vcpus, vm.memory_mib, vm.level


@settings(max_examples=80)
@given(st.lists(st.tuples(lived(), st.booleans()), min_size=1, max_size=4), WANTED, st.integers(0, 2))
def test_what_is_said_to_fit_is_deployed(found: list[tuple[HostState, bool]], wanted: list[Size], lost: int) -> None:
    states, opened = [state for state, _ in found], [one for _, one in found]
    told = spare([host(state, opened=one) for state, one in found], wanted, lost)
    uncovered = []
    reached = [[Machines(states, opened).fill(size)] for size in wanted]
    for gone in told.lost:
        homeless = Machines(states, opened).lose(gone)
        if homeless:
            uncovered.append(Uncovered(gone, homeless))
        for place, size in enumerate(wanted):
            machines = Machines(states, opened)
            machines.lose(gone)
            reached[place].append(0 if homeless else machines.fill(size))
    assert told.uncovered == tuple(uncovered)
    for fit, counts in zip(told.fits, reached, strict=True):
        assert fit.now == counts[0]
        assert fit.after == (min(counts) if lost else None)
        assert fit.after is None or fit.worst in told.lost


@given(st.lists(lived(), min_size=1, max_size=4))
def test_one_lost_host_is_each_of_them(states: list[HostState]) -> None:
    told = spare([host(state) for state in states], [(1000, 1, 1)])
    assert told.lost == tuple((place,) for place in range(len(states)))
    assert told.presumed == ()


def test_the_trade() -> None:
    """Three servers of 8 CPUs and 64 MiB, one of them full at 1:1."""
    states = [filled(server(), "vm", 2, 4, 1000), server(), server()]
    told = spare([host(state) for state in states], [(1000, 2, 8), (3000, 2, 8), (3000, 2, 2)])
    assert [(fit.now, fit.after) for fit in told.fits] == [(8, 4), (16, 8), (24, 12)]
    assert [fit.short for fit in told.fits] == ["cpu", "memory", "cpu"]
    assert [(fit.by_cpu, fit.by_memory) for fit in told.fits] == [(8, 23), (24, 23), (24, 95)]
    assert told.uncovered == ()


def test_vms_without_a_place_are_counted_and_nothing_more_is_promised() -> None:
    wide = deploy(deploy(server(16), "wide", 12, 1000), "small", 1, 1000)
    told = spare([host(server()), host(wide), host(server())], [(1000, 1, 1)])
    assert told.uncovered == (Uncovered((1,), 1),)
    assert (told.fits[0].now, told.fits[0].after, told.fits[0].worst) == (8 + 3 + 8, 0, (1,))


def test_vms_of_a_host_that_is_closed_need_a_place_too() -> None:
    told = spare([host(filled(server(), "vm", 2, 4, 1000), opened=False), host(server())], [(1000, 1, 1)])
    assert (told.fits[0].now, told.fits[0].after) == (8, 0)
    assert told.uncovered == ()
    told = spare([host(filled(server(), "vm", 2, 4, 1000), opened=False), host(deploy(server(), "vm", 1, 1000))], [])
    assert told.uncovered == (Uncovered((0,), 1), Uncovered((1,), 1))


def test_what_others_make_possible_is_not_promised_as_more_than_now() -> None:
    """A small VM that comes first makes its level large enough to be oversubscribed."""
    level = empty(build(cores=6, smt=1, memory=64), critical_size=3)
    closed = deploy(server(9), "vm", 1, 3000)
    machines = Machines([level, closed, closed], [True, False, False])
    assert machines.lose((1, 2)) == 0
    assert machines.fill((3000, 4, 1)) == 4
    told = spare([host(level), host(closed, opened=False), host(closed, opened=False)], [(3000, 4, 1)], 2)
    assert (told.lost, told.fits[0].now, told.fits[0].after) == (((1, 2),), 1, 1)


def test_more_than_one_lost_host_are_the_heaviest_together() -> None:
    states = [server(8), server(12), deploy(server(8), "vm", 1, 1000), server(4)]
    hosts = [host(state) for state in states]
    assert spare(hosts, [(1000, 1, 1)], 2).lost == ((1, 2),)
    told = spare(hosts, [(1000, 1, 1)], 3)
    assert (told.lost, told.fits[0].after) == (((0, 1, 2),), 3)
    everything = spare(hosts, [(1000, 1, 1)], 9)
    assert (everything.lost, everything.uncovered) == (((0, 1, 2, 3),), (Uncovered((0, 1, 2, 3), 1),))


def test_of_many_hosts_the_heaviest_are_tried() -> None:
    light, loaded = host(server()), host(deploy(server(), "vm", 4, 1000))
    hosts = [light, loaded] * TRIED
    assert spare(hosts, []).lost == tuple((place,) for place in range(1, 2 * TRIED, 2))
    assert len(spare(hosts[:TRIED], []).lost) == TRIED


def test_a_cluster_without_hosts_has_room_for_nothing() -> None:
    told = spare([], [(1000, 1, 1)])
    assert (told.fits[0].now, told.fits[0].after, told.lost) == (0, None, ())


@given(lived())
def test_presumed_vms_add_up_to_the_figures(state: HostState) -> None:
    status = host_status(state)
    for told in (status, _without_widest(status)):
        assert fault(told) == ""
        vms = presumed(told)
        assert all(vcpus >= 1 and count >= 1 for _, vcpus, _, count in vms)
        for level in told.levels:
            own = [(vcpus, count) for one, vcpus, _, count in vms if one == level.level]
            assert sum(count for _, count in own) == level.vms
            assert sum(vcpus * count for vcpus, count in own) == level.vcpus
            assert not level.widest or max(vcpus for vcpus, _ in own) == level.widest
            others = sorted({vcpus for vcpus, _ in own} - {level.widest})
            assert len(others) <= 2
            assert others[-1:] == [vcpus + 1 for vcpus in others[:1]] or len(others) < 2
        memory = sum(mib * count for _, _, mib, count in vms)
        assert not vms or status.allocated_mib <= memory < status.allocated_mib + status.vms


def _without_widest(status: HostStatus) -> HostStatus:
    """As a host tells it that is older."""
    levels = tuple(msgspec.structs.replace(level, widest=0) for level in status.levels)
    return msgspec.structs.replace(status, levels=levels)


@given(st.lists(lived(), min_size=1, max_size=4), WANTED)
def test_vms_that_are_not_known_are_presumed(states: list[HostState], wanted: list[Size]) -> None:
    unknown = [host(state, known=False) for state in states]
    told = spare(unknown, wanted)
    assert told.presumed == tuple(range(len(states)))
    known = [SpareHost(one.status, True, presumed(one.status)) for one in unknown]
    assert spare(known, wanted) == Spare(told.fits, told.lost, told.uncovered, ())


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_order_of_wishes_does_not_matter(lost: int) -> None:
    hosts = [host(filled(server(), "vm", count, 1, LEVELS[count])) for count in range(5)]
    wanted = [(3000, 3, 5), (1000, 1, 9), (2000, 2, 1)]
    assert spare(hosts, wanted, lost).fits[::-1] == spare(hosts, wanted[::-1], lost).fits
