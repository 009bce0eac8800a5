"""What is on the bus: the interfaces, as tables. Every kind of member is made from its row alone.

``tools/introspection.py`` writes them as XML, with these descriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from core.status import LevelStatus
from core.usage import LevelUsage, VmUsage
from vmstackd.api import replies, requests, session
from vmstackd.sampling import Sampler
from vmstackd.transports import dbus_values as values
from vmstackd.version import VERSION

Properties = Mapping[str, object]
"""Values by name, as sdbus takes them."""


class Method(msgspec.Struct, frozen=True):
    """takes, returns: signatures, with a name for each value. ask: from the values of a call (of a VM's
    object: after the VM's name) to a request; may raise InvalidRequest. answer: from the reply to the value.
    """

    name: str
    takes: str
    takes_names: tuple[str, ...]
    returns: str
    returns_names: tuple[str, ...]
    ask: Callable[..., requests.Request]
    answer: Callable[[Any], object]
    text: str


class Property(msgspec.Struct, frozen=True):
    """emits: whether it tells when it changes, "true" or "false", or is "const" for the life of the object; in the
    words of org.freedesktop.DBus.Property.EmitsChangedSignal.
    """

    name: str
    signature: str
    text: str
    emits: Literal["true", "false", "const"] = "true"


class Signal(msgspec.Struct, frozen=True):
    """values: from the event that it tells."""

    name: str
    signature: str
    names: tuple[str, ...]
    event: type[session.Event]
    values: Callable[[Any], tuple[object, ...]]
    text: str


class Interface(msgspec.Struct, frozen=True):
    """One interface. read: from what an object is made of to the values of its properties; measured: to those that were
    measured last.
    """

    name: str
    read: Callable[[Any], Properties]
    measured: Callable[[Any, Sampler], Properties]
    methods: tuple[Method, ...]
    properties: tuple[Property, ...]
    signals: tuple[Signal, ...] = ()


def _host(status: replies.StatusReply) -> Properties:
    """Of the host."""
    host = status.host
    return {
        "Version": VERSION,
        "Cpus": host.cpus,
        "FreeCpus": host.free_cpus,
        "MemoryMib": host.memory_mib,
        "FreeMemoryMib": host.free_mib,
        "Vms": host.vms,
        "Levels": [
            (values.ratio(level.level), values.ratio(level.ratio), level.cpus, level.vcpus, level.vms, level.needed)
            for level in host.levels
        ],
        "HypervisorState": status.hypervisor,
        "Degraded": [values.text(problem) for problem in status.degraded],
        "Cordoned": status.cordoned,
        "CordonReason": values.text(status.cordon_reason),
    }


def _measured_host(_: replies.StatusReply, sampler: Sampler) -> Properties:
    usage = sampler.usage
    return {
        "BusyCpus": values.figure(None if usage is None else usage.host.busy_cpus),
        "MemoryUsedMib": 0 if usage is None else usage.host.used_mib,
    }


def _vm(vm: replies.VmReply) -> Properties:
    """Of a VM."""
    return {
        "Name": values.text(vm.name),
        "Vcpus": vm.vcpus,
        "MemoryMib": vm.memory_mib,
        "Level": values.ratio(vm.level),
        "Cpus": list(vm.cpus),
        "Pinned": list(vm.pinned),
        "State": vm.state,
        "Image": values.text(vm.image),
    }


def _measured_vm(vm: replies.VmReply, sampler: Sampler) -> Properties:
    usage = sampler.of(vm.name) or VmUsage()
    return {
        "BusyCpus": values.figure(usage.busy_cpus),
        "DelayRatio": values.figure(usage.delay_ratio),
        "ResidentMib": usage.resident_mib or 0,
    }


def _subset(source: tuple[LevelStatus, list[replies.VmReply]]) -> Properties:
    """Of a subset, from its figures and its VMs."""
    level, vms = source
    return {
        "Level": values.ratio(level.level),
        "Cpus": list(vms[0].cpus) if vms else [],
        "Vcpus": level.vcpus,
        "Vms": [values.text(vm.name) for vm in vms],
        "Needed": level.needed,
        "Ratio": values.ratio(level.ratio),
        "Degraded": level.degraded,
    }


def _measured_subset(source: tuple[LevelStatus, list[replies.VmReply]], sampler: Sampler) -> Properties:
    level, _ = source
    known = sampler.usage
    usage = LevelUsage(level=level.level) if known is None else known.host.of_level(level.level)
    return {
        "BusyCpus": values.figure(usage.busy_cpus),
        "DelaySeconds": values.figure(usage.delay_s),
        "DelayMedian": values.figure(usage.delay_median),
        "DelayP99": values.figure(usage.delay_p99),
    }


_UNITS = "Levels are as people write them (2.0, 1.5), memory is in GiB (memory_gib) or MiB."
_NAMED = "Fields are named as in the other interfaces of vmstackd: level in thousandths, memory in MiB."
_USAGE = "usage is what was measured last; what is not known is left out."
_MEASURED = "As measured last; nan if not known. New every few seconds, for which there is no signal."
_MEASURED_MIB = "As measured last; 0 if not known. New every few seconds, for which there is no signal."

HOST = Interface(
    name="org.vmstack.Host1",
    read=_host,
    measured=_measured_host,
    methods=(
        Method(
            "Deploy",
            "sudds",
            ("name", "vcpus", "memory_gib", "level", "image"),
            "au",
            ("cpus",),
            values.deploy,
            lambda reply: list(reply.cpus),
            f"Start a VM; answers the CPUs of its level, which it runs on. {_UNITS}",
        ),
        Method(
            "DeployWithOptions",
            "a{sv}",
            ("options",),
            "a{sv}",
            ("deployed",),
            values.deploy_options,
            values.dictionary,
            f"Start a VM: name, vcpus, memory_mib, level, image; with dry_run only decide. {_NAMED}",
        ),
        Method(
            "Remove",
            "s",
            ("name",),
            "au",
            ("released",),
            lambda name: requests.Remove(name=name),
            lambda reply: list(reply.released),
            "Stop a VM and forget it; its image stays. Answers the CPUs that its level gave up.",
        ),
        Method(
            "RemoveWithOptions",
            "sa{sv}",
            ("name", "options"),
            "a{sv}",
            ("removed",),
            values.remove_options,
            values.dictionary,
            f"Stop a VM and forget it; with dry_run only decide. {_NAMED}",
        ),
        Method(
            "Cordon",
            "s",
            ("reason",),
            "",
            (),
            lambda reason: requests.Cordon(reason=reason),
            lambda _: (),
            "Let the host have no new VMs, for this reason, also after restarts.",
        ),
        Method(
            "Uncordon",
            "",
            (),
            "",
            (),
            requests.Uncordon,
            lambda _: (),
            "Let the host have new VMs again.",
        ),
        Method(
            "Check",
            "b",
            ("dry_run",),
            "a{sv}",
            ("checked",),
            lambda dry_run: requests.Check(dry_run=dry_run),
            values.dictionary,
            f"Compare every VM with what was decided, and put right what can be; with dry_run only compare. {_NAMED}",
        ),
        Method(
            "Progress",
            "udd",
            ("vcpus", "memory_gib", "level"),
            "d",
            ("progress",),
            values.progress,
            lambda reply: float(reply.progress),
            f"MiB per CPU by which such a VM would better the balance; larger is better. {_UNITS}",
        ),
        Method(
            "Status",
            "",
            (),
            "a{sv}",
            ("status",),
            requests.Status,
            values.status,
            f"The figures of the host and of each level. {_NAMED} {_USAGE}",
        ),
        Method(
            "List",
            "",
            (),
            "a(sudtso)",
            ("vms",),
            requests.List,
            values.vm_list,
            "Every VM: name, vCPUs, level, MiB, state (starting, running, removing), object.",
        ),
        Method(
            "Describe",
            "s",
            ("name",),
            "a{sv}",
            ("vm",),
            lambda name: requests.Describe(name=name),
            values.dictionary,
            f"One VM. {_NAMED} {_USAGE}",
        ),
        Method(
            "Topology",
            "",
            (),
            "a{sv}",
            ("topology",),
            requests.Topology,
            values.dictionary,
            "The CPUs of the host, and what each is used for: a level, free or held.",
        ),
    ),
    properties=(
        Property("Version", "s", "Of vmstackd.", "const"),
        Property("Cpus", "u", "CPUs that VMs may use."),
        Property("FreeCpus", "u", "CPUs of no level."),
        Property("MemoryMib", "t", "Memory that VMs may use."),
        Property("FreeMemoryMib", "t", "Memory that no VM has."),
        Property("Vms", "u", "How many VMs there are."),
        Property("Levels", "a(dduuuu)", "Of each level: level, ratio now, CPUs, vCPUs, VMs, CPUs needed."),
        Property("HypervisorState", "s", "up, or down while nothing can be changed."),
        Property("Degraded", "as", "What is not as it should be, in words."),
        Property("Cordoned", "b", "Whether it gets no new VMs."),
        Property("CordonReason", "s", "Why it is cordoned, in its operator's words."),
        Property("BusyCpus", "d", f"CPUs for VMs that were kept busy on average, by whatever. {_MEASURED}", "false"),
        Property("MemoryUsedMib", "t", f"Memory of the machine in use, by whatever. {_MEASURED_MIB}", "false"),
    ),
    signals=(
        Signal(
            "VmDeployed",
            "sdau",
            ("name", "level", "cpus"),
            session.VmDeployed,
            lambda event: (values.text(event.name), values.ratio(event.level), list(event.cpus)),
            "A VM was started on these CPUs, those of its whole level.",
        ),
        Signal(
            "VmRemoved",
            "sau",
            ("name", "released"),
            session.VmRemoved,
            lambda event: (values.text(event.name), list(event.released)),
            "A VM was removed as asked; its level gave up these CPUs.",
        ),
        Signal(
            "VmRefused",
            "ssss",
            ("name", "operation", "code", "reason"),
            session.VmRefused,
            lambda event: (values.text(event.name), event.operation, event.code, values.text(event.reason)),
            "A VM was not deployed or not removed (operation): code of the error, and why.",
        ),
        Signal(
            "VmAdopted",
            "sdau",
            ("name", "level", "cpus"),
            session.VmAdopted,
            lambda event: (values.text(event.name), values.ratio(event.level), list(event.cpus)),
            "A VM that runs without our doing was given a place.",
        ),
        Signal(
            "VmGone",
            "s",
            ("name",),
            session.VmGone,
            lambda event: (values.text(event.name),),
            "A VM ended without our doing.",
        ),
        Signal(
            "Degraded",
            "as",
            ("problems",),
            session.Degraded,
            lambda event: ([values.text(problem) for problem in event.problems],),
            "What is not as it should be has changed; empty: all is well again.",
        ),
        Signal(
            "EventsMissed",
            "t",
            ("count",),
            session.Missed,
            lambda event: (event.count,),
            "So many of the signals above were left out, because there were too many at once.",
        ),
    ),
)

VM = Interface(
    name="org.vmstack.VM1",
    read=_vm,
    measured=_measured_vm,
    methods=(
        Method(
            "Remove",
            "",
            (),
            "au",
            ("released",),
            lambda name: requests.Remove(name=name),
            lambda reply: list(reply.released),
            "As Remove of org.vmstack.Host1.",
        ),
        Method(
            "Describe",
            "",
            (),
            "a{sv}",
            ("vm",),
            lambda name: requests.Describe(name=name),
            values.dictionary,
            "As Describe of org.vmstack.Host1.",
        ),
    ),
    properties=(
        Property("Name", "s", "As in the hypervisor.", "const"),
        Property("Vcpus", "u", "vCPUs."),
        Property("MemoryMib", "t", "Memory."),
        Property("Level", "d", "Oversubscription level, such as 2.0."),
        Property("Cpus", "au", "CPUs of its level, in the order in which the level got them."),
        Property("Pinned", "au", "CPUs that it may run on, as last read back, ascending."),
        Property("State", "s", "starting, running or removing."),
        Property("Image", "s", "Its disk image; empty if not known."),
        Property("BusyCpus", "d", f"CPUs that it kept busy on average. {_MEASURED}", "false"),
        Property(
            "DelayRatio",
            "d",
            f"Part of the time, 0 to 1, for which a vCPU that could have run waited for a CPU. {_MEASURED}",
            "false",
        ),
        Property("ResidentMib", "t", f"Of its memory, what the host really has given. {_MEASURED_MIB}", "false"),
    ),
)

SUBSET = Interface(
    name="org.vmstack.Subset1",
    read=_subset,
    measured=_measured_subset,
    methods=(),
    properties=(
        Property("Level", "d", "Oversubscription level, such as 2.0.", "const"),
        Property("Cpus", "au", "Its CPUs, in the order in which it got them."),
        Property("Vcpus", "u", "vCPUs of all its VMs."),
        Property("Vms", "as", "Its VMs, in order of arrival."),
        Property("Needed", "u", "CPUs that its VMs need."),
        Property("Ratio", "d", "vCPUs that one CPU may serve now; 1.0 while it has few VMs."),
        Property("Degraded", "b", "Whether it has fewer CPUs than its VMs need."),
        Property("BusyCpus", "d", f"Of its CPUs, how many were kept busy on average. {_MEASURED}", "false"),
        Property(
            "DelaySeconds",
            "d",
            f"Seconds for which its vCPUs together waited for CPUs, between the last two measurements. {_MEASURED}",
            "false",
        ),
        Property("DelayMedian", "d", f"The median of the DelayRatio of its VMs. {_MEASURED}", "false"),
        Property("DelayP99", "d", f"What 99 % of its VMs do not exceed in DelayRatio. {_MEASURED}", "false"),
    ),
)

INTERFACES = (HOST, VM, SUBSET)
