"""What a daemon tells its subscribers, for as long as somebody listens: over its restarts, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from vmstackctl import lines, terminal
from vmstackctl.lines import Connected, Disconnected
from vmstackd.api import session
from vmstackd.api.errors import InvalidRequest, VmstackError
from vmstackd.api.replies import StatusReply
from vmstackd.client import Client, Pushes

RETRY_S = 0.5
"""Seconds between two attempts to reach a daemon that went away."""


class Following:
    """Iterate over it. client: while the daemon is there. The first attempt must succeed, else VmstackError."""

    client: Client | None = None

    def __init__(self, connect: Callable[[], Awaitable[Client]], timeout: float, *, usage: bool = False) -> None:
        """connect: one attempt. timeout: seconds for whatever the client is asked. usage: be told of every measurement,
        where there are some.
        """
        self._connect = connect
        self.timeout = timeout
        self._usage = usage
        self._program = ""
        self._been_there = False
        self._away = False

    async def __aiter__(self) -> AsyncIterator[session.Push | Disconnected | Connected]:
        """Pushes, and between them that the daemon went away and came back."""
        while True:
            try:
                async with await self._connect() as client:
                    self.client = client
                    self._program = client.hello.program
                    async for push in await self._subscribe(client):
                        if self._away and isinstance(push, StatusReply):
                            yield Connected(time=time.time(), vms=push.host.vms, program=self._program)
                            self._away = False
                        self._been_there = True
                        yield push
            except VmstackError as error:
                if not self._been_there:
                    raise
                if not self._away:
                    self._away = True
                    reason = error.message.partition(";")[0]
                    yield Disconnected(time=time.time(), reason=reason, program=self._program)
            finally:
                self.client = None
            await asyncio.sleep(RETRY_S)

    async def _subscribe(self, client: Client) -> Pushes:
        try:
            _, pushes = await client.watch(usage=self._usage)
        except InvalidRequest as error:
            if error.details.get("field") != "usage":
                raise
            _, pushes = await client.watch()  # of a daemon that is older than its measurements
        return pushes


async def status_lines(following: Following, interval: float, *, as_json: bool) -> int:
    """A line for each change, at most one every interval seconds; as JSON, notes are on stderr."""
    async for push in following:
        match push:
            case StatusReply():
                line = lines.json_line(push) if as_json else f"{lines.stamp(time.time())} {lines.status(push)}"
                terminal.write(f"{line}\n")
                # Meanwhile the client keeps the newest status only.
                await asyncio.sleep(interval)
            case Disconnected() | Connected() if as_json:
                terminal.complain(lines.event(push))
            case Disconnected() | Connected():
                terminal.write(f"{lines.event(push)}\n")
    return 0


async def event_lines(following: Following, *, as_json: bool) -> int:
    """A line for each event, with gaps between them told as events too."""
    async for push in following:
        if not isinstance(push, StatusReply):
            terminal.write(f"{lines.json_line(push) if as_json else lines.event(push)}\n")
    return 0
