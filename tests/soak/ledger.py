"""What was acknowledged: which VM is on which host, whatever the daemons say. Simulated VMs die with their daemon."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from vmstackd.api import requests


class Ledger:
    """vms: acknowledged ones, by name, with what was asked for and the host. uncertain: names of which nobody knows.

    wrong: what was answered although it cannot be, in words.
    """

    def __init__(self) -> None:
        self.vms: dict[str, tuple[requests.Deploy, str]] = {}
        self.uncertain: set[str] = set()
        self.wrong: list[str] = []
        self.died = 0
        self._lives: Counter[str] = Counter()
        self._leaving: set[str] = set()

    def lives(self) -> Mapping[str, int]:
        """How often each host has died: to be asked before each call, and given with its answer."""
        return dict(self._lives)

    def died_all(self, host: str) -> None:
        """The daemon of this host has ended, and its VMs with it; the next one is not started yet."""
        self._lives[host] += 1
        for name in [name for name, (_, where) in self.vms.items() if where == host]:
            del self.vms[name]
            self.died += 1

    def deployed(self, request: requests.Deploy, host: str, lives: Mapping[str, int]) -> None:
        """It was acknowledged. lives: before it was asked for."""
        if self._lives[host] != lives.get(host, 0):
            self.uncertain.add(request.name)  # it may have been the life before
        else:
            self.vms[request.name] = (request, host)

    def unclear(self, name: str) -> None:
        """It may be there or not."""
        self.vms.pop(name, None)
        self.uncertain.add(name)

    def take(self, names: Collection[str]) -> str | None:
        """One of these that is there, for one caller alone to remove, who says how that ``ended``; None if none is."""
        there = [name for name in names if name in self.vms and name not in self._leaving]
        if not there:
            return None
        name = random.choice(there)
        self._leaving.add(name)
        return name

    def ended(self, name: str) -> None:
        """The attempt to remove it has."""
        self._leaving.discard(name)

    def removed(self, name: str) -> None:
        """It was acknowledged that it is gone."""
        self.vms.pop(name, None)

    def missing(self, name: str, host: str, lives: Mapping[str, int]) -> None:
        """It was answered that there is no such VM. lives: before it was asked for."""
        if self._lives[host] == lives.get(host, 0):
            self.wrong.append(f"{name} was acknowledged on {host}, and is not there")
        self.vms.pop(name, None)

    def differences(self, found: Iterable[tuple[str, str]]) -> list[str]:
        """Between what was acknowledged and (VM, host) as somebody tells them, in words."""
        seen: dict[str, list[str]] = {}
        for name, host in found:
            seen.setdefault(name, []).append(host)
        wrong = [f"{name} is on {', '.join(hosts)}" for name, hosts in seen.items() if len(hosts) > 1]
        for name, (_, host) in self.vms.items():
            if host not in seen.get(name, ()):
                wrong.append(f"{name} was acknowledged on {host}, and is not there")
        unknown = seen.keys() - self.vms.keys() - self.uncertain
        wrong += [f"{name} is on {seen[name][0]}, and nobody was told so" for name in sorted(unknown)]
        return wrong
