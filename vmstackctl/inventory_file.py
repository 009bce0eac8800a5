"""Inventories: what is known of a cluster at one moment, to decide with it later, elsewhere, as often as one likes."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections import Counter
from pathlib import Path

import msgspec

from core.demand import Lesson, Shape
from core.host_policy import DEFAULT_HOST_POLICY
from core.inventory import Inventory
from core.status import HostStatus
from vmstackctl.asking import is_cluster
from vmstackctl.defaults import FileError
from vmstackctl.inventory_faults import fault_of
from vmstackctl.report.target import write_whole
from vmstackctl.saved_inventory import FORMAT, VERSION, SavedHost, SavedInventory
from vmstackctl.values import printable
from vmstackd.api import requests
from vmstackd.api.errors import DeadlineExceeded, InvalidRequest, NotFound, Unavailable
from vmstackd.api.replies import CORDONED, HYPERVISOR_DOWN, UP, DemandReply, VmReply, closed
from vmstackd.client import MALFORMED, Client

MOST_BYTES = 1 << 29
"""Of a file, unpacked: some hundred thousand hosts."""
AT_ONCE = 64
"""Hosts that are asked for their VMs at the same time."""

_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
"""What zlib wants to be told about data with the header of gzip."""
_EXPECTED = "expected what vmstackctl inventory save has written"
_ANSWERING = (UP, CORDONED, HYPERVISOR_DOWN)
"""States of hosts that can be asked for their VMs."""
_BYTE = re.compile(r"(.*) \(byte ([0-9]+)\)")
_FIELD = re.compile(r"(.*) - at `\$\.?(.*)`")


class InventoryError(FileError):
    """A file that is no inventory, or cannot be read."""


class _Header(msgspec.Struct):
    format: str = ""


async def gather(
    client: Client,
    *,
    with_vms: bool = True,
    timeout: float | None = None,  # noqa: ASYNC109
) -> SavedInventory:
    """What a cluster, or one host, tells now. with_vms: ask hosts for theirs. timeout: of each question, in seconds.

    VMs of hosts that do not answer are not known, and those that are being deployed at this moment may be missing.
    Raises what the client does; Unavailable too if what it is told cannot be true.
    """
    policy, lesson = DEFAULT_HOST_POLICY, Lesson((), 0, 0, None)
    if is_cluster(client):
        reply, learnt = await asyncio.gather(client.hosts(timeout=timeout), _demand(client, timeout))
        policy, lesson = learnt.policy, learnt.lesson
        hosts = [_host(one.name, one.address, (one.state, one.reason), one.status) for one in reply.hosts]
    else:
        status = await client.status(timeout=timeout)
        hosts = [_host(client.hello.host, client.address, status.state, status.host)]
    if with_vms:
        turn = asyncio.Semaphore(AT_ONCE)
        hosts = await asyncio.gather(*(_with_vms(client, host, turn, timeout) for host in hosts))
    found = SavedInventory(time=time.time(), policy=policy, lesson=lesson, hosts=tuple(hosts))
    if why := fault_of(found):
        raise Unavailable(f"{client.address} told what cannot be true: {why}", fault=MALFORMED)
    return found


async def _demand(client: Client, seconds: float | None) -> DemandReply:
    try:
        return await client.demand(timeout=seconds)
    except InvalidRequest as error:
        raise Unavailable(
            f"globald at {client.address} is older than vmstackctl, and does not tell what it has learnt; update it"
        ) from error


def _host(name: str, address: str, state: tuple[str, str], status: HostStatus | None) -> SavedHost:
    return SavedHost(
        name=name, state=state[0], closed=closed(state[0]), status=status, vms=None, address=address, reason=state[1]
    )


async def _with_vms(client: Client, host: SavedHost, turn: asyncio.Semaphore, seconds: float | None) -> SavedHost:
    if host.state not in _ANSWERING:
        return host
    async with turn:
        try:
            reply = await client.list(requests.List(host=host.name if is_cluster(client) else ""), timeout=seconds)
        except (DeadlineExceeded, NotFound):  # it may have been taken out since
            return host
    if any(vm.state == "unknown" for vm in reply.vms):
        return host  # it has fallen silent since
    return msgspec.structs.replace(host, vms=_shapes(reply.vms))


def _shapes(vms: tuple[VmReply, ...]) -> tuple[Shape, ...]:
    counts = Counter((vm.level, vm.vcpus, vm.memory_mib) for vm in vms)
    return tuple([Shape(*shape, counts[shape]) for shape in sorted(counts)])


def to_inventory(saved: SavedInventory) -> Inventory:
    """The hosts to choose from, each with its place as its number, and what has been learnt."""
    inventory = Inventory(saved.lesson)
    for number, host in enumerate(saved.hosts):
        if host.status is None:
            inventory.close(number, host.closed)
        else:
            inventory.put(number, host.status, host.closed)
    return inventory


def save(path: Path, inventory: SavedInventory) -> None:
    """Write a file, whole or not at all; packed if its name ends in .gz. Raises WriteError."""
    content = msgspec.json.format(msgspec.json.encode(inventory), indent=1) + b"\n"
    if path.suffix.lower() == ".gz":
        packer = zlib.compressobj(wbits=_GZIP_WINDOW)
        content = packer.compress(content) + packer.flush()
    write_whole(path, content, instead="choose another FILE")


def load(path: Path) -> SavedInventory:
    """Read what ``save`` has written, packed or not, and check it. Raises InventoryError."""
    return parse(path, _text(path))


def parse(path: Path, text: bytes) -> SavedInventory:
    """The same of a file whose text is known. Raises InventoryError."""
    where = printable(str(path))
    if not text.strip():
        raise InventoryError(f"{where}: is empty; {_EXPECTED}")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise InventoryError(f"{where}: {_at(text, error.start, 'not UTF-8')}; {_EXPECTED}") from None
    try:
        _check_format(where, msgspec.json.decode(text, type=_Header).format)
        found = msgspec.json.decode(text, type=SavedInventory)
    except msgspec.ValidationError as error:
        raise InventoryError(f"{where}: {_misfit(str(error))}; {_EXPECTED}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InventoryError(f"{where}: {_malformed(text, error)}; {_EXPECTED}") from None
    if why := fault_of(found):
        raise InventoryError(f"{where}: {why}; this cannot be true, {_EXPECTED}")
    return found


def _text(path: Path) -> bytes:
    """The file, unpacked."""
    where = printable(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except IsADirectoryError:
        raise InventoryError(f"{where}: is a directory, {_EXPECTED}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise InventoryError(f"{where}: cannot be read: {why}; name a file that can") from error
    if data.startswith(_GZIP):
        unpacker = zlib.decompressobj(_GZIP_WINDOW)
        try:
            data = unpacker.decompress(data, MOST_BYTES + 1)
        except zlib.error:
            raise InventoryError(f"{where}: its compressed data are damaged; {_EXPECTED}") from None
        if not unpacker.eof and len(data) <= MOST_BYTES:
            raise InventoryError(f"{where}: its compressed data end too early, it was cut off; {_EXPECTED}")
        if unpacker.unused_data:
            raise InventoryError(f"{where}: something follows its compressed data; {_EXPECTED}")
    if len(data) > MOST_BYTES:
        raise InventoryError(f"{where}: is larger than {MOST_BYTES >> 20} MiB; {_EXPECTED}")
    return data


def _check_format(where: str, text: str) -> None:
    version = text.removeprefix(FORMAT)
    if version == text:
        raise InventoryError(f"{where}: is JSON, but no inventory; {_EXPECTED}")
    if version != VERSION:
        raise InventoryError(
            f"{where}: is an inventory of version {printable(version[:20])}, expected version {VERSION}; "
            "read it with the vmstackctl that wrote it, or a newer one"
        )


def _malformed(text: bytes, error: Exception) -> str:
    """Where the text stops being JSON, and why."""
    if isinstance(error, RecursionError):
        return "has too many arrays or objects within each other"
    found = _BYTE.fullmatch(str(error))
    if found and int(found[2]) < len(text):
        return _at(text, int(found[2]), printable(found[1]))
    return _at(text, len(text), "it ends too early, it was cut off")


def _at(text: bytes, place: int, why: str) -> str:
    line, column = text.count(b"\n", 0, place) + 1, place - text.rfind(b"\n", 0, place)
    return f"line {line}, column {column}: {why}"


def _misfit(message: str) -> str:
    """Of msgspec, with the field first."""
    found = _FIELD.fullmatch(message)
    what, field = (found[1], found[2]) if found else (message, "")
    what = printable(what[:1].lower() + what[1:]).replace("`", "")
    return f"{printable(field)}: {what}" if field else what
