"""At the end: what globald says, what the hosts say, and what was acknowledged are the same; then all VMs go."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import aiohttp
import msgspec

from tests.running import PATIENCE
from tests.soak.clients import Clients, fetch
from vmstackd.api import replies, requests
from vmstackd.api.errors import NotFound, VmstackError
from vmstackd.client import Client


async def audit(clients: Clients) -> list[str]:
    """What is wrong, in words. Waits for a moment until what is on its way has arrived; all VMs are gone after it."""
    async with await Client.connect(f"unix:{clients.servers.globald.socket}", program="audit") as cluster:
        wrong = await _patiently(clients, cluster)
        for name in [*clients.ledger.vms, *sorted(clients.ledger.uncertain)]:
            try:
                await cluster.remove(requests.Remove(name=name))
            except NotFound:
                if name in clients.ledger.vms:
                    wrong.append(f"{name} could not be removed: it is not there")
            except VmstackError as error:
                wrong.append(f"{name} could not be removed: {error.message}")
        clients.ledger.vms.clear()
        clients.ledger.uncertain.clear()
        return wrong + [f"after all were removed: {text}" for text in await _patiently(clients, cluster)]


async def _patiently(clients: Clients, cluster: Client) -> list[str]:
    wrong = await _differences(clients, cluster)
    for _ in range(int(PATIENCE)):
        if not wrong:
            break
        await asyncio.sleep(0.5)
        wrong = await _differences(clients, cluster)
    return wrong


async def _differences(clients: Clients, cluster: Client) -> list[str]:
    ledger, wrong = clients.ledger, []
    told = await cluster.hosts()
    if told.duplicates or told.problems:
        wrong.append(f"globald tells of {told.duplicates} {told.problems}")
    by_name = {host.name: host for host in told.hosts}
    found: list[replies.VmReply] = []
    for server in clients.servers.hosts:
        async with await Client.connect(f"unix:{server.socket}", program="audit") as client:
            status, vms, topology = await client.status(), (await client.list()).vms, await client.topology()
        found += [msgspec.structs.replace(vm, host=server.name) for vm in vms]
        known = by_name.get(server.name)
        if known is None or known.state != "up" or known.status != status.host:
            wrong.append(f"globald says of {server.name} {known}, and it says {status.host}")
        if not ledger.vms:  # with VMs, a level below its critical size may owe CPUs
            wrong += [f"{server.name}: {text}" for text in (*status.degraded, *status.stopped)]
        uses = Counter(cpu.use for cpu in topology.cpus)
        if uses["free"] != status.host.free_cpus or uses["held"] != status.host.held_cpus:
            wrong.append(f"{server.name} counts {uses} CPUs, and says {status.host}")
        if status.host.vms != len(vms) or status.host.allocated_mib != sum(vm.memory_mib for vm in vms):
            wrong.append(f"{server.name} has {len(vms)} VMs, and says {status.host}")
    places = [(vm.name, vm.host) for vm in found]
    wrong += [f"as the hosts say, {text}" for text in ledger.differences(places)]
    wrong += [
        f"as globald asks, {text}"
        for text in ledger.differences((vm.name, vm.host) for vm in (await cluster.list()).vms)
    ]
    for vm in found:
        request = ledger.vms.get(vm.name, (None, ""))[0]
        if request is not None and (vm.vcpus, vm.memory_mib, vm.level, vm.state) != (
            request.vcpus,
            request.memory_mib,
            request.level,
            "running",
        ):
            wrong.append(f"{request} was acknowledged, and is {vm}")
        if set(vm.pinned) != set(vm.cpus):
            wrong.append(f"{vm.name} is pinned to {vm.pinned}, and its level has {vm.cpus}")
    async with aiohttp.ClientSession() as web:
        _, text = await fetch(web, f"{clients.servers.globald.daemon.url}/listvm")
    known_names = set(json.loads(text))
    if known_names != {vm.name for vm in found}:
        wrong.append(f"globald itself knows {sorted(known_names ^ {vm.name for vm in found})[:10]} otherwise")
    return wrong
