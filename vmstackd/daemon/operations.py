"""The one door of a daemon, whatever it serves: a request in; checks, the work, the log; a reply or an error out."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import msgspec

from core.cpuset import format_cpu_list
from core.level import format_level
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import Denied, Internal, InvalidRequest, VmstackError
from vmstackd.api.session import Identity
from vmstackd.daemon import log
from vmstackd.daemon.feed import Feed
from vmstackd.daemon.restraint import Restraint

STOP_PATIENCE = 30.0
"""Seconds that operations in progress get when the daemon stops; what is cut off is reconciled at the next start."""


_ANYBODYS = frozenset({InvalidRequest.code, Denied.code})
"""Outcomes that anybody can cause, as often as they like."""
NOT_REFUSALS = frozenset({*_ANYBODYS, "ok", "cancelled"})
"""Outcomes that subscribers are not told."""


class Outcome(msgspec.Struct, frozen=True):
    """One finished request, for counters.

    outcome: "ok" or the code of the error. reason: the resource of a refusal, else empty.
    """

    operation: str
    outcome: str
    reason: str
    seconds: float


class Operations(ABC):
    """Everything here happens in the event loop."""

    accepted: ClassVar[frozenset[type[requests.Request]]]
    """What it can be asked."""

    def __init__(self, identity: Identity, feed: Feed, observer: Callable[[Outcome], None]) -> None:
        self.identity = identity
        self.feed = feed
        self._observer = observer
        self._operations: set[asyncio.Task[replies.Reply]] = set()
        self._asking: set[asyncio.Task[object]] = set()
        """Operations that have not begun, because somebody is asked whether they may."""
        self._started = asyncio.Event()
        self._stopping = False
        self._restraint = Restraint()

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it has started and everything it does by itself is being done."""

    @property
    def started(self) -> bool:
        """Whether requests are answered."""
        return self._started.is_set()

    @abstractmethod
    def status(self, *, usage: bool = True) -> replies.StatusReply:
        """The figures of this moment; those of usage may be left out."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The VMs of a host, as Subscribed tells them."""

    @abstractmethod
    def at_once(self, request: requests.Request) -> bool:
        """Whether ``read`` can answer it."""

    @abstractmethod
    async def answer(self, request: requests.Request, request_id: str) -> replies.Reply:
        """Do what is asked, which makes sense and is allowed. Raises a VmstackError."""

    @abstractmethod
    def publish(self, request: requests.Change, reply: replies.Reply | None, outcome: str, why: str) -> None:
        """Tell subscribers of a change that has ended."""

    async def handle(self, request: requests.Request, caller: Caller, request_id: str) -> replies.Reply:
        """Answer one request, or raise a VmstackError. A change runs to its end even if the caller goes away.

        A request that comes before the start has ended waits for that.
        """
        if not self._started.is_set():
            await self._started.wait()
        if not isinstance(request, requests.Change):
            return await self._handle(request, caller, request_id)
        return await asyncio.shield(self.begin(request, caller, request_id))

    def begin(self, request: requests.Request, caller: Caller, request_id: str) -> asyncio.Task[replies.Reply]:
        """Begin something, after the start. The task, which nobody may cancel, returns or raises as ``handle`` does."""
        task = asyncio.create_task(self._handle(request, caller, request_id))
        self._operations.add(task)
        task.add_done_callback(self._ended)
        return task

    def read(self, request: requests.Request, caller: Caller, request_id: str) -> replies.Reply:
        """Answer a request as ``handle`` does, but without a task: only what is answered ``at_once``.

        Raises a VmstackError; RuntimeError where it would have to wait, or before the start.
        """
        if not self.started or not self.at_once(request):
            raise RuntimeError(f"{type(request).__name__} cannot be answered at once")
        work = self._handle(request, caller, request_id)
        try:
            work.send(None)
        except StopIteration as answered:
            reply: replies.Reply = answered.value
            return reply
        finally:
            work.close()
        raise RuntimeError(f"{type(request).__name__} waits for something")

    async def end_operations(self) -> None:
        """Begin nothing more, and let what is in progress end."""
        self._stopping = True
        for task in self._asking:  # an answer may take minutes, and would come too late
            task.cancel()
        if self._operations:
            await asyncio.wait(self._operations, timeout=STOP_PATIENCE)

    def _ended(self, task: asyncio.Task[replies.Reply]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # has been logged; the caller may be gone

    async def _handle(self, request: requests.Request, caller: Caller, request_id: str) -> replies.Reply:
        operation = operation_of(request)
        begin = asyncio.get_running_loop().time()
        outcome, reason, why = "ok", "", ""
        reply: replies.Reply | None = None
        try:
            await self._require(request, caller, operation)
            reply = await self.answer(request, request_id)
        except VmstackError as error:
            outcome, reason, why = error.code, str(error.details.get("resource", "")), error.message
            raise
        except asyncio.CancelledError:
            outcome, why = "cancelled", f"{self.identity.program} is stopping"
            raise
        except Exception as error:
            outcome, why = Internal.code, "see the traceback above"
            log.logger.exception("unexpected error in %s, request %s", operation, request_id)
            raise Internal(f"internal error; the log of {self.identity.program} has the details") from error
        finally:
            seconds = asyncio.get_running_loop().time() - begin
            self._observer(Outcome(operation=operation, outcome=outcome, reason=reason, seconds=seconds))
            if isinstance(request, requests.Change):
                tell = self._restraint.tell if outcome in _ANYBODYS else log.info
                _log_change(tell, operation, request, reply, outcome, why, caller, request_id, seconds)
                self.publish(request, reply, outcome, why)
        return reply

    async def _require(self, request: requests.Request, caller: Caller, operation: str) -> None:
        """Raises a VmstackError unless the request makes sense and the caller may make it."""
        if type(request) not in self.accepted:
            raise InvalidRequest(f"{self.identity.program} has no operation {operation!r}", field="method")
        requests.check(request)
        if isinstance(request, requests.Change):
            if caller.role < Role.OPERATOR and not await self._granted(request, caller):
                raise Denied(f"{caller.identity} may read but not {operation}")
        elif caller.role < Role.READER:
            raise Denied(f"{caller.identity} may not use {self.identity.program}")

    async def _granted(self, request: requests.Change, caller: Caller) -> bool:
        task = asyncio.current_task()
        if caller.grant is None or task is None:
            return False
        self._asking.add(task)
        try:
            return await caller.grant(request)
        finally:
            self._asking.discard(task)


def operation_of(request: requests.Request) -> str:
    """The name of what is asked, as on the wire."""
    return str(type(request).__struct_config__.tag)


def _log_change(
    tell: Callable[..., None],
    operation: str,
    request: requests.Change,
    reply: replies.Reply | None,
    outcome: str,
    why: str,
    caller: Caller,
    request_id: str,
    seconds: float,
) -> None:
    tell(
        operation,
        request=request_id,
        caller=f"{caller.transport}:{caller.identity}",
        **_asked(request),
        dry_run="yes" if getattr(request, "dry_run", False) else None,
        outcome=outcome,
        **_decided(reply),
        why=why or None,
        ms=f"{seconds * 1000:.1f}",
    )


def _asked(request: requests.Change) -> dict[str, object]:
    match request:
        case requests.Deploy():
            return {
                "vm": request.name,
                "vcpus": request.vcpus,
                "memory_mib": request.memory_mib,
                "level": format_level(request.level),
                "image": request.image,
            }
        case requests.Remove():
            return {"vm": request.name}
        case requests.Cordon():
            return {"host": request.host or None, "reason": request.reason or None}
        case requests.Uncordon() | requests.Check() | requests.HostRemove():
            return {"host": request.host or None}
        case requests.HostAdd():
            return {"host": request.name or None, "address": request.address}


def _decided(reply: replies.Reply | None) -> dict[str, object]:
    match reply:
        case replies.Deployed():
            score = None if reply.score is None else f"{reply.score:.1f}"
            return {"host": reply.host or None, "score": score, "cpus": format_cpu_list(reply.cpus)}
        case replies.Removed():
            return {"host": reply.host or None, "released": format_cpu_list(reply.released)}
        case replies.CheckReply():
            remaining = sum(not finding.repaired for finding in reply.findings)
            return {"vms": reply.vms, "found": len(reply.findings) + reply.left_out, "remaining": remaining}
        case _:
            return {}
