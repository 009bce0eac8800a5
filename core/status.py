"""The figures of a host at one moment (SEMANTICS 7)."""

from __future__ import annotations

import msgspec

from core.capacity import cpus_needed
from core.level import UNIT
from core.model import HostState, Rules

_RULES = Rules()


class LevelStatus(msgspec.Struct, frozen=True, gc=False):
    """One level.

    level, ratio and the two ``thousandths`` fields are thousandths (of vCPUs where they count vCPUs).
    ratio: what holds for its present VMs. available: vCPUs that fit without another CPU, negative
    where the subset owes; potential: vCPUs that all free CPUs would add. needed: CPUs that its
    VMs need; more than cpus means degraded. widest: vCPUs of the widest VM, 0 if the host did not say.
    """

    level: int
    ratio: int
    cpus: int
    vcpus: int
    vms: int
    needed: int
    available_thousandths: int
    potential_thousandths: int
    widest: int = 0

    @property
    def degraded(self) -> bool:
        """Whether the subset owes CPUs to its VMs."""
        return self.needed > self.cpus


class HostStatus(msgspec.Struct, frozen=True, gc=False):
    """One host; levels in order of creation, memory in MiB.

    cpus: usable ones. held_cpus: neither free nor owned, see ``core.model.HostState.held``.
    critical_size and critical_sizes: as in ``core.model.Rules``, ascending by level; with them a status
    alone is enough to decide what the host would (``core.admission``).
    """

    cpus: int
    free_cpus: int
    held_cpus: int
    memory_mib: int
    allocated_mib: int
    free_mib: int
    vms: int
    generation: int
    levels: tuple[LevelStatus, ...]
    critical_size: int = _RULES.critical_size
    critical_sizes: tuple[tuple[int, int], ...] = ()


def level_status(
    *, level: int, ratio: int, following: int, cpus: int, vcpus: int, vms: int, widest: int, free_cpus: int
) -> LevelStatus:
    """The figures of a level. following: the ratio that will hold with one more VM; free_cpus: of the host."""
    return LevelStatus(
        level=level,
        ratio=ratio,
        cpus=cpus,
        vcpus=vcpus,
        vms=vms,
        needed=cpus_needed(ratio, vcpus, widest),
        available_thousandths=cpus * following - vcpus * UNIT,
        potential_thousandths=free_cpus * following,
        widest=widest,
    )


def host_status(state: HostState) -> HostStatus:
    """The figures of a state."""
    free = state.free.count
    rules = state.rules
    found: list[LevelStatus] = []
    vms = 0
    for subset in state.subsets:
        count = len(subset.vms)
        vms += count
        found.append(
            level_status(
                level=subset.level,
                ratio=rules.ratio(subset.level, count),
                following=rules.ratio(subset.level, count + 1),
                cpus=len(subset.cpus),
                vcpus=subset.vcpus,
                vms=count,
                widest=subset.widest,
                free_cpus=free,
            )
        )
    return HostStatus(
        cpus=len(state.topology.cpu_ids),
        free_cpus=free,
        held_cpus=len(state.held),
        memory_mib=state.memory_mib,
        allocated_mib=state.allocated_mib,
        free_mib=state.free_mib,
        vms=vms,
        generation=state.generation,
        levels=tuple(found),
        critical_size=rules.critical_size,
        critical_sizes=tuple(sorted(rules.critical_sizes.items())),
    )
