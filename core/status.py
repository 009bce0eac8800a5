"""The figures of a host at one moment (SEMANTICS 7)."""

from __future__ import annotations

import msgspec

from core.capacity import cpus_needed
from core.level import UNIT
from core.model import HostState


class LevelStatus(msgspec.Struct, frozen=True, gc=False):
    """One level.

    level, ratio and the two ``thousandths`` fields are thousandths (of vCPUs where they count vCPUs).
    ratio: what holds for its present VMs. available: vCPUs that fit without another CPU, negative
    where the subset owes; potential: vCPUs that all free CPUs would add. needed: CPUs that its
    VMs need; more than cpus means degraded.
    """

    level: int
    ratio: int
    cpus: int
    vcpus: int
    vms: int
    needed: int
    available_thousandths: int
    potential_thousandths: int

    @property
    def degraded(self) -> bool:
        """Whether the subset owes CPUs to its VMs."""
        return self.needed > self.cpus


class HostStatus(msgspec.Struct, frozen=True, gc=False):
    """One host; levels in order of creation, memory in MiB.

    cpus: usable ones. held_cpus: neither free nor owned, see ``core.model.HostState.held``.
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


def host_status(state: HostState) -> HostStatus:
    """The figures of a state."""
    free = state.free.count
    rules = state.rules
    found: list[LevelStatus] = []
    vms = 0
    for subset in state.subsets:
        count = len(subset.vms)
        vms += count
        cpus = len(subset.cpus)
        ratio = rules.ratio(subset.level, count)
        following = rules.ratio(subset.level, count + 1)
        found.append(
            LevelStatus(
                level=subset.level,
                ratio=ratio,
                cpus=cpus,
                vcpus=subset.vcpus,
                vms=count,
                needed=cpus_needed(ratio, subset.vcpus, subset.widest),
                available_thousandths=cpus * following - subset.vcpus * UNIT,
                potential_thousandths=free * following,
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
    )
