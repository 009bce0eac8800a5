"""A host that answers what a test tells it to, in raw msgpack: nothing here keeps to the protocol by itself."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it comes without types

STATUS: dict[str, Any] = {
    "host": {
        "cpus": 64,
        "free_cpus": 64,
        "held_cpus": 0,
        "memory_mib": 1 << 20,
        "allocated_mib": 0,
        "free_mib": 1 << 20,
        "vms": 0,
        "generation": 0,
        "levels": [],
        "critical_size": 0,
        "critical_sizes": [],
    },
    "hypervisor": "up",
    "unplaced": [],
    "stopped": [],
    "degraded": [],
}
"""Of an empty host, larger than any other in a test: it is asked first."""


def status(**figures: object) -> dict[str, Any]:
    """As STATUS, with other figures or other fields beside them."""
    beside = {key: value for key, value in figures.items() if key not in STATUS["host"]}
    host = {key: value for key, value in figures.items() if key in STATUS["host"]}
    return {**STATUS, **beside, "host": {**STATUS["host"], **host}}


class Talk:
    """One connection."""

    def __init__(self, host: HostileHost, writer: asyncio.StreamWriter) -> None:
        self.host = host
        self.writer = writer

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    def send(self, *messages: object) -> None:
        """Send arrays."""
        for message in messages:
            self.raw(msgpack.packb(message))

    def answer(self, msgid: int, result: object) -> None:
        self.send([1, msgid, None, result])

    def refuse(self, msgid: int, code: str, message: str = "no", **details: object) -> None:
        self.send([1, msgid, {"code": code, "message": message, "retryable": False, "details": details}, None])

    def push(self, fields: dict[str, Any]) -> None:
        """A status."""
        self.send([2, "status", [fields]])

    def event(self, event: str, **fields: object) -> None:
        self.send([2, "event", [{"event": event, "time": 1.0, **fields}]])

    def close(self) -> None:
        self.writer.close()


class HostileHost:
    """Behaves like a good, empty host, save for what a test replaces.

    script: called with each call but hello and subscribe; answers it, or not. on_hello, on_subscribe: likewise,
    instead of a good answer. calls: every call that came, as (method, fields). talks: connections, the newest last.
    """

    def __init__(self, name: str = "hostile") -> None:
        self.hello: dict[str, Any] = {
            "version": 1,
            "program": "vmstackd",
            "program_version": "1",
            "host": name,
            "role": "operator",
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        }
        self.names: list[str] = []
        self.first: dict[str, Any] = STATUS
        self.on_connect: Callable[[Talk], None] | None = None
        self.on_hello: Callable[[Talk, int], None] | None = None
        self.on_subscribe: Callable[[Talk, int], None] | None = None
        self.script: Callable[[Talk, int, str, dict[str, Any]], Awaitable[None]] = self.polite
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.talks: list[Talk] = []
        self.address = ""

    @property
    def talk(self) -> Talk:
        """The newest connection."""
        return self.talks[-1]

    def asked(self, method: str) -> list[dict[str, Any]]:
        """The fields of each call of this method."""
        return [fields for called, fields in self.calls if called == method]

    async def polite(self, talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
        """What a good host answers, as far as tests need it."""
        match method:
            case "deploy":
                talk.answer(msgid, deployed(fields))
            case "describe":
                talk.refuse(msgid, "NotFound", "it does not exist on this host")
            case _:
                talk.answer(msgid, {})

    async def silent(self, talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
        """Answers nothing."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(self, writer)
        self.talks.append(talk)
        if self.on_connect is not None:
            self.on_connect(talk)
        unpacker = msgpack.Unpacker()
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                unpacker.feed(data)
                for _, msgid, method, params in unpacker:
                    fields = params[0] if params else {}
                    self.calls.append((method, fields))
                    await self._take(talk, msgid, method, fields)

    async def _take(self, talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
        match method:
            case "hello" if self.on_hello is not None:
                self.on_hello(talk, msgid)
            case "hello":
                talk.answer(msgid, self.hello)
            case "subscribe" if self.on_subscribe is not None:
                self.on_subscribe(talk, msgid)
            case "subscribe":
                talk.answer(msgid, {"names": self.names})
                talk.push(self.first)
            case _:
                await self.script(talk, msgid, method, fields)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HostileHost]:
        """While it can be reached."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for talk in self.talks:
                talk.writer.transport.abort()
            await asyncio.sleep(0)


def deployed(fields: dict[str, Any], generation: int = 1) -> dict[str, Any]:
    """The answer of a good host to deploy."""
    return {
        "name": fields["name"],
        "level": fields["level"],
        "cpus": list(range(fields["vcpus"])),
        "dry_run": fields.get("dry_run", False),
        "generation": generation,
    }
