"""Inventories as values: what is known of a cluster at one moment."""

from __future__ import annotations

import msgspec

from core.demand import Lesson, Shape
from core.status import HostStatus

FORMAT = "vmstack inventory "
VERSION = "1"


class SavedHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host. state: one of vmstackd.api.replies.HOST_STATES; reason: why it is not up.

    closed: why it can have no new VM, as core.inventory counts it; empty if it can. status: as it told last; None if
    it never has. vms: by level, vCPUs and memory; None if they are not known.
    """

    name: str
    state: str
    closed: str
    status: HostStatus | None
    vms: tuple[Shape, ...] | None
    address: str = ""
    reason: str = ""


class SavedInventory(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format", tag=f"{FORMAT}{VERSION}"
):
    """time: seconds since 1970. policy: which chooses hosts. lesson: what it has learnt. hosts: in host order."""

    time: float
    policy: str
    lesson: Lesson
    hosts: tuple[SavedHost, ...]
