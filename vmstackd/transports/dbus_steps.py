"""Lets sdbus take one message at a time.

By itself it takes messages as long as there are any, and somebody who sends them faster than they can be answered
would have it never return. The library answers some calls without asking us, those for all objects among them, so
they cannot wait for their turns elsewhere.
"""

from __future__ import annotations

import ctypes
import functools

from sdbus import sd_bus_internals
from sdbus.sd_bus_internals import SdBus

_POINTER = ctypes.sizeof(ctypes.c_void_p)


class Steps:
    """Of one bus."""

    def __init__(self, library: ctypes.PyDLL, bus: SdBus) -> None:
        self._library = library
        self._bus = bus  # not to go before this does
        self._place = ctypes.c_void_p.from_address(id(bus) + object.__basicsize__)

    def take(self) -> int:
        """Take a message, or send what waits: above 0 if there may be more, below if it failed."""
        return int(self._library.sd_bus_process(self._place, None))

    def events(self) -> int:
        """For poll(2), to wait for; below 0 if that fails."""
        return int(self._library.sd_bus_get_events(self._place))


def steps_of(bus: SdBus) -> Steps | None:
    """None if they cannot be had; then sdbus must do as it does."""
    library = _library()
    return None if library is None else Steps(library, bus)


@functools.cache
def _library() -> ctypes.PyDLL | None:
    # A bus of sdbus holds a pointer to the library's bus, and then four words more; if a version holds more or less,
    # its place is not known.
    if SdBus.__basicsize__ != object.__basicsize__ + 5 * _POINTER:
        return None
    try:
        # What is called back needs Python's lock: PyDLL keeps it.
        library = ctypes.PyDLL(sd_bus_internals.__file__)
        process, events = library.sd_bus_process, library.sd_bus_get_events
    except (OSError, AttributeError):
        return None
    process.argtypes, process.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int
    events.argtypes, events.restype = [ctypes.c_void_p], ctypes.c_int
    return library
