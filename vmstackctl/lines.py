"""Replies and pushes as single lines of plain text, and as JSON. Everything a user chose is escaped."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from core.level import format_level
from vmstackctl.values import count, cpu_list, memory, printable, ratio
from vmstackd.api import session
from vmstackd.api.replies import Deployed, ProgressReply, Removed, StatusReply


class Disconnected(msgspec.Struct, frozen=True, tag_field="event", tag="disconnected"):
    """vmstackd went away; what happens until it is back is not told. time: seconds since 1970."""

    time: float
    reason: str


class Connected(msgspec.Struct, frozen=True, tag_field="event", tag="connected"):
    """vmstackd is back. vms: that it has now."""

    time: float
    vms: int


Line = session.Event | Disconnected | Connected
"""What ``events`` tells."""


def json_line(value: msgspec.Struct) -> str:
    """A reply or an event with its own field names; beside each level, a "level_text" such as "1.5".

    ASCII only, so that no name can do anything to a terminal.
    """
    return json.dumps(_readable(msgspec.to_builtins(value))).replace("\x7f", "\\u007f")


def _readable(value: Any) -> Any:  # noqa: ANN401  whatever JSON may hold
    match value:
        case dict():
            found = {}
            for key, inner in value.items():
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
    return f"{begin} on CPUs {cpu_list(reply.cpus)}{_nothing(dry_run=reply.dry_run)}"


def removed(reply: Removed) -> str:
    """What has happened, or would."""
    freed = f"CPUs {cpu_list(reply.released)}" if reply.released else "no CPUs"
    what = f"would be removed and free {freed}" if reply.dry_run else f"removed, freed {freed}"
    return f"{printable(reply.name)}: {what}{_nothing(dry_run=reply.dry_run)}"


def _nothing(*, dry_run: bool) -> str:
    return " (dry run: nothing was changed)" if dry_run else ""


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
    if reply.hypervisor != "up":
        parts.append(f"hypervisor {printable(reply.hypervisor)}")
    return ", ".join((*parts, *(f"! {printable(problem)}" for problem in reply.degraded)))


def stamp(seconds: float) -> str:
    """A time of day, here and now."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def event(happened: Line) -> str:
    """What happened, after the time when it did."""
    return f"{stamp(happened.time)} {_event(happened)}"


def _event(happened: Line) -> str:
    match happened:
        case session.VmDeployed():
            level = f"level {ratio(happened.level)}"
            return f"deployed {printable(happened.name)}: {level} on CPUs {cpu_list(happened.cpus)}"
        case session.VmRemoved():
            freed = f"CPUs {cpu_list(happened.released)}" if happened.released else "no CPUs"
            return f"removed {printable(happened.name)}: freed {freed}"
        case session.VmRefused():
            what = f"{printable(happened.operation)} {printable(happened.name)}"
            return f"refused {what}: {printable(happened.code)}: {printable(happened.reason)}"
        case session.VmAdopted():
            level = f"level {ratio(happened.level)}"
            return f"adopted {printable(happened.name)}: {level} on CPUs {cpu_list(happened.cpus)}"
        case session.VmGone():
            return f"gone {printable(happened.name)}: ended without vmstackd"
        case session.Degraded(problems=()):
            return "well: all is as it should be"
        case session.Degraded():
            return f"degraded: {printable('; '.join(happened.problems))}"
        case session.HostChanged():
            why = f": {printable(happened.reason)}" if happened.reason else ""
            return f"host {printable(happened.host)} is {printable(happened.state)}{why}"
        case session.Missed():
            return f"missed: {count(happened.count, 'event')} could not be delivered in time"
        case Disconnected():
            return f"disconnected: {printable(happened.reason)}; what happens until vmstackd is back is not told"
        case Connected():
            return f"connected: vmstackd is back with {count(happened.vms, 'VM')}; events may have been missed"
