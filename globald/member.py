"""What is known of one host, and what it was asked."""

from __future__ import annotations

import time
from enum import Enum

from core.status import HostStatus
from globald.sources import Entry
from vmstackd.api import replies, session
from vmstackd.api.errors import Unavailable
from vmstackd.client import Client

LONGEST_TEXT = 300
"""Characters of what a host says, in what we say."""


class State(Enum):
    """Of a host. What a host that is up may say of itself, being cordoned for one, is not here."""

    CONNECTING = replies.CONNECTING
    UP = replies.UP
    UNKNOWN = replies.SILENT
    QUARANTINED = replies.QUARANTINED


class Quarantine(Exception):
    """A host has said something that cannot be true, or is not what it should be. The text is the reason."""


def short(text: str) -> str:
    """What a host says, no longer than anybody reads."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


class Reservation:
    """A VM that a host was asked to deploy.

    generation: the host's, once it has answered; a status with this one or a higher has the VM. counted: every status
    from now on has it, answered or not. seen: an event has told of it. uncertain: nobody knows whether the host has it.
    """

    __slots__ = ("counted", "generation", "level", "member", "memory_mib", "name", "seen", "uncertain", "vcpus")

    def __init__(self, name: str, member: Member, level: int, vcpus: int, memory_mib: int) -> None:
        self.name = name
        self.member = member
        self.level = level
        self.vcpus = vcpus
        self.memory_mib = memory_mib
        self.generation: int | None = None
        self.counted = self.seen = self.uncertain = False


class Removal:
    """A VM that a host was asked to remove. seen: an event has told that it is gone."""

    __slots__ = ("member", "name", "seen")

    def __init__(self, name: str, member: Member) -> None:
        self.name = name
        self.member = member
        self.seen = False


class Member:
    """One host. number: its place in host order. since: seconds since 1970. heard: of the event loop's clock.

    names: of its VMs; others: of those that are in no level or shut off, as it last told; leaving: of those that
    have ended, until it tells whether they are shut off now. expected: how it told last that it is, with what it has
    been asked since. ahead: kinds of events that are still to come for what it has answered already, by VM; whatever
    else it tells of that VM before is older. emptied: the generation of the last removal that it has answered. dropped:
    it is no longer one of the cluster.
    """

    def __init__(self, number: int, entry: Entry) -> None:
        self.number = number
        self.entry = entry
        self.state = State.CONNECTING
        self.reason = "not yet reached"
        self.since = time.time()
        self.name = entry.address
        self.uuid = ""
        self.version = ""
        self.client: Client | None = None
        self.heard: float | None = None
        self.reply: replies.StatusReply | None = None
        self.names: set[str] = set()
        self.others: frozenset[str] = frozenset()
        self.leaving: set[str] = set()
        self.pending: dict[str, Reservation] = {}
        self.removals: dict[str, list[Removal]] = {}
        self.ahead: dict[str, list[type[session.Event]]] = {}
        self.emptied = 0
        self.dropped = False
        self.expected: HostStatus | None = None
        self.alone = (self,)

    @property
    def shown_state(self) -> tuple[str, str]:
        """The state for people and programs, and why."""
        if self.state is not State.UP or self.reply is None:
            return self.state.value, self.reason
        state, reason = self.reply.state
        return state, short(reason)

    @property
    def closed(self) -> str:
        """Why it can have no new VM now; empty if it can."""
        return replies.closed(self.shown_state[0])

    @property
    def connection(self) -> Client:
        """To a host that is up. Raises Unavailable."""
        client = self.client
        if self.state is State.UP and client is not None and client.lost is not None:
            raise Unavailable(f"host {self.name!r} is {State.UNKNOWN.value}: {client.lost.message}", host=self.name)
        if self.state is not State.UP or client is None:
            raise Unavailable(f"host {self.name!r} is {self.state.value}: {self.reason}", host=self.name)
        return client

    def has(self, name: str) -> bool:
        """Whether a VM of this name is there, as far as is known."""
        return name in self.names or name in self.others or name in self.leaving
