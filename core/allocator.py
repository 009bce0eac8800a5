"""Decisions on one host: each takes a state and returns a plan or a refusal, and changes nothing.

A CPU that a subset gives up is held, not free, in the plan's state: VMs of the subset may still run
on it. ``free_cpus`` frees it once they do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from core.capacity import cpus_needed, growth, largest_vcpus, subset_need
from core.distances import CpuPool
from core.model import HostState, Pin, Plan, Refusal, Rules, Subset, Vm
from core.policy.base import Policy
from core.topology import Topology


def empty_state(topology: Topology, rules: Rules, reserved_mib: int = 0) -> HostState:
    """A host without VMs. reserved_mib of its memory are not for VMs."""
    return HostState(
        topology=topology,
        rules=rules,
        memory_mib=max(0, topology.memory_mib - reserved_mib),
        subsets=(),
        free=topology.distances.pool(),
    )


def refusal(state: HostState, level: int, vcpus: int, memory_mib: int) -> Refusal | None:
    """Why a VM of this size does not fit at this level now, CPU before memory; None if it does."""
    needed = growth(state.rules, state.subset(level), level, vcpus)
    if needed > state.free.count:
        return _refused(state, "cpu", level, needed, state.free.count)
    if memory_mib > state.free_mib:
        return _refused(state, "memory", level, memory_mib, state.free_mib)
    return None


def _refused(
    state: HostState, resource: Literal["cpu", "memory", "name"], level: int, needed: int, free: int
) -> Refusal:
    return Refusal(
        resource=resource,
        level=level,
        needed=needed,
        free=free,
        largest_vcpus=largest_vcpus(state, level),
        largest_mib=state.free_mib,
    )


def plan_deploy(state: HostState, vm: Vm, policy: Policy) -> Plan | Refusal:
    """Place a VM: extend the subset of its level, or create it (SEMANTICS 4.1 to 4.3, 5).

    vm.vcpus >= 1, vm.memory_mib >= 1 and a level from core.level are the caller's to ensure.
    """
    if state.subset_of(vm.name) is not None:
        return _refused(state, "name", vm.level, 1, 0)
    refused = refusal(state, vm.level, vm.vcpus, vm.memory_mib)
    if refused is not None:
        return refused
    subset = state.subset(vm.level)
    count = growth(state.rules, subset, vm.level, vm.vcpus)
    if subset is None:
        taken = policy.create(state, count)
        sums = state.topology.distances.sums(taken)
        grown = Subset(vm.level, taken, {vm.name: vm}, vm.vcpus, {vm.vcpus: 1}, sums)
    else:
        taken = policy.grow(state, subset, count) if count else ()
        grown = _with_vm(subset, vm, taken)
    return Plan(
        before=state,
        state=_next(
            state,
            _replaced(state.subsets, subset, grown),
            free=state.free.minus(taken),
            allocated_mib=state.allocated_mib + vm.memory_mib,
        ),
        vm=vm,
        taken=taken,
        released=(),
        pins=(Pin(vms=tuple(grown.vms) if taken else (vm.name,), cpus=grown.cpus),),
    )


def plan_remove(state: HostState, name: str, policy: Policy) -> Plan:
    """Take a VM out of its subset and let the subset shrink (SEMANTICS 4.4); an empty level is forgotten.

    Raises KeyError if no subset has the VM.
    """
    subset = state.subset_of(name)
    if subset is None:
        raise KeyError(name)
    vm = subset.vms[name]
    rest = _without_vm(subset, vm)
    taken: tuple[int, ...] = ()
    if rest is None:
        released = subset.cpus
    else:
        taken, released = policy.after_removal(state, rest)
        if taken or released:
            rest = _with_cpus(rest, taken, released)
    return _plan_leaving(state, vm, subset, rest, taken, released)


def plan_withdraw(state: HostState, plan: Plan) -> Plan:
    """Undo the deployment that a plan made, because its VM could not be started.

    If the subset has not changed since, it is exactly as before; else it gives up what the others
    can spare of the CPUs that it took. Raises KeyError if the VM is in no subset.
    """
    subset = state.subset_of(plan.vm.name)
    if subset is None:
        raise KeyError(plan.vm.name)
    earlier = plan.before.subset(plan.vm.level)
    if subset is plan.state.subset(plan.vm.level):
        return _plan_leaving(state, plan.vm, subset, earlier, (), plan.taken)
    rest = _without_vm(subset, plan.vm)
    if rest is None:
        return _plan_leaving(state, plan.vm, subset, None, (), subset.cpus)
    spare = max(0, len(rest.cpus) - subset_need(state.rules, rest))
    took = frozenset(plan.taken)
    released = tuple(cpu for cpu in rest.cpus if cpu in took)
    released = released[max(0, len(released) - spare) :]
    if released:
        rest = _with_cpus(rest, (), released)
    return _plan_leaving(state, plan.vm, subset, rest, (), released)


def restore(
    state: HostState, level: int, cpus: Iterable[int], vms: Iterable[Vm], policy: Policy | None = None
) -> HostState:
    """Put a level back as it was found, without judging whether it has the CPUs it needs.

    cpus must be free, in attribution order; vms in order of arrival, at least one, with new names.
    With a policy, free CPUs are added up to what the VMs need. Raises ValueError otherwise.
    """
    members = {vm.name: vm for vm in vms}
    if not members or state.subset(level) is not None or any(state.subset_of(name) for name in members):
        raise ValueError(f"level {level} cannot be restored: no VM, or the level or a VM is there already")
    widths: dict[int, int] = {}
    for vm in members.values():
        widths[vm.vcpus] = widths.get(vm.vcpus, 0) + 1
    owned = tuple(cpus)
    vcpus = sum(vm.vcpus for vm in members.values())
    free = state.free.minus(owned)
    if policy is not None:
        need = cpus_needed(state.rules.ratio(level, len(members)), vcpus, max(widths))
        count = min(need - len(owned), free.count)
        if count > 0:
            remaining = _next(state, state.subsets, free=free)
            if owned:
                found = Subset(level, owned, members, vcpus, widths, state.topology.distances.sums(owned))
                taken = policy.grow(remaining, found, count)
            else:
                taken = policy.create(remaining, count)
            owned, free = owned + taken, free.minus(taken)
    if not owned:
        raise ValueError(f"level {level} cannot be restored: no CPU is free for it")
    subset = Subset(level, owned, members, vcpus, widths, state.topology.distances.sums(owned))
    return _next(
        state,
        (*state.subsets, subset),
        free=free,
        allocated_mib=state.allocated_mib + sum(vm.memory_mib for vm in members.values()),
    )


def free_cpus(state: HostState, cpus: Iterable[int]) -> HostState:
    """Held CPUs become free. ValueError if one of them is not held."""
    freed = tuple(cpus)
    if not freed:
        return state
    gone = frozenset(freed)
    if not gone.issubset(state.held):
        raise ValueError(f"CPUs {sorted(gone.difference(state.held))} are not held")
    return _next(
        state,
        state.subsets,
        free=state.free.plus(freed),
        held=tuple(cpu for cpu in state.held if cpu not in gone),
    )


def hold(state: HostState, cpus: Iterable[int], memory_mib: int) -> HostState:
    """Free CPUs among these become held, and so much memory in all counts as used by VMs of no subset."""
    kept = tuple([cpu for cpu in dict.fromkeys(cpus) if cpu in state.free])
    if not kept and memory_mib == state.held_mib:
        return state
    return _next(
        state,
        state.subsets,
        free=state.free.minus(kept),
        held=tuple(sorted((*state.held, *kept))),
        held_mib=memory_mib,
    )


def progress(state: HostState, level: int, vcpus: int, memory_mib: int) -> float:
    """How much a VM would bring the host's memory per CPU nearer to the hardware's (SEMANTICS 8).

    In MiB per CPU; larger is better. Whether the VM fits is not looked at; see ``refusal``.
    """
    total = len(state.topology.cpu_ids)
    used = 0
    for subset in state.subsets:
        used += len(subset.cpus)
    extra = growth(state.rules, state.subset(level), level, vcpus)
    optimal = state.memory_mib / total
    current = state.allocated_mib / used if used else optimal
    after = (state.allocated_mib + memory_mib) / (used + extra)
    gain = abs(current - optimal) - abs(after - optimal)
    return gain * (1 + used / total) if gain < 0 else gain


def _plan_leaving(
    state: HostState,
    vm: Vm,
    subset: Subset,
    rest: Subset | None,
    taken: tuple[int, ...],
    released: tuple[int, ...],
) -> Plan:
    pins: tuple[Pin, ...] = ()
    if rest is not None and (taken or released):
        pins = (Pin(vms=tuple(rest.vms), cpus=rest.cpus),)
    return Plan(
        before=state,
        state=_next(
            state,
            _replaced(state.subsets, subset, rest),
            free=state.free.minus(taken),
            held=tuple(sorted((*state.held, *released))) if released else state.held,
            allocated_mib=state.allocated_mib - vm.memory_mib,
        ),
        vm=vm,
        taken=taken,
        released=released,
        pins=pins,
    )


def _next(
    state: HostState,
    subsets: tuple[Subset, ...],
    free: CpuPool | None = None,
    held: tuple[int, ...] | None = None,
    allocated_mib: int | None = None,
    held_mib: int | None = None,
) -> HostState:
    return HostState(
        state.topology,
        state.rules,
        state.memory_mib,
        subsets,
        state.free if free is None else free,
        state.held if held is None else held,
        state.allocated_mib if allocated_mib is None else allocated_mib,
        state.held_mib if held_mib is None else held_mib,
        state.generation + 1,
    )


def _replaced(subsets: tuple[Subset, ...], old: Subset | None, new: Subset | None) -> tuple[Subset, ...]:
    if old is None:
        return subsets if new is None else (*subsets, new)
    if new is None:
        return tuple([subset for subset in subsets if subset is not old])
    return tuple([new if subset is old else subset for subset in subsets])


def _with_vm(subset: Subset, vm: Vm, taken: tuple[int, ...]) -> Subset:
    vms = subset.vms.copy()  # keeps the fast copy of a table with holes, unlike dict()
    vms[vm.name] = vm
    widths = subset.widths.copy()
    widths[vm.vcpus] = widths.get(vm.vcpus, 0) + 1
    return Subset(subset.level, subset.cpus + taken, vms, subset.vcpus + vm.vcpus, widths, subset.sums.plus(taken))


def _without_vm(subset: Subset, vm: Vm) -> Subset | None:
    if len(subset.vms) == 1:
        return None
    vms = subset.vms.copy()  # keeps the fast copy of a table with holes, unlike dict()
    del vms[vm.name]
    widths = subset.widths.copy()
    if widths[vm.vcpus] == 1:
        del widths[vm.vcpus]
    else:
        widths[vm.vcpus] -= 1
    return Subset(subset.level, subset.cpus, vms, subset.vcpus - vm.vcpus, widths, subset.sums)


def _with_cpus(subset: Subset, taken: tuple[int, ...], released: tuple[int, ...]) -> Subset:
    keep = len(subset.cpus) - len(released)
    if subset.cpus[keep:] == released:
        kept = subset.cpus[:keep]
    else:
        gone = frozenset(released)
        kept = tuple([cpu for cpu in subset.cpus if cpu not in gone])
    sums = subset.sums.plus(taken).minus(released)
    return Subset(subset.level, kept + taken, subset.vms, subset.vcpus, subset.widths, sums)
