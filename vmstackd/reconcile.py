"""What the hypervisor really runs against what was decided: a pure comparison.

Start-up and the periodic pass are this same function; at start-up the state is empty. Records read
from metadata are used only where they contradict nothing (DESIGN, truth lives in the hypervisor).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from core.allocator import free_cpus, hold, plan_deploy, plan_remove, restore
from core.capacity import cpus_needed
from core.level import UNIT
from core.model import HostState, Plan, Vm
from core.policy import Policy
from vmstackd.api.errors import refused
from vmstackd.api.replies import UnplacedVm
from vmstackd.hypervisor.base import ObservedVm

_LAST = 1 << 62


class Reconciliation(msgspec.Struct, frozen=True):
    """The state that fits reality. Pins are not looked at; they follow from the state.

    gone: VMs that no longer run, or not as they were. adopted: VMs that are in a subset now and were
    not before. unplaced: all running VMs that fit nowhere. stopped: defined VMs that do not run.
    """

    state: HostState
    gone: tuple[str, ...]
    adopted: tuple[Vm, ...]
    unplaced: Mapping[str, UnplacedVm]
    stopped: frozenset[str]


def reconcile(
    state: HostState,
    observed: Iterable[ObservedVm],
    policy: Policy,
    *,
    scope: frozenset[str] | None = None,
    unknown: Mapping[str, str] | None = None,
    ignore: frozenset[str] = frozenset(),
    pinned: frozenset[int] = frozenset(),
    unplaced: Mapping[str, UnplacedVm] | None = None,
    stopped: frozenset[str] = frozenset(),
) -> Reconciliation:
    """Make the state fit what was observed.

    scope: the names that were asked for; None for all. unknown: VMs that are there but could not be
    looked at, and why: one that is in a subset stays there, another one may be on any CPU, so nothing
    is free while it lasts. ignore: names in the middle of an operation.
    pinned: CPUs that VMs of subsets may still run on, so held ones among them stay held. unplaced,
    stopped: as they were before; entries outside the scope stay.
    """
    unclear = {name: why for name, why in (unknown or {}).items() if name not in ignore}
    ignore |= unclear.keys()
    seen = {vm.name: vm for vm in observed if vm.name not in ignore}
    running = {name: vm for name, vm in seen.items() if vm.running}

    def judged(name: str) -> bool:
        return name not in ignore and (scope is None or name in scope)

    earlier = dict(unplaced or {})
    for name in [name for name in earlier if judged(name)]:
        del earlier[name]
    nowhere = {name: why for name, why in unclear.items() if state.vm(name) is None}
    never_seen = nowhere.keys() - earlier.keys()
    for name, why in nowhere.items():
        # It may be on any CPU; and if it was never seen, it may have any amount of memory.
        earlier[name] = UnplacedVm(
            name=name,
            reason=f"it cannot be looked at: {why}",
            cpus=tuple(sorted(state.topology.cpu_ids)),
            memory_mib=state.memory_mib if name in never_seen else earlier[name].memory_mib,
        )

    # What was held for a VM without a place may be the place it needs; for the others it stays held.
    kept = pinned.union(*(vm.cpus for vm in earlier.values()))
    state = free_cpus(state, [cpu for cpu in state.held if cpu not in kept])
    state = hold(state, (), sum(vm.memory_mib for name, vm in earlier.items() if name not in never_seen))

    gone: list[str] = []
    level_before: dict[str, int] = {}
    for subset in state.subsets:
        for name, vm in subset.vms.items():
            if not judged(name):
                continue
            now = running.get(name)
            if now is None or (now.vcpus, now.memory_mib) != (vm.vcpus, vm.memory_mib):
                gone.append(name)
                level_before[name] = vm.level
    for name in gone:
        state = plan_remove(state, name, policy).state

    newcomers = [vm for name, vm in running.items() if state.vm(name) is None]
    state, adopted = _restored(state, newcomers, None if nowhere else policy)
    # Records of VMs that are shut off count too: whoever starts one again must not make an old subset the newest.
    strangers = [*newcomers, *(vm for vm in seen.values() if not vm.running)]
    state = _newer(state, max((vm.record.generation for vm in strangers if vm.record is not None), default=-1))
    if nowhere:
        state = hold(state, state.free.ids(), state.held_mib)
    # A daemon killed while it narrowed a subset leaves VMs on CPUs that no record gives them any more.
    state = _strays_held(state, [vm for vm in running.values() if vm.record is not None])
    placed = {vm.name for vm in adopted}
    waiting = [vm for vm in newcomers if vm.name not in placed]
    waiting.sort(key=lambda vm: (vm.name not in (unplaced or {}), _order(vm)))
    usable = frozenset(state.topology.cpu_ids)
    claims = Counter(cpu for vm in waiting for cpu in _claim(vm, usable))
    for seen_vm in waiting:
        claims.subtract(_claim(seen_vm, usable))
        reserved = _reservable(state, (cpu for cpu, count in claims.items() if count))
        vm = _as_vm(seen_vm, level_before.get(seen_vm.name))
        plan = plan_deploy(hold(state, reserved, state.held_mib), vm, policy)
        if isinstance(plan, Plan):
            state = free_cpus(plan.state, reserved)
            adopted.append(vm)
        else:
            claims.update(_claim(seen_vm, usable))
            earlier[vm.name] = UnplacedVm(
                name=vm.name,
                reason=refused(plan).message,
                cpus=tuple(sorted(seen_vm.pinned)),
                memory_mib=vm.memory_mib,
            )

    state = _strays_held(state, running.values())
    state = hold(
        state,
        sorted({cpu for vm in earlier.values() for cpu in vm.cpus}),
        sum(vm.memory_mib for vm in earlier.values()),
    )
    return Reconciliation(
        state=state,
        gone=tuple(gone),
        adopted=tuple(adopted),
        unplaced=earlier,
        stopped=frozenset(
            {name for name in stopped if not judged(name)} | {name for name, vm in seen.items() if not vm.running}
        ),
    )


def _claim(vm: ObservedVm, usable: frozenset[int]) -> frozenset[int]:
    """CPUs that nobody else may get while a VM waits for its place; one that may run anywhere claims none."""
    return frozenset() if vm.pinned >= usable else vm.pinned


def _reservable(state: HostState, cpus: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(cpu for cpu in cpus if cpu in state.free))


def _strays_held(state: HostState, running: Iterable[ObservedVm]) -> HostState:
    """Free CPUs that a VM of some subset may run on, though its subset lacks them, become held."""
    strays: set[int] = set()
    for vm in running:
        subset = state.subset_of(vm.name)
        if subset is not None:
            strays |= vm.pinned.difference(subset.cpus)
    return hold(state, sorted(strays), state.held_mib)


def _restored(state: HostState, newcomers: list[ObservedVm], policy: Policy | None) -> tuple[HostState, list[Vm]]:
    """Levels that the state lacks come back with the CPUs of their newest record.

    Two levels that claim one CPU: the newer record has it. A level that misses some of its CPUs, or
    whose record cannot be right (fewer than its VMs can do with), takes free ones instead, chosen by
    the policy; none without a policy. Levels come in the order in which their first VM arrived.
    """
    groups: dict[int, list[ObservedVm]] = {}
    for vm in newcomers:
        if vm.record is not None and state.subset(vm.record.level) is None:
            groups.setdefault(vm.record.level, []).append(vm)
    claims: dict[int, tuple[int, ...]] = {}
    lost: set[int] = set()
    claimed: set[int] = set()

    def newest(level: int) -> ObservedVm:
        return max(groups[level], key=lambda vm: (vm.record.generation if vm.record else 0, vm.name))

    for level in sorted(groups, key=lambda level: (-_generation(newest(level)), level)):
        record = newest(level).record
        vcpus = [vm.vcpus for vm in groups[level]]
        wanted = record.cpus if record is not None else ()
        claims[level] = tuple(cpu for cpu in wanted if cpu in state.free and cpu not in claimed)
        claimed.update(claims[level])
        if claims[level] != wanted or len(wanted) < cpus_needed(level, sum(vcpus), max(vcpus)):
            lost.add(level)

    adopted: list[Vm] = []
    # Levels that kept their CPUs first: those that lost some take free ones, which nobody may claim.
    for level in sorted(groups, key=lambda level: (level in lost, min(_order(vm) for vm in groups[level]))):
        memory = state.free_mib
        members: list[Vm] = []
        for observed in sorted(groups[level], key=_order):
            if observed.memory_mib <= memory:
                memory -= observed.memory_mib
                members.append(_as_vm(observed, level))
        cpus = claims[level]
        claimed.difference_update(cpus)
        if not members:
            continue
        reserved = _reservable(state, claimed)
        try:
            restored = restore(
                hold(state, reserved, state.held_mib), level, cpus, members, policy if level in lost else None
            )
        except ValueError:
            continue  # no CPU is left for it; its VMs are looked at one by one
        state = free_cpus(restored, reserved)
        adopted += members
    return state, adopted


def _newer(state: HostState, newest: int) -> HostState:
    """The state with a generation above that of every record, so that whatever is written from now on is newer."""
    return msgspec.structs.replace(state, generation=newest + 1) if newest >= state.generation else state


def _as_vm(observed: ObservedVm, level: int | None) -> Vm:
    if level is None:
        level = observed.record.level if observed.record is not None else observed.foreign_level or UNIT
    return Vm(name=observed.name, vcpus=observed.vcpus, memory_mib=observed.memory_mib, level=level)


def _order(vm: ObservedVm) -> tuple[int, str]:
    return (vm.record.arrival if vm.record is not None else _LAST, vm.name)


def _generation(vm: ObservedVm) -> int:
    return vm.record.generation if vm.record is not None else 0
