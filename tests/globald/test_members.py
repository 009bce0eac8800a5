"""What is known of hosts and VMs, from every order in which it can become known."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.admission import refusal_on
from core.allocator import empty_state, plan_deploy, plan_remove, plan_withdraw
from core.model import HostState, Plan, Refusal, Rules, Vm
from core.policy import POLICIES
from core.status import host_status
from globald.member import Member, Quarantine, Removal, Reservation, State
from globald.members import Members
from globald.sources import STATIC, Entry
from tests.globald.hosts import SMALL, TINY
from vmstackd.api import replies, session
from vmstackd.topology_source import load_topology

POLICY = POLICIES["reference"]
EMPTY = empty_state(load_topology(SMALL), Rules(critical_size=2))


def hello(name: str, identity: str = "") -> session.HelloReply:
    return session.HelloReply(
        version=1,
        program="vmstackd",
        program_version="1",
        host=name,
        role="operator",
        uuid=identity or str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
    )


def told(state: HostState = EMPTY, **more: Any) -> replies.StatusReply:  # noqa: ANN401  fields of the reply
    fields: dict[str, Any] = {"hypervisor": "up", "unplaced": (), "stopped": (), "degraded": ()} | more
    return replies.StatusReply(host=host_status(state), **fields)


def having(*names: str, state: HostState = EMPTY, vcpus: int = 1) -> HostState:
    """The state with further VMs of one vCPU and 64 MiB at level 1."""
    for name in names:
        plan = plan_deploy(state, Vm(name=name, vcpus=vcpus, memory_mib=64, level=1000), POLICY)
        assert isinstance(plan, Plan)
        state = plan.state
    return state


EMPTIED = plan_remove(having("x"), "x", POLICY).state


def deployed(name: str) -> session.VmDeployed:
    return session.VmDeployed(time=0, name=name, level=1000, cpus=())


def gone(name: str) -> session.VmGone:
    return session.VmGone(time=0, name=name)


def removed(name: str) -> session.VmRemoved:
    return session.VmRemoved(time=0, name=name, released=())


def refused(name: str, code: str) -> session.VmRefused:
    return session.VmRefused(time=0, name=name, operation="deploy", code=code, reason="")


class Two:
    """Two hosts, a and b; the first one is up and has VM x."""

    def __init__(self) -> None:
        self.members = Members()
        self.a = self.members.add(Entry("a:1", STATIC))
        self.b = self.members.add(Entry("b:1", STATIC))
        self.members.joined(self.a, hello("a"), ["x"], told(having("x")))

    def owners(self, name: str) -> list[str]:
        return [member.name for member in self.members.owners(name)]


@pytest.fixture
def two() -> Two:
    return Two()


# Names


def test_names_on_an_unknown_host_stay_taken(two: Two) -> None:
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    assert two.owners("x") == ["a"]
    assert two.members.vm_names() == ["x"]
    assert two.a.closed == "unknown"
    assert two.members.inventory.totals().cpus == 0
    two.members.joined(two.a, hello("a"), ["y"], told(having("y")))
    assert (two.owners("x"), two.owners("y")) == ([], ["a"])


def test_a_vm_that_ended_keeps_its_name_until_the_host_tells_that_it_is_not_shut_off(two: Two) -> None:
    two.members.happened(two.a, gone("x"))
    assert two.owners("x") == ["a"]
    two.members.told(two.a, told(EMPTIED, stopped=("x",)))
    assert two.owners("x") == ["a"]
    assert two.members.vm_names() == []
    two.members.told(two.a, told(EMPTIED))
    assert two.owners("x") == []
    two.members.happened(two.a, gone("x"))
    two.members.told(two.a, told(EMPTIED))
    assert two.owners("x") == []


def test_a_vm_that_ended_just_before_the_connection_did_is_gone_when_the_host_is_back(two: Two) -> None:
    two.members.happened(two.a, gone("x"))
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    assert two.owners("x") == ["a"]
    two.members.joined(two.a, hello("a"), [], told())
    assert two.owners("x") == []


def test_a_shut_off_vm_that_starts_or_is_removed(two: Two) -> None:
    two.members.told(two.a, told(having("x"), stopped=("off", "old")))
    two.members.happened(two.a, session.VmAdopted(time=0, name="off", level=1000, cpus=()))
    two.members.told(two.a, told(having("x", "off"), stopped=("old",)))
    assert two.owners("off") == ["a"]
    two.members.happened(two.a, removed("old"))
    assert two.owners("old") == []


def test_a_vm_in_no_level_has_its_name(two: Two) -> None:
    outside = replies.UnplacedVm(name="outside", reason="", cpus=(), memory_mib=1)
    two.members.told(two.a, told(having("x"), unplaced=(outside,)))
    assert two.owners("outside") == ["a"]


def test_a_vm_that_was_being_started_when_the_host_told_its_names_may_fail_to(two: Two) -> None:
    two.members.happened(two.a, refused("x", "AlreadyExists"))
    assert two.owners("x") == ["a"]  # somebody wanted it once more
    two.members.happened(two.a, refused("x", "HypervisorError"))
    two.members.told(two.a, told(EMPTIED))
    assert two.owners("x") == []


def test_duplicates_appear_and_dissolve(two: Two) -> None:
    two.members.joined(two.b, hello("b"), ["x", "z"], told(having("x", "z")))
    assert two.members.duplicates(9) == (replies.DuplicateVm(name="x", hosts=("a", "b")),)
    assert two.members.duplicates_of(two.b, 9) == [replies.DuplicateVm(name="x", hosts=("a", "b"))]
    two.members.happened(two.b, deployed("y"))
    two.members.happened(two.a, deployed("y"))
    assert [found.name for found in two.members.duplicates(9)] == ["x", "y"]
    assert len(two.members.duplicates(1)) == 1
    two.members.happened(two.a, removed("x"))
    assert (two.owners("x"), two.owners("y")) == (["b"], ["b", "a"])
    two.members.drop(two.b)
    assert two.members.duplicates(9) == ()
    assert (two.owners("x"), two.owners("y")) == ([], ["a"])


# Hosts


def test_a_host_that_moved_is_one_host_and_keeps_its_vms(two: Two) -> None:
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    assert two.members.joined(two.b, hello("a"), ["x"], told(having("x"))) is two.a
    assert [member.entry.address for member in two.members.owners("x")] == ["b:1"]
    assert two.members.duplicates(9) == ()
    assert two.members.find("a") is two.b
    assert two.members.find(hello("a").uuid) is two.b
    assert (two.a.name, two.a.state, two.a.reason) == ("a:1", State.QUARANTINED, "this host is at b:1 now")
    assert two.members.find("a:1") is two.a


def test_what_a_host_was_asked_moves_with_it(two: Two) -> None:
    reservation = two.members.reserve("y", two.a, 1000, 1, 64)
    reservation.uncertain = True
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    two.members.joined(two.b, hello("a"), ["x"], told(having("x")))
    assert two.members.claims["y"].member is two.b
    assert two.b.pending == {"y": reservation}
    two.members.happened(two.b, deployed("y"))
    assert two.members.claims == {}
    assert [member.entry.address for member in two.members.owners("y")] == ["b:1"]


def test_another_host_at_an_old_address_does_not_have_the_vms_of_the_old_one(two: Two) -> None:
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    assert two.members.joined(two.a, hello("c"), ["z"], told(having("z"))) is None
    assert (two.owners("x"), two.owners("z")) == ([], ["c"])
    assert two.members.find("a") is None
    assert two.members.find(hello("a").uuid) is None


def test_one_uuid_twice_while_both_are_up_is_refused_by_name(two: Two) -> None:
    with pytest.raises(Quarantine, match=r"it has the UUID of a \(a:1\)"):
        two.members.joined(two.b, hello("b", hello("a").uuid), ["z"], told(having("z")))
    assert two.a.state is State.UP
    assert (two.owners("x"), two.owners("z")) == (["a"], [])
    assert two.members.find(hello("a").uuid) is two.a


def test_a_number_that_was_left_is_had_by_the_next_host(two: Two) -> None:
    two.members.drop(two.a)
    assert two.owners("x") == []
    c = two.members.add(Entry("c:1", STATIC))
    assert (c.number, [member.entry.address for member in two.members]) == (0, ["c:1", "b:1"])
    # What still comes from the one that was dropped is nothing.
    two.members.told(two.a, told(having("x")))
    two.members.happened(two.a, deployed("x"))
    two.members.set_state(two.a, State.UNKNOWN, "")
    two.members.refresh(two.a)
    assert two.owners("x") == []
    assert two.members.inventory.totals().cpus == 0
    assert two.members.inventory.refusals(1000, 1, 1) == {"unknown": 2}


def test_an_order_to_a_host_that_is_dropped_leaves_nothing(two: Two) -> None:
    reservation = two.members.reserve("y", two.a, 1000, 1, 64)
    removal = two.members.remove("x", two.a)
    two.members.drop(two.a)
    assert two.members.claims == {}
    two.members.confirm(reservation, 3)
    two.members.removal_ended(removal, 4)
    two.members.found(reservation)
    assert two.members.vm_names() == []
    assert two.owners("y") == []


# Lies


def _lie(**figures: object) -> replies.StatusReply:
    good = told(having("x"))
    return msgspec.structs.replace(good, host=msgspec.structs.replace(good.host, **figures))


LIES = [
    _lie(free_cpus=-1),
    _lie(vms=7),
    _lie(levels=tuple(msgspec.structs.replace(level, level=3) for level in told(having("x")).host.levels)),
    _lie(generation=0),
    told(having("x"), stopped=("n" * 5000,)),
    told(having("x"), stopped=tuple(f"n{number}" for number in range(1 << 17))),
]


@pytest.mark.parametrize("lie", LIES, ids=["CPUs", "VMs", "level", "generation", "name", "names"])
def test_a_lie_spoils_nothing_of_what_was_known(two: Two, lie: replies.StatusReply) -> None:
    before = two.a.reply
    with pytest.raises(Quarantine, match="what it tells cannot be true: "):
        two.members.told(two.a, lie)
    assert two.a.reply is before
    assert two.owners("x") == ["a"]
    assert two.members.inventory.status(0) == told(having("x")).host


@pytest.mark.parametrize("lie", [LIES[0], LIES[4]], ids=["CPUs", "name"])
def test_a_lie_at_the_beginning_spoils_nothing_either(two: Two, lie: replies.StatusReply) -> None:
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    with pytest.raises(Quarantine):
        two.members.joined(two.a, hello("other"), ["z"], lie)
    assert (two.owners("x"), two.owners("z")) == (["a"], [])
    assert two.members.find("a") is two.a
    with pytest.raises(Quarantine):
        two.members.joined(two.a, hello("a"), ["n" * 5000], told())
    assert two.owners("x") == ["a"]


def test_a_new_connection_counts_generations_anew(two: Two) -> None:
    two.members.told(two.a, told(having("x", "y", "z")))
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    two.members.joined(two.a, hello("a"), [], told())
    assert two.a.state is State.UP


# Reservations


def _free(two: Two) -> int:
    assert two.a.expected is not None
    found = two.members.inventory.status(0)
    assert found is not None
    assert found.free_cpus == two.a.expected.free_cpus
    return found.free_cpus


def test_what_was_asked_counts_until_a_status_has_it(two: Two) -> None:
    assert _free(two) == 7
    reservation = two.members.reserve("y", two.a, 1000, 2, 64)
    assert _free(two) == 5
    two.members.told(two.a, told(having("x")))
    assert _free(two) == 5
    after = having("y", state=having("x"), vcpus=2)
    two.members.confirm(reservation, after.generation)
    assert (_free(two), two.members.claims, two.owners("y")) == (5, {}, ["a"])
    two.members.told(two.a, told(having("x")))  # one of before
    assert _free(two) == 5
    two.members.told(two.a, told(after))
    assert _free(two) == 5
    assert two.a.pending == {}


def test_a_status_that_came_before_the_answer_has_it(two: Two) -> None:
    reservation = two.members.reserve("y", two.a, 1000, 2, 64)
    after = having("y", state=having("x"), vcpus=2)
    two.members.told(two.a, told(after, starting=("y",)))
    assert _free(two) == 5  # counted once
    two.members.told(two.a, told(after))  # it runs, and the answer is on its way
    assert _free(two) == 5
    two.members.confirm(reservation, after.generation)
    assert (_free(two), two.a.pending) == (5, {})


def test_a_refusal_gives_back_at_once(two: Two) -> None:
    reservation = two.members.reserve("y", two.a, 1000, 2, 64)
    two.members.release(reservation)
    assert (_free(two), two.members.claims, two.owners("y")) == (7, {}, [])


def test_what_was_removed_before_the_status_came_is_given_back(two: Two) -> None:
    reservation = two.members.reserve("y", two.a, 1000, 2, 64)
    two.members.confirm(reservation, 9)
    two.members.removal_ended(two.members.remove("y", two.a), 10)
    assert (_free(two), two.owners("y")) == (7, [])
    assert two.a in two.members.behind
    for event in (deployed("y"), removed("y")):
        two.members.happened(two.a, event)
        assert two.owners("y") == []  # older than what was answered
    assert two.a.ahead == {}
    two.members.happened(two.a, deployed("y"))
    assert two.owners("y") == ["a"]


def test_an_event_that_comes_before_the_answer_counts_once(two: Two) -> None:
    reservation = two.members.reserve("y", two.a, 1000, 2, 64)
    two.members.happened(two.a, deployed("y"))
    two.members.happened(two.a, removed("y"))
    two.members.confirm(reservation, 2)
    assert two.owners("y") == []
    removal = two.members.remove("x", two.a)
    two.members.happened(two.a, removed("x"))
    two.members.happened(two.a, deployed("x"))
    two.members.removal_ended(removal, 3)
    assert two.owners("x") == ["a"]


def test_a_name_that_is_removed_and_deployed_again_is_never_free_in_between(two: Two) -> None:
    two.members.removal_ended(two.members.remove("x", two.a), 5)
    two.members.confirm(two.members.reserve("x", two.a, 1000, 1, 64), 6)
    for event in (removed("x"), deployed("x")):
        two.members.happened(two.a, event)
        assert two.owners("x") == ["a"]
    two.members.happened(two.a, removed("x"))
    assert two.owners("x") == []


def test_a_host_that_is_back_has_what_was_asked_or_it_stays_uncertain(two: Two) -> None:
    for name in ("y", "z"):
        two.members.reserve(name, two.a, 1000, 1, 64).uncertain = True
    two.members.set_state(two.a, State.UNKNOWN, "silent")
    assert set(two.members.claims) == {"y", "z"}
    two.members.joined(two.a, hello("a"), ["x", "y"], told(having("x", "y")))
    assert (set(two.members.claims), two.owners("y")) == ({"z"}, ["a"])
    two.members.found(two.members.claims["z"])
    assert (two.members.claims, two.owners("z"), two.a.pending) == ({}, ["a"], {})


# Every order


class _Order:
    """A deployment on its way to a host, or in it."""

    def __init__(self, reservation: Reservation, connection: int) -> None:
        self.reservation = reservation
        self.connection = connection
        self.vm = Vm(
            name=reservation.name,
            vcpus=reservation.vcpus,
            memory_mib=reservation.memory_mib,
            level=reservation.level,
        )


class _Host:
    """What a host really has; what is on its way to it, and from it.

    Answers and pushes each come in their order; which comes first of an answer and a push is open.
    """

    def __init__(self, name: str, topology: str) -> None:
        self.name = name
        self.empty = empty_state(load_topology(topology), Rules(critical_size=2))
        self.state = self.empty
        self.starting: dict[str, tuple[Plan, _Order | None]] = {}
        self.stopped: set[str] = set()
        self.orders: list[_Order] = []
        self.late: list[_Order] = []
        self.answers: deque[Callable[[], None]] = deque()
        self.pushes: deque[session.Push] = deque()
        self.connection = 0
        self.member: Member

    @property
    def names(self) -> list[str]:
        return [name for subset in self.state.subsets for name in subset.vms]

    def status(self) -> replies.StatusReply:
        return told(self.state, stopped=tuple(sorted(self.stopped)), starting=tuple(self.starting))


class Everything(RuleBasedStateMachine):
    """Members against hosts of which everything is known."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Members()
        self.hosts = [_Host("a", SMALL), _Host("b", TINY), _Host("c", SMALL)]
        self.ours: dict[str, _Host] = {}
        """VMs that were deployed through us, and where."""

    @initialize()
    def start(self) -> None:
        for host in self.hosts:
            host.member = self.members.add(Entry(f"{host.name}:1", STATIC))
            self._join(host)

    # What is done

    hosts_ = st.integers(0, 2)
    names_ = st.sampled_from(["v0", "v1", "v2", "v3"])

    @rule(number=hosts_, name=names_, vcpus=st.integers(1, 3), level=st.sampled_from([1000, 2000]))
    def ask_to_deploy(self, number: int, name: str, vcpus: int, level: int) -> None:
        host = self.hosts[number]
        member = host.member
        if self.members.owners(name) or name in self.members.claims or member.closed or member.expected is None:
            return
        if refusal_on(member.expected, level, vcpus, 64) is not None:
            return
        host.orders.append(_Order(self.members.reserve(name, member, level, vcpus, 64), host.connection))

    @rule(name=names_ | st.just("direct"))
    def ask_to_remove(self, name: str) -> None:
        owners = self.members.owners(name)
        if len(owners) != 1 or owners[0].state is not State.UP:
            return
        host = next(host for host in self.hosts if host.member is owners[0])
        removal = self.members.remove(name, host.member)
        if name in host.starting or (name not in host.names and name not in host.stopped):
            self._answer(host, lambda: self.members.removal_ended(removal, None))
        else:
            generation = self._remove(host, name)
            self._answer(host, lambda: self.members.removal_ended(removal, generation), removal=removal)

    # What hosts do

    @rule(number=hosts_)
    @precondition(lambda self: any(host.orders or host.late for host in self.hosts))
    def an_order_arrives(self, number: int) -> None:
        host = self.hosts[number]
        if host.late:
            self._decide(host, host.late.pop(0))
        elif host.orders:
            self._decide(host, host.orders.pop(0))

    def _decide(self, host: _Host, order: _Order) -> None:
        name = order.vm.name
        plan = None if name in host.stopped or name in host.names else plan_deploy(host.state, order.vm, POLICY)
        if plan is None or isinstance(plan, Refusal):
            self._answer(host, lambda: self.members.release(order.reservation), order=order)
            return
        host.state = plan.state
        host.starting[name] = plan, order
        self.ours[name] = host

    @rule(number=hosts_, succeeds=st.booleans())
    @precondition(lambda self: any(host.starting for host in self.hosts))
    def a_start_ends(self, number: int, *, succeeds: bool) -> None:
        host = self.hosts[number]
        if not host.starting:
            return
        name = next(iter(host.starting))
        plan, order = host.starting.pop(name)
        if succeeds:
            generation = plan.state.generation
            if order is not None:
                self._answer(host, lambda: self.members.confirm(order.reservation, generation), order=order)
            self._push(host, deployed(name))
        else:
            host.state = plan_withdraw(host.state, plan).state
            del self.ours[name]
            if order is not None:
                self._answer(host, lambda: self.members.release(order.reservation), order=order)
            self._push(host, refused(name, "HypervisorError"))

    @rule(number=hosts_)
    def somebody_deploys_directly(self, number: int) -> None:
        host = self.hosts[number]
        if "direct" in host.names or "direct" in host.stopped:
            return
        plan = plan_deploy(host.state, Vm(name="direct", vcpus=1, memory_mib=64, level=2000), POLICY)
        if isinstance(plan, Plan):
            host.state = plan.state
            self._push(host, deployed("direct"))

    @rule(number=hosts_, name=names_ | st.just("direct"))
    def somebody_removes_directly(self, number: int, name: str) -> None:
        host = self.hosts[number]
        if (name in host.names and name not in host.starting) or name in host.stopped:
            self._remove(host, name)

    @rule(number=hosts_, name=names_ | st.just("direct"), shut_off=st.booleans())
    def a_vm_ends(self, number: int, name: str, *, shut_off: bool) -> None:
        host = self.hosts[number]
        if name in host.names and name not in host.starting:
            host.state = plan_remove(host.state, name, POLICY).state
            if shut_off:
                host.stopped.add(name)
            else:
                self.ours.pop(name, None)
            self._push(host, gone(name))
            self._push(host, host.status())

    def _remove(self, host: _Host, name: str) -> int:
        generation = 0
        if name in host.stopped:
            host.stopped.discard(name)
        else:
            host.state = plan_remove(host.state, name, POLICY).state
            generation = host.state.generation
        if self.ours.get(name) is host:
            del self.ours[name]
        self._push(host, removed(name))
        return generation

    @rule(number=hosts_)
    def a_status_is_sent(self, number: int) -> None:
        self._push(self.hosts[number], self.hosts[number].status())

    # What arrives

    @rule(number=hosts_)
    def an_answer_arrives(self, number: int) -> None:
        answers = self.hosts[number].answers
        if answers:
            answers.popleft()()

    @rule(number=hosts_)
    def a_push_arrives(self, number: int) -> None:
        host = self.hosts[number]
        if host.pushes:
            push = host.pushes.popleft()
            if isinstance(push, replies.StatusReply):
                self.members.told(host.member, push)
            else:
                self.members.happened(host.member, push)

    # What breaks

    @rule(number=hosts_, arrive=st.booleans(), restart=st.booleans())
    def a_connection_breaks(self, number: int, *, arrive: bool, restart: bool) -> None:
        """arrive: whether orders that are on their way may still. restart: of the host's daemon."""
        host = self.hosts[number]
        host.connection += 1
        asked = [order.reservation for order in host.orders]
        asked += [order.reservation for _, order in host.starting.values() if order is not None]
        if arrive and not restart:
            host.late += host.orders
        host.orders.clear()
        host.answers.clear()
        host.pushes.clear()
        for removal in [removal for removals in host.member.removals.values() for removal in removals]:
            self.members.removal_ended(removal, None)
        for reservation in list(host.member.pending.values()):
            if reservation.generation is None:
                if reservation.seen and not reservation.uncertain:
                    self.members.release(reservation)
                else:
                    reservation.uncertain = True
        self.members.set_state(host.member, State.UNKNOWN, "cut")
        if restart:
            host.late.clear()
            for name, (plan, _) in list(host.starting.items()):
                host.state = plan_withdraw(host.state, plan).state
                del host.starting[name], self.ours[name]
            host.state = msgspec.structs.replace(host.state, generation=0)

    @rule(number=hosts_)
    def a_host_is_back(self, number: int) -> None:
        if self.hosts[number].member.state is not State.UP:
            self._join(self.hosts[number])

    @rule(number=hosts_)
    def it_is_asked_about_what_is_uncertain(self, number: int) -> None:
        """Only once nothing can arrive late any more: that is what is waited for."""
        host = self.hosts[number]
        if host.member.state is not State.UP or host.late:
            return
        for reservation in [found for found in host.member.pending.values() if found.uncertain]:
            reservation.seen = False
            there = reservation.name in host.names
            self._answer(host, partial(self._described, reservation, there=there))

    def _described(self, reservation: Reservation, *, there: bool) -> None:
        if reservation.member.pending.get(reservation.name) is not reservation:
            return
        if not there:
            self.members.release(reservation)
        elif not reservation.seen:
            self.members.found(reservation)

    # Ways

    def _answer(
        self, host: _Host, take: Callable[[], None], *, order: _Order | None = None, removal: Removal | None = None
    ) -> None:
        """An answer goes to the connection on which was asked; if that is no more, to nobody."""
        if host.member.state is State.UP and (order is None or order.connection == host.connection):
            host.answers.append(take)

    def _push(self, host: _Host, push: session.Push) -> None:
        if host.member.state is State.UP:
            host.pushes.append(push)

    def _join(self, host: _Host) -> None:
        self.members.joined(host.member, hello(host.name), host.names, host.status())

    # What must be

    def check(self) -> None:
        for name, host in self.ours.items():
            assert name in self.members.claims or host.member in self.members.owners(name), f"{name} is free"
        for host in self.hosts:
            for order in (*host.orders, *host.late):
                name = order.vm.name
                assert name in self.members.claims or self.members.owners(name), f"{name} may still come"
            assert not [name for name in host.member.pending if host.member.pending[name].name != name]

    @invariant()
    def names_are_never_free_too_early(self) -> None:
        self.check()

    def teardown(self) -> None:
        if not hasattr(self.hosts[0], "member"):
            return
        for _ in range(3):
            for number, host in enumerate(self.hosts):
                self.a_host_is_back(number)
                while host.orders or host.late or host.starting:
                    if host.orders or host.late:
                        self.an_order_arrives(number)
                    if host.starting:
                        self.a_start_ends(number, succeeds=True)
                self.it_is_asked_about_what_is_uncertain(number)
                self._push(host, host.status())
                while host.answers:
                    self.an_answer_arrives(number)
                while host.pushes:
                    self.a_push_arrives(number)
                self.check()
        assert self.members.claims == {}
        for host in self.hosts:
            assert host.member.pending == {}
            assert host.member.ahead == {}
            assert host.member.removals == {}
            assert host.member.names == set(host.names)
            for name in (*host.names, *host.stopped):
                assert host.member in self.members.owners(name)
            assert self.members.inventory.status(host.member.number) == host_status(host.state)
        known = {name for host in self.hosts for name in (*host.names, *host.stopped)}
        assert set(self.members._owners) == known
        shared = {name for name in known if sum(name in (*host.names, *host.stopped) for host in self.hosts) > 1}
        assert {found.name for found in self.members.duplicates(99)} == shared


TestEverything = Everything.TestCase
TestEverything.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
