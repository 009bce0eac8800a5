"""A recorded experiment decided anew (SEMANTICS 14, with its mistakes corrected): samples in, decisions out.

VMs are known by uuid, by name where none was recorded. A VM arrives with the first sample that has it and departs
with the first that has not; one that comes back after a gap is a new arrival. What was decided when the trace was
recorded is not looked at. In each sample, first come the arrivals in the order of the file, then the departures in the
order of arrival, then the VMs whose size or level is another than before: these have departed with the others, and
arrive again. A VM whose memory is not told is not placed until it is. One that is refused stays away as long as it
stays the same; nothing else changes for it.

A value of a sample tells of the time since the sample before, so this is the time that each sample stands for in sums
and means; the first one stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from core.allocator import free_cpus, plan_deploy, plan_remove
from core.model import HostState, Refusal, Subset, Vm
from core.policy.base import Policy
from core.trace import Sample, TracedLevel, TracedVm, traced_level

_ROUNDING = 1e-6
"""CPUs: values of a trace are rounded, and so much above what is owned is not more than it."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What was decided about one VM. vm: as it was to be placed; its name has the uuid added where another VM of this
    name was on the host. uuid: "" if not recorded. refusal: why it was not done, None if it was. cpus: those of its
    level after the decision, in attribution order. taken, released: how they differ from before.
    """

    operation: Literal["deploy", "remove"]
    vm: Vm
    uuid: str
    refusal: Refusal | None
    cpus: tuple[int, ...]
    taken: tuple[int, ...] = ()
    released: tuple[int, ...] = ()


class Moment(msgspec.Struct, frozen=True):
    """One sample, decided. time: as in the trace. changed: whether the state is another than a sample ago; so is
    the first.
    """

    time: int
    decisions: tuple[Decision, ...]
    state: HostState
    changed: bool


class LevelSummary(msgspec.Struct, frozen=True, gc=False):
    """One level, in thousandths. vms: that arrived, refused ones included. most_*: in one sample, after its decisions.
    mean_cpus: owned, over the whole time. busy: of its placed VMs; mean_busy is over the whole time as well, where
    what is not known counts as nothing. busy_share: of the CPUs owned, where known. overloaded: samples in which more
    CPUs were busy than owned, so that somebody waited. delay_s: waited as recorded. None: never known.
    """

    level: int
    vms: int
    refused_cpu: int
    refused_memory: int
    most_vms: int
    most_vcpus: int
    most_cpus: int
    mean_cpus: float
    mean_busy: float | None
    most_busy: float | None
    busy_share: float | None
    overloaded: int
    delay_s: float | None


class Summary(msgspec.Struct, frozen=True):
    """A whole replay. seconds: from the first sample to the last. cpus, memory_mib: of the host, for VMs. vms: that
    arrived, refused ones included. untold: VMs that were never placed, because nothing told their memory.
    fewest_free_cpus, most_memory_mib (sold), most_busy (CPUs, by VMs): in one sample, after its decisions. levels:
    ascending.
    """

    samples: int
    seconds: int
    cpus: int
    memory_mib: int
    vms: int
    refused_cpu: int
    refused_memory: int
    untold: int
    fewest_free_cpus: int
    most_memory_mib: int
    most_busy: float | None
    levels: tuple[LevelSummary, ...]


class _Level(msgspec.Struct):
    """Accounts of one level. busy, delay: of the present sample. *_time: CPU seconds; known_time: of the CPUs owned,
    where busy is known.
    """

    vms: int = 0
    refused_cpu: int = 0
    refused_memory: int = 0
    most_vms: int = 0
    most_vcpus: int = 0
    most_cpus: int = 0
    most_busy: float | None = None
    owned_time: float = 0.0
    busy_time: float = 0.0
    known_time: float = 0.0
    overloaded: int = 0
    delay_s: float | None = None
    busy: float | None = None
    delay: float | None = None


class _Known(msgspec.Struct):
    """A VM of the present sample. level, vcpus, memory_mib: as recorded last, 0 MiB if not told yet. placed: its name
    on the host; accounts: of its level there; "" and None while it is not there.
    """

    uuid: str
    name: str
    level: int
    vcpus: int
    memory_mib: int
    placed: str = ""
    accounts: _Level | None = None


_Key = str | tuple[str]
"""A uuid, or a name that cannot be mistaken for one."""


class Replay:
    """state: of the host after the last sample. Keeps of the trace only the VMs of the last sample, and sums."""

    def __init__(self, state: HostState, policy: Policy, relevel: Mapping[int, int] | None = None) -> None:
        """state: without VMs. relevel: levels at which VMs are placed, by the levels that they were recorded at."""
        self.state = state
        self._policy = policy
        self._relevel = dict(relevel or {})
        self._known: dict[_Key, _Known] = {}  # those that are placed stand in the order of their arrival
        self._levels: dict[int, _Level] = {}
        self._samples = 0
        self._began = 0
        self._time = 0
        self._untold = 0
        self._fewest_free = state.free.count
        self._most_memory = 0
        self._most_busy: float | None = None

    def step(self, sample: Sample) -> Moment:
        """Decide the next sample."""
        before = self.state
        seconds = sample.time - self._time if self._samples else 0
        if not self._samples:
            self._began = sample.time
        self._time = sample.time
        self._samples += 1
        for level in self._levels.values():
            level.busy = level.delay = None
        known = self._known
        arriving: list[tuple[_Key, TracedVm]] = []
        altered: dict[_Key, TracedVm] = {}
        # Most VMs are as they were, and the next one is of the same level: nothing else must cost time.
        current = _Level()
        busy: float | None = None
        delay: float | None = None
        for vm in sample.vms:
            key: _Key = vm.uuid or (vm.name,)
            found = known.get(key)
            if found is None:
                known[key] = _Known(vm.uuid, vm.name, vm.level, vm.vcpus, vm.memory_mib or 0)
                if vm.memory_mib:
                    arriving.append((key, vm))
                else:
                    self._untold += 1
            elif (
                vm.level == found.level
                and vm.vcpus == found.vcpus
                and (vm.memory_mib == found.memory_mib or not vm.memory_mib)
            ):
                accounts = found.accounts
                if accounts is None:
                    continue
                if accounts is not current:
                    current.busy, current.delay = busy, delay
                    current, busy, delay = accounts, accounts.busy, accounts.delay
                if (cpu := vm.cpu) is not None:
                    busy = (busy or 0.0) + cpu * vm.vcpus
                if (waited := vm.delay_s) is not None:
                    delay = (delay or 0.0) + waited
            else:
                self._alter(key, found, vm, arriving, altered)
        current.busy, current.delay = busy, delay
        decisions = [self._arrive(key, vm) for key, vm in arriving]
        if len(sample.vms) < len(known) or altered:
            present = {vm.uuid or (vm.name,) for vm in sample.vms}
            for key, found in tuple(known.items()):
                if found.placed and (key not in present or key in altered):
                    decisions.append(self._depart(found))
                if key not in present:
                    del known[key]
            decisions += [self._arrive(key, vm) for key, vm in altered.items()]
        self._observe(seconds)
        return Moment(
            time=sample.time,
            decisions=tuple(decisions),
            state=self.state,
            changed=self.state is not before or self._samples == 1,
        )

    def recomputed(self, sample: Sample) -> Sample:
        """The sample, which must be the one that was decided last, as this host would have recorded it: with its
        subsets, and without the VMs that are not there. Values of VMs are those recorded.
        """
        vms: list[TracedVm] = []
        levels: dict[int, None] = {}
        busy, used = _times(sample.cpu, sample.cpus), _times(sample.memory, sample.memory_mib)
        for vm in sample.vms:
            found = self._known[vm.uuid or (vm.name,)]
            if found.placed:
                level = self._placed_level(vm.level)
                vms.append(msgspec.structs.replace(vm, level=level, memory_mib=found.memory_mib))
                levels.setdefault(level)
            else:
                busy = _less(busy, _times(vm.cpu, vm.vcpus))
                used = _less(used, _times(vm.memory, found.memory_mib))
        cpus = len(self.state.topology.cpu_ids)
        subsets = [self.state.subset(level) for level in levels]
        return Sample(
            time=sample.time,
            cpus=cpus,
            memory_mib=self.state.memory_mib,
            cpu=None if busy is None else min(1.0, busy / cpus),
            memory=None if used is None else min(1.0, used / max(1, self.state.memory_mib)),
            levels=tuple([self._recomputed_level(subset) for subset in subsets if subset is not None]),
            vms=tuple(vms),
        )

    def summary(self) -> Summary:
        """What has come of the samples so far."""
        levels = sorted(self._levels.items())
        seconds = self._time - self._began
        return Summary(
            samples=self._samples,
            seconds=seconds,
            cpus=len(self.state.topology.cpu_ids),
            memory_mib=self.state.memory_mib,
            vms=sum([accounts.vms for _, accounts in levels]),
            refused_cpu=sum([accounts.refused_cpu for _, accounts in levels]),
            refused_memory=sum([accounts.refused_memory for _, accounts in levels]),
            untold=self._untold,
            fewest_free_cpus=self._fewest_free,
            most_memory_mib=self._most_memory,
            most_busy=self._most_busy,
            levels=tuple([_summary(level, accounts, seconds) for level, accounts in levels]),
        )

    def _placed_level(self, recorded: int) -> int:
        return self._relevel.get(recorded, recorded)

    def _alter(
        self,
        key: _Key,
        known: _Known,
        vm: TracedVm,
        arriving: list[tuple[_Key, TracedVm]],
        altered: dict[_Key, TracedVm],
    ) -> None:
        """A VM has another size or level than before, or its memory is told at last."""
        known.level, known.vcpus = vm.level, vm.vcpus
        if vm.memory_mib:
            self._untold -= not known.memory_mib
            known.memory_mib = vm.memory_mib
        if known.placed:
            altered[key] = vm
        elif known.memory_mib:
            arriving.append((key, vm))

    def _arrive(self, key: _Key, traced: TracedVm) -> Decision:
        known = self._known[key] = self._known.pop(key)
        level = self._placed_level(known.level)
        accounts = self._levels.get(level)
        if accounts is None:
            accounts = self._levels[level] = _Level()
        accounts.vms += 1
        name = known.name
        while self.state.subset_of(name) is not None:
            name = f"{name} ({known.uuid or 'no uuid'})"
        vm = Vm(name, known.vcpus, known.memory_mib, level)
        plan = plan_deploy(self.state, vm, self._policy)
        if isinstance(plan, Refusal):
            if plan.resource == "cpu":
                accounts.refused_cpu += 1
            else:
                accounts.refused_memory += 1
            return Decision("deploy", vm, known.uuid, plan, self._cpus(level))
        self.state = plan.state
        known.placed, known.accounts = name, accounts
        _measure(accounts, traced)
        return Decision("deploy", vm, known.uuid, None, self._cpus(level), taken=plan.taken)

    def _depart(self, known: _Known) -> Decision:
        plan = plan_remove(self.state, known.placed, self._policy)
        self.state = free_cpus(plan.state, plan.released)  # nothing runs, so nothing needs to be pinned first
        known.placed, known.accounts = "", None
        return Decision(
            "remove", plan.vm, known.uuid, None, self._cpus(plan.vm.level), taken=plan.taken, released=plan.released
        )

    def _cpus(self, level: int) -> tuple[int, ...]:
        subset = self.state.subset(level)
        return () if subset is None else subset.cpus

    def _recomputed_level(self, subset: Subset) -> TracedLevel:
        accounts = self._levels[subset.level]
        return traced_level(self.state.rules, subset, accounts.busy, accounts.delay)

    def _observe(self, seconds: int) -> None:
        """Count the state after a sample, and what was measured."""
        total: float | None = None
        for subset in self.state.subsets:
            accounts = self._levels[subset.level]
            cpus = len(subset.cpus)
            accounts.most_vms = max(accounts.most_vms, len(subset.vms))
            accounts.most_vcpus = max(accounts.most_vcpus, subset.vcpus)
            accounts.most_cpus = max(accounts.most_cpus, cpus)
            accounts.owned_time += seconds * cpus
            if accounts.delay is not None:
                accounts.delay_s = (accounts.delay_s or 0.0) + accounts.delay
            busy = accounts.busy
            if busy is not None:
                accounts.busy_time += seconds * busy
                accounts.known_time += seconds * cpus
                accounts.most_busy = busy if accounts.most_busy is None else max(accounts.most_busy, busy)
                accounts.overloaded += busy > cpus + _ROUNDING
                total = busy if total is None else total + busy
        if total is not None:
            self._most_busy = total if self._most_busy is None else max(self._most_busy, total)
        self._fewest_free = min(self._fewest_free, self.state.free.count)
        self._most_memory = max(self._most_memory, self.state.allocated_mib)


def _measure(accounts: _Level, vm: TracedVm) -> None:
    """Add what a VM did to the sums of its level in the present sample."""
    if vm.cpu is not None:
        accounts.busy = (accounts.busy or 0.0) + vm.cpu * vm.vcpus
    if vm.delay_s is not None:
        accounts.delay = (accounts.delay or 0.0) + vm.delay_s


def _summary(level: int, accounts: _Level, seconds: int) -> LevelSummary:
    known = accounts.most_busy is not None and seconds > 0
    return LevelSummary(
        level=level,
        vms=accounts.vms,
        refused_cpu=accounts.refused_cpu,
        refused_memory=accounts.refused_memory,
        most_vms=accounts.most_vms,
        most_vcpus=accounts.most_vcpus,
        most_cpus=accounts.most_cpus,
        mean_cpus=accounts.owned_time / seconds if seconds > 0 else 0.0,
        mean_busy=accounts.busy_time / seconds if known else None,
        most_busy=accounts.most_busy,
        busy_share=accounts.busy_time / accounts.known_time if accounts.known_time > 0 else None,
        overloaded=accounts.overloaded,
        delay_s=accounts.delay_s,
    )


def _times(part: float | None, whole: int) -> float | None:
    return None if part is None else part * whole


def _less(whole: float | None, part: float | None) -> float | None:
    """What remains of it, never less than nothing."""
    return None if whole is None else max(0.0, whole - (part or 0.0))
