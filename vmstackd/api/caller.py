"""Who asks. Each transport finds out in its own way; the engine decides what they may do."""

from __future__ import annotations

from enum import IntEnum

import msgspec


class Role(IntEnum):
    """A role may do what those below it may."""

    READER = 1
    OPERATOR = 2


class Caller(msgspec.Struct, frozen=True):
    """transport: its name. identity: for the log, such as an address or a user."""

    transport: str
    identity: str
    role: Role
