"""One engine with its HTTP endpoint in this process, spoken to in raw bytes so that any request can be made."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import cast

from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from tests.running import PATIENCE, SMALL_HOST, Answer
from vmstackd.daemon.http import listen
from vmstackd.engine import Engine
from vmstackd.hypervisor.base import Hypervisor
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.metrics import Metrics
from vmstackd.topology_source import load_topology
from vmstackd.transports.http import HostHttp

VM = "/deploy?name=here&cpu=2&mem=2&oc=2&qcow2=/images/here.qcow2"


class Endpoint:
    """engine: what answers. Every request goes over a connection of its own unless it is made with ``raw``."""

    def __init__(self, engine: Engine, host: str, port: int) -> None:
        self.engine = engine
        self.host = host
        self.port = port

    async def get(self, target: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET a target, sent exactly as given."""
        return await self.send("GET", target, headers)

    async def send(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Any request. A Host header is added unless one is given."""
        lines = {"Host": f"localhost:{self.port}", "Connection": "close"} | dict(headers or {})
        if body is not None:
            lines = {"Content-Length": str(len(body))} | lines
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        return parse(await self.raw(head.encode("utf-8", "surrogateescape") + b"\r\n" + (body or b"")), method)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, and read until the other side closes the connection."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), PATIENCE)
        finally:
            writer.close()

    async def raw_until_cut(self, data: bytes) -> bytes:
        """Send bytes, and read until the connection ends, in whatever way."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        received = b""
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            while part := await asyncio.wait_for(reader.read(65536), PATIENCE):
                received += part
        writer.close()
        return received


class _Received:
    """As much of a socket as http.client reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parse(data: bytes, method: str = "GET") -> Answer:
    """The answer in the bytes that came back."""
    response = http.client.HTTPResponse(cast("socket.socket", _Received(data)), method=method)
    response.begin()
    return Answer(status=response.status, headers=dict(response.getheaders()), body=response.read())


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  nobody would set an event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def endpoint(
    hypervisor: Hypervisor | None = None,
    *,
    topology: str = SMALL_HOST,
    critical_size: int = 0,
    names: Iterable[str] = (),
    address: str = "127.0.0.1",
    period: float = 3600.0,
) -> AsyncIterator[Endpoint]:
    """A started engine behind HTTP on a free port."""
    metrics = Metrics()
    engine = Engine(
        empty_state(load_topology(topology), Rules(critical_size=critical_size), 0),
        POLICIES["reference"],
        SimHypervisor() if hypervisor is None else hypervisor,
        period=period,
        observer=metrics.count,
    )
    await engine.start()
    listener = listen(address, 0)
    transport = HostHttp(engine, metrics, listener, names)
    metrics.watch(engine)
    await transport.start()
    try:
        yield Endpoint(engine, address, listener.getsockname()[1])
    finally:
        await transport.stop()
        await engine.stop()
