"""Replies and pushes as single lines of plain text, and as JSON. Everything a user chose is escaped."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

import msgspec

from core.level import format_level
from vmstackctl.values import count, cpu_list, memory, printable, ratio
from vmstackd.api import session
from vmstackd.api.replies import (
    CheckReply,
    CordonReply,
    Deployed,
    DuplicateVm,
    Finding,
    HostListed,
    ProgressReply,
    Removed,
    StatusReply,
)


class Disconnected(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="event", tag="disconnected"):
    """The daemon, program, went away; what happens until it is back is not told. time: seconds since 1970."""

    time: float
    reason: str
    program: str = "vmstackd"


class Connected(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="event", tag="connected"):
    """The daemon is back. vms: that it has now."""

    time: float
    vms: int
    program: str = "vmstackd"


Line = session.Event | Disconnected | Connected
"""What ``events`` tells."""


_OF_CLUSTERS = {"host": "", "score": None}
"""Fields that only a cluster fills, as they are where a host answers."""


def json_line(value: msgspec.Struct) -> str:
    """A reply or an event with its own field names; beside each level, a "level_text" such as "1.5".

    What only a cluster tells is left out where it has not been told. ASCII only, so that no name can do anything
    to a terminal.
    """
    found = _readable(msgspec.to_builtins(value))
    if isinstance(value, ProgressReply | CheckReply) and not value.hosts:
        del found["hosts"]
    return json.dumps(found).replace("\x7f", "\\u007f")


def _readable(value: Any) -> Any:  # noqa: ANN401  whatever JSON may hold
    match value:
        case dict():
            found = {}
            for key, inner in value.items():
                if key in _OF_CLUSTERS and inner == _OF_CLUSTERS[key]:
                    continue
                found[key] = _readable(inner)
                if key == "level" and isinstance(inner, int):
                    found["level_text"] = format_level(inner)
            return found
        case list() | tuple():
            return [_readable(inner) for inner in value]
        case _:
            return value


def deployed(reply: Deployed) -> str:
    """What has happened, or would."""
    begin = f"{printable(reply.name)}: {'would run' if reply.dry_run else 'runs'} at level {ratio(reply.level)}"
    score = "" if reply.score is None else f" (score {reply.score:.6g})"
    where = f" of {printable(reply.host)}{score}" if reply.host else ""
    return f"{begin} on CPUs {cpu_list(reply.cpus)}{where}{_nothing(dry_run=reply.dry_run)}"


def removed(reply: Removed) -> str:
    """What has happened, or would."""
    freed = f"CPUs {cpu_list(reply.released)}" if reply.released else "no CPUs"
    where = f" from {printable(reply.host)}" if reply.host else ""
    what = f"would be removed{where} and free {freed}" if reply.dry_run else f"removed{where}, freed {freed}"
    return f"{printable(reply.name)}: {what}{_nothing(dry_run=reply.dry_run)}"


def _nothing(*, dry_run: bool) -> str:
    return " (dry run: nothing was changed)" if dry_run else ""


def cordoned(reply: CordonReply, host: str) -> str:
    """Whether the host has new VMs from now on. host: its name, where the reply does not tell it."""
    name = printable(reply.host or host)
    if not reply.cordoned:
        return f"{name}: gets new VMs again"
    why = f" ({printable(reply.reason)})" if reply.reason else ""
    return f"{name}: cordoned{why}, gets no new VMs"


def checked(reply: CheckReply) -> str:
    """A line for each thing that was found, and one with the sums."""
    lines = [_found(finding) for finding in reply.findings]
    if reply.left_out:
        lines.append(f"... and {count(reply.left_out, 'finding')} more; check again when these are done with")
    of_hosts = f" on {count(reply.hosts, 'host')}" if reply.hosts else ""
    begin = f"{count(reply.vms, 'VM')}{of_hosts}"
    if reply.busy:
        begin += f" ({reply.busy} of them being changed, not judged)"
    if reply.hidden:
        begin += f" ({reply.hidden} of them without a look at the threads, which are hidden from the daemon)"
    if not lines:
        return f"{begin}, all as decided"
    found = count(len(reply.findings) + reply.left_out, "finding")
    if reply.dry_run:
        return "\n".join((*lines, f"{begin}, {found}{_nothing(dry_run=True)}"))
    remain = sum(not finding.repaired for finding in reply.findings)
    hidden = f", {reply.left_out} not shown" if reply.left_out else ""
    return "\n".join((*lines, f"{begin}, {found}: {len(reply.findings) - remain} repaired, {remain} not{hidden}"))


def _found(finding: Finding) -> str:
    where = ": ".join(printable(name) for name in (finding.host, finding.vm) if name)
    end = " (repaired)" if finding.repaired else ""
    return f"{where + ': ' if where else ''}{printable(finding.kind)}: {printable(finding.text)}{end}"


def listed(reply: HostListed) -> str:
    """What has become of a host's membership."""
    if reply.listed:
        source = f" ({printable(reply.name)})" if reply.name not in ("", reply.address) else ""
        return f"{printable(reply.address)}: part of the cluster{source}; vmstackctl hosts shows when it is up"
    rest = f"; {count(reply.vms, 'VM')} of it run on" if reply.vms > 1 else "; its VM runs on" if reply.vms else ""
    return f"{printable(reply.name or reply.address)}: no longer part of the cluster{rest}"


