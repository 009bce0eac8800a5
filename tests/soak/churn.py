"""What changes things all the time: VMs that come and go through every door, cordons, restarts, reloads."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import aiohttp

from tests.running import PATIENCE
from tests.soak.clients import Clients, connected, fetch, parsed
from tests.soak.daemons import RESTARTED, Server
from vmstackd.api import requests
from vmstackd.api.errors import ERRORS, AlreadyExists, Internal, InvalidRequest, NotFound, Unavailable, VmstackError
from vmstackd.client import Client

LEVELS = (1000, 1500, 2000, 3000)
VCPUS = (1, 1, 2, 2, 4, 8)
_CODES = {error.code: error for error in ERRORS}
_MISTAKES = (AlreadyExists, Internal, InvalidRequest)
"""Errors that no request of the churn deserves: names are new, and all is well formed."""

HURRIED_S = 0.002
"""Mean pause in the hurry of the begin."""

Deploy = Callable[[requests.Deploy], Awaitable[str]]
Remove = Callable[[str], Awaitable[None]]


async def through_socket(clients: Clients, vms: int, pause: float) -> None:
    """Keep about so many VMs in the cluster, asking globald over its Unix socket."""
    async with connected(clients.servers.globald, "churn") as client:
        await _churn(
            clients,
            "globald, socket",
            vms,
            pause,
            lambda request: _deploy(client, request),
            lambda name: _remove(client, name),
        )


async def through_http(clients: Clients, vms: int, pause: float) -> None:
    """The same over HTTP."""
    url = clients.servers.globald.daemon.url

    async with aiohttp.ClientSession() as session:

        async def deploy(request: requests.Deploy) -> str:
            query = f"name={request.name}&cpu={request.vcpus}&mem={request.memory_mib / 1024}"
            status, text = await fetch(
                session, f"{url}/deploy?{query}&oc={request.level / 1000}&qcow2={quote(request.image)}"
            )
            return str(_answered(status, text)["host"])

        async def remove(name: str) -> None:
            _answered(*await fetch(session, f"{url}/remove?name={name}"))

        await _churn(clients, "globald, HTTP", vms, pause, deploy, remove)


async def on_host(clients: Clients, host: Server, vms: int, pause: float) -> None:
    """The same on one host directly, past globald, over its Unix socket; again after each restart."""
    while True:
        try:
            async with connected(host, "churn") as client:
                await _churn(
                    clients,
                    "vmstackd, socket",
                    vms,
                    pause,
                    lambda request: _deploy(client, request, host.name),
                    lambda name: _remove(client, name),
                    hurries=False,
                    lost=lambda: client.lost is not None,
                )
        except VmstackError:
            pass  # it is being restarted
        if not await clients.pause(0.2):
            return


async def _deploy(client: Client, request: requests.Deploy, host: str = "") -> str:
    """Returns where it is; host: the one that is asked, which does not say so."""
    return (await client.deploy(request)).host or host


async def _remove(client: Client, name: str) -> None:
    await client.remove(requests.Remove(name=name))


async def _churn(
    clients: Clients,
    door: str,
    vms: int,
    pause: float,
    deploy: Deploy,
    remove: Remove,
    *,
    hurries: bool = True,
    lost: Callable[[], bool] = lambda: False,
) -> None:
    """Until the end, or until the connection is lost. hurries: whether it does so at the begin."""
    mine: set[str] = set()
    ledger = clients.ledger
    while not lost():
        mine &= ledger.vms.keys()
        if random.random() * 2 * vms > len(mine):
            mine.add(await _deploy_one(clients, door, deploy))
        else:
            await _remove_one(clients, door, mine, remove)
        if not await clients.pause(HURRIED_S if hurries and clients.hurrying else pause):
            return


def _some_vm(clients: Clients) -> requests.Deploy:
    name, vcpus = clients.new_name("vm"), random.choice(VCPUS)
    memory = vcpus * 1024 * random.choice((1, 2, 4))
    return requests.Deploy(
        name=name, vcpus=vcpus, memory_mib=memory, level=random.choice(LEVELS), image=f"/images/{name}.qcow2"
    )


async def _deploy_one(clients: Clients, door: str, deploy: Deploy) -> str:
    """The name of what was asked for."""
    ledger, request = clients.ledger, _some_vm(clients)
    lives = ledger.lives()
    try:
        with clients.timed(door):
            host = await deploy(request)
    except Unavailable as error:
        if error.details.get("outcome") == "unknown" or "host" not in error.details:
            ledger.unclear(request.name)
    except _MISTAKES as error:
        clients.error(f"deploying {request} was answered {error.code}: {error.message}")
    except VmstackError:
        pass  # no room
    except (aiohttp.ClientError, TimeoutError) as error:
        clients.error(f"deploying {request.name} ended with {error!r}")
    else:
        ledger.deployed(request, host, lives)
    return request.name


async def _remove_one(clients: Clients, door: str, mine: set[str], remove: Remove) -> None:
    ledger = clients.ledger
    name = ledger.take(mine)
    if name is None:
        return
    _, host = ledger.vms[name]
    lives = ledger.lives()
    try:
        with clients.timed(door):
            await remove(name)
    except NotFound:
        ledger.missing(name, host, lives)
    except Unavailable as error:
        if error.details.get("outcome") == "unknown" or "host" not in error.details:
            ledger.unclear(name)
    except VmstackError as error:
        clients.error(f"removing {name} was answered {error.code}: {error.message}")
    except (aiohttp.ClientError, TimeoutError) as error:
        clients.error(f"removing {name} ended with {error!r}")
    else:
        ledger.removed(name)
    finally:
        ledger.ended(name)


def _answered(status: int, text: str) -> dict[str, object]:
    """What HTTP says, or raise it as what it is."""
    found = parsed(text)
    if status == 200:
        return found
    code, message = str(found.pop("error")), str(found.pop("message"))
    raise _CODES[code](message, **{key: value for key, value in found.items() if isinstance(value, str | int)})


async def cordons(clients: Clients, pause: float) -> None:
    """Some host or other takes no new VMs for a while."""
    async with connected(clients.servers.globald, "cordons") as client:
        while await clients.pause(pause):
            host = random.choice(clients.servers.hosts).name
            try:
                with clients.timed("globald, socket"):
                    await client.cordon(requests.Cordon(host=host, reason="soak"))
                await clients.pause(pause / 2)
            except VmstackError:
                pass  # it is being restarted
            while True:  # a cordon outlives the daemon
                try:
                    await client.uncordon(requests.Uncordon(host=host))
                    break
                except VmstackError:
                    await asyncio.sleep(0.2)


async def restarts(clients: Clients, pause: float) -> None:
    """One of the hosts that may be is ended and started again, in turn."""
    turn = 0
    candidates = [host for number, host in enumerate(clients.servers.hosts) if number in RESTARTED]
    while candidates and not await _over(clients, pause):
        host = candidates[turn % len(candidates)]
        turn += 1
        async with clients.restarting:
            code = await asyncio.to_thread(host.stop)
            if code != 0:
                clients.error(f"{host.name} ended with {code}")
            clients.ledger.died_all(host.name)
            await asyncio.to_thread(host.start)
            await until_up(clients, host)
        clients.done["restarts"] += 1


async def _over(clients: Clients, seconds: float) -> bool:
    """Wait exactly so long; returns whether the run has ended."""
    try:
        await asyncio.wait_for(clients.ending.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def until_up(clients: Clients, host: Server) -> None:
    """Until globald hears from it."""
    async with asyncio.timeout(PATIENCE), connected(clients.servers.globald, "restarts") as client:
        while True:
            states = {each.name: each.state for each in (await client.hosts()).hosts}
            if states.get(host.name) in ("up", "cordoned"):
                return
            await asyncio.sleep(0.05)


async def reloads(clients: Clients, pause: float) -> None:
    """Settings change while a daemon runs."""
    number = 0
    while await clients.pause(pause):
        number += 1
        server = random.choice(clients.servers.all)
        changed = number % 2
        text = f"metrics_per_vm = {'true' if changed else 'false'}\n"
        if server is clients.servers.globald:
            text = f"attempts = {3 + changed}\n"
        server.config.write_text(text, encoding="utf-8")
        async with clients.restarting:  # a daemon that is not there cannot be told
            server.daemon.process.send_signal(signal.SIGHUP)
        clients.done["reloads"] += 1
