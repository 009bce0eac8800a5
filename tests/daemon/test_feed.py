"""What subscribers are told, and what becomes of one that is slow."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tests.running import PATIENCE
from vmstackd.api.session import VmGone
from vmstackd.daemon.feed import MOST_EVENTS, Feed, News, Subscription


def _event(number: int) -> VmGone:
    return VmGone(time=float(number), name=f"vm{number}")


async def _news(subscription: Subscription) -> News:
    return await asyncio.wait_for(subscription.news(), PATIENCE)


def test_everybody_gets_everything_in_order() -> None:
    async def check() -> None:
        feed = Feed()
        first, second = feed.subscribe(), feed.subscribe()
        for number in range(3):
            feed.publish(_event(number))
        expected = News(events=(_event(0), _event(1), _event(2)), missed=0, changed=False)
        assert await _news(first) == expected
        feed.publish(_event(3))
        assert await _news(first) == News(events=(_event(3),), missed=0, changed=False)
        assert (await _news(second)).events == (*expected.events, _event(3))

    asyncio.run(check())


def test_nothing_is_told_of_what_was_before() -> None:
    async def check() -> None:
        feed = Feed()
        feed.publish(_event(0))
        feed.touch()
        subscription = feed.subscribe()
        feed.publish(_event(1))
        assert await _news(subscription) == News(events=(_event(1),), missed=0, changed=False)

    asyncio.run(check())


def test_changes_are_told_once() -> None:
    async def check() -> None:
        feed = Feed()
        subscription = feed.subscribe()
        for _ in range(5):
            feed.touch()
        assert await _news(subscription) == News(events=(), missed=0, changed=True)
        feed.publish(_event(0))
        assert not (await _news(subscription)).changed

    asyncio.run(check())


def test_measurements_are_news_to_whom_they_interest() -> None:
    async def check() -> None:
        feed = Feed()
        interested, other = feed.subscribe(usage=True), feed.subscribe()
        assert (interested.usage, other.usage) == (True, False)
        feed.measured()
        assert await _news(interested) == News(events=(), missed=0, changed=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.news(), 0.01)
        feed.touch()
        assert (await _news(interested)).changed
        assert (await _news(other)).changed

    asyncio.run(check())


def test_news_are_waited_for() -> None:
    async def check() -> None:
        feed = Feed()
        subscription = feed.subscribe()
        waiting = asyncio.create_task(subscription.news())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        feed.touch()
        assert (await asyncio.wait_for(waiting, PATIENCE)).changed
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subscription.news(), 0.01)

    asyncio.run(check())


def test_waiting_in_vain_loses_nothing() -> None:
    async def check() -> None:
        feed = Feed()
        subscription = feed.subscribe()
        waiting = asyncio.create_task(subscription.news())
        await asyncio.sleep(0)
        feed.publish(_event(0))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await _news(subscription)).events == (_event(0),)

    asyncio.run(check())


def test_of_too_many_events_the_number_is_kept() -> None:
    async def check() -> None:
        feed = Feed()
        slow = feed.subscribe()
        for number in range(MOST_EVENTS + 7):
            feed.publish(_event(number))
        feed.touch()
        news = await _news(slow)
        assert news.events == tuple(_event(number) for number in range(MOST_EVENTS))
        assert (news.missed, news.changed) == (7, True)
        feed.publish(_event(0))
        assert await _news(slow) == News(events=(_event(0),), missed=0, changed=False)

    asyncio.run(check())


def test_a_subscription_ends_when_nobody_holds_it() -> None:
    async def check() -> None:
        feed = Feed()
        subscription = feed.subscribe()
        kept = feed.subscribe()
        assert len(feed._subscriptions) == 2
        del subscription
        gc.collect()
        assert len(feed._subscriptions) == 1
        feed.publish(_event(0))
        assert (await _news(kept)).events == (_event(0),)

    asyncio.run(check())
