"""What the paths of an HTTP endpoint do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

FORM = "application/x-www-form-urlencoded"
REQUEST_ID = r"[A-Za-z0-9._-]{1,64}"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True):
    """What a path does. about: in a few words. answer: the type of what is answered with JSON; media: what it is else.

    changing: whether it changes something. parameters: each of them must be given. example: a whole target that works,
    shown to those who forget one. unwell: whether the same may be answered with 503.
    """

    handler: Handler
    about: str
    answer: Any = str
    media: str = "application/json"
    changing: bool = False
    parameters: tuple[str, ...] = ()
    example: str = ""
    unwell: bool = False


class Answers(msgspec.Struct, frozen=True):
    """What the calls answer that are not alike for a host and a cluster, as types."""

    status: Any
    deploy: Any
    remove: Any
    progress: Any
    health: Any
