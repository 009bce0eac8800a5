"""Whether all is as it must be, when no fault holds and nobody asks for anything: asked of everyone, told by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

import libvirt
import msgspec

from tests.system.cluster import Cluster, Server
from tests.system.faults.book import ACCOUNTS, PINS, STRANGE, Book
from tests.system.faults.seen import Domain, Qemu, domains, processes
from vmstackd.api import replies
from vmstackd.api.errors import VmstackError

PATIENCE = 40.0
"""Seconds until all must be right."""

Difference = tuple[str, str]
"""Its kind, and in words."""


class Host(msgspec.Struct, frozen=True):
    """What each tells of one host: the kernel, libvirt, and vmstackd."""

    name: str
    processes: tuple[Qemu, ...]
    domains: tuple[Domain, ...]
    vms: Mapping[str, replies.VmReply]
    status: replies.StatusReply


class Audit(msgspec.Struct, frozen=True):
    """found: what was still not as it must be after some patience. seconds: that it took; last: seen before the end."""

    found: tuple[Difference, ...]
    seconds: float
    last: str


async def audit(cluster: Cluster, book: Book) -> Audit:
    """Return when all is as it must be, or will not be."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    last = ""
    while True:
        try:
            found, places = await _look(cluster, book)
        except (VmstackError, libvirt.libvirtError, OSError) as error:
            found, places = [(ACCOUNTS, f"nobody can look: {error}")], {}
        seconds = clock() - begin
        if not found:
            book.found(places)
        if not found or seconds > PATIENCE:
            return Audit(tuple(found), seconds, last)
        last = found[0][1]
        await asyncio.sleep(0.3)


async def _look(cluster: Cluster, book: Book) -> tuple[list[Difference], dict[str, list[str]]]:
    hosts = await asyncio.gather(*(_ask(cluster, server) for server in cluster.hosts.values()))
    async with cluster.asked() as client:
        listed = [(vm.name, vm.host) for vm in (await client.list()).vms]
        states = {host.name: f"{host.state}: {host.reason}" for host in (await client.hosts()).hosts}
    places: dict[str, list[str]] = {}
    defined: dict[str, str] = {}
    for host in hosts:
        defined |= {domain.name: host.name for domain in host.domains}
        for process in host.processes:
            places.setdefault(process.name, []).append(host.name)
    open_names = set(book.unclear())
    found = list(book.differences(places, defined))
    for host in hosts:
        found += [*pins(host), *accounts(host, open_names)]
    found += [(ACCOUNTS, f"host {name} is {state}") for name, state in states.items() if not state.startswith("up")]
    real = {(process.name, host.name) for host in hosts for process in host.processes}
    found += [
        (ACCOUNTS, f"{name} on {host}: globald and the host differ")
        for name, host in sorted(real ^ set(listed))
        if name not in open_names
    ]
    return found, places


async def _ask(cluster: Cluster, server: Server) -> Host:
    async with cluster.asked(server) as client:
        status, vms = await client.status(), (await client.list()).vms
    there = await asyncio.to_thread(processes, server.box)
    known = await asyncio.to_thread(domains, server.box)
    return Host(server.name, tuple(there), tuple(known), {vm.name: vm for vm in vms}, status)


def pins(host: Host) -> Iterator[Difference]:
    """Every VM may run on its subset and nowhere else: for the kernel, and for libvirt.

    Helpers of QEMU may be left on fewer CPUs when the subset grows: as a service, vmstackd may not move them.
    """
    told = {domain.name: domain.pins for domain in host.domains if domain.running}
    for process in host.processes:
        vm = host.vms.get(process.name)
        if vm is None:
            continue  # accounts tell
        subset = frozenset(vm.cpus)
        threads = {**process.vcpus, "the first": process.first}
        wrong = [f"thread {thread} on {_shown(cpus)}" for thread, cpus in threads.items() if cpus != subset]
        wrong += [
            f"thread {thread} on {_shown(cpus)}" for thread, cpus in process.helpers.items() if not cpus <= subset
        ]
        wrong += [f"libvirt says {_shown(cpus)}" for cpus in told.get(process.name, ()) if cpus != subset]
        if not process.vcpus:
            wrong.append("it has no thread of a vCPU")
        if wrong:
            yield PINS, f"{process.name} on {host.name}, subset {_shown(subset)}: {'; '.join(wrong)}"


def accounts(host: Host, unclear: Iterable[str]) -> Iterator[Difference]:
    """vmstackd counts what runs, and nothing is amiss. unclear: names that it may still wait for."""
    running = {process.name for process in host.processes}
    active = {domain.name for domain in host.domains if domain.running}
    for name in sorted(running ^ active):
        yield STRANGE, f"{name} on {host.name}: a process without a VM of libvirt's, or the reverse"
    for name in sorted((running ^ host.vms.keys()) - set(unclear)):
        yield ACCOUNTS, f"{name} on {host.name}: {'runs, not listed' if name in running else 'listed, does not run'}"
    status = host.status
    stopped = {domain.name for domain in host.domains if not domain.running}
    if set(status.stopped) != stopped:
        yield ACCOUNTS, f"{host.name}: shut off are {sorted(stopped)}, told are {sorted(status.stopped)}"
    if status.hypervisor != "up":
        yield ACCOUNTS, f"{host.name}: the hypervisor counts as {status.hypervisor}"
    if status.unplaced:
        yield ACCOUNTS, f"{host.name}: unplaced: {[vm.name for vm in status.unplaced]}"
    waiting = set(status.starting) & set(unclear)
    if status.degraded and not waiting:
        yield ACCOUNTS, f"{host.name} is degraded: {'; '.join(status.degraded)}"


def _shown(cpus: Iterable[int]) -> str:
    return ",".join(map(str, sorted(cpus))) or "none"
