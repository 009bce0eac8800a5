"""Recorded experiments: what a trace tells of one moment, as values, and as lines of text. ``trace_parser`` reads them.

A trace is the prototype's (SEMANTICS 14): tab separated, column names first, "None" for what is not known, one row
for the host and each subset and VM, of CPUs and then of memory. A last column, ``delay``, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec

from core.capacity import surplus
from core.cpuset import HIGHEST_CPU
from core.level import format_level
from core.model import HostState, Rules, Subset
from core.usage import Usage, VmUsage

COLUMNS = (
    "tmp",
    "rec",
    "res",
    "val",
    "config",
    "subset",
    "vm_uuid",
    "vm_cmn",
    "sb_oc",
    "sb_unused",
    "sb_dsc",
    "delay",
)
HEADER = "\t".join(COLUMNS) + "\n"


class TracedVm(msgspec.Struct, frozen=True, gc=False):
    """One VM at one moment. uuid: "" if not recorded. cpu: the part of its vCPUs that was busy, 0 to 1. memory: the
    part of its memory that was resident, 0 to 1. delay_s: waited for CPUs since the moment before. None: not known.
    memory_mib: None where the trace has a row of its CPUs only.
    """

    uuid: str
    name: str
    level: int
    vcpus: int
    memory_mib: int | None
    cpu: float | None = None
    memory: float | None = None
    delay_s: float | None = None


class TracedLevel(msgspec.Struct, frozen=True, gc=False):
    """A subset at one moment. cpus: how many it owned. busy_cpus: of these. unused: CPUs that it could have given up.
    description: JSON, see ``described_cpus``; empty if there was none.
    """

    level: int
    cpus: int
    busy_cpus: float | None = None
    unused: int = 0
    description: bytes = b""
    delay_s: float | None = None


class Sample(msgspec.Struct, frozen=True):
    """One moment of a trace. time: whole seconds since the recording began. cpu and memory: used parts of the host,
    0 to 1. levels and vms: in the order of the file; vms of all levels, each where it first stood.
    line: where in the file it begins.
    """

    time: int
    cpus: int
    memory_mib: int
    cpu: float | None
    memory: float | None
    levels: tuple[TracedLevel, ...]
    vms: tuple[TracedVm, ...]
    line: int = 0


def traced_level(rules: Rules, subset: Subset, busy_cpus: float | None, delay_s: float | None) -> TracedLevel:
    """A subset as it is now. busy_cpus, delay_s: as in TracedLevel."""
    return TracedLevel(
        level=subset.level,
        cpus=len(subset.cpus),
        busy_cpus=busy_cpus,
        unused=surplus(rules, subset),
        description=msgspec.json.encode({"res_list": subset.cpus, "consumer_list": list(subset.vms)}),
        delay_s=delay_s,
    )


def sample_of(time: int, state: HostState, usage: Usage, uuids: Mapping[str, str]) -> Sample:
    """What a host has now and did of late. uuids: by name, of its VMs; one that is not there yet is left out."""
    figures = {level.level: level for level in usage.host.levels}
    levels: list[TracedLevel] = []
    vms: list[TracedVm] = []
    for subset in state.subsets:
        of_level = figures.get(subset.level)
        busy, delay = (None, None) if of_level is None else (of_level.busy_cpus, of_level.delay_s)
        levels.append(traced_level(state.rules, subset, busy, delay))
        for name, vm in subset.vms.items():
            if name not in uuids:
                continue
            of_vm = usage.vms.get(name, _UNKNOWN)
            vms.append(
                TracedVm(
                    uuid=uuids[name],
                    name=name,
                    level=subset.level,
                    vcpus=vm.vcpus,
                    memory_mib=vm.memory_mib,
                    cpu=_part(of_vm.busy_cpus, vm.vcpus),
                    memory=_part(of_vm.resident_mib, vm.memory_mib),
                    delay_s=of_vm.delay_s,
                )
            )
    cpus = len(state.topology.cpu_ids)
    return Sample(
        time=time,
        cpus=cpus,
        memory_mib=state.memory_mib,
        cpu=_part(usage.host.busy_cpus, cpus),
        memory=_part(usage.host.used_mib, usage.host.memory_mib),
        levels=tuple(levels),
        vms=tuple(vms),
    )


_UNKNOWN = VmUsage()


def _part(used: float | None, whole: int) -> float | None:
    return None if used is None or whole <= 0 else min(1.0, used / whole)


def format_sample(sample: Sample) -> str:
    """The rows of one moment, each with its line end."""
    return "".join(_rows(sample))


def _rows(sample: Sample) -> Iterator[str]:
    time = sample.time
    allocated = sum([vm.memory_mib or 0 for vm in sample.vms])
    yield _row(time, "global", "cpu", sample.cpu, sample.cpus)
    for level in sample.levels:
        text = format_level(level.level)
        subset = f"subset-{text}"
        yield _row(
            time,
            "subset",
            "cpu",
            level.busy_cpus,
            level.cpus,
            subset,
            oc=text,
            unused=str(level.unused),
            description=level.description.decode() or "None",
            delay=level.delay_s,
        )
        for vm in sample.vms:
            if vm.level == level.level:
                yield _row(time, "vm", "cpu", vm.cpu, vm.vcpus, subset, vm.uuid, vm.name, text, delay=vm.delay_s)
    yield _row(time, "global", "mem", sample.memory, sample.memory_mib)
    if sample.vms:
        described = {"res_list": [[0, allocated]], "consumer_list": [vm.name for vm in sample.vms]}
        yield _row(
            time,
            "subset",
            "mem",
            sample.memory,
            allocated,
            "subset-1",
            oc="1",
            unused="0",
            description=msgspec.json.encode(described).decode(),
        )
    for vm in sample.vms:
        if vm.memory_mib is not None:
            yield _row(time, "vm", "mem", vm.memory, vm.memory_mib, "subset-1", vm.uuid, vm.name, "1")


def _row(
    time: int,
    record: str,
    resource: str,
    value: float | None,
    config: int,
    subset: str = "None",
    uuid: str = "",
    name: str = "",
    oc: str = "None",
    unused: str = "None",
    description: str = "None",
    delay: float | None = None,
) -> str:
    return (
        "\t".join(
            (
                str(time),
                record,
                resource,
                _number(value),
                str(config),
                subset,
                printable_name(uuid),
                printable_name(name),
                oc,
                unused,
                description,
                _number(delay),
            )
        )
        + "\n"
    )


def _number(value: float | None) -> str:
    return "None" if value is None else f"{value:.5f}".rstrip("0").rstrip(".")


def printable_name(value: str) -> str:
    """A name from outside may hold anything: what would break a row, or begin a quoted cell, is replaced by marks."""
    text = "".join([letter if letter.isprintable() else "?" for letter in value]) or "None"
    return "?" + text[1:] if text.startswith('"') else text


def described_cpus(description: bytes) -> tuple[int, ...]:
    """CPU ids of a subset in their order, from its description, ours or the prototype's; empty if it tells none."""
    try:
        found = msgspec.json.decode(description, type=_Description).res_list
    except (ValueError, RecursionError):
        return ()
    return tuple([cpu.cpu_id if isinstance(cpu, _DescribedCpu) else cpu for cpu in found])


_CpuId = Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_CPU)]


class _DescribedCpu(msgspec.Struct):
    cpu_id: _CpuId


class _Description(msgspec.Struct):
    res_list: list[_CpuId | _DescribedCpu]
