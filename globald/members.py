"""What is known of every host and every VM of the cluster. Only keeps accounts: nothing here waits or speaks.

The hosts tell what they have; nothing is kept elsewhere. What has been asked of a host and is not in what it
told yet is added to it, so that many deployments at once do not count on the same CPUs.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from core.admission import fault, refusal_on, with_vm
from core.inventory import Inventory
from core.status import HostStatus
from globald.member import Member, Quarantine, Removal, Reservation, State
from globald.sources import Entry
from vmstackd.api import replies, session
from vmstackd.api.errors import HypervisorFailed
from vmstackd.api.requests import MAX_KNOWN_NAME_BYTES, MAX_TEXT_BYTES

MOST_VMS = 1 << 16
"""Of one host; whoever tells of more does not speak of VMs."""


class Members:
    """All hosts, in host order."""

    def __init__(self) -> None:
        self.inventory = Inventory()
        self.claims: dict[str, Reservation] = {}
        """VMs that are being deployed, by name."""
        self._members: dict[int, Member] = {}
        self._left: list[int] = []
        """Numbers that hosts had who are gone, as a heap."""
        self._by_address: dict[str, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._by_uuid: dict[str, Member] = {}
        self._owners: dict[str, tuple[Member, ...]] = {}
        self.troubled: dict[int, Member] = {}
        """Hosts that are not as they should be, by number."""
        self.behind: set[Member] = set()
        """Hosts that will tell in a moment that they have more room."""
        self._shared: dict[str, None] = {}
        """Names that several hosts have, in the order in which it was found."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    # Hosts

    def add(self, entry: Entry) -> Member:
        """A new host, behind all others unless one has left its number."""
        number = heapq.heappop(self._left) if self._left else len(self._members)
        member = Member(number, entry)
        behind = number == len(self._members)
        self._members[number] = member
        if not behind:
            self._members = dict(sorted(self._members.items()))
        self._by_address[entry.address] = member
        self._by_name[member.name] = member
        self.refresh(member)
        return member

    def drop(self, member: Member) -> None:
        """The host is no longer part of the cluster. Its VMs run on, unknown to us."""
        member.dropped = True
        member.client = None
        self._forget_vms(member)
        for reservation in list(member.pending.values()):
            self.release(reservation)
        self.inventory.drop(member.number)
        self.troubled.pop(member.number, None)
        self.behind.discard(member)
        del self._members[member.number]
        heapq.heappush(self._left, member.number)
        del self._by_address[member.entry.address]
        self._unname(member)

    def at(self, number: int) -> Member:
        """The host with this number. Raises KeyError."""
        return self._members[number]

    def at_address(self, address: str) -> Member | None:
        """The host with this address."""
        return self._by_address.get(address)

    def find(self, host: str) -> Member | None:
        """The host with this name, UUID or address."""
        return self._by_name.get(host) or self._by_uuid.get(host) or self._by_address.get(host)

    # What hosts tell

    def joined(
        self, member: Member, hello: session.HelloReply, names: Iterable[str], reply: replies.StatusReply
    ) -> Member | None:
        """The host has introduced itself, and told what it has. Raises Quarantine if that cannot be.

        Returns the member that was the same host at another address, and is no more.
        """
        now = set(names)
        if why := fault(reply.host) or _names_fault(now) or _names_fault(_others(reply)):
            raise Quarantine(_untrue(why))
        other = self._by_uuid.get(hello.uuid)
        moved = None
        if other is not None and other is not member:
            if other.state is State.UP:
                raise Quarantine(
                    f"it has the UUID of {other.name} ({other.entry.address}): if it is the same host, take one of its "
                    "addresses out; if it is a copy of that host's disk, delete host-uuid in its state_dir and restart "
                    "its vmstackd"
                )
            moved = other
            self._move(other, member)
        elif member.uuid != hello.uuid:
            self._forget_vms(member)  # another host has got this address
            for reservation in list(member.pending.values()):
                self.release(reservation)
        self._unname(member)
        member.uuid, member.version = hello.uuid, hello.program_version[:MAX_TEXT_BYTES]
        usable = _is_host_name(hello.host) and hello.host not in self._by_name
        member.name = hello.host if usable else member.entry.address
        self._by_uuid[member.uuid] = member
        self._by_name[member.name] = member
        member.reply = None
        member.ahead.clear()
        member.emptied = 0
        self.behind.discard(member)
        for name in member.names - now:
            member.names.discard(name)
            self._disown(member, name)
        for name in now - member.names:
            self._own(member, name)
        member.names = now
        for reservation in list(member.pending.values()):
            reservation.counted = False
            if reservation.name in now or reservation.generation is not None:
                self.release(reservation)  # it is there, or has been
        member.state, member.reason, member.since = State.UP, "", time.time()
        self.told(member, reply)
        return moved

    def told(self, member: Member, reply: replies.StatusReply) -> None:
        """The host has told how it is. Raises Quarantine if that cannot be."""
        if member.dropped:
            return
        why = fault(reply.host)
        if not why and member.reply is not None and reply.host.generation < member.reply.host.generation:
            why = f"its generation went back from {member.reply.host.generation} to {reply.host.generation}"
        others = member.others
        if not why and (reply.unplaced or reply.stopped or others):
            others = _others(reply)
            why = _names_fault(others)
        if why:
            raise Quarantine(_untrue(why))
        member.reply = reply
        if reply.host.generation >= member.emptied:
            self.behind.discard(member)
        if others != member.others or member.leaving:
            before, member.others = member.others | member.leaving, others
            member.leaving.clear()
            for name in others - before:
                self._own(member, name)
            for name in before - others:
                self._disown(member, name)
        if member.pending:
            for name in reply.starting:
                if (reservation := member.pending.get(name)) is not None:
                    reservation.counted = True
            told = [
                name
                for name, found in member.pending.items()
                if found.generation is not None and found.generation <= reply.host.generation
            ]
            for name in told:
                del member.pending[name]
        self.refresh(member)

    def happened(self, member: Member, event: session.Event) -> None:
        """Something has happened on the host. Raises Quarantine if that cannot be."""
        name = getattr(event, "name", "")
        if not name or member.dropped or self._is_older(member, name, type(event)):
            return
        reservation = member.pending.get(name)
        if reservation is not None and reservation.uncertain:
            reservation.seen = True
        match event:
            case session.VmDeployed() | session.VmAdopted():
                if reservation is not None:
                    reservation.seen = True
                if why := _names_fault((name,), member.names):
                    raise Quarantine(_untrue(why))
                member.names.add(name)
                member.leaving.discard(name)
                self._own(member, name)
                if reservation is not None and reservation.uncertain:
                    self.release(reservation)
            case session.VmRemoved():
                for removal in member.removals.get(name, ()):
                    removal.seen = True
                self._gone(member, name)
            case session.VmGone() if name in member.names:
                # It may be shut off, and its name still taken: the next status tells.
                member.names.discard(name)
                member.leaving.add(name)
            case session.VmRefused(operation="deploy", code=HypervisorFailed.code) if name in member.names:
                # It was being started when the host told its names, and could not be.
                member.names.discard(name)
                member.leaving.add(name)

    def _is_older(self, member: Member, name: str, kind: type[session.Event]) -> bool:
        """Whether the host has answered something about this VM that happened later, or was this."""
        awaited = member.ahead.get(name)
        if awaited is None:
            return False
        if kind is awaited[0]:
            del awaited[0]
            if not awaited:
                del member.ahead[name]
        return True

    def set_state(self, member: Member, state: State, reason: str) -> None:
        """The host is not up any more, for this reason. Its VMs stay known."""
        if member.dropped:
            return
        if member.state is not state:
            member.since = time.time()
        member.state, member.reason = state, reason
        self.behind.discard(member)
        self.refresh(member)

    # VMs

    def owners(self, name: str) -> tuple[Member, ...]:
        """The hosts that have a VM of this name."""
        return self._owners.get(name, ())

    def vm_names(self) -> list[str]:
        """All of them, by host in host order."""
        return [name for member in self for name in sorted(member.names)]

    def duplicates(self, most: int) -> tuple[replies.DuplicateVm, ...]:
        """Names that are on several hosts: the first of them that were found."""
        return tuple(self._duplicate(name) for name in islice(self._shared, most))

    def duplicates_of(self, member: Member, most: int) -> list[replies.DuplicateVm]:
        """Those of them that are on this host."""
        found = (name for name in self._shared if member in self._owners[name])
        return [self._duplicate(name) for name in islice(found, most)]

    def _duplicate(self, name: str) -> replies.DuplicateVm:
        return replies.DuplicateVm(name=name, hosts=tuple(member.name for member in self._owners[name]))

    # What is asked of hosts

    def reserve(self, name: str, member: Member, level: int, vcpus: int, memory_mib: int) -> Reservation:
        """A host is asked to deploy a VM."""
        reservation = Reservation(name, member, level, vcpus, memory_mib)
        member.pending[name] = self.claims[name] = reservation
        if member.expected is not None:
            member.expected = _with(member.expected, reservation)
            self.inventory.put(member.number, member.expected, member.closed)
        return reservation

    def confirm(self, reservation: Reservation, generation: int) -> None:
        """The host has answered that the VM runs."""
        member, name = reservation.member, reservation.name
        self._unclaim(reservation)
        if member.dropped:
            return
        if not reservation.seen:
            member.ahead.setdefault(name, []).append(session.VmDeployed)
            member.names.add(name)
            self._own(member, name)
        if member.reply is not None and member.reply.host.generation >= generation:
            self.release(reservation)
        else:
            reservation.generation = generation

    def found(self, reservation: Reservation) -> None:
        """The host has answered that it has the VM of an uncertain order, without having told of it."""
        member = reservation.member
        self.release(reservation)
        if not member.dropped:
            member.names.add(reservation.name)
            self._own(member, reservation.name)

    def remove(self, name: str, member: Member) -> Removal:
        """A host is asked to remove a VM."""
        removal = Removal(name, member)
        member.removals.setdefault(name, []).append(removal)
        return removal

    def removal_ended(self, removal: Removal, generation: int | None) -> None:
        """generation: as the host answered, if the VM is gone."""
        member, name = removal.member, removal.name
        asked = member.removals[name]
        asked.remove(removal)
        if not asked:
            del member.removals[name]
        if generation is None or member.dropped:
            return
        member.emptied = max(member.emptied, generation)
        if member.reply is not None and member.reply.host.generation < member.emptied:
            self.behind.add(member)
        if not removal.seen:
            member.ahead.setdefault(name, []).append(session.VmRemoved)
            self._gone(member, name)

    def release(self, reservation: Reservation) -> None:
        """The host will not deploy the VM, or what it tells has it already."""
        member, name = reservation.member, reservation.name
        if member.pending.get(name) is reservation:
            del member.pending[name]
            self.refresh(member)
        self._unclaim(reservation)

    def refresh(self, member: Member) -> None:
        """Let the choice of a host see this one as it is now: as it told last, with what it has been asked since."""
        if member.dropped:
            return
        status = None if member.reply is None else member.reply.host
        if status is not None:
            for reservation in member.pending.values():
                if not reservation.counted:
                    status = _with(status, reservation)
        member.expected = status
        if member.closed in ("", replies.CORDONED):
            self.troubled.pop(member.number, None)
        else:
            self.troubled[member.number] = member
        if status is None:
            self.inventory.close(member.number, member.closed)
        else:
            self.inventory.put(member.number, status, member.closed)

    def _unclaim(self, reservation: Reservation) -> None:
        if self.claims.get(reservation.name) is reservation:
            del self.claims[reservation.name]

    # Names

    def _own(self, member: Member, name: str) -> None:
        owners = self._owners.get(name)
        if owners is None:
            self._owners[name] = member.alone
        elif member not in owners:
            self._owners[name] = (*owners, member)
            self._shared[name] = None

    def _disown(self, member: Member, name: str) -> None:
        """Unless the host still has it in another way."""
        if member.has(name):
            return
        rest = tuple(owner for owner in self._owners.get(name, ()) if owner is not member)
        if len(rest) < 2:
            self._shared.pop(name, None)
        if not rest:
            self._owners.pop(name, None)
        else:
            self._owners[name] = rest[0].alone if len(rest) == 1 else rest

    def _gone(self, member: Member, name: str) -> None:
        member.names.discard(name)
        member.leaving.discard(name)
        if name in member.others:
            member.others -= {name}
        self._disown(member, name)
        reservation = member.pending.get(name)
        if reservation is not None and reservation.generation is not None:
            self.release(reservation)

    def _forget_vms(self, member: Member) -> None:
        names = member.names | member.others | member.leaving
        member.names, member.others, member.leaving = set(), frozenset(), set()
        for name in names:
            self._disown(member, name)

    def _move(self, before: Member, now: Member) -> None:
        """A host has another address: what it is asked belongs to that one."""
        self._forget_vms(now)
        self._forget_vms(before)
        for reservation in list(now.pending.values()):
            self.release(reservation)
        for reservation in before.pending.values():
            reservation.member = now
        now.pending, before.pending = before.pending, {}
        self._unname(before)
        before.uuid, before.reply = "", None
        before.name = before.entry.address
        self._by_name[before.name] = before
        self.set_state(before, State.QUARANTINED, f"this host is at {now.entry.address} now")

    def _unname(self, member: Member) -> None:
        for index, key in ((self._by_name, member.name), (self._by_uuid, member.uuid)):
            if index.get(key) is member:
                del index[key]


