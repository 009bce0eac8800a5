"""Tells subscribers what happens: events in their order, and that something about the host has changed.

Nobody waits for a subscriber. One that is slow learns of the latest state only once, and of events too
many to keep only their number.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import deque

import msgspec

from vmstackd.api.session import Event

MOST_EVENTS = 1000
"""Kept for one subscriber."""


class News(msgspec.Struct, frozen=True):
    """What has come since the last time. changed: what ``status``, ``list`` or ``describe`` tell."""

    events: tuple[Event, ...]
    missed: int
    changed: bool


class Subscription:
    """One subscriber's. usage: whether new measurements are news to it."""

    def __init__(self, *, usage: bool = False) -> None:
        self.usage = usage
        self._events: deque[Event] = deque()
        self._missed = 0
        self._changed = False
        self._something = asyncio.Event()

    async def news(self) -> News:
        """Wait until there is something new, and take it all."""
        await self._something.wait()
        self._something.clear()
        news = News(events=tuple(self._events), missed=self._missed, changed=self._changed)
        self._events.clear()
        self._missed, self._changed = 0, False
        return news

    def add(self, event: Event) -> None:
        """Keep an event."""
        if len(self._events) >= MOST_EVENTS:
            self._missed += 1
        else:
            self._events.append(event)
        self._something.set()

    def touch(self) -> None:
        """Note that something has changed."""
        self._changed = True
        self._something.set()


class Feed:
    """Everything here happens in the event loop. A subscription ends when nobody holds it any more.

    Subscribers are told in the order in which they came.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._subscriptions: weakref.WeakValueDictionary[int, Subscription] = weakref.WeakValueDictionary()

    def subscribe(self, *, usage: bool = False) -> Subscription:
        """From now on. usage: as for Subscription."""
        subscription = Subscription(usage=usage)
        self._subscriptions[next(self._numbers)] = subscription
        return subscription

    def publish(self, event: Event) -> None:
        """Something has happened."""
        for subscription in self._subscriptions.values():
            subscription.add(event)

    def touch(self) -> None:
        """Something about the host is not as it was."""
        for subscription in self._subscriptions.values():
            subscription.touch()

    def measured(self) -> None:
        """What the host really does has been measured anew."""
        for subscription in self._subscriptions.values():
            if subscription.usage:
                subscription.touch()
