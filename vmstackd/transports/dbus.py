"""D-Bus: ``org.vmstack.Host1``, for busctl, scripts and programs of this machine.

Everybody on the bus may read. Root and the user that runs us may change things; of anybody else polkit says
whether they may.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import time
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
from sdbus.sd_bus_internals import SdBusLibraryError, SdBusMessage

from core.level import format_level
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import Internal, InvalidRequest, Unavailable, VmstackError
from vmstackd.api.session import Event, Missed
from vmstackd.daemon import log
from vmstackd.daemon.feed import Subscription
from vmstackd.daemon.operations import operation_of
from vmstackd.daemon.restraint import Restraint
from vmstackd.engine import Engine
from vmstackd.transports.dbus_connection import CallFailed, Connection, NotAnswered
from vmstackd.transports.dbus_flags import allows_interaction
from vmstackd.transports.dbus_interfaces import HOST, Method
from vmstackd.transports.dbus_objects import Objects
from vmstackd.transports.dbus_values import HOST_PATH, text
from vmstackd.transports.polkit import Polkit
from vmstackd.transports.turns import Turns

NAME = "org.vmstack.Host1"
CHECK_S = 2.0
"""Seconds between two questions to the bus whether it still knows us."""
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
"""Seconds between two attempts to get back on the bus."""
NOTICE_S = 0.05
"""Seconds for which changes are gathered before they are told."""
STOP_PATIENCE = 5.0
"""Seconds that calls in progress get to end when the daemon stops."""

_SIGNALS = {row.event: row for row in HOST.signals}


class NameTaken(Exception):
    """Another process has the name. The text says which."""


class _Call(NamedTuple):
    """One call. vm: whose object was called, empty if none."""

    connection: Connection
    method: Method
    vm: str
    message: SdBusMessage


class DbusTransport:
    """The interface of one engine on one bus; comes back by itself when the bus was away."""

    def __init__(self, engine: Engine, bus_spec: str) -> None:
        """bus_spec: ``system``, ``session``, or the address of a bus, such as ``unix:path=/run/bus``."""
        self._engine = engine
        self._spec = bus_spec
        # Only there is a polkit that knows the callers.
        self._polkit = Polkit() if bus_spec == "system" else None
        self._turns: Turns[_Call] = Turns(self._serve)
        self._numbers = itertools.count(1)
        self._restraint = Restraint()
        self._connection: Connection | None = None
        self._objects: Objects | None = None
        self._unique_name = ""
        self._calls: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Which bus."""
        return self._spec

    @property
    def owned(self) -> bool:
        """Whether callers on the bus reach us, as far as is known."""
        return self._connection is not None and not self._connection.ended.is_set()

    async def start(self) -> None:
        """Appear on the bus. Raises OSError if there is none, NameTaken if somebody else has the name."""
        await self._join()
        self._tasks = [
            asyncio.create_task(self._stay()),
            asyncio.create_task(self._announce(self._engine.feed.subscribe())),
        ]

    async def stop(self) -> None:
        """Give the name back; calls in progress get a moment to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            with contextlib.suppress(CallFailed):  # the bus is away
                await self._connection.give_name(NAME)
        if self._calls:
            await asyncio.wait(self._calls, timeout=STOP_PATIENCE)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._leave()

    # On the bus, and back on it

    async def _join(self) -> None:
        """Export everything, then take the name, so that whoever finds the name finds the objects."""
        with contextlib.ExitStack() as undo:
            connection = await Connection.open(self._spec)
            undo.callback(connection.close)
            try:
                called = partial(self._called, connection)
                objects = Objects(connection, called, self._first_status(), self._engine.sampler)
                undo.callback(objects.end)
                if self._engine.started:
                    objects.publish(self._engine.status(), self._engine.vms())
                await _take_name(connection)
                self._unique_name = await connection.owner_of(NAME)
            except CallFailed as error:
                raise OSError(f"the name {NAME} cannot be had: {error}") from error
            undo.pop_all()
        self._connection, self._objects = connection, objects

    def _leave(self) -> None:
        connection, objects = self._connection, self._objects
        self._connection = self._objects = None
        if objects is not None:
            objects.end()
        if connection is not None:
            connection.close()

    async def _stay(self) -> None:
        while True:
            try:
                reason = await self._lost()
            except Exception as error:  # whatever it is: a connection to begin anew with
                log.logger.exception("unexpected error in watching the bus")
                reason = type(error).__name__
            log.warning("dbus-lost", bus=self._spec, reason=reason, note="trying to get back")
            self._leave()
            await self._return()
            log.info("dbus-restored", bus=self._spec)

    async def _lost(self) -> str:
        """Wait until we are not on the bus any more; returns why."""
        connection = self._connection
        if connection is None:
            return "not on the bus"
        while True:
            try:
                async with asyncio.timeout(CHECK_S):
                    await connection.ended.wait()
            except TimeoutError:
                pass
            if connection.ended.is_set():
                return connection.reason
            try:
                owner = await connection.owner_of(NAME)
            except CallFailed as error:
                # Not answered either if more waits for us than we can do; then a new connection begins without it.
                return connection.reason or str(error)
            if owner != self._unique_name:
                return f"the name {NAME} has {'another owner' if owner else 'no owner'}"

    async def _return(self) -> None:
        delay, told = FIRST_RETRY_S, ""
        while True:
            try:
                await self._join()
            except (OSError, NameTaken) as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("dbus-unreachable", bus=self._spec, reason=error)
            except Exception:
                log.logger.exception("unexpected error on the way back to the bus")
            else:
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY_S)

    # What others see

    def _first_status(self) -> replies.StatusReply:
        status = self._engine.status()
        return status if self._engine.started else msgspec.structs.replace(status, hypervisor="down")

    async def _announce(self, subscription: Subscription) -> None:
        while True:
            news = await subscription.news()
            try:
                # Before the events: who hears of a VM finds its object.
                self._publish()
                for event in news.events:
                    self._tell(event)
                if news.missed:
                    self._tell(Missed(time=time.time(), count=news.missed))
            except CallFailed:
                pass  # off the bus; whoever comes back to it reads everything anew
            except Exception:
                log.logger.exception("unexpected error in telling the bus of changes")
            await asyncio.sleep(NOTICE_S)

    def _publish(self) -> None:
        """Raises CallFailed."""
        if self._objects is not None and self._engine.started:
            self._objects.publish(self._engine.status(), self._engine.vms())

    def _tell(self, event: Event) -> None:
        row = _SIGNALS[type(event)]
        if self._connection is not None:
            self._connection.signal(HOST_PATH, (HOST.name, row.name), row.signature, *row.values(event))

    # Calls

    def _called(self, connection: Connection, method: Method, vm: str, message: SdBusMessage) -> None:
        call = _Call(connection, method, vm, message)
        if not self._turns.add(message.sender or "", call):
            self._refuse(call, Unavailable("too many calls are not answered yet; try again in a moment"))

    def _serve(self, sender: str, call: _Call) -> None:
        request_id = f"dbus-{next(self._numbers)}"
        try:
            request = _request(call)
        except Exception as error:
            self._refuse(call, error)
            self._turns.done(sender)
            if isinstance(error, VmstackError):  # what the engine is asked, it logs itself
                self._restraint.tell(
                    "dbus-refused",
                    request=request_id,
                    caller=f"dbus:{sender}",
                    asked=call.method.name,
                    outcome=error.code,
                    why=error.message,
                )
            return
        try:
            if isinstance(request, requests.Change) or not self._engine.started:
                task = asyncio.create_task(self._handle(sender, call, request, request_id))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
                return
            # A task would cost more than the answer.
            caller = Caller(transport="dbus", identity=sender, role=Role.READER)
            self._answer(call, self._engine.read(request, caller, request_id))
        except Exception as error:
            self._refuse(call, error)
        self._turns.done(sender)

    async def _handle(self, sender: str, call: _Call, request: requests.Request, request_id: str) -> None:
        try:
            if isinstance(request, requests.Change):
                caller = await self._who(sender, call)
            else:
                caller = Caller(transport="dbus", identity=sender, role=Role.READER)
            reply = await self._engine.handle(request, caller, request_id)
            if isinstance(request, requests.Change):
                self._publish_at_once()
            self._answer(call, reply)
        except asyncio.CancelledError:
            self._refuse(call, Unavailable("vmstackd is stopping; what has begun is carried out"))
            raise
        except Exception as error:
            self._refuse(call, error)
        finally:
            self._turns.done(sender)

    def _publish_at_once(self) -> None:
        """Let whoever has changed something see it at once."""
        with contextlib.suppress(CallFailed):  # nor will the answer arrive
            self._publish()

    async def _who(self, sender: str, call: _Call) -> Caller:
        try:
            uid: int | None = await call.connection.user_of(sender)
        except NotAnswered as error:
            raise Unavailable("the bus is too busy to say whose call this is; try again in a moment") from error
        except CallFailed:
            uid = None  # gone already
        if uid in (0, os.geteuid()):
            return Caller(transport="dbus", identity=f"{sender}/{_user(uid)}", role=Role.OPERATOR)
        return Caller(
            transport="dbus",
            identity=f"{sender}/{_user(uid)}",
            role=Role.READER,
            grant=None if self._polkit is None else partial(self._grant, self._polkit, sender, uid, call),
        )

    async def _grant(
        self, polkit: Polkit, sender: str, uid: int | None, call: _Call, request: requests.Request
    ) -> bool:
        if not isinstance(request, requests.Change):
            return False
        details: dict[str, str] = {}
        match request:
            case requests.Deploy():
                details = {"vm": text(request.name), "level": format_level(request.level)}
            case requests.Remove():
                details = {"vm": text(request.name)}
                if (vm := self._engine.state.vm(request.name)) is not None:
                    details["level"] = format_level(vm.level)
        action = f"org.vmstack.host1.{operation_of(request)}"
        return await polkit.allows(
            call.connection, sender, uid, action, details, interactive=allows_interaction(call.message)
        )

    def _answer(self, call: _Call, reply: replies.Reply) -> None:
        value = call.method.answer(reply)
        if call.message.expect_reply:
            message = call.message.create_reply()
            if call.method.returns:
                message.append_data(call.method.returns, cast("Any", value))
            call.connection.send(message)

    def _refuse(self, call: _Call, error: Exception) -> None:
        if not isinstance(error, VmstackError):
            log.logger.exception("unexpected error in the D-Bus call %s", call.method.name, exc_info=error)
            error = Internal("internal error; the log of vmstackd has the details")
        try:
            if call.message.expect_reply:
                name = f"org.vmstack.Error.{error.code}"
                call.connection.send(call.message.create_error_reply(name, text(error.message)))
        except SdBusLibraryError:
            pass  # the connection has ended


async def _take_name(connection: Connection) -> None:
    if not await connection.take_name(NAME):
        raise NameTaken(f"{await connection.holder_of(NAME)} has the name {NAME}")


def _request(call: _Call) -> requests.Request:
    try:
        values = call.message.parse_to_tuple()
    except (SdBusLibraryError, ValueError) as error:
        raise InvalidRequest("a text in this call is not what the bus calls UTF-8") from error
    return call.method.ask(call.vm, *values) if call.vm else call.method.ask(*values)


def _user(uid: int | None) -> str:
    if uid is None:
        return "unknown"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
