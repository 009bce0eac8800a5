"""msgpack-RPC over a stream socket (see ``vmstackd.wire``), for many clients of which none can harm another.

Whatever a client makes us keep is bounded, for each and for all together; whoever goes beyond is dropped.
What differs between Unix sockets, TCP and TLS is in ``vmstackd.daemon.callers``.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Coroutine, Hashable
from functools import partial
from typing import Any

import msgspec

from vmstackd import wire
from vmstackd.api import replies, requests, session
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import DeadlineExceeded, Denied, InvalidRequest, VmstackError
from vmstackd.daemon import log
from vmstackd.daemon.callers import Visitor, listener_of
from vmstackd.daemon.feed import Subscription
from vmstackd.daemon.operations import Operations
from vmstackd.daemon.unix_socket import ListenError, listen
from vmstackd.tls import Tls
from vmstackd.version import VERSION

__all__ = ["Limits", "ListenError", "StreamTransport", "listen"]

STATUS_PERIOD = 0.05
"""Seconds between two statuses for one subscriber."""
STOP_PATIENCE = 5.0
"""Seconds that calls in progress get to be answered when the daemon stops."""
ACCEPT_PAUSE = 1.0
"""Seconds for which nobody is let in after the system had no room for another one."""
ACCEPT_AT_ONCE = 64
CALLS_AT_ONCE = 128
"""Calls that are answered before it is another connection's turn; shared by those that have more."""


STAY_AWAKE = 100e-6
"""Seconds for which the next call is waited for without sleeping: to wake a CPU takes longer than to answer."""


class Limits(msgspec.Struct, frozen=True):
    """connections: of all, and per_user of one that is not root, or of one address over TLS. calls: in progress, of
    one connection.

    handshake, hello, frame, stall: seconds until TLS is agreed on, hello has come, a frame that has begun has ended,
    something is read of what is pending. mark: bytes that may be pending for a client before it must read;
    kept: bytes that have come and are not answered, and pending: bytes beyond the mark, of all
    connections. period: seconds between two looks at the clock.
    """

    connections: int = 4096
    per_user: int = 2048
    calls: int = 128
    handshake: float = 10.0
    hello: float = 10.0
    frame: float = 10.0
    stall: float = 30.0
    mark: int = 64 << 10
    kept: int = 64 << 20
    pending: int = 64 << 20
    period: float = 1.0


