"""What is otherwise than was decided, in words. Nothing here changes anything, nor waits.

The periodic pass, the answers to events, and the operation ``check`` all look with this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from core.cpuset import format_cpu_list
from core.invariants import broken
from core.level import format_level
from core.model import Subset, Vm
from core.status import host_status
from vmstackd.host import Host, LiveVm
from vmstackd.hypervisor.base import ObservedVm, Record
from vmstackd.reconcile import Reconciliation

SHOWN_THREADS = 5
NEVER_REPAIRED = frozenset({"accounts", "owed", "unplaced", "unseen"})
"""Kinds that we can only report."""


class Found(msgspec.Struct, frozen=True):
    """One thing that is not as decided. kind: one of host.DRIFT. vm: empty where it is about the host.

    advice: what the operator can do if it is not repaired. old: it was known before, and is not counted again.
    level: whose pins or record it is about.
    """

    kind: str
    vm: str
    text: str
    advice: str = ""
    old: bool = False
    level: int = 0

    def told(self, *, repaired: bool, dry_run: bool) -> str:
        """What it is; and what to do, if it is not repaired, though that has been tried."""
        may_be_repaired = dry_run and self.kind not in NEVER_REPAIRED
        return self.text if repaired or may_be_repaired or not self.advice else f"{self.text}; {self.advice}"


def of_vms(
    host: Host,
    running: Sequence[ObservedVm],
    unknown: Mapping[str, str],
    result: Reconciliation,
    judged: Callable[[str], bool],
) -> Iterator[Found]:
    """Of the VMs that were looked at, against the state before the result is taken over.

    running: those that run, without what is in the middle of a change. unknown: those that could not be looked at, and
    why. judged: whether anything may be said of this name.
    """
    adopted = {vm.name: vm for vm in result.adopted}
    gone = frozenset(result.gone)
    sizes = {vm.name: vm for vm in running}
    for name in result.gone:
        now = sizes.get(name)
        before = host.state.vm(name)
        if now is None or before is None:
            yield Found("gone", name, "it no longer runs; what it had is given back")
        elif name in adopted or name in result.unplaced:
            yield Found("resized", name, f"it has {_size(now)} instead of {_size(before)}, and is counted as such")
    for name, vm in adopted.items():
        if name not in gone:
            yield Found(
                "adopted", name, f"it runs without being in the accounts: placed at level {format_level(vm.level)}"
            )
    for name in sorted(result.stopped - host.stopped - gone):
        if judged(name):
            yield Found("stopped", name, "it is defined but shut off; its name is taken")
    for name, unplaced in result.unplaced.items():
        if judged(name) and name not in unknown:
            yield Found(
                "unplaced",
                name,
                f"it runs outside all subsets: {unplaced.reason}",
                "make room for it, and it is placed by itself, or remove it: vmstackctl remove NAME",
                old=name in host.unplaced,
            )
    for name, why in unknown.items():
        live = host.live.get(name)
        yield Found(
            "unseen",
            name,
            f"it cannot be looked at: {why}",
            "it is tried again by itself; virsh dominfo NAME shows whether libvirt can",
            old=name in host.unplaced if live is None else bool(live.unseen),
        )
    calm = calm_levels(host)
    places = wanted_places(host)
    for seen in running:
        live, place = host.live.get(seen.name), places.get(seen.name)
        if live is not None and place is not None and seen.name not in gone:
            subset, cpus = place
            yield from _pins(seen, live, subset, cpus, calm=subset.level in calm)
            fault = record_fault(subset.vms[seen.name], subset, seen.record, host.state.generation)
            if fault:
                yield _record(seen.name, fault, subset, old=bool(live.record_fault))


def of_host(host: Host, running: Sequence[ObservedVm], known: frozenset[str]) -> Iterator[Found]:
    """Of the accounts, and of the record that each level must have; after a look at all VMs, before it is used.

    known: texts that were found the last time.
    """
    state = host.state
    calm = calm_levels(host)
    # While something is being changed, CPUs may be held for a reason that is not seen.
    busy = bool(host.busy()) or len(calm) < len(state.subsets)
    for text in broken(state, may_owe=frozenset(subset.level for subset in state.subsets)):
        yield Found(
            "accounts",
            "",
            text,
            "this is a mistake of vmstackd: restart it, then it learns everything anew, and no VM notices; "
            "please report it",
            old=text in known,
        )
    for level in host_status(state).levels:
        if level.degraded:
            text = f"level {format_level(level.level)} has {level.cpus} CPUs and needs {level.needed}"
            yield Found(
                "owed",
                "",
                text,
                "free CPUs, then deploy to this level or restart vmstackd; or remove one of its VMs",
                old=text in known,
            )
    if not busy and (loose := host.held_for_nobody()):
        yield Found("held", "", f"CPUs {_cpus(loose)} are held, and no VM may run there")
    memory_mib = sum(vm.memory_mib for vm in host.unplaced.values())
    if not busy and state.held_mib != memory_mib:
        yield Found("held", "", f"{state.held_mib} MiB are held, VMs outside all subsets have {memory_mib} MiB")
    records = {vm.name: vm.record for vm in running}
    for subset in state.subsets:
        told = [
            record
            for name, vm in subset.vms.items()
            if (record := records.get(name)) is not None and not record_fault(vm, subset, record, state.generation)
        ]
        # Where one is missing or wrong, its VM has been told of; where one was not seen, nothing is known.
        if subset.level in calm and len(told) == len(subset.vms):
            newest = max(told, key=lambda record: record.generation)
            if newest.cpus != subset.cpus:
                text = f"the newest record of level {format_level(subset.level)} tells CPUs {_cpus(newest.cpus)}, "
                text += f"not {_cpus(subset.cpus)}"
                yield _record("", text, subset, old=text in known)


def calm_levels(host: Host) -> frozenset[int]:
    """Those of which nothing is being changed, so that their VMs must be as decided."""
    busy = host.busy()
    return frozenset(
        subset.level for subset in host.state.subsets if not host.settling(subset.level) and busy.isdisjoint(subset.vms)
    )


def wanted_places(host: Host) -> dict[str, tuple[Subset, frozenset[int]]]:
    """The subset of each VM, and its CPUs as a set: there may be many VMs and many CPUs."""
    places: dict[str, tuple[Subset, frozenset[int]]] = {}
    for subset in host.state.subsets:
        places.update(dict.fromkeys(subset.vms, (subset, frozenset(subset.cpus))))
    return places


def pins_fault(vm: ObservedVm, wanted: frozenset[int]) -> tuple[str, str]:
    """What of its pins is not as decided: the kind, and in words; both empty if all of them are.

    For the hypervisor, all must be exact. Threads that only the kernel tells of may be on fewer CPUs: QEMU's helpers
    keep those of their start when the subset grows, which harms nobody, and as a service we may not move them.
    """
    if vm.pinned != wanted:
        return "pinning", f"it may run on CPUs {_cpus(vm.pinned)}, not on {_cpus(wanted)}"
    if vm.uneven:
        return "pinning", f"some of its threads may run only on some of CPUs {_cpus(wanted)}"
    wrong = {allowed: threads for allowed, threads in vm.threads.items() if not allowed <= wanted}
    if not wrong:
        return "", ""
    places = "; ".join(f"{_threads(threads)} on CPUs {_cpus(allowed)}" for allowed, threads in wrong.items())
    return "affinity", f"it is pinned to CPUs {_cpus(wanted)}, but the kernel runs {places}"


def record_fault(vm: Vm, subset: Subset, record: Record | None, generation: int) -> str:
    """What is wrong with the record of a VM, in words; empty if nothing is. generation: of the state now.

    An old record tells what was right then.
    """
    if record is None:
        return "its metadata have no record that can be read"
    if record.level != vm.level:
        return f"its record tells level {format_level(record.level)}, not {format_level(vm.level)}"
    if (record.vcpus, record.memory_mib) != (vm.vcpus, vm.memory_mib):
        return f"its record tells {_size(record)}, not {_size(vm)}"
    if record.generation > generation:
        return "its record is newer than anything that was decided"
    if record.generation == generation and record.cpus != subset.cpus:
        return f"its record tells CPUs {_cpus(record.cpus)} of its level, not {_cpus(subset.cpus)}"
    return ""


def _pins(seen: ObservedVm, live: LiveVm, subset: Subset, cpus: frozenset[int], *, calm: bool) -> Iterator[Found]:
    kind, text = pins_fault(seen, cpus)
    if not kind:
        return
    # While its level is being changed, only what nobody has ordered is strange.
    strange = seen.pinned != live.pinned and not live.pin_failure
    if kind == "pinning" and (calm or strange):
        old = bool(live.pin_failure) or not (strange or seen.uneven)
        yield Found(kind, seen.name, text, "the log of vmstackd tells why it is so", old=old, level=subset.level)
    elif kind == "affinity" and calm:
        threads = f"taskset --pid --cpu-list {_cpus(subset.cpus)} THREAD"
        advice = f"libvirt does not reach these threads, and we may not: as root, {threads}, for each of them"
        yield Found(kind, seen.name, text, advice, old=live.stuck == frozenset(seen.threads), level=subset.level)


def _record(vm: str, text: str, subset: Subset, *, old: bool) -> Found:
    advice = "it could not be written: the log of vmstackd tells why; it is tried again by itself"
    return Found("record", vm, text, advice, old=old, level=subset.level)


def _size(vm: Vm | ObservedVm | Record) -> str:
    return f"{vm.vcpus} vCPUs and {vm.memory_mib} MiB"


def _cpus(cpus: Iterable[int]) -> str:
    return format_cpu_list(sorted(cpus)) or "none"


def _threads(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - SHOWN_THREADS} more" if len(ids) > SHOWN_THREADS else ""
    return f"thread{'s' if len(ids) > 1 else ''} {', '.join(str(thread) for thread in ids[:SHOWN_THREADS])}{more}"