def duplicate(vm: DuplicateVm) -> str:
    """Where a name is more than once, and what to do."""
    hosts = " and ".join(printable(host) for host in vm.hosts)
    name = printable(vm.name)
    return f"{name} is on {hosts}: vmstackctl remove {shlex.quote(name)} --host HOST removes one of them"


def progress(reply: ProgressReply) -> str:
    """A number, and how to read it."""
    return f"{reply.progress:.1f} MiB per CPU nearer to the hardware's; larger is better"


def status(reply: StatusReply) -> str:
    """The host in a line."""
    host = reply.host
    parts = [
        count(host.vms, "VM"),
        f"{host.free_cpus} of {host.cpus} CPUs free",
        f"{memory(host.free_mib)} of {memory(host.memory_mib)} free",
        *(
            f"{ratio(level.level)} {count(level.vcpus, 'vCPU')} on {count(level.cpus, 'CPU')}"
            for level in sorted(host.levels, key=lambda level: level.level)
        ),
    ]
    if host.held_cpus:
        parts.append(f"{count(host.held_cpus, 'CPU')} held")
    if reply.cordoned:
        parts.append("cordoned")
    if reply.hypervisor != "up":
        parts.append(f"hypervisor {printable(reply.hypervisor)}")
    return ", ".join((*parts, *(f"! {printable(problem)}" for problem in reply.degraded)))


def stamp(seconds: float) -> str:
    """A time of day, here and now; of what no clock shows, only that it is none."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # hosts tell the times of events themselves
        return "--:--:--"


def event(happened: Line) -> str:
    """What happened, after the time when it did."""
    return f"{stamp(happened.time)} {_event(happened)}"


def _event(happened: Line) -> str:
    match happened:
        case session.VmDeployed():
            level = f"level {ratio(happened.level)}"
            where = _of(happened.host)
            return f"deployed {printable(happened.name)}: {level} on CPUs {cpu_list(happened.cpus)}{where}"
        case session.VmRemoved():
            freed = f"CPUs {cpu_list(happened.released)}" if happened.released else "no CPUs"
            return f"removed {printable(happened.name)}: freed {freed}{_of(happened.host)}"
        case session.VmRefused():
            what = f"{printable(happened.operation)} {printable(happened.name)}"
            where = f" on {printable(happened.host)}" if happened.host else ""
            return f"refused {what}{where}: {printable(happened.code)}: {printable(happened.reason)}"
        case session.VmAdopted():
            level = f"level {ratio(happened.level)}"
            where = _of(happened.host)
            return f"adopted {printable(happened.name)}: {level} on CPUs {cpu_list(happened.cpus)}{where}"
        case session.VmGone():
            where = f" from {printable(happened.host)}" if happened.host else ""
            return f"gone {printable(happened.name)}{where}: ended without vmstackd"
        case session.Degraded(problems=()):
            return f"well{_space(happened.host)}: all is as it should be"
        case session.Degraded():
            return f"degraded{_space(happened.host)}: {printable('; '.join(happened.problems))}"
        case session.HostChanged():
            why = f": {printable(happened.reason)}" if happened.reason else ""
            return f"host {printable(happened.host)} is {printable(happened.state)}{why}"
        case session.Missed():
            return f"missed: {count(happened.count, 'event')} could not be delivered in time"
        case Disconnected():
            until = f"what happens until {printable(happened.program)} is back is not told"
            return f"disconnected: {printable(happened.reason)}; {until}"
        case Connected():
            back = f"{printable(happened.program)} is back with {count(happened.vms, 'VM')}"
            return f"connected: {back}; events may have been missed"


def _of(host: str) -> str:
    return f" of {printable(host)}" if host else ""


def _space(host: str) -> str:
    return f" {printable(host)}" if host else ""