class StreamTransport:
    """Serves one engine on one listening socket: of Unix, or of TCP; that one with TLS if there are certificates."""

    def __init__(
        self,
        operations: Operations,
        listener: socket.socket,
        *,
        limits: Limits = Limits(),  # noqa: B008  a value that cannot change
        tls: Tls | None = None,
    ) -> None:
        """listener: closed by ``stop``."""
        self._listener = listener
        self._kind = listener_of(listener, tls)
        self._operations = operations
        self._connections: set[_Connection] = set()
        self._users: Counter[Hashable] = Counter()
        self._unknown: dict[_Connection, asyncio.Task[None]] = {}  # have not said hello; the oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._noted: Counter[str] = Counter()
        self._awake, self._awake_until = False, 0.0
        self._may_stay_awake = len(os.sched_getaffinity(0)) > 1  # else the client could not run meanwhile
        self.address = self._kind.address
        self.identity = operations.identity
        self.name = self._kind.name
        self.limits = limits
        self.numbers = itertools.count(1)
        self.buffer = bytearray(wire.READ_SIZE)
        # Of all connections: bytes that have come and are not answered, those that have more calls, those that
        # do not read.
        self.kept = self.busy = 0
        self.stalled: set[_Connection] = set()

    async def start(self) -> None:
        """Begin to answer."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Stop listening, let calls in progress be answered for a moment, then hang up."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        calls = [task for connection in self._connections for task in connection.finish()]
        if calls:
            await asyncio.wait(calls, timeout=STOP_PATIENCE)
        for connection in list(self._connections):
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # asyncio closes the connections then

    # Letting in

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # It stays readable, so without a pause we would be called again and again.
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._listener, self._accept)
                here = len(self._connections)
                log.warning("accept-failed", address=self.address, reason=error.strerror, connections=here)
                return
            self._admit(accepted)

    def _admit(self, accepted: socket.socket) -> None:
        try:
            visitor = self._kind.visitor(accepted)
        except OSError:  # gone already
            accepted.close()
            return
        if not self._has_room(visitor):
            self.note("connection-refused", visitor, "there are too many", connections=len(self._connections))
            accepted.close()
            return
        accepted.setblocking(False)
        connection = _Connection(self, self._operations, visitor)
        self._connections.add(connection)
        self._users[visitor.key] += 1
        task = self._spawn(self._join(accepted, connection))
        if self._kind.slow:
            self._unknown[connection] = task

    def _has_room(self, visitor: Visitor) -> bool:
        """Whether one more may come; if need be in the place of whoever has taken longest to say who it is."""
        limits = self.limits
        if visitor.limited and self._users[visitor.key] >= limits.per_user:
            return self._give_up_one(visitor.key)
        room = not visitor.limited or len(self._connections) < limits.connections
        return room or self._give_up_one(None)

    def _give_up_one(self, key: Hashable, but: _Connection | None = None) -> bool:
        """key: None means whoever it is. but: who is to stay."""
        for connection, task in self._unknown.items():
            if connection is not but and (key is None or connection.visitor.key == key):
                task.cancel()
                connection.drop("it took too long to say who it is, and others want in")
                return True
        return False

    async def _join(self, accepted: socket.socket, connection: _Connection) -> None:
        try:
            thought = connection.visitor.key
            await connection.visitor.identify(accepted)
            self._recount(connection, thought)
            context = self._kind.context()
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self.limits.handshake,
                ssl_shutdown_timeout=None if context is None else self.limits.handshake,
            )
        except (OSError, UnicodeError) as error:
            if self._kind.slow:
                self.note("handshake-failed", connection.visitor, _reason(error))
            self._forsake(accepted, connection)
        except asyncio.CancelledError:
            self._forsake(accepted, connection)
            raise

    def _recount(self, connection: _Connection, thought: Hashable) -> None:
        """It shares the limits of another user than was thought. Raises OSError if that one has too many already."""
        visitor = connection.visitor
        if visitor.key == thought:
            return
        self._uncount(thought)
        self._users[visitor.key] += 1
        too_many = visitor.limited and self._users[visitor.key] > self.limits.per_user
        if too_many and not self._give_up_one(visitor.key, but=connection):
            raise OSError(errno.EUSERS, "there are too many of this user")

    def _forsake(self, accepted: socket.socket, connection: _Connection) -> None:
        accepted.close()
        self.forget(connection)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stay_awake(self) -> None:
        """Look for the next call without going to sleep, for a moment."""
        if self._may_stay_awake:
            self._awake_until = self._loop.time() + STAY_AWAKE
            if not self._awake:
                self._awake = True
                self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._awake = self._loop.time() < self._awake_until
        if self._awake:
            self._loop.call_soon(self._look_again)

    # Keeping within limits

    def forget(self, connection: _Connection) -> None:
        """The connection is no more."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._unknown.pop(connection, None)
            self._uncount(connection.visitor.key)

    def _uncount(self, key: Hashable) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]

    def know(self, connection: _Connection) -> None:
        """It has said hello, and is not given up for others any more."""
        self._unknown.pop(connection, None)

    def relieve(self) -> None:
        """Drop whoever takes most of what all must share, until there is enough."""
        while self.kept > self.limits.kept:
            largest = max(self._connections, key=lambda connection: connection.kept)
            largest.drop("it had the most of too many unfinished requests")
        while sum(connection.pending for connection in self.stalled) > self.limits.pending:
            largest = max(self.stalled, key=lambda connection: connection.pending)
            largest.drop("it had the most of too many answers that nobody read")

    def note(self, event: str, visitor: Visitor, reason: str, **fields: object) -> None:
        """Log that somebody is not served; of many in one period, the first and their number."""
        if not self._noted[event]:
            severity = logging.WARNING if event == "connection-refused" else logging.INFO
            log.event(severity, event, peer=visitor.name, reason=reason, **fields)
        self._noted[event] += 1

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.limits.period)
            now = self._loop.time()
            for connection in list(self._connections):
                connection.look_at_clock(now)
            for event, count in self._noted.items():
                if count > 1:
                    log.warning(event.replace("-", "s-"), count=count, seconds=self.limits.period)
            self._noted.clear()


