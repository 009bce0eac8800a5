"""How D-Bus spells things: levels as doubles, memory in GiB where people type it, dictionaries of named values.

In dictionaries (``a{sv}``) names and units are those of ``vmstackd.api``: levels in thousandths, memory in MiB.
Every whole number there is an ``x``, so that no value changes the type of its name. What is not known is left out.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from sdbus.sd_bus_internals import encode_object_path

from core.level import UNIT, LevelError, parse_level
from vmstackd.api import replies, requests
from vmstackd.api.errors import InvalidRequest

HOST_PATH = "/org/vmstack/Host1"
_VM_PATH = f"{HOST_PATH}/vm"
_SUBSET_PATH = f"{HOST_PATH}/subset"

_MIB_PER_GIB = 1024

Dictionary = dict[str, tuple[str, Any]]
"""An ``a{sv}``: each value with its signature."""

_R = TypeVar("_R", requests.Deploy, requests.Remove)
_Writer = tuple[str, Callable[[Any], object]]
"""The signature of a field, and what makes its value one that sdbus takes."""


# What callers send


def level(value: float) -> int:
    """A level in thousandths. Raises InvalidRequest."""
    try:
        return parse_level(value)
    except LevelError as error:
        raise InvalidRequest(f"level: {error}", field="level") from error


def memory_mib(gib: float) -> int:
    """GiB as MiB; a rest below one MiB is dropped. Raises InvalidRequest."""
    mib = gib * _MIB_PER_GIB  # exact: a power of two
    if not math.isfinite(mib):
        raise InvalidRequest(f"memory_gib: {gib!r} is not a number of GiB, such as 2.0 or 0.5", field="memory_gib")
    return math.floor(mib)


def deploy(name: str, vcpus: int, memory_gib: float, wanted: float, image: str) -> requests.Deploy:
    """Raises InvalidRequest."""
    return requests.Deploy(name=name, vcpus=vcpus, memory_mib=memory_mib(memory_gib), level=level(wanted), image=image)


def progress(vcpus: int, memory_gib: float, wanted: float) -> requests.Progress:
    """Raises InvalidRequest."""
    return requests.Progress(vcpus=vcpus, memory_mib=memory_mib(memory_gib), level=level(wanted))


def deploy_options(options: Mapping[str, tuple[str, Any]]) -> requests.Deploy:
    """Raises InvalidRequest."""
    return _from_options(requests.Deploy, options)


def remove_options(name: str, options: Mapping[str, tuple[str, Any]]) -> requests.Remove:
    """Raises InvalidRequest."""
    return _from_options(requests.Remove, options, name=name)


def _from_options(kind: type[_R], options: Mapping[str, tuple[str, Any]], **given: str) -> _R:
    fields = msgspec.structs.fields(kind)
    known = [field.name for field in fields if field.name not in given]
    for key in options:
        if key not in known:
            raise InvalidRequest(f"{key[:40]!r} is not an option here; there are: {', '.join(known)}", field=key[:40])
    for field in fields:
        if field.required and field.name not in options and field.name not in given:
            raise InvalidRequest(f"{field.name}: is missing; options: {', '.join(known)}", field=field.name)
    try:
        return msgspec.convert({key: value for key, (_, value) in options.items()} | given, kind)
    except msgspec.ValidationError as error:
        field_name = str(error).rpartition("$.")[2].rstrip("`")
        reason = str(error).partition(" - at ")[0]
        raise InvalidRequest(f"{field_name}: {reason}", field=field_name) from error


# What they get

_LAST_OF_PLANES = "".join(f"{chr(first)}{chr(first + 1)}" for first in range(0xFFFE, 0x110000, 0x10000))
_UNSPEAKABLE = re.compile(f"[\0\ud800-\udfff\ufdd0-\ufdef{_LAST_OF_PLANES}]")
"""Characters for which a bus, or a program on it, refuses the whole message."""


def text(value: str) -> str:
    """The text as it may cross the bus."""
    return _UNSPEAKABLE.sub("\ufffd", value)


def ratio(thousandths: int) -> float:
    """A level or a ratio as people write it."""
    return thousandths / UNIT


def figure(measured: float | None) -> float:
    """A measurement; if not known, not a number, so that it is taken neither for a small one nor for a large one."""
    return math.nan if measured is None else measured


def vm_path(name: str) -> str:
    """The object of a VM. Every name has another one, and sd-bus's decoding of the path gives it back."""
    # Neither can be in the name of a VM, but nothing here may fail.
    return encode_object_path(_VM_PATH, name.encode("utf-8", "replace").decode().replace("\0", "\ufffd"))


def subset_path(thousandths: int) -> str:
    """The object of a level's subset."""
    return f"{_SUBSET_PATH}/{thousandths}"


def dictionary(value: msgspec.Struct) -> Dictionary:
    """Every field under its name, but for those that only a cluster fills, and those that are None."""
    return {
        name: (signature, write(field))
        for name, (signature, write) in _writers(type(value)).items()
        if (field := getattr(value, name)) is not None
    }


@functools.cache
def _writers(kind: type[msgspec.Struct]) -> Mapping[str, _Writer]:
    hints = get_type_hints(kind)
    names = [field.name for field in msgspec.structs.fields(kind)]
    return {name: _writer(hints[name]) for name in names if _OF_A_CLUSTER.get(name) != hints[name]}


_OF_A_CLUSTER: Mapping[str, object] = {
    "host": str,
    "hosts": tuple[replies.HostProgress, ...],
    "score": float | None,
}
_WRITERS: Mapping[object, _Writer] = {
    bool: ("b", bool),
    int: ("x", int),
    float: ("d", float),
    str: ("s", text),
    tuple[int, ...]: ("au", list),
    tuple[str, ...]: ("as", lambda values: [text(value) for value in values]),
    tuple[tuple[int, int], ...]: ("aau", lambda rows: [list(row) for row in rows]),
    tuple[tuple[int, ...], ...]: ("aau", lambda rows: [list(row) for row in rows]),
}


def _writer(kind: object) -> _Writer:
    if isinstance(kind, UnionType):
        (kind,) = (member for member in get_args(kind) if member is not NoneType)
    if kind in _WRITERS:
        return _WRITERS[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "a{sv}", dictionary
    (member, _) = get_args(kind)
    if not issubclass(member, msgspec.Struct):
        raise TypeError(f"D-Bus has no spelling for {kind}")
    return "aa{sv}", lambda values: [dictionary(value) for value in values]


def status(reply: replies.StatusReply) -> Dictionary:
    """The figures of the host beside everything else."""
    fields = dictionary(reply)
    del fields["host"]
    return dictionary(reply.host) | fields


def vm_list(reply: replies.ListReply) -> list[tuple[str, int, float, int, str, str]]:
    """Name, vCPUs, level, MiB, state and object of each."""
    return [(text(vm.name), vm.vcpus, ratio(vm.level), vm.memory_mib, vm.state, vm_path(vm.name)) for vm in reply.vms]
