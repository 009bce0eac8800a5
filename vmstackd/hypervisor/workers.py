"""Threads for calls that block."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Workers:
    """A fixed number of threads that run calls in the order given.

    Unlike concurrent.futures they are daemon threads: a call that never returns does not keep the
    process from ending. at_end is called by each thread when it stops.
    """

    def __init__(self, count: int, name: str, at_end: Callable[[], None]) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._at_end = at_end
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Whether any of the threads has yet to end."""
        return any(thread.is_alive() for thread in self._threads)

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Its result or exception. Cancelling the future does not stop the call."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, done, call))
        return done

    async def stop(self, timeout_s: float) -> None:
        """Let queued calls finish, and wait so long for the threads to end."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.running:
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.005)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, done, call = job
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:
                error = raised
            # The loop may have closed meanwhile: then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_finish, done, result, error)
            del job, done, call, result, error
        self._at_end()


def _finish(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