def _with(status: HostStatus, reservation: Reservation) -> HostStatus:
    """The host once it has this VM too. One for which there is no room is there already, and its answer on the way."""
    size = reservation.level, reservation.vcpus, reservation.memory_mib
    return status if refusal_on(status, *size) is not None else with_vm(status, *size)


_LONGEST_NAME = 6 * MAX_KNOWN_NAME_BYTES
"""Characters: bytes that are no text come as \\udcXX."""


def _others(reply: replies.StatusReply) -> frozenset[str]:
    return frozenset((*(vm.name for vm in reply.unplaced), *reply.stopped))


def _untrue(why: str) -> str:
    return f"what it tells cannot be true: {why}"


def _names_fault(names: Collection[str], known: Collection[str] = ()) -> str:
    """Why no host can have VMs of these names, besides those that are known; empty if one may."""
    if len(names) + len(known) > MOST_VMS:
        return f"it has more than {MOST_VMS} VMs"
    longest = max(names, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        return f"the name of a VM has {len(longest)} characters: {longest[:40]!r}..."
    return ""


def _is_host_name(name: str) -> bool:
    """Whether people can call a host so; nothing that could be taken for an address."""
    return name.isprintable() and ":" not in name and 0 < len(name.encode()) <= MAX_TEXT_BYTES
