"""What belongs to a connection rather than to a host: who is there, and what is pushed to subscribers."""

from __future__ import annotations

import msgspec

from vmstackd.api.replies import StatusReply

PROTOCOL_VERSIONS = (1,)
"""Those this program speaks."""


class Identity(msgspec.Struct, frozen=True):
    """Who answers. program: "vmstackd" or "globald". host: the name of its machine. uuid: of the host, made once."""

    program: str
    host: str
    uuid: str = ""


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first call on a connection. versions: of the protocol, that the client speaks. client: for the log."""

    versions: tuple[int, ...]
    client: str = ""


class HelloReply(msgspec.Struct, frozen=True):
    """version: the highest that both speak. role: "reader" or "operator". uuid: that of Identity."""

    version: int
    program: str
    program_version: str
    host: str
    role: str
    uuid: str = ""


class Ping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Are you there?"""


class Pong(msgspec.Struct, frozen=True):
    """Yes."""


class Subscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """From now on push the status whenever it changes, and every event; the status of this moment first.

    names: answer with the names of the VMs, too. usage: each status with what the host really did of late, and one
    whenever that has been measured.
    """

    names: bool = False
    usage: bool = False


class Subscribed(msgspec.Struct, frozen=True):
    """The answer to Subscribe. names: of the VMs of a host, of this moment; every change from then on is an event."""

    names: tuple[str, ...] = ()


class VmDeployed(msgspec.Struct, frozen=True, tag_field="event", tag="deployed"):
    """A VM was started on these CPUs, those of its whole level. time: seconds since 1970. level in thousandths.

    host, here and below: where, if a cluster tells.
    """

    time: float
    name: str
    level: int
    cpus: tuple[int, ...]
    host: str = ""


class VmRemoved(msgspec.Struct, frozen=True, tag_field="event", tag="removed"):
    """A VM was removed as asked. released: CPUs that its level gave up."""

    time: float
    name: str
    released: tuple[int, ...]
    host: str = ""


class VmRefused(msgspec.Struct, frozen=True, tag_field="event", tag="refused"):
    """A VM was not deployed or not removed (operation), though it could have been: code of the error, and why."""

    time: float
    name: str
    operation: str
    code: str
    reason: str
    host: str = ""


class VmAdopted(msgspec.Struct, frozen=True, tag_field="event", tag="adopted"):
    """A VM that runs without our doing was given a place."""

    time: float
    name: str
    level: int
    cpus: tuple[int, ...]
    host: str = ""


class VmGone(msgspec.Struct, frozen=True, tag_field="event", tag="gone"):
    """A VM ended without our doing."""

    time: float
    name: str
    host: str = ""


class Degraded(msgspec.Struct, frozen=True, tag_field="event", tag="degraded"):
    """What is not as it should be has changed. problems: in words; empty: all is well again."""

    time: float
    problems: tuple[str, ...]
    host: str = ""


class HostChanged(msgspec.Struct, frozen=True, tag_field="event", tag="host"):
    """A host of a cluster is in another state, as in HostReply; "removed" when it is no longer part of it."""

    time: float
    host: str
    state: str
    reason: str = ""


class Missed(msgspec.Struct, frozen=True, tag_field="event", tag="missed"):
    """Events that this subscriber did not get, because it was too slow to take them."""

    time: float
    count: int


Event = VmDeployed | VmRemoved | VmRefused | VmAdopted | VmGone | Degraded | HostChanged | Missed

Push = StatusReply | Event
"""What a subscriber gets."""
