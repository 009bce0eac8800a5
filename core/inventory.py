"""The hosts of a cluster as figures, and the choice of one for a VM.

Feasibility is exact: what is chosen takes the VM if its figures are still true (``core.admission``). The arrays and
the search are in ``core.host_table``.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from core.demand import Demand, Lesson, Supply
from core.host_policy.base import HostPolicy
from core.host_table import KERNELS, MAX_HOSTS, UNKNOWN, HostTable
from core.level import UNIT
from core.status import HostStatus, LevelStatus, level_status
from core.worth import Worth

__all__ = ["KERNELS", "MAX_HOSTS", "UNKNOWN", "Choice", "Inventory"]


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The number of the chosen host, and its score under the policy."""

    host: int
    score: float


class Inventory(HostTable):
    """Hosts by number; the numbers are the order of hosts. Changed in place, by one writer.

    Levels in thousandths, memory in MiB; vcpus >= 1, memory_mib >= 0 and a level from core.level, else ValueError.
    """

    def __init__(self, lesson: Lesson | None = None) -> None:
        """lesson: what has been learnt from arrivals before, if anything."""
        self.demand = Demand(lesson)
        if self.demand.market is not None:
            self.value_by(Worth(self.demand.market))

    def arrived(self, level: int, vcpus: int, memory_mib: int) -> None:
        """Somebody asks for a VM: policies may learn from it. To be told once, before a host is chosen."""
        market = self.demand.market
        due = self.demand.arrived(level, vcpus, memory_mib)
        if due or (market is not None and self.outgrew(market.most_cpus, market.most_mib)):
            supply = Supply(*self.supply())
            if supply.servers:
                self.value_by(Worth(self.demand.look(supply)))

    def choose(
        self, policy: HostPolicy, level: int, vcpus: int, memory_mib: int, without: Iterable[int] = ()
    ) -> Choice | None:
        """The best open host that fits, of equals the lowest number; None if none fits.

        without: numbers of hosts that are passed over, such as those that have refused already.
        """
        if policy.kernel is not None:
            found = self.best(KERNELS[policy.kernel], level, vcpus, memory_mib, without)
            return None if found is None else Choice(*found)
        best: Choice | None = None
        passed = frozenset(without)
        for host, score, _ in self.scores(policy, level, vcpus, memory_mib):
            if score is not None and host not in passed and (best is None or score > best.score):
                best = Choice(host, score)
        return best

    def scores(
        self, policy: HostPolicy, level: int, vcpus: int, memory_mib: int
    ) -> list[tuple[int, float | None, str]]:
        """(host, score, "") of every host that would take the VM, (host, None, why not) of the others, in order.

        Why not is "cpu", "memory", or the reason for which the host is closed.
        """
        kernel = KERNELS[policy.kernel or "constant"]
        found: list[tuple[int, float | None, str]] = []
        for host in self.numbers():
            score, reason = self.judged(kernel, host, level, vcpus, memory_mib)
            if score is not None and policy.kernel is None:
                score = self._plain_score(policy, host, level, vcpus, memory_mib)
            found.append((host, score, reason))
        return found

    def score(self, policy: HostPolicy, host: int, level: int, vcpus: int, memory_mib: int) -> float | None:
        """The score of one host, None if it would not take the VM. KeyError if there is no such host."""
        score, _ = self.judged(KERNELS[policy.kernel or "constant"], host, level, vcpus, memory_mib)
        if score is not None and policy.kernel is None:
            return self._plain_score(policy, host, level, vcpus, memory_mib)
        return score

    def _plain_score(self, policy: HostPolicy, host: int, level: int, vcpus: int, memory_mib: int) -> float | None:
        status = self.status(host)
        return None if status is None else policy.score(status, level, vcpus, memory_mib, self.demand.market)

    def status(self, host: int) -> HostStatus | None:
        """The figures of a host, those that follow from others computed anew; None if it has none.

        KeyError if there is no such host.
        """
        found = self.figures(host)
        if found is None:
            return None
        (cpus, free, held, memory, allocated, free_mib, vms, generation), levels, critical_size, critical_sizes = found
        return HostStatus(
            cpus=cpus,
            free_cpus=free,
            held_cpus=held,
            memory_mib=memory,
            allocated_mib=allocated,
            free_mib=free_mib,
            vms=vms,
            generation=generation,
            levels=tuple(
                [
                    level_status(
                        level=level,
                        ratio=level if level_vms >= critical else UNIT,
                        following=following,
                        cpus=level_cpus,
                        vcpus=vcpus,
                        vms=level_vms,
                        widest=widest,
                        free_cpus=free,
                    )
                    for level, critical, following, level_cpus, vcpus, level_vms, widest in levels
                ]
            ),
            critical_size=critical_size,
            critical_sizes=critical_sizes,
        )

    def totals(self) -> HostStatus:
        """The sums over all hosts that have figures and are not closed as UNKNOWN; levels ascending.

        potential: of the hosts that have the level. What has no sum is 0 (generation, widest, critical size), and the
        ratio of a level is the level.
        """
        (cpus, free, held, memory, allocated, free_mib, vms), levels = self.sums()
        return HostStatus(
            cpus=cpus,
            free_cpus=free,
            held_cpus=held,
            memory_mib=memory,
            allocated_mib=allocated,
            free_mib=free_mib,
            vms=vms,
            generation=0,
            levels=tuple(
                [
                    LevelStatus(
                        level=level,
                        ratio=level,
                        cpus=level_cpus,
                        vcpus=vcpus,
                        vms=level_vms,
                        needed=needed,
                        available_thousandths=available,
                        potential_thousandths=potential,
                    )
                    for level, level_cpus, vcpus, level_vms, needed, available, potential in levels
                ]
            ),
            critical_size=0,
        )