def _reason(error: OSError | UnicodeError) -> str:
    """Why a handshake failed, in words."""
    if isinstance(error, UnicodeError):
        return "there is something in its certificate that is no text"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error) or "it hung up"


class _Connection(asyncio.BufferedProtocol):
    """One client.

    kept: bytes that have come and are not answered. Reading stops while calls or answers are too many.
    """

    def __init__(self, server: StreamTransport, operations: Operations, visitor: Visitor) -> None:
        self.visitor = visitor
        self.kept = 0
        self._server = server
        self._operations = operations
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._inbox = wire.Inbox()
        self._caller: Caller | None = None  # until hello
        self._calls: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # the calls that are tasks of our own
        self._subscriber: asyncio.Task[None] | None = None
        self._out: list[bytes] = []
        self._out_size = 0
        self._due = self._gathering = self._finishing = self._eof = False
        self._half_open = True  # whether the client may end its half of the connection and still read
        self._reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._hello_by: float | None = None
        self._frame_by: float | None = None
        self._read_by = 0.0
        self._unread = 0

    # As asyncio's transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  of a stream socket
        self._transport = transport
        self._hello_by = self._loop.time() + self._limits.hello
        self._half_open = transport.get_extra_info("sslcontext") is None
        transport.set_write_buffer_limits(high=self._limits.mark)
        if not self._half_open:  # asyncio reads ahead of us, to decrypt
            transport.set_read_buffer_limits(high=wire.READ_SIZE)  # type: ignore[attr-defined]  # of TLS only
        self.visitor.connected(transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        # One for all: it is read out before anybody else's turn.
        return memoryview(self._server.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self._inbox.add(memoryview(self._server.buffer)[:nbytes])
        self._work()
        self._server.stay_awake()

    def eof_received(self) -> bool:
        self._eof = True
        self._end_if_done()
        return self._half_open  # what was asked for is still answered

    def pause_writing(self) -> None:
        self._pause_reading()
        self._writable.clear()
        self._server.stalled.add(self)
        self._unread, self._read_by = self.pending, self._loop.time() + self._limits.stall

    def resume_writing(self) -> None:
        self._server.stalled.discard(self)
        self._writable.set()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._server.kept -= self.kept
        self.kept = 0
        self._server.stalled.discard(self)
        self._server.forget(self)
        for task in self._waiting:
            task.cancel()
        if self._subscriber is not None:
            self._subscriber.cancel()
            self._subscriber = None

    # For the server

    @property
    def pending(self) -> int:
        """Bytes that the client has not read."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def look_at_clock(self, now: float) -> None:
        """Drop the client if it takes too long for something."""
        if self._hello_by is not None and now > self._hello_by:
            self.drop("it did not say hello")
        elif self._frame_by is not None and self._reading and now > self._frame_by:
            self.drop("it did not finish a request")
        elif not self._writable.is_set():
            pending = self.pending
            if pending < self._unread:
                self._unread, self._read_by = pending, now + self._limits.stall
            elif now > self._read_by:
                self.drop("it does not read what it asked for")

    def finish(self) -> set[asyncio.Task[Any]]:
        """Take no more calls; returns those in progress."""
        self._finishing = True
        self._pause_reading()
        return self._calls

    def close(self) -> None:
        """Hang up. What the client has not read is lost."""
        self._flush()
        if self._transport is not None:
            self._transport.abort()

    def drop(self, reason: str) -> None:
        """Hang up on a client that did something wrong."""
        self._server.note("connection-dropped", self.visitor, reason)
        self.close()
        # What follows of it does not count, even before asyncio says that the connection is lost.
        self.connection_lost(None)

    # Calls

    def _work(self) -> None:
        """Answer what has come: as much of it as one turn allows."""
        if self._due:
            self._due = False
            self._server.busy -= 1
        if self._transport is None or self._finishing:
            return
        taken, most = 0, max(1, CALLS_AT_ONCE // (1 + self._server.busy))
        self._gathering = True
        messages = self._inbox.messages()
        for message in messages:
            self._answer(message)
            taken += 1
            if taken == most or self._full() or self._transport is None:
                break
        messages.close()
        self._flush()
        if self._inbox.fault and self._transport is not None:
            self.drop(f"malformed: {self._inbox.fault}")
        self._account(progress=taken > 0)
        if self._full() or (self.kept and not self._inbox.incomplete):
            self._pause_reading()
            self._go_on()
        else:
            self._resume_reading()
            self._end_if_done()

    def _end_if_done(self) -> None:
        """Hang up on a client that asks no more, once it has its answers."""
        if self._eof and not self._calls and (not self.kept or self._inbox.incomplete) and self._transport is not None:
            self._transport.close()

    def _full(self) -> bool:
        return (
            len(self._calls) >= self._limits.calls or self._out_size > self._limits.mark or not self._writable.is_set()
        )

    def _go_on(self) -> None:
        """Have _work called, unless it is or something is in its way."""
        if not self._due and not self._reading and not self._full():
            self._due = True
            self._server.busy += 1
            self._loop.call_soon(self._work)

    def _account(self, *, progress: bool) -> None:
        """progress: whether the frame that is incomplete is another one than last time."""
        if self._transport is None:
            return
        kept = len(self._inbox)
        if not self._inbox.incomplete:
            self._frame_by = None
        elif self._frame_by is None or progress:
            self._frame_by = self._loop.time() + self._limits.frame
        if kept != self.kept:
            self._server.kept += kept - self.kept
            self.kept = kept
            if self._server.kept > self._limits.kept:
                self._server.relieve()

    def _pause_reading(self) -> None:
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()
            if self._frame_by is not None:
                self._frame_by = self._loop.time() + self._limits.frame

    def _answer(self, message: object) -> None:
        try:
            call = wire.read_call(message)
        except wire.Malformed as error:
            self.drop(f"malformed: {error}")
            return
        try:
            if self._caller is None:
                self._send(wire.response(call.msgid, self._greet(call)))
            else:
                self._dispatch(call, self._caller)
        except wire.Malformed as error:
            self.drop(f"malformed: {error}")
        except VmstackError as error:
            self._send(wire.error_response(call.msgid, error))
            if self._caller is None:
                self.drop(f"refused: {error.message}")

    def _greet(self, call: wire.Call) -> session.HelloReply:
        """Answer hello. Raises a VmstackError for anything else, or if the two cannot talk."""
        ours = session.PROTOCOL_VERSIONS
        if call.method != "hello":
            wire.check_size(call.params)
            raise InvalidRequest(f"the first call must be hello, with {{'versions': {list(ours)}}}", field="method")
        hello, _ = wire.read_params(call.params, session.Hello)
        role, name = self.visitor.role, self.visitor.name
        if role is Role.NOBODY:
            raise Denied(f"{name} may not use {self._server.identity.program}; {self.visitor.refusal}")
        common = set(ours) & set(hello.versions)
        if not common:
            spoken = ", ".join(str(version) for version in hello.versions) or "none"
            raise InvalidRequest(
                f"no protocol version in common: the client speaks {spoken[:80]}, "
                f"{self._server.identity.program} {VERSION} speaks {', '.join(str(version) for version in ours)}",
                field="versions",
            )
        self._caller = Caller(transport=self._server.name, identity=name, role=role)
        self._hello_by = None
        self._server.know(self)
        return session.HelloReply(
            version=max(common),
            program=self._server.identity.program,
            program_version=VERSION,
            host=self._server.identity.host,
            role=role.name.lower(),
            uuid=self._server.identity.uuid,
        )

    def _dispatch(self, call: wire.Call, caller: Caller) -> None:
        kind = wire.METHODS.get(call.method)
        if kind is None or not (kind in wire.OF_CONNECTION or kind in self._operations.accepted):
            raise wire.unknown_method(call, self._operations.accepted)
        request, options = wire.read_params(call.params, kind)
        if isinstance(request, session.Hello):
            raise InvalidRequest("hello was said already; it is the first call only", field="method")
        if isinstance(request, session.Ping):
            self._send(wire.response(call.msgid, session.Pong()))
            return
        if isinstance(request, session.Subscribe):
            if self._subscriber is not None:
                raise InvalidRequest("this connection has subscribed already", field="method")
            subscription = self._operations.feed.subscribe(usage=request.usage)
            names = self._operations.names() if request.names else ()
            self._send(wire.response(call.msgid, session.Subscribed(names=names)))
            self._subscriber = self._loop.create_task(self._push(subscription))
            return
        request_id = options.request_id or f"{self._server.name}-{next(self._server.numbers)}"
        if not self._operations.started or (options.timeout is not None and not self._operations.at_once(request)):
            task = self._loop.create_task(self._wait(call.msgid, request, caller, request_id, options.timeout))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            self._calls.add(task)
            task.add_done_callback(self._ended)
        elif not self._operations.at_once(request):
            begun = self._operations.begin(request, caller, request_id)
            self._calls.add(begun)
            begun.add_done_callback(partial(self._changed, call.msgid))
        else:
            self._send(wire.response(call.msgid, self._operations.read(request, caller, request_id)))

    def _changed(self, msgid: int, task: asyncio.Task[replies.Reply]) -> None:
        """Answer a change that has ended."""
        if not task.cancelled() and self._transport is not None:
            error = task.exception()
            if error is None:
                self._send(wire.response(msgid, task.result()))
            elif isinstance(error, VmstackError):
                self._send(wire.error_response(msgid, error))
        self._ended(task)

    async def _wait(
        self, msgid: int, request: requests.Request, caller: Caller, request_id: str, seconds: float | None
    ) -> None:
        try:
            async with asyncio.timeout(seconds):
                frame = wire.response(msgid, await self._operations.handle(request, caller, request_id))
        except TimeoutError:
            late = f"{request_id} is not done within {seconds:g} s; a change that has begun runs to its end"
            frame = wire.error_response(msgid, DeadlineExceeded(late))
        except VmstackError as error:
            frame = wire.error_response(msgid, error)
        self._send(frame)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        self._go_on()
        self._end_if_done()

    # Answers

    def _send(self, frame: bytes) -> None:
        """At once; what follows in the same moment is gathered and sent together."""
        self._out.append(frame)
        self._out_size += len(frame)
        if not self._gathering:
            self._gathering = True
            self._write()
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._gathering = False
        self._write()

    def _write(self) -> None:
        out, self._out, self._out_size = self._out, [], 0
        if not out or self._transport is None:
            return
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if not self._writable.is_set():
            self._server.relieve()

    async def _push(self, subscription: Subscription) -> None:
        """Tell the subscriber until the connection ends."""
        try:
            await self._tell(subscription)
        except asyncio.CancelledError:
            return  # kept by the task, the error would keep the subscription alive

    async def _tell(self, subscription: Subscription) -> None:
        """Tell a subscriber what happens, no faster than it reads."""
        told: replies.StatusReply | None = None
        changed, due = True, 0.0
        while True:
            await self._writable.wait()
            if changed and self._loop.time() >= due:
                changed, due = False, self._loop.time() + STATUS_PERIOD
                status = self._operations.status(usage=subscription.usage)
                if status != told:
                    told = status
                    self._send(wire.notification(status))
            try:
                async with asyncio.timeout_at(due if changed else None):
                    news = await subscription.news()
            except TimeoutError:
                continue
            for event in news.events:
                self._send(wire.notification(event))
                told = None  # so that a status follows, even one that was told before the event already
            if news.missed:
                self._send(wire.notification(session.Missed(time=time.time(), count=news.missed)))
            changed = changed or news.changed
