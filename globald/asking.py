"""What hosts answer, kept to a size that people read."""

from __future__ import annotations

from collections.abc import Awaitable
from itertools import islice
from typing import TypeVar

from globald.member import short
from vmstackd.api.errors import VmstackError

MOST_DETAILS = 32
"""Of an error, and characters of the name of one."""

_R = TypeVar("_R")


async def answer_of(call: Awaitable[_R]) -> _R:
    """What a host answers. What it says of an error is as long as people read, and no longer."""
    try:
        return await call
    except VmstackError as error:
        error.message = short(error.message)
        error.details = {
            key: short(value) if isinstance(value, str) else value
            for key, value in islice(error.details.items(), MOST_DETAILS)
            if len(key) <= MOST_DETAILS
        }
        raise
