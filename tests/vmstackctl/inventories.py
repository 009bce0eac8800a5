"""Inventories that tests describe, and any that there may be."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from core.demand import Demand, Lesson, Shape
from core.inventory import Inventory
from core.status import HostStatus, host_status
from tests.core.hosts import LEVELS, states
from vmstackctl.inventory_file import to_inventory
from vmstackctl.saved_inventory import SavedHost, SavedInventory
from vmstackd.api.replies import HOST_STATES, UP, closed

NOTHING = Lesson((), 0, 0, None)
SIZES = st.tuples(st.sampled_from(LEVELS), st.integers(1, 9), st.integers(1, 9000))
"""Level, vCPUs, memory in MiB."""


def saved_host(
    name: str,
    status: HostStatus | None,
    state: str = UP,
    reason: str = "",
    vms: tuple[Shape, ...] | None = None,
    address: str = "",
) -> SavedHost:
    return SavedHost(
        name=name, state=state, closed=closed(state), status=status, vms=vms, address=address, reason=reason
    )


def saved(*hosts: SavedHost, policy: str = "worth", lesson: Lesson = NOTHING, time: float = 1.5) -> SavedInventory:
    return SavedInventory(time=time, policy=policy, lesson=lesson, hosts=hosts)


def taught(hosts: Sequence[SavedHost], sizes: Sequence[tuple[int, int, int]]) -> Lesson:
    """What is learnt when so many VMs are asked for, one after the other."""
    inventory: Inventory = to_inventory(saved(*hosts))
    for size in sizes:
        inventory.arrived(*size)
    demand: Demand = inventory.demand
    return demand.lesson()


@st.composite
def inventories(draw: st.DrawFn) -> SavedInventory:
    """Hosts in any state with any figures, and a lesson that they could have taught."""
    found = [
        saved_host(f"h{number}", host_status(state), draw(st.sampled_from((UP, UP, *HOST_STATES))), draw(st.text()))
        for number, state in enumerate(draw(st.lists(states(), min_size=1, max_size=4)))
    ]
    if draw(st.booleans()):
        found.append(saved_host("silent", None, "connecting", "not yet reached"))
    lesson = taught(found, draw(st.lists(SIZES, max_size=70)))
    return saved(*found, lesson=lesson, time=draw(st.floats(0, 2e9)))
