"""VMs that come and go: what a plan is made for."""

from __future__ import annotations

from typing import Literal

import msgspec

Accounting = Literal["host", "paper"]
"""Who says what a server admits: a host of ours, or the simulator of the SlackVM paper."""


class WorkloadVm(msgspec.Struct, frozen=True, gc=False):
    """One VM. Seconds from any zero; departure infinite: it stays.

    At one instant VMs arrive before others leave: what departs at a moment still has its place then.
    """

    name: str
    level: int
    vcpus: int
    memory_mib: int
    arrival: float
    departure: float


class Workload(msgspec.Struct, frozen=True):
    """vms: in the order in which they are asked for, arrivals never going back. notes: what was odd, in words."""

    vms: tuple[WorkloadVm, ...]
    notes: tuple[str, ...] = ()


class ServerKind(msgspec.Struct, frozen=True):
    """Servers that are alike. cpus: usable for VMs, as is memory_mib. count: how many there are; None: any number."""

    cpus: int
    memory_mib: int
    count: int | None = None
