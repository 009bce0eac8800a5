"""One connection to a message bus, of sdbus's low level: what its high level does not do, or does wrongly.

With the high level, the text of an unexpected exception crosses the bus, an answer that cannot be written is
never sent, and a broken connection is not noticed. sdbus itself counts on file descriptors of a connection
that has ended, although others may have the same numbers by then; hence ``_Watched``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import select
from asyncio.events import _set_running_loop
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sdbus import sd_bus_open_system, sd_bus_open_user
from sdbus.sd_bus_internals import (
    DbusPropertyConstFlag,
    DbusPropertyEmitsChangeFlag,
    DbusUnprivilegedFlag,
    SdBus,
    SdBusBaseError,
    SdBusInterface,
    SdBusLibraryError,
    SdBusMessage,
    SdBusUnmappedMessageError,
)

from vmstackd.daemon import log
from vmstackd.transports.dbus_interfaces import Interface, Method, Property
from vmstackd.transports.dbus_steps import Steps, steps_of

PATIENCE = 5.0
"""Seconds for an answer of the bus itself."""
MOST_PATIENCE_S = 600
"""No call waits longer."""

_DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_DO_NOT_QUEUE = 4
_NAME_IS_OURS = (1, 4)
"""Answers of RequestName: the name is ours now, or was before."""
_MOST_USERS = 1024
"""Senders whose users are remembered."""
_SLICE_S = 0.005
"""Seconds of work before others of the event loop get their turn."""
_SESSION = "DBUS_SESSION_BUS_ADDRESS"
_EMITS = {"true": DbusPropertyEmitsChangeFlag, "false": 0, "const": DbusPropertyConstFlag}


class CallFailed(Exception):
    """A call over the bus was answered with an error, or not at all. error: its D-Bus name, empty without an answer."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message or error)
        self.error = error


class NotAnswered(CallFailed):
    """A call over the bus was not answered in time."""


