"""The objects on one connection: the host, its VMs, its subsets. What they tell changes all at once.

What is measured is not told but looked up by whoever reads it, so that a round of measurements costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace
from sdbus.sd_bus_internals import SdBusMessage

from vmstackd.api.replies import ListReply, StatusReply, VmReply
from vmstackd.sampling import Sampler
from vmstackd.transports.dbus_connection import Connection, Export
from vmstackd.transports.dbus_interfaces import HOST, SUBSET, VM, Interface, Method, Properties
from vmstackd.transports.dbus_values import HOST_PATH, subset_path, vm_path

Called = Callable[[Method, str, SdBusMessage], None]
"""Told of each call: of which method, to the object of which VM (empty: not to a VM)."""


class _Told(NamedTuple):
    """What one object tells: what follows from the source. vm: whose object it is, empty if no VM's."""

    interface: Interface
    vm: str
    source: Any


class _Reader:
    """The properties of an object are read one after the other, and kept only while they are."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._told: _Told | None = None
        self._properties: Properties = {}

    def properties(self, told: _Told) -> Properties:
        """All that are told."""
        if told is not self._told:
            self._told, self._properties = told, told.interface.read(told.source)
        return self._properties

    def value(self, told: _Told, name: str) -> object:
        """One of them, or one that was measured."""
        properties = self.properties(told)
        if name in properties:
            return properties[name]
        return told.interface.measured(told.source, self._sampler)[name]


class _Object:
    """One that is exported."""

    def __init__(self, connection: Connection, path: str, told: _Told, reader: _Reader, called: Called) -> None:
        self.told = told
        self._reader = reader
        self._called = called
        self._export: Export = connection.export(path, told.interface, self._call, self._value)

    def _call(self, method: Method, message: SdBusMessage) -> None:
        self._called(method, self.told.vm, message)

    def _value(self, name: str) -> object:
        return self._reader.value(self.told, name)

    def end(self) -> None:
        self._export.end()


class Objects:
    """Exported from the start; ``end`` takes them all away."""

    def __init__(self, connection: Connection, called: Called, status: StatusReply, sampler: Sampler) -> None:
        """sampler: knows what was measured last. Raises CallFailed."""
        self._connection = connection
        self._called = called
        self._reader = _Reader(sampler)
        self._objects: dict[str, _Object] = {}
        self._manager: object = connection.manage(HOST_PATH)
        self._add(HOST_PATH, _Told(HOST, "", status))

    def publish(self, status: StatusReply, vms: ListReply) -> None:
        """Tell this from now on, and of every difference. Raises CallFailed."""
        now = _objects(status, vms)
        for path in [path for path in self._objects if path not in now]:
            self._connection.tell_removed(path)
            self._objects.pop(path).end()
        for path, told in now.items():
            known = self._objects.get(path)
            if known is None:
                self._add(path, told)
                self._connection.tell_added(path)
            elif known.told.source != told.source:
                before, known.told = known.told, told
                self._tell_changed(path, before, told)

    def _add(self, path: str, told: _Told) -> None:
        self._objects[path] = _Object(self._connection, path, told, self._reader, self._called)

    def _tell_changed(self, path: str, before: _Told, told: _Told) -> None:
        old, new = self._reader.properties(before), self._reader.properties(told)
        changed = {
            row.name: (row.signature, new[row.name])
            for row in told.interface.properties
            if row.emits == "true" and new[row.name] != old[row.name]
        }
        if changed:
            self._connection.tell_changed(path, told.interface.name, changed)

    def end(self) -> None:
        """Without telling: whoever looks sees that the name has no owner any more."""
        for known in self._objects.values():
            known.end()
        self._objects.clear()
        self._manager = None


def _objects(status: StatusReply, reply: ListReply) -> dict[str, _Told]:
    """Without what was measured, so that only what is told makes a difference."""
    found = {HOST_PATH: _Told(HOST, "", replace(status, usage=None))}
    by_level: dict[int, list[VmReply]] = {}
    for measured in reply.vms:
        vm = replace(measured, usage=None)
        by_level.setdefault(vm.level, []).append(vm)
        found[vm_path(vm.name)] = _Told(VM, vm.name, vm)
    for level in status.host.levels:
        found[subset_path(level.level)] = _Told(SUBSET, "", (level, by_level.get(level.level, [])))
    return found
