"""The operations, as values. ``check`` holds the rules that types cannot express.

Every transport builds one of these and hands it to ``Engine.handle``, which checks it first.
"""

from __future__ import annotations

import msgspec

from core.level import HIGHEST, LOWEST, format_level
from vmstackd.api.errors import InvalidRequest

MAX_VCPUS = 4096
MAX_MEMORY_MIB = 1 << 30
MAX_NAME_BYTES = 128
"""Of a new VM."""
MAX_KNOWN_NAME_BYTES = 255
"""Of a VM that is there: as long as libvirt can store."""
MAX_PATH_BYTES = 4095


class _Request(msgspec.Struct, frozen=True, tag_field="operation", forbid_unknown_fields=True):
    pass


class Deploy(_Request, frozen=True, tag="deploy"):
    """Place and start a VM. level in thousandths; image an absolute path. dry_run: only decide."""

    name: str
    vcpus: int
    memory_mib: int
    level: int
    image: str
    dry_run: bool = False


class Remove(_Request, frozen=True, tag="remove"):
    """Stop a VM and give its CPUs back; its disk image stays. dry_run: only decide."""

    name: str
    dry_run: bool = False


class Progress(_Request, frozen=True, tag="progress"):
    """Would this VM bring memory per CPU nearer to the hardware's?"""

    vcpus: int
    memory_mib: int
    level: int


class Status(_Request, frozen=True, tag="status"):
    """The figures of the host and of each level."""


class List(_Request, frozen=True, tag="list"):
    """The VMs, by level in order of creation, each level in order of arrival."""


class Describe(_Request, frozen=True, tag="describe"):
    """One VM."""

    name: str


class Topology(_Request, frozen=True, tag="topology"):
    """The host's CPUs and the level that owns each."""


Request = Deploy | Remove | Progress | Status | List | Describe | Topology
Change = Deploy | Remove
"""Those that change something; all others only read."""


def check(request: Request) -> None:
    """Raise InvalidRequest, naming the field, unless the request makes sense on some host."""
    match request:
        case Deploy():
            _check_new_name(request.name)
            _check_size(request.vcpus, request.memory_mib, request.level)
            _check_image(request.image)
        case Progress():
            _check_size(request.vcpus, request.memory_mib, request.level)
        case Remove() | Describe():
            _check_name(request.name)
        case Status() | List() | Topology():
            pass


def _check_name(name: str, longest: int = MAX_KNOWN_NAME_BYTES) -> None:
    if not 1 <= len(name.encode("utf-8", "replace")) <= longest:
        raise InvalidRequest(f"name: must be 1 to {longest} bytes long", field="name")


def _check_new_name(name: str) -> None:
    """Stricter than for a VM that is there: adopted VMs may have any name libvirt allows."""
    _check_name(name, MAX_NAME_BYTES)
    if not name.isprintable() or "/" in name or name[0] in "-. " or name[-1] == " ":
        raise InvalidRequest(
            "name: only printable characters without '/', not beginning with '-', '.' or a space, nor ending with one",
            field="name",
        )


def _check_size(vcpus: int, memory_mib: int, level: int) -> None:
    if not 1 <= vcpus <= MAX_VCPUS:
        raise InvalidRequest(f"vcpus: must be a whole number from 1 to {MAX_VCPUS}", field="vcpus")
    if not 1 <= memory_mib <= MAX_MEMORY_MIB:
        raise InvalidRequest(f"memory_mib: must be a whole number from 1 to {MAX_MEMORY_MIB} MiB", field="memory_mib")
    if not LOWEST <= level <= HIGHEST:
        raise InvalidRequest(f"level: must be from {format_level(LOWEST)} to {format_level(HIGHEST)}", field="level")


def _check_image(image: str) -> None:
    if not image.startswith("/") or not image.isprintable() or len(image.encode("utf-8", "replace")) > MAX_PATH_BYTES:
        raise InvalidRequest("image: must be an absolute path of printable characters", field="image")
