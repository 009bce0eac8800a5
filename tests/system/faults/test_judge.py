"""What judges a run sees what is wrong, and nothing else."""

from __future__ import annotations

import random

import msgspec
import pytest

from core.status import HostStatus
from tests.simulation.ledger import Known
from tests.system.cluster import vm
from tests.system.faults.audit import Host, accounts, pins
from tests.system.faults.book import ACCOUNTS, IMPOSSIBLE, LOST, PINS, STRANGE, THERE, TWICE, Book
from tests.system.faults.figures import DONE, REFUSED, UNKNOWN, Figures
from tests.system.faults.kinds import KINDS, QUICK, VMSTACKD_KILLED, plan
from tests.system.faults.seen import Domain, Moment, Qemu, shared
from vmstackd.api.errors import AlreadyExists, NoCapacity, NotFound, Unavailable
from vmstackd.api.replies import StatusReply, UnplacedVm, VmReply

# --- what was told, and what is there -------------------------------------------------------------------------------


def book(**known: Known) -> Book:
    """Of VMs of which this is known; all on host one."""
    made = Book()
    for name, what in known.items():
        made.ordered(vm(name))
        if what is Known.THERE:
            made.deployed(name, "one")
        else:
            lost = Unavailable("no answer") if what is Known.UNCLEAR else NoCapacity("full")
            made.not_deployed(name, lost, hung_up=what is Known.UNCLEAR)
    return made


def test_a_vm_that_was_acknowledged_is_there_once() -> None:
    one = book(a=Known.THERE)
    assert list(one.differences({"a": ["one"]}, {"a": "one"})) == []
    assert [kind for kind, _ in one.differences({}, {})] == [LOST]
    assert [kind for kind, _ in one.differences({}, {"a": "one"})] == [LOST], "it does not run"
    assert [kind for kind, _ in one.differences({"a": ["one", "two"]}, {})] == [TWICE]
    assert [kind for kind, _ in one.differences({"a": ["one", "one"]}, {})] == [TWICE]


def test_a_vm_that_a_fault_has_killed_is_not_lost_but_never_twice() -> None:
    one = book(a=Known.THERE)
    one.died("a")
    assert list(one.differences({}, {"a": "one"})) == []
    assert list(one.differences({}, {})) == []
    assert [kind for kind, _ in one.differences({"a": ["one", "two"]}, {})] == [TWICE]
    assert one.alive() == []
    assert one.killed == 1


def test_a_vm_that_was_removed_is_gone() -> None:
    one = book(a=Known.THERE)
    one.leaving("a")
    one.removed("a")
    assert list(one.differences({}, {})) == []
    assert [kind for kind, _ in one.differences({"a": ["one"]}, {})] == [THERE]
    assert [kind for kind, _ in one.differences({}, {"a": "one"})] == [THERE], "its definition is left"


def test_a_vm_that_was_refused_or_never_ordered_is_not_there() -> None:
    one = book(a=Known.GONE)
    assert list(one.differences({}, {})) == []
    assert [kind for kind, _ in one.differences({"a": ["one"]}, {})] == [STRANGE]
    assert [kind for kind, _ in one.differences({"b": ["one"]}, {})] == [STRANGE]


def test_what_nobody_knows_may_be_either_until_somebody_has_looked() -> None:
    one = book(a=Known.UNCLEAR, b=Known.UNCLEAR)
    assert list(one.differences({"a": ["two"]}, {})) == []
    one.found({"a": ["two"]})
    assert one.alive() == ["a"]
    assert one.removable("two") == ["a"]
    assert [kind for kind, _ in one.differences({}, {})] == [LOST]


def test_answers_that_cannot_be_are_kept() -> None:
    one = book(a=Known.THERE, b=Known.UNCLEAR)
    for name in ("a", "b"):
        one.not_removed(name, one.leaving(name), NotFound("there is none"), hung_up=False)
    assert [text.split()[1] for text in one.impossible] == ["a,"], "b may never have come"
    one.ordered(vm("d"))
    one.deployed("d", "one", "one")
    one.not_removed("d", one.leaving("d"), NotFound("there is none"), hung_up=False)
    assert len(one.impossible) == 1, "globald may not have heard of it yet"
    one.not_removed("d", one.leaving("d"), NotFound("there is none"), hung_up=False, door="one")
    assert len(one.impossible) == 2
    one.ordered(vm("c"))
    one.not_deployed("c", AlreadyExists("it is there"), hung_up=False)
    assert len(one.impossible) == 3


def test_a_refused_removal_changes_nothing_and_an_unanswered_one_all() -> None:
    one = book(a=Known.THERE)
    assert one.not_removed("a", one.leaving("a"), Unavailable("not now"), hung_up=False) is Known.THERE
    before = one.leaving("a")
    assert one.not_removed("a", before, Unavailable("?", outcome="unknown"), hung_up=False) is Known.UNCLEAR
    assert list(one.differences({}, {})) == []


