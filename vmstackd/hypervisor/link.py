"""Worker threads with a connection each, one connection more for events and one for what may wait, and reconnecting.

Every connection carries the number of the link it belongs to. When the link is lost the number goes
up: connections with an older one are closed by their threads and never used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar, cast

from vmstackd.hypervisor.base import HypervisorError, HypervisorEvent, HypervisorUnreachable
from vmstackd.hypervisor.workers import Workers

C = TypeVar("C")
T = TypeVar("T")

log = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_MAX_S = 0.2, 5.0
CONNECT_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 5.0
ASIDE_TIMEOUT_S, ASIDE_LIMIT = 5.0, 4


class Driver(Protocol[C]):
    """How to connect. Called in worker threads."""

    def connect(self) -> C:
        """Raises HypervisorUnreachable."""

    def disconnect(self, connection: C) -> None:
        """Never raises."""

    def watch(self, connection: C, on_lost: Callable[[str], None], on_changed: Callable[[str], None]) -> None:
        """Report the loss of this connection, with the reason, and VMs that change; from any thread."""

    def unwatch(self, connection: C) -> None:
        """Stop that. Never raises."""

    def errors(self, connection: C) -> AbstractContextManager[None]:
        """Turns the library's exceptions into HypervisorError and its kinds."""


class Link(Generic[C]):
    """Calls go through ``call``. on_event is told when the link is lost and restored."""

    def __init__(self, driver: Driver[C], workers: int) -> None:
        self._driver = driver
        self._worker_count = workers
        self._number = 0
        self._broken = "not connected"
        """Why calls are refused now; empty while the link is up."""
        self._closed = False
        self._local = threading.local()
        self._pending: set[asyncio.Future[Any]] = set()
        self._reconnecting: asyncio.Task[None] | None = None
        self._aside: Workers | None = None
        self._given_up: list[Workers] = []

    async def open(self, on_event: Callable[[HypervisorEvent], None]) -> None:
        """Raises HypervisorError if the first connection fails; it can then be tried again."""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._workers = Workers(self._worker_count, "hypervisor", self._drop)
        self._listener = Workers(1, "hypervisor-events", self._stop_listening)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._listener.submit(functools.partial(self._listen, self._number))
        except TimeoutError:
            await self.close()
            raise HypervisorUnreachable("the hypervisor does not answer") from None
        except BaseException:
            await self.close()
            raise
        self._broken = ""

    async def close(self) -> None:
        """Calls in progress get a few seconds to finish. No event afterwards."""
        self._closed, self._broken = True, "not connected"
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        every = [self._workers, self._listener]
        if self._aside is not None:
            every.append(self._aside)
            self._aside = None
        await asyncio.gather(*(workers.stop(CLOSE_TIMEOUT_S) for workers in every))

    async def call(self, work: Callable[[C], T]) -> T:
        """Run this in a worker thread. Raises HypervisorError and its kinds."""
        if self._broken:
            raise HypervisorUnreachable(self._broken)
        number = self._number
        result = self._workers.submit(functools.partial(self._work, number, work))
        self._pending.add(result)
        try:
            return await result
        except HypervisorUnreachable as error:
            self._lost(number, str(error))
            raise
        finally:
            self._pending.discard(result)

    async def call_aside(self, work: Callable[[C], T]) -> T:
        """Run this where it holds up no ``call``, and give it up after ASIDE_TIMEOUT_S. By one caller at a time.

        Raises as ``call`` does, and HypervisorError when it is given up, or while ASIDE_LIMIT that were given up
        have still to end. The link does not count as lost for it.
        """
        if self._broken:
            raise HypervisorUnreachable(self._broken)
        self._given_up = [workers for workers in self._given_up if workers.running]
        if len(self._given_up) >= ASIDE_LIMIT:
            raise HypervisorError(f"the hypervisor has yet to answer {ASIDE_LIMIT} earlier questions")
        if self._aside is None:
            self._aside = Workers(1, "hypervisor-aside", self._drop)
        result = self._aside.submit(functools.partial(self._work_aside, self._number, work))
        self._pending.add(result)
        try:
            async with asyncio.timeout(ASIDE_TIMEOUT_S):
                return await result
        except TimeoutError:
            hanging, self._aside = self._aside, None
            self._given_up.append(hanging)
            await hanging.stop(0)
            raise HypervisorError(f"the hypervisor has not answered for {ASIDE_TIMEOUT_S:g} seconds") from None
        finally:
            self._pending.discard(result)

    def _work_aside(self, number: int, work: Callable[[C], T]) -> T:
        """In a thread."""
        try:
            return self._work(number, work)
        except HypervisorUnreachable:
            self._drop()
            raise

    def _work(self, number: int, work: Callable[[C], T]) -> T:
        """In a worker thread."""
        if number != self._number:
            raise HypervisorUnreachable(self._broken or "the link was lost meanwhile")
        if getattr(self._local, "number", None) != number:
            self._drop()
            self._local.connection = self._driver.connect()
            self._local.number = number
        connection = cast("C", self._local.connection)
        with self._driver.errors(connection):
            return work(connection)

    def _drop(self) -> None:
        """In the thread whose connection it is."""
        connection = self._local.__dict__.pop("connection", None)
        self._local.number = None
        if connection is not None:
            self._driver.disconnect(connection)

    def _listen(self, number: int) -> None:
        """In the listener's thread."""
        self._stop_listening()
        self._local.connection = connection = self._driver.connect()
        with self._driver.errors(connection):
            self._driver.watch(
                connection,
                functools.partial(self._post, self._lost, number),
                functools.partial(self._post, self._changed, number),
            )

    def _stop_listening(self) -> None:
        """In the listener's thread."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._driver.unwatch(connection)
        self._drop()

    def _post(self, receiver: Callable[[int, str], None], number: int, text: str) -> None:
        """In any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop may have ended
            self._loop.call_soon_threadsafe(receiver, number, text)

    def _changed(self, number: int, name: str) -> None:
        if number == self._number and not self._closed:
            self._on_event(HypervisorEvent("changed", vm=name))

    def _lost(self, number: int, reason: str) -> None:
        if number != self._number or self._closed:
            return
        self._number += 1
        if self._broken:  # lost again before it was restored: the reconnecting task goes on
            return
        self._broken = reason
        # A thread may be waiting for a daemon that takes connections and never answers.
        for result in self._pending:
            if not result.done():
                result.set_exception(HypervisorUnreachable(reason))
        log.warning("lost the hypervisor: %s", reason)
        self._on_event(HypervisorEvent("lost", reason=reason))
        self._reconnecting = asyncio.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        delay = BACKOFF_S
        while True:
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 (only spreads the load)
            delay = min(delay * 2, BACKOFF_MAX_S)
            number = self._number
            try:
                await self._listener.submit(functools.partial(self._listen, number))
            except HypervisorError as error:
                self._broken = str(error)
                continue
            if number == self._number:
                break
        self._broken = ""
        log.info("the hypervisor is back")
        self._on_event(HypervisorEvent("restored"))
