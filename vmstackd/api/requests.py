"""The operations, as values. ``check`` holds the rules that types cannot express.

Every transport builds one of these and hands it to ``Engine.handle``, which checks it first.
"""

from __future__ import annotations

import re

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
MAX_TEXT_BYTES = 255
"""Of the name of a host, or of what somebody says about it."""

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,15})?\]):([0-9]{1,5})")
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Request(msgspec.Struct, frozen=True, tag_field="operation", forbid_unknown_fields=True, omit_defaults=True):
    """What is not asked for is not sent: a server that is older may not know the field."""


class Deploy(_Request, frozen=True, tag="deploy"):
    """Place and start a VM. level in thousandths; image an absolute path. dry_run: only decide.

    host, here and below: the name or UUID of a host; empty: the one that is asked, or any of a cluster.
    """

    name: str
    vcpus: int
    memory_mib: int
    level: int
    image: str
    dry_run: bool = False
    host: str = ""


class Remove(_Request, frozen=True, tag="remove"):
    """Stop a VM and give its CPUs back; its disk image stays. dry_run: only decide."""

    name: str
    dry_run: bool = False
    host: str = ""


class Cordon(_Request, frozen=True, tag="cordon"):
    """Let a host have no new VMs, until Uncordon, also after restarts. reason: for people."""

    reason: str = ""
    host: str = ""


class Uncordon(_Request, frozen=True, tag="uncordon"):
    """Let a host have new VMs again."""

    host: str = ""


class Check(_Request, frozen=True, tag="check"):
    """Compare a host with what was decided, and put right what can be. dry_run: only compare.

    Of a cluster without a host: all of them.
    """

    host: str = ""
    dry_run: bool = False


class Progress(_Request, frozen=True, tag="progress"):
    """Would this VM bring memory per CPU nearer to the hardware's?"""

    vcpus: int
    memory_mib: int
    level: int
    host: str = ""


class Status(_Request, frozen=True, tag="status"):
    """The figures of the host and of each level; of a whole cluster, their sums."""

    host: str = ""


class List(_Request, frozen=True, tag="list"):
    """The VMs, by level in order of creation, each level in order of arrival."""

    host: str = ""


class Describe(_Request, frozen=True, tag="describe"):
    """One VM."""

    name: str
    host: str = ""


class Topology(_Request, frozen=True, tag="topology"):
    """A host's CPUs and the level that owns each."""

    host: str = ""


class Hosts(_Request, frozen=True, tag="hosts"):
    """The hosts of a cluster, in host order, some thousand at a time. first: how many are passed over."""

    first: int = 0


class Demand(_Request, frozen=True, tag="demand"):
    """How a cluster chooses hosts, and what it has learnt from the VMs that it was asked for."""


class HostAdd(_Request, frozen=True, tag="host_add"):
    """Make a host part of the cluster. address: HOST:PORT of its vmstackd. name: of its file; empty: by the address."""

    address: str
    name: str = ""


class HostRemove(_Request, frozen=True, tag="host_remove"):
    """Take a host out of the cluster; its VMs run on. host: its name, UUID or address."""

    host: str


HostRequest = Deploy | Remove | Cordon | Uncordon | Check | Progress | Status | List | Describe | Topology
"""What a host can be asked; a cluster too."""
ClusterRequest = Hosts | Demand | HostAdd | HostRemove
"""What only a cluster can be asked."""
Request = HostRequest | ClusterRequest
VmChange = Deploy | Remove
Change = VmChange | Cordon | Uncordon | Check | HostAdd | HostRemove
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
        case Cordon():
            _check_text("reason", request.reason)
        case HostAdd():
            _check_address(request.address)
            if request.name and not _HOST_NAME.fullmatch(request.name):
                raise InvalidRequest("name: only letters, digits, '.', '_' and '-', at most 64", field="name")
        case HostRemove():
            if not request.host:
                raise InvalidRequest("host: must be the name, UUID or address of a host", field="host")
        case Hosts():
            if request.first < 0:
                raise InvalidRequest("first: must be 0 or more", field="first")
        case Uncordon() | Check() | Status() | List() | Topology() | Demand():
            pass
    host = getattr(request, "host", "")
    if host:
        _check_text("host", host)


def _check_text(field: str, text: str) -> None:
    if len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES or not text.isprintable():
        raise InvalidRequest(f"{field}: only printable characters, at most {MAX_TEXT_BYTES} bytes", field=field)


def _check_address(address: str) -> None:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise InvalidRequest(
            f"address: must be HOST:PORT, as 10.0.0.5:8097, server1:8097 or [fd00::5]:8097, not {address[:80]!r}",
            field="address",
        )


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
