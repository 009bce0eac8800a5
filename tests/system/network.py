"""The network of a lab's boxes, for code of the test process itself; and a proxy that makes a part of it slow."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.system.keeper import ADDRESS
from tests.system.lab import Lab

_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_CHUNK = 65536


def run_in(lab: Lab, work: Callable[[], Coroutine[Any, Any, _T]], patience: float) -> _T:
    """Run a coroutine whose sockets are in the lab's network. patience: seconds that it may take at most."""

    async def limited() -> _T:
        return await asyncio.wait_for(work(), patience)

    # A network namespace is a thread's own; it is that of the threads that this one starts, too.
    with ThreadPoolExecutor(1, initializer=_enter, initargs=(lab.pid,)) as thread:
        return thread.submit(lambda: asyncio.run(limited())).result()


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the lab's network: {os.strerror(ctypes.get_errno())}")


@contextlib.asynccontextmanager
async def delaying_proxy(host: str, port: int, delay: float) -> AsyncIterator[str]:
    """Pass connections on to this address, each byte of either way so many seconds late; yields the proxy's own.

    Within ``run_in``, it is at the address of the lab, where boxes reach it.
    """
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        with contextlib.suppress(OSError), contextlib.closing(writer):
            far_reader, far_writer = await asyncio.open_connection(host, port)
            with contextlib.closing(far_writer):
                # When either side hangs up, the other one is hung up on.
                ways = [
                    asyncio.create_task(_carry(reader, far_writer, delay)),
                    asyncio.create_task(_carry(far_reader, writer, delay)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    server = await asyncio.start_server(accept, ADDRESS, 0)
    try:
        yield f"{ADDRESS}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Until the end of what comes, or of the writer."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take() -> None:
        data = b"some"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            under_way.put_nowait((clock() + delay, data))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not data:
                return
            writer.write(data)
            await writer.drain()
    finally:
        taking.cancel()
