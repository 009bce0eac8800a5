"""How many CPUs a subset needs, in exact arithmetic (DESIGN of placement; SEMANTICS 4.1 and 4.4).

Ratios are levels in thousandths: vCPUs that a thousand CPUs may serve.
"""

from __future__ import annotations

from core.level import UNIT
from core.model import HostState, Rules, Subset


def cpus_needed(ratio: int, vcpus: int, widest: int) -> int:
    """CPUs for so many vCPUs at a ratio. At least the widest VM: none is oversubscribed with itself."""
    return max(widest, -(-vcpus * UNIT // ratio))


def subset_need(rules: Rules, subset: Subset) -> int:
    """CPUs that a subset needs for the VMs it has; more than it owns means that it is degraded."""
    return cpus_needed(rules.ratio(subset.level, len(subset.vms)), subset.vcpus, subset.widest)


def growth(rules: Rules, subset: Subset | None, level: int, vcpus: int) -> int:
    """CPUs that a subset (None: not yet there) must gain for one more VM of so many vCPUs; never negative."""
    if subset is None:
        return vcpus
    ratio = rules.ratio(level, len(subset.vms) + 1)
    return max(0, cpus_needed(ratio, subset.vcpus + vcpus, max(subset.widest, vcpus)) - len(subset.cpus))


def surplus(rules: Rules, subset: Subset) -> int:
    """CPUs that a subset could give up at the ratio of its present VMs (SEMANTICS 4.4); never negative.

    A subset that owes CPUs has no surplus.
    """
    ratio = rules.ratio(subset.level, len(subset.vms))
    unused = (len(subset.cpus) * ratio - subset.vcpus * UNIT) // ratio
    return max(0, min(unused, len(subset.cpus) - subset.widest))


def largest_vcpus(state: HostState, level: int) -> int:
    """vCPUs of the widest VM at a level that the CPUs of the host would still take."""
    subset = state.subset(level)
    if subset is None:
        return state.free.count
    ratio = state.rules.ratio(level, len(subset.vms) + 1)
    reach = len(subset.cpus) + state.free.count
    if reach < subset.widest:
        return 0
    return max(0, min(reach, reach * ratio // UNIT - subset.vcpus))
