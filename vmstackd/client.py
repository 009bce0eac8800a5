"""A typed client of the socket: what ``Engine`` can be asked, from another process.

Errors are those of ``vmstackd.api.errors``, the server's and our own alike.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from vmstackd import wire
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import DeadlineExceeded, InvalidRequest, Unavailable, VmstackError

CONNECT_TIMEOUT = 10.0
"""Seconds."""
MOST_EVENTS = 1000
"""Kept for a subscriber that does not take them."""

_R = TypeVar("_R", bound=msgspec.Struct)


class Client:
    """One connection. Calls may be made at the same time; each is answered when it is done.

    Every call raises VmstackError: as the server answered; Unavailable when the connection is lost;
    DeadlineExceeded after ``timeout`` seconds, where a change that has begun runs to its end all the same.
    """

    hello: session.HelloReply
    """How the server introduced itself."""

    def __init__(self, address: str, link: _Link) -> None:
        """Use ``connect``."""
        self.address = address
        self._link = link

    @classmethod
    async def connect(cls, address: str, *, program: str, timeout: float = CONNECT_TIMEOUT) -> Self:  # noqa: ASYNC109
        """Connect to ``/a/path`` or ``unix:/a/path``. program: our name, for the server's log. timeout: seconds.

        Raises InvalidRequest if the address is none, Unavailable with what to do if nobody answers, and what
        the server may say, such as Denied.
        """
        path = unix_path(address)
        try:
            async with asyncio.timeout(timeout):
                _, link = await asyncio.get_running_loop().create_unix_connection(lambda: _Link(address), path)
                client = cls(address, link)
                try:
                    hello = session.Hello(versions=session.PROTOCOL_VERSIONS, client=program)
                    client.hello = await link.call(hello, session.HelloReply)
                except BaseException:
                    link.close()
                    raise
        except TimeoutError:
            raise Unavailable(f"{address} does not answer within {timeout:g} s") from None
        except OSError as error:
            raise _unreachable(address, error) from error
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. Calls that are not answered yet fail with Unavailable; changes go on."""
        self._link.close()
        await self._link.closed.wait()

    async def deploy(
        self,
        request: requests.Deploy,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.Deployed:
        """Place and start a VM. request_id: for the server's log, at most 64 of A-Z a-z 0-9 . _ -; so everywhere."""
        return await self._call(request, replies.Deployed, timeout, request_id)

    async def remove(
        self,
        request: requests.Remove,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.Removed:
        """Stop a VM and give its CPUs back."""
        return await self._call(request, replies.Removed, timeout, request_id)

    async def progress(
        self,
        request: requests.Progress,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.ProgressReply:
        """Would this VM bring memory per CPU nearer to the hardware's?"""
        return await self._call(request, replies.ProgressReply, timeout, request_id)

    async def status(
        self,
        request: requests.Status = requests.Status(),  # noqa: B008  a value that cannot change
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.StatusReply:
        """The figures of the host and of each level."""
        return await self._call(request, replies.StatusReply, timeout, request_id)

    async def list(
        self,
        request: requests.List = requests.List(),  # noqa: B008  a value that cannot change
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.ListReply:
        """The VMs."""
        return await self._call(request, replies.ListReply, timeout, request_id)

    async def describe(
        self,
        request: requests.Describe,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.VmReply:
        """One VM."""
        return await self._call(request, replies.VmReply, timeout, request_id)

    async def topology(
        self,
        request: requests.Topology = requests.Topology(),  # noqa: B008  a value that cannot change
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.TopologyReply:
        """The host's CPUs and the level that owns each."""
        return await self._call(request, replies.TopologyReply, timeout, request_id)

    async def subscribe(self) -> AsyncIterator[session.Push]:
        """The status of now, then every event, and the status whenever it has changed; once per connection.

        Whoever takes them slowly gets the newest status only, and Missed for what was too much to keep.
        """
        if self._link.pushes is not None:
            raise InvalidRequest("this connection has subscribed already")
        pushes = self._link.pushes = _Pushes()
        await self._link.call(session.Subscribe(), session.Subscribed)
        while True:
            for push in await pushes.take():
                yield push
            if self._link.lost is not None:
                raise self._link.lost

    async def _call(
        self,
        request: requests.Request,
        answer: type[_R],
        timeout: float | None,  # noqa: ASYNC109
        request_id: str | None,
    ) -> _R:
        if timeout is None and request_id is None:
            return await self._link.call(request, answer)
        # The server is told too, so that it does not answer what nobody waits for any more.
        told = timeout if timeout is not None and 0 < timeout <= wire.MAX_TIMEOUT else None
        options = wire.Options(timeout=told, request_id=request_id)
        try:
            async with asyncio.timeout(timeout):
                return await self._link.call(request, answer, options)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.address} has not answered within {timeout:g} s") from None


class _Pushes:
    """What a subscriber has not taken yet: events, and the newest status."""

    def __init__(self) -> None:
        self._events: deque[session.Event] = deque()
        self._missed = 0
        self._status: replies.StatusReply | None = None
        self.something = asyncio.Event()

    def add(self, push: session.Push) -> None:
        """Keep it."""
        if isinstance(push, replies.StatusReply):
            self._status = push
        elif len(self._events) < MOST_EVENTS:
            self._events.append(push)
        else:
            self._missed += push.count if isinstance(push, session.Missed) else 1
        self.something.set()

    async def take(self) -> list[session.Push]:
        """Wait until there is something, and take it all."""
        await self.something.wait()
        self.something.clear()
        pushes: list[session.Push] = [*self._events]
        if self._missed:
            pushes.append(session.Missed(time=time.time(), count=self._missed))
        if self._status is not None:
            pushes.append(self._status)
        self._events.clear()
        self._missed, self._status = 0, None
        return pushes


class _Link(asyncio.Protocol):
    """The bytes below a Client."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._inbox = wire.Replies()
        self._calls: dict[int, tuple[asyncio.Future[Any], type[msgspec.Struct]]] = {}
        self._last = 0
        self._out: list[bytes] = []
        self._gathering = False
        self._loop = asyncio.get_running_loop()
        self.pushes: _Pushes | None = None
        self.lost: VmstackError | None = None
        self.closed = asyncio.Event()

    # Calls

    async def call(self, request: msgspec.Struct, answer: type[_R], options: wire.Options | None = None) -> _R:
        """Ask, and wait for the answer."""
        if self.lost is not None:
            raise self.lost
        msgid = self._last = (self._last + 1) & 0xFFFFFFFF
        frame = wire.request(msgid, request) if options is None else wire.request(msgid, request, options)
        self._send(frame)
        future: asyncio.Future[_R] = self._loop.create_future()
        self._calls[msgid] = (future, answer)
        try:
            return await future
        finally:
            self._calls.pop(msgid, None)

    def close(self) -> None:
        """Hang up."""
        self._lose(Unavailable(f"the connection to {self._address} is closed"))
        if self._transport is None:
            self.closed.set()
        else:
            self._transport.abort()

    def _send(self, frame: bytes) -> None:
        """At once; what follows in the same moment is gathered and sent together."""
        if self._gathering:
            self._out.append(frame)
        elif self._transport is not None:
            self._transport.write(frame)
            self._gathering = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._gathering = False
        if self._out and self._transport is not None and self.lost is None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _lose(self, error: VmstackError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(error)
        if self.pushes is not None:
            self.pushes.something.set()

    # As asyncio's transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  of a stream socket
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._inbox.add(data):
                self._received(message)
        except wire.Malformed as error:
            self._lose(
                Unavailable(
                    f"what answers at {self._address} does not speak our protocol, it sent {error}; is it vmstackd?"
                )
            )
            if self._transport is not None:
                self._transport.abort()

    def _received(self, message: Any) -> None:  # noqa: ANN401  whatever came
        match wire.read_reply(message):
            case wire.Response() as response:
                future, answer = self._calls.get(response.msgid, (None, msgspec.Struct))
                if future is None or future.done():
                    return  # nobody waits for it any more
                if response.error is not None:
                    future.set_exception(response.error)
                else:
                    future.set_result(wire.read_result(response.result, answer))
            case None:
                pass
            case push:
                if self.pushes is not None:
                    self.pushes.add(push)

    def connection_lost(self, exc: Exception | None) -> None:
        why = f": {exc.strerror or exc}" if isinstance(exc, OSError) else ""
        self._lose(
            Unavailable(f"{self._address} closed the connection{why}; its log may say why: journalctl -u vmstackd")
        )
        self.closed.set()


def unix_path(address: str) -> str:
    """The path in an address. Raises InvalidRequest."""
    path = address.removeprefix("unix:")
    if path.startswith("/"):
        if len(path.encode("utf-8", "surrogateescape")) > wire.MAX_PATH_BYTES or "\0" in path:
            raise InvalidRequest(
                f"the path of a socket may have {wire.MAX_PATH_BYTES} bytes: {address[:200]!r}", field="address"
            )
        return path
    # Here host:port will be understood once the daemon listens on TCP.
    raise InvalidRequest(
        f"{address[:200]!r} is no address: it must be /a/path or unix:/a/path; host:port is not possible yet",
        field="address",
    )


def _unreachable(address: str, error: OSError) -> Unavailable:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            why = "there is no such socket; is vmstackd running? systemctl status vmstackd"
        case errno.ECONNREFUSED:
            why = "nobody listens there; is vmstackd running? systemctl status vmstackd"
        case errno.EACCES | errno.EPERM:
            why = "not permitted; join group vmstack (sudo usermod -aG vmstack $USER) and log in anew, or use sudo"
        case errno.EAGAIN:
            why = "it is overloaded; try again"
        case _:
            why = error.strerror or str(error)
    return Unavailable(f"cannot reach {address}: {why}")
