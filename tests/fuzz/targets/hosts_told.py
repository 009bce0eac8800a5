"""What hosts tell globald: whatever passes the types is taken, or ends in Quarantine, and the accounts stay right."""

from __future__ import annotations

import msgspec

from globald.link import _require_host
from globald.member import Member, Quarantine, State
from globald.members import Members
from globald.sources import Entry
from tests.fuzz.target import Target, words
from vmstackd import wire
from vmstackd.api import session
from vmstackd.api.replies import StatusReply

_HOSTS = 3
_MOST_STEPS = 30
_ORDERS = ("reserve", "confirm", "release", "uncertain", "found", "remove", "removal", "silent", "drop")


class _Cluster:
    """Accounts, and what a globald would do with them when hosts speak."""

    def __init__(self) -> None:
        self.members = Members()
        self.hosts = [self.members.add(Entry(f"10.0.0.{number}:8097", "static")) for number in range(_HOSTS)]

    def told(self, member: Member, message: object) -> None:
        """A message of a host, as ``globald.link`` handles it."""
        try:
            match message:
                case ["join", hello, names, status]:
                    introduced = wire.read_result(hello, session.HelloReply)
                    subscribed = wire.read_result({"names": names}, session.Subscribed)
                    first = wire.read_result(status, StatusReply)
                    _require_host(introduced)
                    self.members.joined(member, introduced, subscribed.names, first)
                case _ if member.state is State.UP:
                    push = wire.read_reply(message)
                    if isinstance(push, StatusReply):
                        self.members.told(member, push)
                    elif push is not None and not isinstance(push, wire.Response):
                        self.members.happened(member, push)
        except (Quarantine, wire.Malformed) as error:
            self.members.set_state(member, State.QUARANTINED, str(error))

    def ordered(self, member: Member, order: str, name: str, number: int) -> None:
        """What globald does itself in between, where it may."""
        members, reservation = self.members, member.pending.get(name)
        match order:
            case "reserve" if (
                name not in members.claims and not members.owners(name) and member.state is State.UP and number > 0
            ):
                members.reserve(name, member, 1000 * (1 + number % 3), 1 + number % 8, number % 4096)
            case "confirm" if reservation is not None and reservation.generation is None:
                members.confirm(reservation, min(number, 1 << 62))
            case "release" if reservation is not None:
                members.release(reservation)
            case "uncertain" if reservation is not None:
                reservation.uncertain = True
            case "found" if reservation is not None and reservation.uncertain and not reservation.seen:
                members.found(reservation)
            case "remove" if member in members.owners(name):
                members.remove(name, member)
            case "removal" if member.removals.get(name):
                members.removal_ended(member.removals[name][0], min(number, 1 << 62) if number else None)
            case "silent":
                members.set_state(member, State.UNKNOWN, "silent")
            case "drop":
                members.drop(member)
                self.hosts[self.hosts.index(member)] = members.add(member.entry)

    def check(self) -> None:
        """The accounts agree with each other."""
        members = self.members
        members.inventory.totals()
        for member in members:
            state, _ = member.shown_state
            if state == "up":
                assert members.inventory.status(member.number) is not None
            for name in member.names | member.others | member.leaving:
                assert member in members.owners(name), name
            assert members.find(member.name) is not None
            members.duplicates_of(member, 10)
        owned = {name for name, owners in members._owners.items() if owners}
        assert owned == {name for member in members for name in member.names | member.others | member.leaving}
        assert set(members._shared) == {name for name in owned if len(members.owners(name)) > 1}
        for name in owned:
            assert len(set(members.owners(name))) == len(members.owners(name))
        members.duplicates(10)
        members.vm_names()


def take(data: bytes) -> None:
    """Lines: the number of a host, then JSON: a message of that host, or an order of globald for it."""
    cluster = _Cluster()
    for line in data.split(b"\n")[:_MOST_STEPS]:
        try:
            message = msgspec.json.decode(line[1:])
        except (ValueError, RecursionError):
            continue
        member = cluster.hosts[line[0] % _HOSTS]
        match message:
            case [str(order), str(name), int(number)] if order in _ORDERS:
                cluster.ordered(member, order, name, max(0, number))
            case _:
                cluster.told(member, message)
        cluster.check()


_WORDS = """
"join"
"status"
"event"
"deployed"
"removed"
"refused"
"gone"
"generation":
"starting":
"stopped":
"unplaced":
"hypervisor":"down"
"cordoned":true
"levels":[
"operation":"deploy"
"code":"HypervisorError"
"event":"adopted"
"widest":
"""
TARGET = Target(
    take,
    words=(*(f'"{order}"' for order in _ORDERS), *words(_WORDS)),
)
