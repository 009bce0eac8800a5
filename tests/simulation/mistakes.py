"""Known mistakes, to be planted into the real code for a while: each must be found.

The first five are those of the prototype, or of a first version of any scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from core.allocator import free_cpus, hold, plan_deploy, plan_remove
from core.model import HostState, Plan, Refusal, Subset, Vm
from core.policy import Policy
from globald import placing
from globald.member import Member, Reservation
from globald.members import Members
from vmstackd import drift, engine, host, reconcile, watch
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import HypervisorFailed, Unavailable, VmstackError
from vmstackd.hypervisor.base import ObservedVm, Record

Replace = Callable[[object, str, object], None]


def wrong_owner(replace: Replace) -> None:
    """globald notes the last host of the list as the owner of a VM, not the one that has it."""
    own = Members._own

    def last(self: Members, member: Member, name: str) -> None:
        own(self, list(self)[-1], name)

    replace(Members, "_own", last)


def free_before_unpinned(replace: Replace) -> None:
    """CPUs that a subset gives up are free at once, although VMs may still run there."""

    def all_of_them(self: host.Host) -> None:
        self.state = free_cpus(self.state, self.state.held)

    def remove(state: HostState, name: str, policy: Policy) -> Plan:
        plan = plan_remove(state, name, policy)
        return msgspec.structs.replace(plan, state=free_cpus(plan.state, plan.released))

    replace(engine, "plan_remove", remove)
    replace(host.Host, "free_unpinned", all_of_them)


def lost_reservation(replace: Replace) -> None:
    """The name of a VM that is being deployed is not taken."""
    reserve = Members.reserve

    def forget(self: Members, name: str, *more: Any) -> Reservation:  # noqa: ANN401
        reservation = reserve(self, name, *more)
        del self.claims[name]
        return reservation

    replace(Members, "reserve", forget)


def double_adoption(replace: Replace) -> None:
    """A VM without a record is taken for new, although it is in a subset already."""

    def again(state: HostState, observed: Iterable[ObservedVm], *more: Any, **named: Any) -> reconcile.Reconciliation:  # noqa: ANN401
        result = whole(state, observed, *more, **named)
        for vm in result.adopted:
            twin = plan_deploy(result.state, Vm(f"{vm.name} ", vm.vcpus, vm.memory_mib, vm.level), more[0])
            if isinstance(twin, Plan):
                result = msgspec.structs.replace(result, state=twin.state)
        return result

    whole = reconcile.reconcile
    replace(watch, "reconcile", again)


def refusal_that_changes(replace: Replace) -> None:
    """A VM that does not fit leaves the host counting its decision all the same."""

    def deploy(state: HostState, vm: Vm, policy: Policy) -> Plan | Refusal:
        plan = plan_deploy(state, vm, policy)
        if isinstance(plan, Refusal) and state.subsets:
            state.subsets[0].vms[vm.name] = vm
        return plan

    replace(engine, "plan_deploy", deploy)


def asked_twice(replace: Replace) -> None:
    """Another host is asked although nobody knows whether the first one has started the VM."""

    def refused(self: placing.Placing, reservation: Reservation, error: VmstackError) -> Unavailable:
        self._members.release(reservation)
        return Unavailable(error.message)

    replace(placing.Placing, "_uncertain", refused)


def started_before_the_others_moved(replace: Replace) -> None:
    """A VM is started on the CPUs that its subset gets, before the subset that gives them up has moved away."""

    def early(self: host.Host) -> None:
        held = set(self.state.held)
        for vm in self.unplaced.values():
            held.difference_update(vm.cpus)
        self.state = free_cpus(self.state, sorted(held))

    replace(host.Host, "free_unpinned", early)


def record_leaves_with_its_vm(replace: Replace) -> None:
    """The one record that tells the subset is destroyed with its VM."""

    async def nobody(self: host.Host, level: int, leaving: str) -> None:
        """Hand nothing over."""

    async def never(self: host.Host, level: int, leaving: str = "") -> None:
        """Write nothing."""

    replace(host.Host, "hand_over_record", nobody)
    replace(host.Host, "_write_record", never)


def unknown_is_gone(replace: Replace) -> None:
    """A VM whose start was cut off counts as not started."""

    async def start(self: engine.Engine, *more: Any) -> None:  # noqa: ANN401
        try:
            await whole(self, *more)
        except Unavailable as error:
            raise HypervisorFailed(error.message) from error

    whole = engine.Engine._start
    replace(engine.Engine, "_start", start)


def restart_begins_at_zero(replace: Replace) -> None:
    """After a restart generations begin anew, so that old records are newer than what is decided."""

    def same(state: HostState, newest: int) -> HostState:
        return state

    def fault(vm: Vm, subset: Subset, record: Record | None, generation: int) -> str:
        newer = generation if record is None else max(generation, record.generation + 1)
        return record_fault(vm, subset, record, newer)

    record_fault = drift.record_fault
    replace(reconcile, "_newer", same)
    replace(drift, "record_fault", fault)


def untold(replace: Replace) -> None:
    """What a host tells of VMs that have come is not taken note of."""

    def nothing(self: Members, member: Member, event: session.Event) -> None:
        if not isinstance(event, session.VmAdopted):
            happened(self, member, event)

    happened = Members.happened
    replace(Members, "happened", nothing)


def record_of_another_level(replace: Replace) -> None:
    """A VM is recorded at the lowest level, so that the next daemon finds it in the wrong subset."""

    def wrong(**fields: Any) -> Record:  # noqa: ANN401
        return Record(**{**fields, "level": 1000})

    replace(engine, "Record", wrong)


def smaller_than_ordered(replace: Replace) -> None:
    """Every VM is started with one vCPU."""

    async def deploy(self: engine.Engine, request: requests.Deploy) -> replies.Deployed:
        return await whole(self, msgspec.structs.replace(request, vcpus=1))

    whole = engine.Engine._deploy
    replace(engine.Engine, "_deploy", deploy)


def memory_of_strangers_sold(replace: Replace) -> None:
    """The memory of VMs that fit nowhere counts as free."""

    def without(state: HostState, cpus: Iterable[int], memory_mib: int) -> HostState:
        return hold(state, cpus, 0)

    replace(reconcile, "hold", without)


def record_of_another_size(replace: Replace) -> None:
    """What a VM is recorded with is not what it has, and nobody compares the two."""

    def wrong(**fields: Any) -> Record:  # noqa: ANN401
        return Record(**{**fields, "vcpus": fields["vcpus"] + 1})

    replace(engine, "Record", wrong)
    replace(drift, "record_fault", lambda *_: "")


def trying_does_it(replace: Replace) -> None:
    """A removal that was only to be tried is carried out."""

    async def remove(self: engine.Engine, request: requests.Remove) -> replies.Removed:
        return await whole(self, msgspec.structs.replace(request, dry_run=False))

    whole = engine.Engine._remove
    replace(engine.Engine, "_remove", remove)


def half_is_enough(replace: Replace) -> None:
    """A VM of which some threads only are pinned counts as pinned."""

    def fault(vm: ObservedVm, wanted: frozenset[int]) -> tuple[str, str]:
        return pins_fault(msgspec.structs.replace(vm, uneven=False, threads={}), wanted)

    pins_fault = drift.pins_fault
    replace(drift, "pins_fault", fault)


MISTAKES: dict[str, Callable[[Replace], None]] = {
    found.__name__.replace("_", "-"): found
    for found in (
        wrong_owner,
        free_before_unpinned,
        lost_reservation,
        double_adoption,
        refusal_that_changes,
        asked_twice,
        started_before_the_others_moved,
        record_leaves_with_its_vm,
        unknown_is_gone,
        restart_begins_at_zero,
        untold,
        record_of_another_level,
        smaller_than_ordered,
        memory_of_strangers_sold,
        record_of_another_size,
        trying_does_it,
        half_is_enough,
    )
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Make this mistake, until the end of the block."""
    changed: list[tuple[object, str, object]] = []

    def replace(where: object, attribute: str, by: object) -> None:
        changed.append((where, attribute, getattr(where, attribute)))
        setattr(where, attribute, by)

    try:
        MISTAKES[name](replace)
        yield
    finally:
        for where, attribute, before in reversed(changed):
            setattr(where, attribute, before)
