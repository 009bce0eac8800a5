"""What changes nothing and comes all the time: subscribers, scrapes, connections that come and go, nonsense."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable

import aiohttp

from tests.soak.clients import Clients, connected, fetch
from tests.soak.daemons import Server
from tests.soak.pulse import SIZE
from tests.soak.verdict import PULSE
from vmstackd import wire
from vmstackd.api import requests, session
from vmstackd.api.errors import VmstackError
from vmstackd.client import Client

SLOW_BYTES = 2048
"""That a slow subscriber reads in a second."""
GARBAGE = (b"\xc1" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\x94\x00\x01\xa5hello", b"\x94\x00\x01\xa4list\x90", b"\x00")


async def subscriber(clients: Clients, server: Server, *, usage: bool = False) -> None:
    """Reads all that is told, and does so again after a restart."""
    while True:
        try:
            async with connected(server, "subscriber") as client:
                pushes = client.subscribe(usage=usage)
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(_read(clients, pushes.__anext__))
                    await clients.ending.wait()
                    reading.cancel()
        except* VmstackError:
            pass  # it is being restarted
        if not await clients.pause(0.5):
            return


async def _read(clients: Clients, take: Callable[[], Awaitable[session.Push]]) -> None:
    while True:
        push = await take()
        clients.done["missed" if isinstance(push, session.Missed) else "pushes"] += 1


async def slow_subscriber(clients: Clients, server: Server) -> None:
    """Reads far less than it is told, and comes again when it is dropped for that."""
    loop = asyncio.get_running_loop()
    hello = wire.request(1, session.Hello(versions=session.PROTOCOL_VERSIONS, client="slow"))
    while not clients.ending.is_set():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
            connection.setblocking(False)
            await loop.sock_connect(connection, str(server.socket))
            server.held += 1
            try:
                await loop.sock_sendall(connection, hello + wire.request(2, session.Subscribe()))
                while data := await loop.sock_recv(connection, SLOW_BYTES):
                    clients.done["bytes of the slow subscriber"] += len(data)
                    if not await clients.pause(1.0):
                        return
            except ConnectionError:
                pass
            finally:
                server.held -= 1
        clients.done["slow subscriber dropped"] += 1
        await clients.pause(1.0)


async def scrapes(clients: Clients, pause: float) -> None:
    """The metrics of all daemons, over connections that stay."""
    async with aiohttp.ClientSession() as web:
        while await clients.pause(pause):
            for server in clients.servers.all:
                await _page(clients, web, server, "/metrics", "scrape")


async def _page(clients: Clients, web: aiohttp.ClientSession, server: Server, path: str, door: str) -> None:
    """One page that must be there, unless the daemon is being restarted."""
    lives = clients.ledger.lives()
    try:
        with clients.timed(door):
            status, _ = await fetch(web, server.daemon.url + path)
    except (aiohttp.ClientError, OSError) as error:
        if not clients.restarting.locked() and clients.ledger.lives() == lives:
            clients.error(f"{path} of {server.name} ended with {error!r}")
    else:
        if status != 200:
            clients.error(f"{path} of {server.name} was answered {status}")


async def visits(clients: Clients, pause: float) -> None:
    """Connections for one question each, over the sockets, over TCP, and over HTTP; some ask nothing."""
    while await clients.pause(pause):
        server = random.choice(clients.servers.all)
        kind = random.choice(("socket", "tcp", "http", "silent"))
        if kind == "http":
            async with aiohttp.ClientSession() as web:
                await _page(clients, web, server, random.choice(("/status", "/listvm", "/healthz", "/")), "reading")
            continue
        address = server.address if kind == "tcp" and server.address else f"unix:{server.socket}"
        try:
            async with await Client.connect(address, program="visitor") as client:
                if kind != "silent":
                    with clients.timed("reading"):
                        await random.choice((client.status, client.list, client.ping))()
        except VmstackError as error:
            if not clients.restarting.locked():
                clients.done[f"visits cut off: {error.code}"] += 1


async def refusals(clients: Clients, pause: float) -> None:
    """Requests that must be refused: over globald's socket, over HTTP, and what is no request at all."""
    globald = clients.servers.globald
    size = {"vcpus": 1, "memory_mib": 1024, "level": 1000, "image": "/images/x.qcow2"}
    wrong = (
        requests.Deploy(name="wide", **size | {"vcpus": 4000}),  # type: ignore[arg-type]  # as the names say
        requests.Deploy(name="", **size),  # type: ignore[arg-type]
        requests.Deploy(name="low", **size | {"level": 7}),  # type: ignore[arg-type]
        requests.Deploy(name="here", **size, host="nowhere"),  # type: ignore[arg-type]
    )
    paths = ("/nowhere", "/deploy?name=x", "/remove?name=nobody", "/deploy?name=x&cpu=a&mem=1&oc=1&qcow2=/x", "/%ff")
    once = aiohttp.TCPConnector(force_close=True)
    async with connected(globald, "refused") as client, aiohttp.ClientSession(connector=once) as web:
        while await clients.pause(pause):
            try:
                with clients.timed("refused"):
                    if random.random() < 0.2:
                        await client.remove(requests.Remove(name=f"nobody{random.random()}"))
                    else:
                        await client.deploy(random.choice(wrong))
                clients.error("what must be refused was done")
            except VmstackError:
                pass
            server = random.choice(clients.servers.all)
            try:
                headers = {"Host": "elsewhere.example"} if random.random() < 0.2 else {}
                status, _ = await fetch(web, server.daemon.url + random.choice(paths), **headers)
                if not 400 <= status < 500:
                    clients.error(f"HTTP nonsense for {server.name} was answered {status}")
            except (aiohttp.ClientError, OSError):
                pass  # it is being restarted
            await _nonsense(server)


async def _nonsense(server: Server) -> None:
    """Bytes that are no call; who sends them is hung up on, or hangs up in the middle."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(server.socket))
    except OSError:
        return
    try:
        writer.write(random.choice(GARBAGE))
        if random.random() < 0.7:
            await asyncio.wait_for(reader.read(), 0.5)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()


async def pulses(clients: Clients, path: str, pause: float) -> None:
    """Calls to the process that does fixed work."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        while await clients.pause(pause):
            with clients.timed(PULSE):
                writer.write(bytes(SIZE))
                await reader.readexactly(SIZE)
    finally:
        writer.close()
