"""The workload that a recording of vmstackd tells: VMs that come and go from one sample to the next."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import msgspec

from core.trace import Sample, TracedVm
from core.workload import Workload, WorkloadVm
from vmstackctl.values import count


class _Seen(msgspec.Struct):
    """A VM of the last sample. memory_mib: 0 if not told yet. place: its number in the workload, None until then."""

    level: int
    vcpus: int
    memory_mib: int
    place: int | None = None


def recorded_workload(samples: Iterable[Sample]) -> Workload:
    """A VM arrives with the first sample that has it and departs with the first that has not; one of the last sample
    stays. With another size or level it is another VM, which arrives when this is seen; the one before was there
    until the sample before, so that both do not count at once. Names may recur.

    VMs are known by uuid, by name where none was recorded, and asked for in the order of the file. One whose memory
    is not told arrives when it is; if it never is, the VM is left out, with a note.
    """
    vms: list[WorkloadVm] = []
    seen: dict[str | tuple[str], _Seen] = {}
    untold, before = 0, 0

    def end(one: _Seen, time: int) -> None:
        if one.place is not None:
            vms[one.place] = msgspec.structs.replace(vms[one.place], departure=float(time))

    for sample in samples:
        present: dict[str | tuple[str], _Seen] = {}
        for vm in sample.vms:
            key = vm.uuid or (vm.name,)
            one = seen.pop(key, None)
            if one is None:
                one = _Seen(vm.level, vm.vcpus, vm.memory_mib or 0)
            elif not _is_alike(one, vm):
                end(one, before)
                one = _Seen(vm.level, vm.vcpus, vm.memory_mib or one.memory_mib)
            if one.place is None and one.memory_mib:
                one.place = len(vms)
                vms.append(WorkloadVm(vm.name, one.level, one.vcpus, one.memory_mib, float(sample.time), inf))
            present[key] = one
        for gone in seen.values():
            end(gone, sample.time)
            untold += gone.place is None
        seen, before = present, sample.time
    untold += sum(one.place is None for one in seen.values())
    note = f"the memory of {count(untold, 'VM')} is never told, so {'it was' if untold == 1 else 'they were'} left out"
    return Workload(tuple(vms), (note,) if untold else ())


def _is_alike(one: _Seen, vm: TracedVm) -> bool:
    """Whether nothing that is told has changed."""
    return (one.level, one.vcpus) == (vm.level, vm.vcpus) and one.memory_mib == (vm.memory_mib or one.memory_mib)
