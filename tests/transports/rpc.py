"""One engine with its Unix socket in this process, spoken to in plain msgpack arrays as any client might."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it comes without types
import pytest

from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from tests.running import PATIENCE, SMALL_HOST
from vmstackd.daemon.stream import Limits, StreamTransport, listen
from vmstackd.engine import Engine
from vmstackd.hypervisor.base import Hypervisor
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.topology_source import load_topology

HELLO = [{"versions": [1]}]
VM = {"name": "one", "vcpus": 2, "memory_mib": 2048, "level": 2000, "image": "/images/one.qcow2"}
STRANGER = 65534
"""A user without any rights: nobody."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def packed(*messages: object) -> bytes:
    """The bytes of some messages."""
    return b"".join(msgpack.packb(message) for message in messages)


class Speaker:
    """One connection. Nothing here knows the protocol beyond msgpack."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._unpacker = msgpack.Unpacker()
        self._last = 0

    def send(self, *messages: object) -> None:
        """Send arrays, all in one piece."""
        self.raw(packed(*messages))

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    async def receive(self) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        """The next message; None at the end."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for message in self._unpacker:
                    return message
                try:
                    data = await self.reader.read(1 << 16)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self._unpacker.feed(data)

    async def call(self, method: str, *params: object) -> tuple[Any, Any]:
        """Call, and return error and result of the next message."""
        self._last += 1
        self.send([0, self._last, method, list(params)])
        kind, msgid, error, result = await self.receive()
        assert (kind, msgid) == (1, self._last)
        return error, result

    async def ask(self, method: str, *params: object) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        """The result of a call that must succeed."""
        error, result = await self.call(method, *params)
        assert error is None, error
        return result

    async def refusal(self, method: str, *params: object) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        """The error of a call that must fail."""
        error, result = await self.call(method, *params)
        assert result is None
        return error


class Door:
    """engine: what answers at the path. transport: what is in between."""

    def __init__(self, engine: Engine, transport: StreamTransport, path: Path) -> None:
        self.engine = engine
        self.transport = transport
        self.path = path

    @asynccontextmanager
    async def stranger(self) -> AsyncIterator[Speaker]:
        """A connection on which hello was not said."""
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 20)
        try:
            yield Speaker(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    @asynccontextmanager
    async def speaker(self) -> AsyncIterator[Speaker]:
        """A connection on which hello was said."""
        async with self.stranger() as speaker:
            await speaker.ask("hello", *HELLO)
            yield speaker

    async def alive(self) -> None:
        """Others are served."""
        async with self.speaker() as other:
            assert (await other.ask("status"))["hypervisor"] == "up"


@asynccontextmanager
async def door(
    hypervisor: Hypervisor | None = None, *, limits: Limits | None = None, start: bool = True
) -> AsyncIterator[Door]:
    """A started engine of 16 CPUs behind a Unix socket in a folder of its own. start: the engine, too."""
    engine = Engine(
        empty_state(load_topology(SMALL_HOST), Rules(critical_size=0), 0),
        POLICIES["reference"],
        SimHypervisor() if hypervisor is None else hypervisor,
        period=3600.0,
    )
    if start:
        await engine.start()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101  for other users
        path = Path(folder, "vmstackd.sock")
        transport = StreamTransport(engine, listen(path, "root"), limits=limits or Limits())
        await transport.start()
        try:
            yield Door(engine, transport, path)
        finally:
            await transport.stop()
            if start:
                await engine.stop()


async def serve(path: str, topology: str) -> None:
    """For a process of its own: an engine behind a socket until it is killed; says "ready"."""
    engine = Engine(
        empty_state(load_topology(topology), Rules(critical_size=0), 0), POLICIES["reference"], SimHypervisor()
    )
    await engine.start()
    await StreamTransport(engine, listen(Path(path), "root")).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


_SAY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(bytes.fromhex(sys.argv[2]))
    connection.shutdown(socket.SHUT_WR)
    sys.stdout.write(b"".join(iter(lambda: connection.recv(4096), b"")).hex())
"""


async def say_as(path: Path, messages: list[list[object]], *, uid: int, gid: int, groups: list[int]) -> list[Any]:
    """What a process of another user is answered."""
    data = packed(*messages).hex()
    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-c", _SAY, str(path), data],
        user=uid,
        group=gid,
        extra_groups=groups,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=PATIENCE,
        check=True,
    )
    unpacker = msgpack.Unpacker()
    unpacker.feed(bytes.fromhex(process.stdout))
    return list(unpacker)