# --- pins and accounts ----------------------------------------------------------------------------------------------

ON_ONE = frozenset({1})


def looked_at(
    *,
    vcpu: frozenset[int] = ON_ONE,
    first: frozenset[int] = ON_ONE,
    helper: frozenset[int] = ON_ONE,
    told: frozenset[int] = ON_ONE,
    listed: bool = True,
) -> Host:
    """A host with VM a, whose subset is CPU 1."""
    status = StatusReply(HostStatus(2, 1, 0, 1024, 64, 960, 1, 1, ()), "up", (), (), ())
    reply = VmReply("a", 1, 64, 1000, (1,), (1,), "running", "/image")
    process = Qemu("a", 7, {"CPU 0/TCG 8": vcpu}, first, {"worker 9": helper})
    vms = {"a": reply} if listed else {}
    return Host("one", (process,), (Domain("a", True, (told, ON_ONE)),), vms, status)


def test_every_thread_and_libvirt_must_say_what_vmstackd_says() -> None:
    assert list(pins(looked_at())) == []
    wide = frozenset({0, 1})
    for host in (looked_at(vcpu=wide), looked_at(first=wide), looked_at(helper=wide), looked_at(told=wide)):
        [(kind, text)] = pins(host)
        assert kind == PINS
        assert "0,1" in text


def test_everyone_must_count_the_same_vms() -> None:
    host = looked_at()
    assert list(accounts(host, ())) == []
    assert [kind for kind, _ in accounts(looked_at(listed=False), ())] == [ACCOUNTS]
    assert list(accounts(looked_at(listed=False), ("a",))) == [], "nobody knows of a yet"
    orphan = msgspec.structs.replace(host, domains=())
    assert [kind for kind, _ in accounts(orphan, ())] == [STRANGE]
    for status in (
        msgspec.structs.replace(host.status, hypervisor="down"),
        msgspec.structs.replace(host.status, stopped=("b",)),
        msgspec.structs.replace(host.status, degraded=("a is pinned wrong",)),
        msgspec.structs.replace(host.status, unplaced=(UnplacedVm("c", "no CPU", (0,), 64),)),
    ):
        assert [kind for kind, _ in accounts(msgspec.structs.replace(host, status=status), ())] == [ACCOUNTS]


def test_two_levels_never_share_a_cpu() -> None:
    levels = {"a": 1000, "b": 2000, "c": 2000}
    apart = {"a": frozenset({0}), "b": frozenset({1, 2}), "c": frozenset({1, 2})}
    assert shared(Moment(apart, apart), levels) == set()
    together = {**apart, "a": frozenset({0, 1})}
    assert len(shared(Moment(together, apart), levels)) == 2, "b and c"
    assert all("libvirt" in text for text in shared(Moment(apart, together), levels))


# --- figures --------------------------------------------------------------------------------------------------------


def test_time_without_success_counts_while_something_is_wanted() -> None:
    now = 0.0
    figures = Figures(lambda: now)
    with figures.wanted():
        now = 2.0
        figures.injected("x", "one")
        now = 3.0
        figures.served({"one"}, 1.0)
        assert figures.hit, "it had begun before the fault"
        now = 5.0
        figures.served({"two"}, 4.0)
        assert figures.hit, "that is another host"
        now = 9.0
        figures.served({"one"}, 4.0)
        assert not figures.hit
    assert figures.longest_gap == 4.0
    now = 100.0
    with figures.wanted():
        now = 101.0
        figures.served({"one"}, 100.0)
    assert figures.longest_gap == 4.0, "nobody wanted anything"
    assert "7.0" in figures.text()


def test_a_run_is_good_if_all_that_must_be_zero_is() -> None:
    def figures() -> Figures:
        made = Figures(lambda: 0.0)
        made.operations[DONE] = made.samples = 1
        return made

    assert figures().good()
    for kind in (LOST, TWICE, THERE, STRANGE, PINS, ACCOUNTS, IMPOSSIBLE):
        bad = figures()
        bad.wrong.append((kind, "this and that"))
        assert not bad.good()
        assert "this and that" in bad.text()
    bad = figures()
    bad.overlaps.append("a and b")
    assert not bad.good()
    idle = Figures(lambda: 0.0)
    idle.operations[REFUSED] = idle.operations[UNKNOWN] = idle.samples = 5
    assert not idle.good()


@pytest.mark.parametrize("seed", range(20))
def test_each_kind_of_fault_comes_and_vmstackd_is_killed_often(seed: int) -> None:
    faults = plan(random.Random(seed), 200, tuple(KINDS), ("one", "two"))
    assert {fault.kind for fault in faults} == set(KINDS)
    assert sum(fault.kind == VMSTACKD_KILLED for fault in faults) >= 14
    assert all(fault.after < 200 for fault in faults)
    assert {fault.host for fault in faults if fault.kind == "package upgraded"} == {"two"}
    assert {fault.kind for fault in plan(random.Random(seed), 24, QUICK, ("one", "two"))} == set(QUICK)
