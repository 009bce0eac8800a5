"""What must hold in every state, whatever the policy (DESIGN, rules of placement)."""

from __future__ import annotations

from collections import Counter

from core.capacity import cpus_needed
from core.level import HIGHEST, LOWEST, format_level
from core.model import HostState


def broken(state: HostState, may_owe: frozenset[int] = frozenset()) -> list[str]:
    """Every broken rule, in words; empty when all hold.

    may_owe: levels that are known to be degraded, whose debt is therefore no surprise.
    """
    found: list[str] = []
    owner: dict[int, str] = {}
    for place, cpus in [("free", state.free.ids()), ("held", state.held)] + [
        (f"level {format_level(subset.level)}", subset.cpus) for subset in state.subsets
    ]:
        for cpu in cpus:
            if cpu in owner:
                found.append(f"CPU {cpu} is {owner[cpu]} and {place}")
            owner[cpu] = place
    usable = frozenset(state.topology.cpu_ids)
    if owner.keys() - usable:
        found.append(f"CPUs {sorted(owner.keys() - usable)} are not usable CPUs of the host")
    if usable - owner.keys():
        found.append(f"CPUs {sorted(usable - owner.keys())} are nowhere")
    levels = [subset.level for subset in state.subsets]
    if len(set(levels)) != len(levels):
        found.append(f"a level has two subsets: {levels}")
    home: dict[str, int] = {}
    allocated = 0
    for subset in state.subsets:
        label = f"level {format_level(subset.level)}"
        if not LOWEST <= subset.level <= HIGHEST:
            found.append(f"{label} is no level")
        if not subset.vms:
            found.append(f"{label} has no VM")
            continue
        for name, vm in subset.vms.items():
            if name in home:
                found.append(f"VM {name!r} is in two subsets")
            home[name] = subset.level
            if vm.name != name or vm.level != subset.level or vm.vcpus < 1 or vm.memory_mib < 1:
                found.append(f"{label} has the wrong VM {vm} as {name!r}")
            allocated += vm.memory_mib
        widths = [vm.vcpus for vm in subset.vms.values()]
        if subset.vcpus != sum(widths) or subset.widths != Counter(widths):
            found.append(f"{label} counts {subset.vcpus} vCPUs, widths {subset.widths}; its VMs have {widths}")
        need = cpus_needed(state.rules.ratio(subset.level, len(widths)), sum(widths), max(widths))
        if usable.issuperset(subset.cpus) and subset.sums != state.topology.distances.sums(subset.cpus):
            found.append(f"{label} has distances that are not those of its CPUs")
        if need > len(subset.cpus) and subset.level not in may_owe:
            found.append(f"{label} has {len(subset.cpus)} CPUs and needs {need}")
    if allocated != state.allocated_mib:
        found.append(f"{state.allocated_mib} MiB are counted as allocated, the VMs have {allocated} MiB")
    if state.allocated_mib > state.memory_mib:
        found.append(f"{state.allocated_mib} MiB are allocated of {state.memory_mib} MiB")
    return found
