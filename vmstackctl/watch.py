"""The status, live: on a whole screen, or a line per change where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from vmstackctl import lines, terminal
from vmstackctl.asking import is_cluster
from vmstackctl.cpu_map import CpuMap
from vmstackctl.following import Following
from vmstackctl.host_tables import HostTable
from vmstackctl.lines import Connected, Disconnected
from vmstackctl.screen import Screen
from vmstackctl.values import printable
from vmstackd.api.errors import VmstackError
from vmstackd.api.replies import StatusReply

EVENTS = 5
"""The newest events shown below the picture."""
REFRESH_S = 2.0
"""Seconds after which hosts are asked for again: how long they have been silent is not told by them."""
_OTHER_LINES = 5
"""Of the screen of a cluster: heading, sums (perhaps two), an empty one, and the last one."""


class Scene(msgspec.Struct):
    """What the screen shows. away: why there is no daemon (program), empty while there is.

    updated: seconds since 1970.
    """

    picture: CpuMap | HostTable
    program: str
    events: tuple[lines.Line, ...] = ()
    away: str = ""
    updated: float = 0.0


class Frame:
    """A scene, to be printed by rich; its last line is for the bottom of the screen."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        scene = self._scene
        yield scene.picture
        yield Text()
        for event in scene.events:
            yield Text(lines.event(event), no_wrap=True, overflow="ellipsis")
        if scene.away:
            message = f"{printable(scene.program)} is away: {printable(scene.away)}; trying again"
            yield Text(message, "bold red", no_wrap=True, overflow="ellipsis")
        else:
            yield Text(
                f"as of {lines.stamp(scene.updated)}; q or Ctrl-C ends", "dim", no_wrap=True, overflow="ellipsis"
            )


class _Listener:
    """Keeps what is told, until somebody has time to look."""

    def __init__(self, following: Following) -> None:
        self.following = following
        self.changed = asyncio.Event()
        self.status: StatusReply | None = None
        self.events: deque[lines.Line] = deque(maxlen=EVENTS)
        self.away = ""

    async def listen(self) -> None:
        """Raises VmstackError if the daemon cannot be reached at first."""
        async for push in self.following:
            match push:
                case StatusReply():
                    self.status = push
                case Disconnected():
                    self.away = push.reason
                    self.events.append(push)
                case Connected():
                    self.away = ""
                    self.events.append(push)
                case _:
                    self.events.append(push)
            self.changed.set()


async def watch(following: Following, *, colour: str, interval: float) -> int:
    """Draw whenever something has changed, at most every interval seconds, until q. Returns the exit code.

    Raises VmstackError if the daemon cannot be reached at first.
    """
    listener = _Listener(following)
    listening = asyncio.create_task(listener.listen())
    try:
        await _change(listener, listening)
        scene = await _look(listener, None, following.timeout)
        with Screen(listener.changed.set) as screen:
            while not screen.ended.done():
                if scene is not None:
                    screen.show(terminal.drawn(Frame(scene), terminal.look(colour, os.environ)).splitlines())
                ends: set[asyncio.Future[Any]] = {screen.ended, listening}
                await asyncio.wait(ends, timeout=interval)
                await _change(listener, listening, screen.ended, timeout=_refresh(listener))
                # A daemon that hangs is waited for, but not by somebody who has seen enough.
                looking = asyncio.create_task(_look(listener, scene, following.timeout))
                await asyncio.wait((looking, screen.ended), return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    looking.cancel()
                    break
                scene = looking.result()
            return screen.ended.result()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def _refresh(listener: _Listener) -> float | None:
    client = listener.following.client
    return REFRESH_S if client is not None and is_cluster(client) else None


async def _change(
    listener: _Listener,
    listening: asyncio.Task[None],
    *ends: asyncio.Future[int],
    timeout: float | None = None,  # noqa: ASYNC109
) -> None:
    """Wait for something to be told, for an end, or for so many seconds. Raises what the listener failed with."""
    change = asyncio.create_task(listener.changed.wait())
    first: set[asyncio.Future[Any]] = {change, listening, *ends}
    await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    change.cancel()
    if listening.done():
        listening.result()
    listener.changed.clear()


async def _look(listener: _Listener, before: Scene | None, timeout: float) -> Scene | None:  # noqa: ASYNC109
    """What is to be seen now; from before, what nobody can be asked about."""
    client, status, scene = listener.following.client, listener.status, before
    if client is not None and status is not None:
        with contextlib.suppress(VmstackError):  # what is wrong with the connection the listener will tell
            if is_cluster(client):
                room = terminal.size()[1] - EVENTS - _OTHER_LINES
                picture: CpuMap | HostTable = HostTable(await client.hosts(timeout=timeout), room=max(room, 2))
            else:
                picture = CpuMap(await client.topology(timeout=timeout), status, host=client.hello.host)
            scene = Scene(picture=picture, program=client.hello.program, updated=time.time())
    if scene is None:
        return None
    return msgspec.structs.replace(scene, events=tuple(listener.events), away=listener.away)
