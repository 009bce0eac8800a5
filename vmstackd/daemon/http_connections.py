"""Keeps HTTP clients that do nothing from taking the place of others."""

from __future__ import annotations

import asyncio
import math

from aiohttp import web

from vmstackd.daemon import log

MOST = 4096
"""Connections at the same time; for further ones, that which has asked nothing for longest is closed."""
FIRST_S = 10.0
"""Seconds in which a request must have come whole."""
IDLE_S = 60.0
"""Seconds until the next one, and for reading the answer."""
PERIOD_S = 1.0
"""Seconds between two looks at the clock."""


class Connections:
    """The connections of one server."""

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._waiting_until: dict[web.RequestHandler, float | None] = {}  # who has waited for longest is first
        self._new: set[web.RequestHandler] = set()
        """Those that the server may not know yet."""
        self._refused = self._given_up = 0

    def admit(self) -> asyncio.Protocol:
        """The protocol of a connection that has come."""
        if len(self._server.connections) >= MOST and not self._give_up_one():
            self._refused += 1
            return _Refused()
        handler = self._server()
        self._new.add(handler)
        self._waiting_until[handler] = self._loop.time() + FIRST_S
        return handler

    def _give_up_one(self) -> bool:
        """Close one of those that we wait for."""
        for handler, until in self._waiting_until.items():
            if until is not None and handler.transport is not None:
                handler.transport.abort()
                del self._waiting_until[handler]
                self._given_up += 1
                return True
        return False

    def begins(self, handler: web.RequestHandler) -> None:
        """A request has come."""
        self._set(handler, None)

    def awaits_form(self, handler: web.RequestHandler) -> None:
        """Only the head of it has come, and somebody else looks at the clock."""
        self._set(handler, math.inf)

    def ends(self, handler: web.RequestHandler) -> None:
        """It has been answered."""
        self._set(handler, self._loop.time() + IDLE_S)

    def _set(self, handler: web.RequestHandler, until: float | None) -> None:
        self._waiting_until.pop(handler, None)
        self._waiting_until[handler] = until

    async def watch(self) -> None:
        """Close what has waited for too long, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            there = {*self._server.connections, *self._new}
            self._new.clear()
            self._waiting_until = {handler: until for handler, until in self._waiting_until.items() if handler in there}
            now = self._loop.time()
            for handler, until in self._waiting_until.items():
                if until is not None and until < now and handler.transport is not None:
                    handler.transport.abort()  # not close: that would wait for a client that does not read
            if self._refused:
                log.warning("http-connections-refused", count=self._refused, connections=len(there))
                self._refused = 0
            if self._given_up:
                log.warning("http-connections-given-up", count=self._given_up, connections=len(there))
                self._given_up = 0


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()
