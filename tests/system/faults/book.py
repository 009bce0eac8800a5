"""What clients were told of each VM, and which ones a fault has taken; and how that differs from what is there."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from tests.simulation.ledger import Known, Ledger
from vmstackd.api import requests
from vmstackd.api.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Denied,
    Internal,
    InvalidRequest,
    NotFound,
    VmstackError,
)

LOST, TWICE, THERE, STRANGE = "VMs lost", "VMs twice", "removed but there", "there but refused, or unknown to all"
PINS, ACCOUNTS = "pins wrong", "accounts wrong"
IMPOSSIBLE = "answers that cannot be"
KINDS = (LOST, TWICE, THERE, STRANGE, PINS, ACCOUNTS, IMPOSSIBLE)
"""What can be wrong; all must be 0."""


class Book:
    """levels: of all that were ever ordered. hosts: where each VM is, as far as was told. By their names.

    impossible: answers that cannot be, in words. killed: how many VMs faults have taken.
    """

    def __init__(self) -> None:
        self._ledger = Ledger()
        self.levels: dict[str, int] = {}
        self.hosts: dict[str, str] = {}
        self.impossible: list[str] = []
        self.killed = 0
        self._removed: set[str] = set()
        self._doors: dict[str, set[str]] = {}
        self._absent: set[str] = set()

    def alive(self) -> list[str]:
        """VMs that may be there, and those that are being ordered."""
        return [
            name
            for name, entry in self._ledger.entries.items()
            if not entry.ended and (entry.asked or (entry.known is not Known.GONE and name not in self._absent))
        ]

    def removable(self, host: str = "") -> list[str]:
        """VMs that may be there, about which nothing is being asked; of this host, or any."""
        entries = self._ledger.entries
        return [name for name in self.alive() if not entries[name].asked and host in ("", self.hosts.get(name))]

    def unclear(self) -> list[str]:
        """VMs of which nobody knows whether they are there."""
        return self._ledger.settled(Known.UNCLEAR)

    def ordered(self, order: requests.Deploy) -> None:
        """It is about to be asked for, under a name that nobody has used."""
        self.levels[order.name] = order.level
        self._ledger.begin(order.name)

    def deployed(self, name: str, host: str, door: str = "") -> None:
        """So it was answered. door: host that was asked; empty: globald. It may not have heard of it if a host was."""
        self.hosts[name] = host
        self._doors[name] = {host, door}
        self._ledger.end(name, Known.THERE, new=True)

    def not_deployed(self, name: str, error: VmstackError, *, hung_up: bool) -> Known:
        """So it was answered, or we were hung up on. Returns what is known now."""
        known = _known(error, hung_up=hung_up, otherwise=Known.GONE)
        self._ledger.end(name, known)
        if isinstance(error, AlreadyExists | NotFound | InvalidRequest | Denied | Internal):
            self.impossible.append(f"deploying {name}, a new name: {error.code}: {error.message}")
        return known

    def leaving(self, name: str) -> Known:
        """It is about to be removed. Returns what was known before."""
        return self._ledger.begin(name)

    def removed(self, name: str) -> None:
        """So it was answered."""
        self._removed.add(name)
        self._ledger.end(name, Known.GONE)

    def not_removed(self, name: str, before: Known, error: VmstackError, *, hung_up: bool, door: str = "") -> Known:
        """So it was answered, or we were hung up on. before: as ``leaving`` said. Returns what is known now."""
        known = _known(error, hung_up=hung_up, otherwise=before)
        self._ledger.end(name, known)
        expected = before is Known.THERE and not self._ledger.entries[name].ended and door in self._doors[name]
        if (isinstance(error, NotFound) and expected) or isinstance(
            error, AlreadyExists | InvalidRequest | Denied | Internal
        ):
            self.impossible.append(f"removing {name}, which is {before.value}: {error.code}: {error.message}")
        return known

    def died(self, name: str) -> None:
        """A fault is about to kill it."""
        self.killed += 1
        self._ledger.died(name)

    def victim(self, rng: random.Random, names: Sequence[str]) -> str | None:
        """One of these that is ours to kill; None if none is."""
        ours = [name for name in names if name in self._ledger.entries]
        return rng.choice(ours) if ours else None

    def found(self, places: Mapping[str, Sequence[str]]) -> None:
        """All is calm, and these are there, with their hosts: what was unclear is clear now."""
        for name, hosts in places.items():
            self._doors[name] = {"", *hosts}
        for name in self._ledger.settled(Known.UNCLEAR):
            if name in places:
                self._ledger.entries[name].known = Known.THERE
                self.hosts[name] = places[name][0]
                self._absent.discard(name)
            else:
                self._absent.add(name)

    def differences(self, places: Mapping[str, Sequence[str]], defined: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Kind and words of each. places: hosts by VM that runs, each as often as it does; defined: host by VM.

        Nothing may be under way.
        """
        for name, hosts in places.items():
            if len(hosts) > 1:
                yield TWICE, f"{name} runs on {', '.join(hosts)}"
        for name, host in {**defined, **{name: hosts[0] for name, hosts in places.items()}}.items():
            if name not in self._ledger.entries:
                yield STRANGE, f"{name} is on {host}, and nobody ordered it"
            elif self._ledger.entries[name].known is Known.GONE:
                kind = THERE if name in self._removed else STRANGE
                yield kind, f"{name} is on {host}, {'running' if name in places else 'shut off'}"
        for name in self._ledger.settled(Known.THERE):
            if name not in places and not self._ledger.entries[name].ended:
                yield LOST, f"{name} was acknowledged on {self.hosts.get(name)}"


def _known(error: VmstackError, *, hung_up: bool, otherwise: Known) -> Known:
    if hung_up or isinstance(error, DeadlineExceeded | Internal) or error.details.get("outcome") == "unknown":
        return Known.UNCLEAR
    return otherwise
