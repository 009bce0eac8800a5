"""The choice of a host once more, in plain Python: what the compiled inventory is compared with.

Written from the rules alone (SEMANTICS 2, 4.1, 5, 8 and 11, with the errors of 11 corrected), for being obviously
right: every host is asked, one after the other. Levels are fractions (3/2), memory is MiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.model import HostState


@dataclass
class PlainLevel:
    """widths: vCPUs of each VM."""

    cpus: int
    widths: list[int]


@dataclass
class PlainHost:
    """What one host has. closed: why it may not be chosen; critical_of: exceptions by level."""

    cpus: int
    free: int
    memory: int
    sold: int
    free_memory: int
    critical: int
    critical_of: dict[Fraction, int] = field(default_factory=dict)
    levels: dict[Fraction, PlainLevel] = field(default_factory=dict)
    closed: str = ""

    def extra(self, level: Fraction, vcpus: int) -> int:
        """CPUs that one more VM costs."""
        if level not in self.levels:
            return vcpus
        here = self.levels[level]
        widths = [*here.widths, vcpus]
        guaranteed = len(widths) < self.critical_of.get(level, self.critical)
        need = max(*widths, ceil(sum(widths) / (Fraction(1) if guaranteed else level)))
        return max(0, need - here.cpus)

    def refusal(self, level: Fraction, vcpus: int, memory: int) -> str:
        """Why the VM does not go here; empty if it may."""
        if self.closed:
            return self.closed
        if self.extra(level, vcpus) > self.free:
            return "cpu"
        if memory > self.free_memory:
            return "memory"
        return ""

    def progress(self, level: Fraction, vcpus: int, memory: int) -> float:
        """In doubles, as the prototype computes it."""
        used = sum(here.cpus for here in self.levels.values())
        optimal = self.memory / self.cpus
        current = self.sold / used if used else optimal
        after = (self.sold + memory) / (used + self.extra(level, vcpus))
        gain = abs(current - optimal) - abs(after - optimal)
        if gain < 0:
            gain = gain * (1 + used / self.cpus)
        return gain


def plain(state: HostState, closed: str = "") -> PlainHost:
    """The facts of a state; nothing that core derives from them."""
    return PlainHost(
        cpus=len(state.topology.cpus),
        free=len(state.free.ids()),
        memory=state.memory_mib,
        sold=sum(vm.memory_mib for subset in state.subsets for vm in subset.vms.values()),
        free_memory=max(
            0,
            state.memory_mib
            - sum(vm.memory_mib for subset in state.subsets for vm in subset.vms.values())
            - state.held_mib,
        ),
        critical=state.rules.critical_size,
        critical_of={Fraction(level, 1000): size for level, size in state.rules.critical_sizes.items()},
        levels={
            Fraction(subset.level, 1000): PlainLevel(len(subset.cpus), [vm.vcpus for vm in subset.vms.values()])
            for subset in state.subsets
        },
        closed=closed,
    )


Score = Callable[[PlainHost, Fraction, int, int], float]

SCORES: dict[str, Score] = {
    "progress": PlainHost.progress,
    "first-fit": lambda *_: 0.0,
}
"""By policy."""


class ClusterOracle:
    """Hosts by number."""

    def __init__(self) -> None:
        self.hosts: dict[int, PlainHost] = {}

    def choose(
        self, policy: str, level: Fraction, vcpus: int, memory: int, without: Collection[int] = ()
    ) -> tuple[int, float] | None:
        """(host, score) of the best that takes the VM, of equals the first."""
        best: tuple[int, float] | None = None
        for number, host in sorted(self.hosts.items()):
            if number in without or host.refusal(level, vcpus, memory):
                continue
            score = SCORES[policy](host, level, vcpus, memory)
            if best is None or score > best[1]:
                best = (number, score)
        return best

    def refusals(self, level: Fraction, vcpus: int, memory: int, without: Collection[int] = ()) -> dict[str, int]:
        """Hosts by reason."""
        reasons = [host.refusal(level, vcpus, memory) for number, host in self.hosts.items() if number not in without]
        return dict(Counter(filter(None, reasons)))
