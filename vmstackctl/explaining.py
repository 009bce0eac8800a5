"""Why a VM would go on the host that it would: every host's score, or what there is against it."""

from __future__ import annotations

import msgspec

from core.admission import growth_on
from core.host_policy import HostPolicy
from vmstackctl.inventory_file import to_inventory
from vmstackctl.saved_inventory import SavedHost, SavedInventory
from vmstackctl.values import count, memory
from vmstackd.api.errors import NoCapacity

_IN_WORDS = {"cpu": "no cpu", "memory": "no memory"}


class Candidate(msgspec.Struct, frozen=True):
    """One host. score: larger is better; None if it would not take the VM, for this reason: "cpu", "memory", or why it
    is closed. why: in words. needed_cpus: that the level would have to gain; with what is free, None if it never told.
    """

    name: str
    state: str
    score: float | None
    reason: str
    why: str
    needed_cpus: int | None
    free_cpus: int | None
    free_mib: int | None


class Explanation(msgspec.Struct, frozen=True):
    """policy: that has decided. chosen: the name of a host, None if none takes the VM. hosts: the best one first, of
    equals in host order; behind them those that would not take it, in host order.
    """

    policy: str
    level: int
    vcpus: int
    memory_mib: int
    chosen: str | None
    hosts: tuple[Candidate, ...]

    def require_chosen(self) -> None:
        """Raises NoCapacity with the number of hosts for each reason."""
        if self.chosen is not None:
            return
        counts: dict[str, int] = {}
        for host in self.hosts:
            counts[host.reason] = counts.get(host.reason, 0) + 1
        reasons = ", ".join(f"{amount} {_IN_WORDS.get(reason, reason)}" for reason, amount in counts.items())
        found = f"{count(len(self.hosts), 'host')}{': ' if reasons else ''}{reasons}"
        raise NoCapacity(f"no host for it: {found}; vmstackctl capacity shows what fits")


def explain(inventory: SavedInventory, policy: HostPolicy, level: int, vcpus: int, memory_mib: int) -> Explanation:
    """What would be decided if the VM was asked for now. Of a size that requests allow."""
    hosts = to_inventory(inventory)
    hosts.arrived(level, vcpus, memory_mib)  # as globald does before it chooses; here nobody remembers
    choice = hosts.choose(policy, level, vcpus, memory_mib)
    taking: list[Candidate] = []
    refusing: list[Candidate] = []
    for number, score, reason in hosts.scores(policy, level, vcpus, memory_mib):
        host = inventory.hosts[number]
        candidate = Candidate(
            name=host.name,
            state=host.state,
            score=score,
            reason=reason,
            why="" if score is not None else _closed(host) if host.closed else _short(host, level, vcpus, memory_mib),
            needed_cpus=None if host.status is None else growth_on(host.status, level, vcpus),
            free_cpus=None if host.status is None else host.status.free_cpus,
            free_mib=None if host.status is None else host.status.free_mib,
        )
        (refusing if score is None else taking).append(candidate)
    taking.sort(key=_score, reverse=True)
    return Explanation(
        policy=policy.name,
        level=level,
        vcpus=vcpus,
        memory_mib=memory_mib,
        chosen=None if choice is None else inventory.hosts[choice.host].name,
        hosts=(*taking, *refusing),
    )


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None  # noqa: S101  only those with a score are sorted
    return candidate.score


def _closed(host: SavedHost) -> str:
    return f"{host.state}: {host.reason}" if host.reason else host.state


def _short(host: SavedHost, level: int, vcpus: int, memory_mib: int) -> str:
    """By how much, of each resource that is."""
    status = host.status
    if status is None:
        return "it has never told its figures"
    needed = growth_on(status, level, vcpus)
    found = []
    if needed > status.free_cpus:
        found.append(f"CPU: needs {needed}, {status.free_cpus} free, {needed - status.free_cpus} short")
    if memory_mib > status.free_mib:
        found.append(
            f"memory: needs {memory(memory_mib)}, {memory(status.free_mib)} free, "
            f"{memory(memory_mib - status.free_mib)} short"
        )
    return "; ".join(found)
