"""Whether all is as it must be once everything is calm: what users were told, what is there, and the accounts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from core.status import HostStatus
from globald.member import State
from tests.simulation.ledger import Entry, Known
from tests.simulation.world import Host, World


def faults(world: World) -> list[str]:
    """In words; empty if nothing is wrong."""
    found = [*_promises(world), *_strangers(world)]
    for host in world.hosts.values():
        found += _host(host)
    found += _cluster(world)
    return found


def _promises(world: World) -> Iterator[str]:
    for name, entry in world.ledger.entries.items():
        places = [host for host in world.hosts.values() if name in host.machine.domains]
        if len(places) > 1:
            yield f"{name} exists {len(places)} times: {', '.join(host.name for host in places)}"
        if entry.asked:
            yield f"an order about {name} was never answered"
        elif entry.known is Known.THERE and not entry.ended:
            if not places:
                yield f"{name} was acknowledged and is lost"
            elif not places[0].machine.domains[name].running:
                yield f"{name} was acknowledged and does not run"
            else:
                yield from _as_acknowledged(name, entry, places[0])
        elif entry.known is Known.GONE and places:
            yield f"{name} was removed, or never ordered, and is on {places[0].name}"


def _as_acknowledged(name: str, entry: Entry, host: Host) -> Iterator[str]:
    domain = host.machine.domains[name]
    if entry.size is not None and entry.size != (domain.vcpus, domain.memory_mib):
        yield f"{name} was acknowledged with {entry.size} vCPUs and MiB, and has {domain.vcpus} and {domain.memory_mib}"
    vm = None if host.engine is None else host.engine.state.vm(name)
    if entry.level is not None and vm is not None and vm.level != entry.level:
        yield f"{name} was acknowledged at level {entry.level}, and is at {vm.level}"


def _strangers(world: World) -> Iterator[str]:
    for host in world.hosts.values():
        for name in host.machine.domains:
            if name not in world.ledger.entries:
                yield f"nobody ordered {name} on {host.name}"


def _host(host: Host) -> Iterator[str]:
    engine, machine = host.engine, host.machine
    yield from machine.violations[:3]
    yield from host.broken[:3]
    if engine is None or not engine.running:
        yield f"{host.name}: its daemon does not work"
        return
    status, state = engine.status(), engine.state
    placed = {name for subset in state.subsets for name in subset.vms}
    outside = {vm.name for vm in status.unplaced}
    if status.hypervisor != "up":
        yield f"{host.name}: the hypervisor counts as down: {status.degraded}"
    if placed | outside != machine.running:
        yield f"{host.name} has {sorted(machine.running)}, its accounts {sorted(placed)} and outside {sorted(outside)}"
        return
    stopped = machine.domains.keys() - machine.running
    if set(status.stopped) != stopped:
        yield f"{host.name}: shut off are {sorted(stopped)}, not {sorted(status.stopped)}"
    if state.held and not outside:
        yield f"{host.name}: CPUs {state.held} are held for nobody"
    if state.held_mib != sum(vm.memory_mib for vm in status.unplaced):
        yield f"{host.name}: {state.held_mib} MiB are held for {status.unplaced}"
    unexplained = [text for text in status.degraded if "needs" not in text and "outside" not in text]
    if unexplained:
        yield f"{host.name}: {unexplained}"
    for subset in state.subsets:
        for name, vm in subset.vms.items():
            domain = machine.domains[name]
            if set(domain.threads) != {frozenset(subset.cpus)}:
                yield f"{name} runs on {[sorted(cpus) for cpus in set(domain.threads)]}, not on {sorted(subset.cpus)}"
            record = domain.record
            if record is None or (record.level, record.vcpus, record.memory_mib) != (vm.level, vm.vcpus, vm.memory_mib):
                yield f"the record of {name} tells {record}, not {vm}"
            if (domain.vcpus, domain.memory_mib) != (vm.vcpus, vm.memory_mib):
                yield f"{name} has another size than in the accounts"
        records = [record for name in subset.vms if (record := machine.domains[name].record) is not None]
        newest = max(records, key=lambda record: record.generation, default=None)
        if newest is None or (newest.cpus, newest.level) != (subset.cpus, subset.level):
            yield f"{host.name}: the newest record of level {subset.level} tells {newest}, not {subset.cpus}"


def _cluster(world: World) -> Iterator[str]:
    cluster = world.cluster
    if cluster is None or not cluster.running:
        yield "globald does not work"
        return
    if not cluster.learned:
        yield "globald has not learned"
    members = cluster.members
    if members.claims:
        yield f"globald still claims {sorted(members.claims)}"
    for host in world.hosts.values():
        member = members.find(host.name)
        if member is None or member.state is not State.UP:
            yield f"globald does not reach {host.name}: {None if member is None else member.shown_state}"
            continue
        real = host.machine.running
        if not {name for name in member.names if name not in member.others} <= real:
            yield f"globald believes {sorted(member.names)} on {host.name}, there are {sorted(real)}"
        if member.pending:
            yield f"globald still waits for {sorted(member.pending)} on {host.name}"
        known = members.inventory.status(member.number)
        if host.engine is not None and (known is None or _figures(known) != _figures(host.engine.status().host)):
            yield f"globald has other figures of {host.name}"
        yield from (
            f"globald does not know {name} on {host.name}"
            for name in sorted(host.machine.domains)
            if member not in members.owners(name)
        )
    for name, entry in world.ledger.entries.items():
        if entry.known is Known.GONE and not entry.asked and members.owners(name):
            yield f"globald believes that {name} exists"


def _figures(status: HostStatus) -> HostStatus:
    """Without the generation: a comparison that tries again to place a VM counts it up, and tells in a moment."""
    return msgspec.structs.replace(status, generation=0)
