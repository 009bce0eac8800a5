"""Who asks. Each transport finds out in its own way; the engine decides what they may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum

import msgspec

from vmstackd.api.requests import Request


class Role(IntEnum):
    """A role may do what those below it may."""

    NOBODY = 0
    READER = 1
    OPERATOR = 2


Grant = Callable[[Request], Awaitable[bool]]
"""Asks somebody else, such as polkit, whether the caller may do this one thing."""


class Caller(msgspec.Struct, frozen=True):
    """transport: its name. identity: for the log, such as an address or a user.

    grant: asked, with a request that makes sense, when the role is not enough for it.
    """

    transport: str
    identity: str
    role: Role
    grant: Grant | None = None
