"""A flag of messages that sdbus does not tell: whether the caller's user may be asked for a password meanwhile."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from sdbus import sd_bus_internals
from sdbus.sd_bus_internals import SdBusMessage

_POINTER = ctypes.sizeof(ctypes.c_void_p)


def allows_interaction(message: SdBusMessage) -> bool:
    """Whether a call was made with ALLOW_INTERACTIVE_AUTHORIZATION; False if that cannot be found out."""
    ask = _library_function()
    if ask is None:
        return False
    return ask(ctypes.c_void_p.from_address(id(message) + object.__basicsize__)) > 0


@functools.cache
def _library_function() -> Callable[[ctypes.c_void_p], int] | None:
    # A message of sdbus holds one pointer, to the library's message, and nothing else; if a version holds
    # more or less, its place is not known.
    if SdBusMessage.__basicsize__ != object.__basicsize__ + _POINTER:
        return None
    try:
        library = ctypes.CDLL(sd_bus_internals.__file__)
        function = library.sd_bus_message_get_allow_interactive_authorization
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
    return function
