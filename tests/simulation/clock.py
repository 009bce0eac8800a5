"""An event loop whose time passes only when nobody has anything to do, and of which every process owns a part."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")

START = 1_000_000_000.0
"""Seconds since 1970 at the beginning of every story."""

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Stuck(Exception):
    """Everybody waits for somebody else, for ever."""


class Process:
    """What is killed together. context: everything that it does runs there."""

    def __init__(self) -> None:
        self.dead = asyncio.Event()
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def alive(self) -> bool:
        return not self.dead.is_set()

    def own(self, task: asyncio.Task[Any]) -> None:
        """The process has begun something."""
        if len(self._tasks) > 200:
            self._tasks = [known for known in self._tasks if not known.done()]
        self._tasks.append(task)

    def run(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Have the process do something."""
        return asyncio.get_running_loop().create_task(work, context=self.context)

    def call_at(self, when: float, callback: Callable[[], object]) -> None:
        """Have the process do something then, if it still lives."""
        asyncio.get_running_loop().call_at(when, self._call, callback, context=self.context)

    def _call(self, callback: Callable[[], object]) -> None:
        if self.alive:
            callback()

    def inside(self, callback: Callable[[], object]) -> None:
        """Have the process do something now; what it begins by that is its own."""
        if _process.get() is self:
            callback()
        else:
            self.context.run(callback)

    def kill(self) -> None:
        """As SIGKILL. What its tasks do when they are cancelled reaches nobody: see ``machine`` and ``network``."""
        self.dead.set()
        for task in self._tasks:
            task.cancel()


class _Selector(selectors.BaseSelector):
    """Nothing ever comes from outside, so that waiting is passing time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing will ever happen any more")
        self.now += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """time: virtual seconds since the beginning. wall: what clocks on walls show; they can be set."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._ahead = START
        self.set_task_factory(_begin)  # type: ignore[arg-type]  # of any keywords

    def time(self) -> float:
        return self._virtual.now

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._virtual.now + self._ahead

    def set_wall(self, by: float) -> None:
        """Somebody sets the clock."""
        self._ahead += by

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        """There are no descriptors here."""

    def remove_reader(self, fd: Any) -> bool:  # noqa: ANN401
        return False

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]  # noqa: ANN401
        """At once: threads would run when they like."""
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def _begin(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T], **more: Any) -> asyncio.Task[_T]:  # noqa: ANN401
    task = asyncio.Task(work, loop=loop, **more)
    context: contextvars.Context | None = more.get("context")
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process.own(task)
    return task
