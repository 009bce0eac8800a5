"""The connection to one host: kept up, listened to, and given up when the host is silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import msgspec

from globald.members import Member, Members, Quarantine, Reservation, State
from vmstackd.api import session
from vmstackd.api.errors import DeadlineExceeded, Denied, Unavailable, VmstackError
from vmstackd.api.replies import StatusReply
from vmstackd.client import MALFORMED, Client, Pushes
from vmstackd.daemon import log
from vmstackd.daemon.feed import Feed
from vmstackd.tls import Tls

CONNECT_S = 5.0
"""Seconds for a host to let us in, and as many again to tell what it has."""
QUIET_S = 4.5
"""Seconds after which a host that has said nothing is asked whether it is there."""
SILENT_S = 4.0
"""Seconds that it then has to answer: together less than the 10 s within which a silent host is unknown."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Between two attempts to reach a host; doubled each time, and made uneven so that not all try at once.

A host that is quarantined may try again after the longest one.
"""
GRACE_S = 5.0
"""Seconds after a host is back, in which an order of before may still show."""


class Link:
    """Runs by itself from ``start`` to ``stop``."""

    task: asyncio.Task[None]

    def __init__(self, member: Member, members: Members, feed: Feed, tls: Tls | None, turn: asyncio.Semaphore) -> None:
        """turn: shared by all links, so that not all hosts are connected to at the same time."""
        self._member = member
        self._members = members
        self._feed = feed
        self._tls = tls
        self._turn = turn
        self._uncertain: set[Reservation] = set()
        self.told = asyncio.Event()
        """Whether the host has told what it has, or is not to be believed."""

    def start(self) -> None:
        """Begin to reach for the host."""
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Hang up."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def settle_later(self, reservation: Reservation) -> None:
        """Nobody knows whether the host has got this order; once it is back, that will show."""
        self._uncertain.add(reservation)
        if self._member.state is State.UP:
            self._settle_soon()

    async def _run(self) -> None:
        failures = 0
        while True:
            begin = asyncio.get_running_loop().time()
            try:
                await self._serve()
            except Quarantine as error:
                self._down(State.QUARANTINED, str(error))
            except VmstackError as error:
                untrue = isinstance(error, Denied) or error.details.get("fault") == MALFORMED
                self._down(State.QUARANTINED if untrue else State.UNKNOWN, error.message)
            if self._member.state is State.QUARANTINED:
                await asyncio.sleep(LONGEST_PAUSE_S)
                continue
            failures = 0 if asyncio.get_running_loop().time() - begin > LONGEST_PAUSE_S else failures + 1
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 10))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  nothing secret

    async def _serve(self) -> None:
        """Reach the host, and listen to it until the connection ends. Raises VmstackError or Quarantine."""
        member, loop = self._member, asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            async with self._turn:
                client = await Client.connect(member.entry.address, program="globald", timeout=CONNECT_S, tls=self._tls)
                stack.push_async_callback(client.close)
                _require_host(client.hello)
                told, pushes = await client.watch(names=True, timeout=CONNECT_S)
                try:
                    async with asyncio.timeout(CONNECT_S):
                        first = await anext(pushes)
                except TimeoutError:
                    raise Unavailable(f"it does not tell how it is within {CONNECT_S:g} s") from None
            self._up(client, told.names, first)
            listening = loop.create_task(self._listen(pushes))
            stack.callback(listening.cancel)
            quiet = QUIET_S
            while not (await asyncio.wait((listening,), timeout=quiet))[0]:
                asked = loop.time()
                quiet = (member.heard or asked) + QUIET_S - asked
                if quiet <= 0:
                    await self._ping(client, asked)
                    quiet = QUIET_S
            listening.result()

    async def _ping(self, client: Client, asked: float) -> None:
        member, loop = self._member, asyncio.get_running_loop()
        try:
            await client.ping(timeout=SILENT_S)
        except DeadlineExceeded as error:
            if member.heard is not None and member.heard >= asked:
                return  # it is busy, but there
            silent = loop.time() - asked + QUIET_S
            raise Unavailable(f"silent for {silent:.0f} s") from error
        member.heard = loop.time()

    async def _listen(self, pushes: Pushes) -> None:
        member, loop = self._member, asyncio.get_running_loop()
        async for push in pushes:
            member.heard = loop.time()
            match push:
                case StatusReply():
                    before = member.shown_state
                    self._members.told(member, push)
                    if member.shown_state != before:
                        self._tell_state()
                case session.Missed():
                    raise Unavailable("it told more than we could take; asking it again for all that it has")
                case _:
                    self._members.happened(member, push)
                    self._feed.publish(msgspec.structs.replace(push, host=member.name))
            self._feed.touch()

    def _up(self, client: Client, names: tuple[str, ...], first: session.Push) -> None:
        member = self._member
        if not isinstance(first, StatusReply):
            raise Quarantine("it tells events before its status")
        member.heard = asyncio.get_running_loop().time()
        moved = self._members.joined(member, client.hello, names, first)
        member.client = client
        self.told.set()
        if moved is not None:
            log.warning("host-moved", host=member.name, to=member.entry.address, before=moved.entry.address)
        log.info("host-up", host=member.name, address=member.entry.address, vms=len(member.names))
        self._tell_state()
        for duplicate in self._members.duplicates_of(member):
            log.warning(
                "vm-duplicate",
                vm=duplicate.name,
                hosts=",".join(duplicate.hosts),
                next_step="say which one is to go: vmstackctl remove NAME --host HOST",
            )
        if self._uncertain:
            self._settle_soon()

    def _down(self, state: State, reason: str) -> None:
        member = self._member
        changed = (member.state, member.reason) != (state, reason)
        was_up = member.state is State.UP
        member.client = None
        self._members.set_state(member, state, reason)
        if state is State.QUARANTINED:
            self.told.set()
        if changed:
            tell = log.warning if was_up or state is State.QUARANTINED else log.info
            tell("host-down", host=member.name, address=member.entry.address, state=state.value, reason=reason)
            self._tell_state()

    def _tell_state(self) -> None:
        state, reason = self._member.shown_state
        self._feed.publish(session.HostChanged(time=time.time(), host=self._member.name, state=state, reason=reason))
        self._feed.touch()

    def _settle_soon(self) -> None:
        """What has not shown by then did not reach the host."""
        waiting, self._uncertain = self._uncertain, set()
        asyncio.get_running_loop().call_later(GRACE_S, self._settle, waiting)

    def _settle(self, waiting: set[Reservation]) -> None:
        if self._member.state is not State.UP:
            self._uncertain |= waiting
            return
        for reservation in waiting:
            self._members.release(reservation)


def _require_host(hello: session.HelloReply) -> None:
    """Raises Quarantine unless it is a host that lets us deploy."""
    if hello.program != "vmstackd":
        raise Quarantine(f"what answers there is {hello.program[:80]!r}, not a vmstackd")
    if not hello.uuid:
        raise Quarantine("its vmstackd is too old: it has no UUID")
    if hello.role != "operator":
        raise Quarantine(f"it lets us only read ({hello.role}); our certificate needs the role globald")
