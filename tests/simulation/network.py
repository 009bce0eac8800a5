"""Connections between globald and hosts: late, cut into pieces, held up, lost with what was on the way."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.simulation.clock import Process

LATENCY_S = (0.0002, 0.004)
SLOW_S = (0.05, 0.6)
"""Now and then."""


class Network:
    """blocked: pairs (from, to) between which nothing gets through; what is sent waits until it does."""

    def __init__(self, chance: random.Random, note: Callable[[str], None]) -> None:
        self.chance = chance
        self.note = note
        self.blocked: set[tuple[str, str]] = set()
        self._pipes: list[Pipe] = []
        self.doors: dict[str, Callable[[Wire], None]] = {}
        """Of daemons that listen, by the name of the machine."""

    def block(self, here: str, there: str) -> None:
        """One way."""
        self.blocked.add((here, there))

    def heal(self, *names: str) -> None:
        """Both ways between these and everybody; all, if none is named."""
        self.blocked = {pair for pair in self.blocked if names and not set(pair) & set(names)}
        for pipe in self._pipes:
            pipe.go_on()

    def connection(self, here: tuple[str, Process], there: tuple[str, Process]) -> tuple[Wire, Wire]:
        """Both ends, as the processes see them."""
        self._pipes = [pipe for pipe in self._pipes if not pipe.ended]
        forth, back = Pipe(self, here[0], there), Pipe(self, there[0], here)
        self._pipes += [forth, back]
        ours, theirs = Wire(forth, back), Wire(back, forth)
        forth.end, back.end = theirs, ours
        return ours, theirs

    def latency(self) -> float:
        """Seconds for what is sent now."""
        slow = self.chance.random() < 0.03
        return self.chance.uniform(*(SLOW_S if slow else LATENCY_S))

    def vanish(self, name: str) -> None:
        """This machine is without power: what was on the way is lost, and nobody is told."""
        for pipe in self._pipes:
            if name in (pipe.sender, pipe.receiver):
                pipe.forget()


class Pipe:
    """One direction. What has been written arrives in its order, at any later moment."""

    end: Wire

    def __init__(self, network: Network, sender: str, receiver: tuple[str, Process]) -> None:
        self._network = network
        self.sender = sender
        self.receiver, self.process = receiver
        self._sent: deque[bytes | None] = deque()  # None: the end
        self._next = 0.0  # when the first of them may arrive
        self._waiting = False
        self.ended = False

    @property
    def pending(self) -> int:
        """Bytes under way."""
        return sum(len(data) for data in self._sent if data)

    def write(self, data: bytes | None) -> None:
        """None: that was all."""
        if not self.ended:
            self._sent.append(data)
            self.go_on()

    def hang_up(self) -> None:
        """What has left the machine arrives; what could not leave it never does. Then the receiver sees the end."""
        if (self.sender, self.receiver) in self._network.blocked:
            self._sent.clear()
        self.write(None)

    def forget(self) -> None:
        """Nobody listens any more."""
        self.ended = True
        self._sent.clear()

    def go_on(self) -> None:
        """Have what was sent arrive, unless something is in the way."""
        if self._waiting or self.ended or not self._sent or not self.end.reading:
            return
        if (self.sender, self.receiver) in self._network.blocked:
            return
        loop = asyncio.get_running_loop()
        self._waiting = True
        self._next = max(self._next, loop.time() + self._network.latency())
        loop.call_at(self._next, self._arrive)

    def _arrive(self) -> None:
        self._waiting = False
        if self.ended or not self._sent:
            return
        if (self.sender, self.receiver) in self._network.blocked or not self.end.reading:
            return
        data = self._sent.popleft()
        if data is not None and len(data) > 1 and self._network.chance.random() < 0.1:
            cut = self._network.chance.randrange(1, len(data))
            data, rest = data[:cut], data[cut:]
            self._sent.appendleft(rest)
        if self.process.alive:
            self.process.inside(partial(self.end.received, data))
        self.go_on()


class Wire(asyncio.Transport):
    """One end of a connection, as asyncio's transports are."""

    def __init__(self, out: Pipe, into: Pipe) -> None:
        super().__init__()
        self._out, self._into = out, into
        self._protocol: asyncio.BufferedProtocol | None = None
        self.reading = True
        self.closed = False

    def attach(self, protocol: asyncio.BufferedProtocol) -> None:
        """Whoever is at this end."""
        self._protocol = protocol
        protocol.connection_made(self)

    def received(self, data: bytes | None) -> None:
        """Something has arrived. None: the other side has hung up."""
        if self.closed or self._protocol is None:
            return
        if data is None:
            self.abort()
            return
        while data and not self.closed:
            room = memoryview(self._protocol.get_buffer(-1))
            taken = min(len(room), len(data))
            room[:taken] = data[:taken]
            self._protocol.buffer_updated(taken)
            data = data[taken:]

    def break_off(self) -> None:
        """The process at this end has died: what it has written arrives, then the other side sees the end."""
        if not self.closed:
            self._out.write(None)
            self._end()

    # As protocols see it

    def write(self, data: Any) -> None:  # noqa: ANN401
        if not self.closed:
            self._out.write(bytes(data))

    def abort(self) -> None:
        if not self.closed:
            self._out.hang_up()
            self._end()

    def close(self) -> None:
        if not self.closed:
            self._out.write(None)
            self._end()

    def _end(self) -> None:
        self.closed = True
        self._into.forget()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            asyncio.get_running_loop().call_soon(protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The kernel takes all that is written here."""

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self._into.go_on()
