"""The connection to one host: kept up, listened to, and given up when the host is silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time

import msgspec

from globald.member import Member, Quarantine, State, short
from globald.members import Members
from vmstackd.api import requests, session
from vmstackd.api.errors import DeadlineExceeded, Denied, NotFound, Unavailable, VmstackError
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
"""Seconds after a host is back, in which an order of before may still show; then it is asked."""
MOST_DUPLICATES = 20
"""Logged of one host."""


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
        self._listening: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._lie = ""
        self.told = asyncio.Event()
        """Whether the host has told what it has, or is not to be believed."""

    def start(self) -> None:
        """Begin to reach for the host."""
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Hang up."""
        self.cut()
        await asyncio.gather(self.task, return_exceptions=True)

    def cut(self) -> None:
        """Hang up, and take no notice any more of what the host may have told."""
        self.told.set()
        for task in (self.task, self._listening, self._settling):
            if task is not None:
                task.cancel()

    def distrust(self, reason: str) -> None:
        """The host has answered what cannot be true."""
        if self._listening is not None and not self._listening.done():
            self._lie = reason
            self._listening.cancel()

    def settle_later(self) -> None:
        """Nobody knows whether the host has got an order; if it does not tell, it is asked."""
        client = self._member.client
        if client is not None and client.lost is None and (self._settling is None or self._settling.done()):
            self._settling = asyncio.create_task(self._settle(client))

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
            except Exception:
                log.logger.exception("unexpected error with the host at %s", self._member.entry.address)
                self._down(State.QUARANTINED, "internal error; the log of globald has the details")
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
            self._listening = listening = loop.create_task(self._listen(pushes))
            stack.callback(listening.cancel)
            quiet = QUIET_S
            while not (await asyncio.wait((listening,), timeout=quiet))[0]:
                asked = loop.time()
                quiet = (member.heard or asked) + QUIET_S - asked
                if quiet <= 0:
                    await self._ping(client, asked, listening)
                    quiet = QUIET_S
            if self._lie:
                reason, self._lie = self._lie, ""
                raise Quarantine(reason)
            listening.result()

    async def _ping(self, client: Client, asked: float, listening: asyncio.Task[None]) -> None:
        """Returns once the host has answered, or listening has ended."""
        member, loop = self._member, asyncio.get_running_loop()
        pinging = loop.create_task(client.ping(timeout=SILENT_S))
        try:
            await asyncio.wait((pinging, listening), return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                pinging.result()
                member.heard = loop.time()
        except DeadlineExceeded as error:
            if member.heard is not None and member.heard >= asked:
                return  # it is busy, but there
            silent = loop.time() - asked + QUIET_S
            raise Unavailable(f"silent for {silent:.0f} s") from error
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

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
        for duplicate in self._members.duplicates_of(member, MOST_DUPLICATES):
            log.warning(
                "vm-duplicate",
                vm=duplicate.name,
                hosts=",".join(duplicate.hosts[:MOST_DUPLICATES]),
                next_step="say which one is to go: vmstackctl remove NAME --host HOST",
            )
        self.settle_later()

    def _down(self, state: State, reason: str) -> None:
        member, reason = self._member, short(reason)
        changed = (member.state, member.reason) != (state, reason)
        was_up = member.state is State.UP
        member.client = self._listening = None
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
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

    async def _settle(self, client: Client) -> None:
        """Ask the host about orders of which nobody knows whether it has them, once they must have arrived."""
        member = self._member
        while True:
            waiting = [reservation for reservation in member.pending.values() if reservation.uncertain]
            if not waiting:
                return
            await asyncio.sleep(GRACE_S)
            for reservation in waiting:
                if member.pending.get(reservation.name) is not reservation:
                    continue
                reservation.seen = False
                try:
                    await client.describe(requests.Describe(name=reservation.name), timeout=SILENT_S)
                except NotFound:
                    self._members.release(reservation)
                except VmstackError:
                    if client.lost is not None:
                        return  # and is asked when it is back
                else:
                    # What it has told meanwhile may be newer than what it answers.
                    if member.pending.get(reservation.name) is reservation and not reservation.seen:
                        self._members.found(reservation)


_UUID = re.compile(r"[0-9A-Za-z-]{1,64}")


def _require_host(hello: session.HelloReply) -> None:
    """Raises Quarantine unless it is a host that lets us deploy."""
    if hello.program != "vmstackd":
        raise Quarantine(f"what answers there is {hello.program[:80]!r}, not a vmstackd")
    if not hello.uuid:
        raise Quarantine("its vmstackd is too old: it has no UUID")
    if not _UUID.fullmatch(hello.uuid):
        raise Quarantine(f"it has no proper UUID: {hello.uuid[:80]!r}")
    if hello.role != "operator":
        raise Quarantine(f"it lets us only read ({hello.role[:80]!r}); our certificate needs the role globald")
