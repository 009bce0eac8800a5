"""A typed client: what ``Operations`` can be asked, from another process or another machine.

Errors are those of ``vmstackd.api.errors``, the server's and our own alike.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from vmstackd import wire
from vmstackd.address import Address, is_loopback, parse_address, watch_over
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import DeadlineExceeded, Denied, InvalidRequest, Unavailable, VmstackError
from vmstackd.tls import Tls, hosts_in
from vmstackd.unreachable import CERTIFICATES, hung_up, unreachable

__all__ = ["MALFORMED", "Address", "Client", "parse_address"]

CONNECT_TIMEOUT = 10.0
"""Seconds."""
MOST_EVENTS = 1000
"""Kept for a subscriber that does not take them."""

MALFORMED = "malformed"
"""The detail "fault" of an Unavailable whose cause is that the other side does not speak our protocol."""

_OTHER_NAME = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL."""
_TLS_EXPECTED = "if it expects TLS, give --tls-ca, --tls-cert and --tls-key (settings tls_ca, tls_certificate, tls_key)"

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
    async def connect(
        cls,
        address: str,
        *,
        program: str,
        timeout: float = CONNECT_TIMEOUT,  # noqa: ASYNC109
        tls: Tls | None = None,
    ) -> Self:
        """Connect to an address as ``parse_address`` reads it. program: our name, for the server's log.

        timeout: seconds. tls: needed for TCP beyond this machine. Raises InvalidRequest if the address is none or
        needs TLS, Unavailable with what to do if nobody answers, Denied if the two do not trust each other, and
        what the server may say.
        """
        where = parse_address(address)
        try:
            async with asyncio.timeout(timeout):
                link = await _connected(address, where, tls)
                client = cls(address, link)
                try:
                    hello = session.Hello(versions=session.PROTOCOL_VERSIONS, client=program)
                    client.hello = await link.call(hello, session.HelloReply)
                    link.greeted = True
                except BaseException:
                    link.close()
                    raise
        except TimeoutError:
            hint = f"; {_TLS_EXPECTED}" if where.kind == "tcp" and tls is None else ""
            raise Unavailable(f"{address} does not answer within {timeout:g} s{hint}") from None
        except OSError as error:
            raise unreachable(address, where, error) from error
        except UnicodeError as error:
            raise Denied(f"the certificate of {address} holds what is no text; {CERTIFICATES}") from error
        return client

    @property
    def lost(self) -> VmstackError | None:
        """What ended the connection, the very error that all calls in progress raised; None while it lasts."""
        return self._link.lost

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

    async def cordon(
        self,
        request: requests.Cordon,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.CordonReply:
        """Let a host have no new VMs."""
        return await self._call(request, replies.CordonReply, timeout, request_id)

    async def uncordon(
        self,
        request: requests.Uncordon,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.CordonReply:
        """Let a host have new VMs again."""
        return await self._call(request, replies.CordonReply, timeout, request_id)

    async def check(
        self,
        request: requests.Check = requests.Check(),  # noqa: B008  a value that cannot change
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.CheckReply:
        """Compare a host, or all of a cluster, with what was decided, and put right what can be."""
        return await self._call(request, replies.CheckReply, timeout, request_id)

    async def hosts(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.HostsReply:
        """The hosts of a cluster, all of them. timeout: for each of the answers that this takes."""
        reply = await self._call(requests.Hosts(), replies.HostsReply, timeout, request_id)
        while reply.following is not None:
            if reply.following != len(reply.hosts):  # else there would be no end
                raise Unavailable(f"{self.address} has counted its hosts wrong", fault=MALFORMED)
            rest = await self._call(requests.Hosts(first=reply.following), replies.HostsReply, timeout, request_id)
            reply = msgspec.structs.replace(reply, hosts=reply.hosts + rest.hosts, following=rest.following)
        return reply

    async def demand(
        self,
        request: requests.Demand = requests.Demand(),  # noqa: B008  a value that cannot change
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.DemandReply:
        """How a cluster chooses hosts, and what it has learnt."""
        return await self._call(request, replies.DemandReply, timeout, request_id)

    async def host_add(
        self,
        request: requests.HostAdd,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.HostListed:
        """Make a host part of the cluster."""
        return await self._call(request, replies.HostListed, timeout, request_id)

    async def host_remove(
        self,
        request: requests.HostRemove,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        request_id: str | None = None,
    ) -> replies.HostListed:
        """Take a host out of the cluster."""
        return await self._call(request, replies.HostListed, timeout, request_id)

    async def ping(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Return once the server has said that it is there."""
        await self._call(session.Ping(), session.Pong, timeout, None)

    async def subscribe(self, *, usage: bool = False) -> AsyncIterator[session.Push]:
        """The status of now, then every event, and the status whenever it has changed; once per connection.

        usage: as in session.Subscribe. Whoever takes them slowly gets the newest status only, and Missed for what was
        too much to keep.
        """
        _, pushes = await self.watch(usage=usage)
        async for push in pushes:
            yield push

    async def watch(
        self,
        *,
        names: bool = False,
        usage: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[session.Subscribed, Pushes]:
        """As ``subscribe``, with the answer: with names, those of the VMs of the very moment at which events begin."""
        if self._link.pushes is not None:
            raise InvalidRequest("this connection has subscribed already")
        pushes = self._link.pushes = Pushes()
        try:
            request = session.Subscribe(names=names, usage=usage)
            return await self._call(request, session.Subscribed, timeout, None), pushes
        except VmstackError:
            self._link.pushes = None
            raise

    async def _call(
        self,
        request: requests.Request | session.Ping | session.Subscribe,
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


class Pushes(AsyncIterator[session.Push]):
    """What a subscriber has not taken yet: events, and the newest status, in the order in which they came.

    Ends with what ended the connection.
    """

    def __init__(self) -> None:
        self._events: deque[session.Event] = deque()
        self._missed = 0
        self._status: replies.StatusReply | None = None
        self._before = 0  # events that came before the status
        self._something: asyncio.Future[None] | None = None
        self._lost: VmstackError | None = None

    def add(self, push: session.Push) -> None:
        """Keep it."""
        if isinstance(push, replies.StatusReply):
            self._status, self._before = push, len(self._events)
        elif len(self._events) < MOST_EVENTS:
            self._events.append(push)
        else:
            self._missed += push.count if isinstance(push, session.Missed) else 1
        self._wake()

    def lose(self, error: VmstackError) -> None:
        """Nothing more will come."""
        self._lost = error
        self._wake()

    def _wake(self) -> None:
        if self._something is not None and not self._something.done():
            self._something.set_result(None)

    async def __anext__(self) -> session.Push:
        while True:
            if self._status is not None and not self._before:
                status, self._status = self._status, None
                return status
            if self._events:
                self._before = max(0, self._before - 1)
                return self._events.popleft()
            if self._missed:
                missed, self._missed = self._missed, 0
                return session.Missed(time=time.time(), count=missed)
            if self._lost is not None:
                raise self._lost
            self._something = asyncio.get_running_loop().create_future()
            await self._something


async def _connected(address: str, where: Address, tls: Tls | None) -> _Link:
    """Raises InvalidRequest, Denied, OSError."""
    loop = asyncio.get_running_loop()
    if where.kind == "unix":
        _, link = await loop.create_unix_connection(lambda: _Link(address), where.path)
        return link
    if tls is None:
        return await _over_tcp(address, where, None)
    try:
        return await _over_tcp(address, where, tls.client())
    except ssl.SSLCertVerificationError as error:
        if error.verify_code not in _OTHER_NAME:
            raise
        # Only for what to tell: the certificate is that of a stranger by its name, not by its signature.
        link = await _over_tcp(address, where, tls.client(any_name=True))
        names = ", ".join(hosts_in(link.peer_certificate)) or "no host"
        link.close()
        raise Denied(
            f"the certificate at {address} is for {names[:200]}, not for {where.host}; call the host by a name that it "
            f"has, or make a certificate: vmstackctl pki host NAME --address {where.host}"
        ) from error


async def _over_tcp(address: str, where: Address, context: ssl.SSLContext | None) -> _Link:
    connection = await _tcp(address, where, plain=context is None)
    try:
        watch_over(connection)
        name = None if context is None else where.host.partition("%")[0]  # certificates know no links
        _, link = await asyncio.get_running_loop().create_connection(
            lambda: _Link(address, secure=context is not None), sock=connection, ssl=context, server_hostname=name
        )
    except BaseException:
        connection.close()
        raise
    return link


async def _tcp(address: str, where: Address, *, plain: bool) -> socket.socket:
    """A connection to the first of the host's addresses that answers. plain: only within this machine."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise InvalidRequest(f"{where.host[:80]!r} is no host name; correct it", field="address") from None
    if plain and not all(is_loopback(str(end[0])) for *_, end in found):
        raise InvalidRequest(
            f"{address} is not within this machine, so TLS is needed: give --tls-ca, --tls-cert and --tls-key "
            "(settings tls_ca, tls_certificate, tls_key); vmstackctl pki client makes a certificate",
            field="address",
        )
    failure: OSError | None = None
    for family, kind, protocol, _, end in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, end)
        except OSError as error:
            connection.close()
            failure = failure or error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure or OSError(errno.EADDRNOTAVAIL, "it has no address")


_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, bytearray] = WeakKeyDictionary()
"""One for all connections of a loop: each is read out before it is another one's turn."""


class _Link(asyncio.BufferedProtocol):
    """The bytes below a Client."""

    def __init__(self, address: str, *, secure: bool = False) -> None:
        self._address = address
        self._secure = secure
        self._transport: asyncio.Transport | None = None
        self._inbox = wire.Replies()
        self._calls: dict[int, tuple[asyncio.Future[Any], type[msgspec.Struct]]] = {}
        self._last = 0
        self._out: list[bytes] = []
        self._gathering = False
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(_buffers.setdefault(self._loop, bytearray(wire.READ_SIZE)))
        self.pushes: Pushes | None = None
        self.greeted = False
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

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """As the ssl module tells it."""
        return None if self._transport is None else self._transport.get_extra_info("peercert")

    def close(self) -> None:
        """Hang up."""
        self._lose(Unavailable(f"the connection to {self._address} is closed"))
        if self._transport is None:
            self.closed.set()
        else:
            if self._calls:
                # What the kernel has not sent yet is not to arrive later, when nobody knows of it any more.
                _discard_unsent(self._transport.get_extra_info("socket"))
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
            self.pushes.lose(error)

    # As asyncio's transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  of a stream socket
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message in self._inbox.add(self._buffer[:nbytes]):
                self._received(message)
        except wire.Malformed as error:
            self._lose(
                Unavailable(
                    f"what answers at {self._address} does not speak our protocol, it sent {error}; is it vmstackd?",
                    fault=MALFORMED,
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
        self._lose(hung_up(self._address, exc, refused=self._secure and not self.greeted))
        self.closed.set()


def _discard_unsent(connection: socket.socket | None) -> None:
    if connection is not None and connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