class _Watched:
    """The event loop as sdbus sees it, for one connection.

    Removing a descriptor that was not added, or was removed before, does nothing: its number may long be
    that of somebody else's file.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        steps: Steps | None,
        driven: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        """steps: of the bus, if they can be had. driven: called after sdbus has worked. ended: told why the
        connection can go on no more.
        """
        self._loop = loop
        self._steps = steps
        self._again: asyncio.Handle | None = None
        self._driven = driven
        self._ended = ended
        self._readers: set[int] = set()
        self._writers: set[int] = set()

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def call_soon(self, callback: Callable[[], object]) -> asyncio.Handle:
        return self._loop.call_soon(self.drive, callback)

    def add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._readers.add(descriptor)
        self._loop.add_reader(descriptor, self.drive, callback)

    def remove_reader(self, descriptor: int) -> None:
        if descriptor in self._readers:
            self._readers.remove(descriptor)
            self._loop.remove_reader(descriptor)

    def add_writer(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._writers.add(descriptor)
        self._loop.add_writer(descriptor, self.drive, callback)

    def remove_writer(self, descriptor: int) -> None:
        if descriptor in self._writers:
            self._writers.remove(descriptor)
            self._loop.remove_writer(descriptor)

    def forget(self) -> None:
        """Remove everything."""
        self._steps = None
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for descriptor in tuple(self._readers):
            self.remove_reader(descriptor)
        for descriptor in tuple(self._writers):
            self.remove_writer(descriptor)

    def drive(self, process: Callable[[], object]) -> None:
        """Let sdbus read and write, unless it is about to anyway."""
        if self._again is None:
            self._drive(process)

    def _drive(self, process: Callable[[], object]) -> None:
        """What sdbus raises would be raised again and again."""
        self._again = None
        try:
            self._work(process)
        except Exception as error:  # of whatever kind: there is no connection any more that could be told
            self.forget()
            self._ended(_reason(error))
        else:
            self._driven()

    def _work(self, process: Callable[[], object]) -> None:
        steps = self._steps
        if steps is None:
            process()
            return
        end = self._loop.time() + _SLICE_S
        while (taken := steps.take()) > 0:
            if self._loop.time() >= end:
                self._again = self._loop.call_soon(self._drive, process)
                return
        watched = (select.POLLIN if self._readers else 0) | (select.POLLOUT if self._writers else 0)
        if taken < 0 or steps.events() != watched:
            process()  # nothing is left to do, but to raise what went wrong, or to wait for something else

    @contextmanager
    def as_running_loop(self) -> Iterator[None]:
        """Within this, sdbus takes it for the event loop, and keeps it."""
        _set_running_loop(cast("asyncio.AbstractEventLoop", self))
        try:
            yield
        finally:
            _set_running_loop(self._loop)


class _Getter:
    """Writes one property of one object into a reply."""

    __slots__ = ("_prop", "_value")

    def __init__(self, prop: Property, value: Callable[[str], object]) -> None:
        self._prop = prop
        self._value = value

    def __call__(self, reply: SdBusMessage) -> None:
        try:
            reply.append_data(self._prop.signature, cast("Any", self._value(self._prop.name)))
        except Exception:  # raised through sdbus, it would end the connection
            log.logger.exception("unexpected error in property %s", self._prop.name)


class Export:
    """An interface at a path, until ``end``."""

    def __init__(
        self,
        bus: SdBus,
        path: str,
        interface: Interface,
        called: Callable[[Method, SdBusMessage], None],
        value: Callable[[str], object],
    ) -> None:
        """called: for each call of a method. value: of a property, by its name. Neither may raise."""
        vtable = SdBusInterface()
        self._vtable: SdBusInterface | None = vtable
        # What is the same for all objects of an interface is there once: a host may have many VMs.
        rows = _rows(interface)
        vtable.method_list.extend(rows.method_list)
        vtable.property_list.extend(rows.property_list)
        vtable.signal_list.extend(rows.signal_list)
        vtable.property_set_dict.update(rows.property_set_dict)
        for key, method in zip(rows.method_dict, interface.methods, strict=True):
            vtable.method_dict[key] = _callback(method, called)
        for key, prop in zip(rows.property_get_dict, interface.properties, strict=True):
            vtable.property_get_dict[key] = _Getter(prop, value)
        bus.add_interface(vtable, path, interface.name)

    def end(self) -> None:
        """Take it away."""
        vtable, self._vtable = self._vtable, None
        if vtable is not None:
            # As sdbus's own export handles do. It refers to everything that is called through it, and the garbage
            # collector does not know: nothing must refer to it any more.
            vtable._stop_export()  # noqa: SLF001


@functools.cache
def _rows(interface: Interface) -> SdBusInterface:
    """An interface that is not exported, for its rows."""
    vtable = SdBusInterface()
    for method in interface.methods:
        # Without the flag, the library asks the bus about each sender, waiting, and refuses all but root and us.
        vtable.add_method(
            method.name,
            method.takes,
            method.takes_names,
            method.returns,
            method.returns_names,
            DbusUnprivilegedFlag,
            _nothing,
        )
    for prop in interface.properties:
        vtable.add_property(prop.name, prop.signature, _nothing, None, _EMITS[prop.emits])
    for signal in interface.signals:
        vtable.add_signal(signal.name, signal.signature, signal.names, 0)
    return vtable


def _nothing(_: SdBusMessage) -> None:
    pass


def _callback(method: Method, called: Callable[[Method, SdBusMessage], None]) -> Callable[[SdBusMessage], None]:
    def callback(message: SdBusMessage) -> None:  # a function: of other objects sdbus makes more ado per call
        called(method, message)

    return callback


class Connection:
    """Made by ``open``; ended by ``close`` or by the bus, of which ``ended`` tells."""

    def __init__(self, bus: SdBus) -> None:
        self.ended = asyncio.Event()
        self.reason = ""
        self._bus: SdBus | None = bus
        self._loop = asyncio.get_running_loop()
        self._watched = _Watched(self._loop, steps_of(bus), self._look, self._end)
        self._flushing = False
        self._users: dict[str, int] = {}
        bus.method_call_timeout_usec = MOST_PATIENCE_S * 1_000_000
        with self._watched.as_running_loop():
            self._watched.drive(bus.process)

    @classmethod
    async def open(cls, spec: str) -> Connection:
        """spec: ``system``, ``session``, or the address of a bus. Raises OSError if there is none."""
        try:
            connection = cls(_open(spec))
        except SdBusLibraryError as error:
            raise OSError(f"no bus answers: {_reason(error)}") from error
        try:
            await connection.ask_bus("GetId", "")
        except CallFailed as error:
            reason = connection.reason or str(error)
            connection.close()
            raise OSError(f"the bus does not answer: {reason}") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Leave the bus. Everything that was exported must have been ended before."""
        bus, self._bus = self._bus, None
        if bus is not None:
            self._end("closed")
            # While the descriptors are still ours. Then nothing refers to the SdBus any more, and the rest of it goes.
            self._watched.forget()
            bus.close()

    def _end(self, reason: str) -> None:
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()

    # Calls of others

    async def call(
        self,
        to: tuple[str, str, str],
        member: str,
        signature: str,
        *values: object,
        patience: float = PATIENCE,
    ) -> tuple[Any, ...]:
        """Call a method: to whom, at which path, of which interface. Raises CallFailed."""
        if self._bus is None:
            raise CallFailed("", "not on the bus")
        try:
            message = self._bus.new_method_call_message(*to, member)
            if signature:
                message.append_data(signature, *values)
            async with asyncio.timeout(patience):
                reply = await self._bus.call_async(message)
            return reply.parse_to_tuple()
        except TimeoutError:
            raise NotAnswered("", f"{to[0]} has not answered {member} for {patience:g} s") from None
        except SdBusUnmappedMessageError as error:
            raise CallFailed(str(error.args[0]), str(error.args[1])) from error
        except SdBusBaseError as error:
            raise CallFailed(getattr(error, "dbus_error_name", ""), _reason(error)) from error

    async def ask_bus(self, member: str, signature: str, *values: object) -> Any:  # noqa: ANN401  as the bus answers
        """Call a method of the bus itself that answers with one value. Raises CallFailed."""
        return (await self.call(_DRIVER, member, signature, *values))[0]

    async def take_name(self, name: str) -> bool:
        """Whether the name is ours now; nobody is asked to give it up. Raises CallFailed."""
        return await self.ask_bus("RequestName", "su", name, _DO_NOT_QUEUE) in _NAME_IS_OURS

    async def give_name(self, name: str) -> None:
        """Others may have it. Raises CallFailed."""
        await self.ask_bus("ReleaseName", "s", name)

    async def owner_of(self, name: str) -> str:
        """The unique name of who has this name, empty if nobody has. Raises CallFailed."""
        try:
            return str(await self.ask_bus("GetNameOwner", "s", name))
        except CallFailed as error:
            if error.error == "org.freedesktop.DBus.Error.NameHasNoOwner":
                return ""
            raise

    async def holder_of(self, name: str) -> str:
        """In words, the process that has this name."""
        try:
            pid = int(await self.ask_bus("GetConnectionUnixProcessID", "s", name))
        except CallFailed:
            return "a process that cannot be seen from here"
        return f"process {pid}{_command(pid)}"

    async def user_of(self, sender: str) -> int:
        """The user of a connection to the bus; unique names are never given twice. Raises CallFailed."""
        uid = self._users.get(sender)
        if uid is None:
            uid = int(await self.ask_bus("GetConnectionUnixUser", "s", sender))
            if len(self._users) >= _MOST_USERS:
                del self._users[next(iter(self._users))]
            self._users[sender] = uid
        return uid

    # What others see

    def export(
        self,
        path: str,
        interface: Interface,
        called: Callable[[Method, SdBusMessage], None],
        value: Callable[[str], object],
    ) -> Export:
        """Let others call and read this; see Export. Raises CallFailed, as do the methods below."""
        with self._told():
            return Export(self._open_bus, path, interface, called, value)

    def manage(self, path: str) -> object:
        """Be an org.freedesktop.DBus.ObjectManager of everything below a path, while the result is kept."""
        with self._told():
            return self._open_bus.add_object_manager(path)

    def tell_added(self, path: str) -> None:
        """InterfacesAdded: something has been exported."""
        with self._told():
            self._open_bus.emit_object_added(path)
        self.flush()

    def tell_removed(self, path: str) -> None:
        """InterfacesRemoved: something is about to be taken away."""
        with self._told():
            self._open_bus.emit_object_removed(path)
        self.flush()

    def tell_changed(self, path: str, interface: str, values: Mapping[str, tuple[str, object]]) -> None:
        """PropertiesChanged; values with their signatures."""
        self.signal(
            path, ("org.freedesktop.DBus.Properties", "PropertiesChanged"), "sa{sv}as", interface, dict(values), []
        )

    def signal(self, path: str, name: tuple[str, str], signature: str, *values: object) -> None:
        """A signal; its name with that of its interface."""
        with self._told():
            message = self._open_bus.new_signal_message(path, *name)
            message.append_data(signature, *cast("Any", values))
            message.send()
        self.flush()

    def send(self, message: SdBusMessage) -> None:
        """Send a reply; if the connection has ended meanwhile, nobody waits for it."""
        try:
            message.send()
        except SdBusLibraryError as error:
            # Nothing can be sent either when too much waits to be taken by the bus: then it hangs.
            self._end(f"nothing can be sent: {_reason(error)}")
        self.flush()

    def flush(self) -> None:
        """What the bus would not take at once must be sent later: sdbus looks for that only when told to."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._bus is not None:
            self._watched.drive(self._bus.process)

    def _look(self) -> None:
        if self._bus is not None:
            try:
                self._bus.get_fd()
            except SdBusLibraryError:
                self._end("the bus has closed the connection")

    @property
    def _open_bus(self) -> SdBus:
        if self._bus is None:
            raise CallFailed("", "not on the bus")
        return self._bus

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except SdBusBaseError as error:
            # What the others know is not what it should be any more.
            self._end(_reason(error))
            raise CallFailed("", _reason(error)) from error


def _open(spec: str) -> SdBus:
    if spec == "system":
        return sd_bus_open_system()
    if spec == "session":
        return sd_bus_open_user()
    # sdbus cannot be given an address, but reads it here, at once.
    before = os.environ.get(_SESSION)
    os.environ[_SESSION] = spec
    try:
        return sd_bus_open_user()
    finally:
        if before is None:
            del os.environ[_SESSION]
        else:
            os.environ[_SESSION] = before


def _command(pid: int) -> str:
    try:
        return f" ({Path(f'/proc/{pid}/comm').read_text(encoding='utf-8', errors='replace').strip()})"
    except OSError:
        return ""


def _reason(error: Exception) -> str:
    """In words; the library tells numbers of the system's errors, among lines of its own source."""
    text = str(error)
    number = re.search(r"returned error number: ([0-9]+)", text)
    return os.strerror(int(number[1])) if number else text or type(error).__name__
