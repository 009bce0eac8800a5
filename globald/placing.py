"""Deployments: a host is chosen from what all have told, asked, and another one if it refuses.

A VM must never be started twice. So whoever does not know whether a host has got an order asks no other one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec

from core.admission import MAX_CPUS, MAX_GENERATION, refusal_on
from core.host_policy import HostPolicy
from core.inventory import Choice
from globald.asking import answer_of
from globald.member import Member, Reservation, short
from globald.members import Members
from vmstackd.api import replies, requests
from vmstackd.api.errors import (
    AlreadyExists,
    Cordoned,
    HypervisorFailed,
    Internal,
    NoCapacity,
    Unavailable,
    VmstackError,
)
from vmstackd.daemon import log

NEWS_S = 0.5
"""Seconds for which a host that has answered a removal may take to tell how it is since."""

_ELSEWHERE = (NoCapacity, Cordoned, HypervisorFailed, Unavailable)
"""What one host answers, and another may not."""
_IN_WORDS = {"cpu": "no cpu", "memory": "no memory"}
_Sized = requests.Deploy | requests.Progress


class Placing:
    """policy: chooses. attempts: hosts that are asked for one VM."""

    def __init__(
        self,
        members: Members,
        policy: HostPolicy,
        attempts: int,
        *,
        distrust: Callable[[Member, str], None],
        settle_later: Callable[[Member], None],
        ends: Callable[[], bool],
        retried: Callable[[], None],
    ) -> None:
        """distrust: called with a host that lies, and how. settle_later: with one that has uncertain orders.

        ends: whether globald is stopping. retried: called when another host is asked.
        """
        self._members = members
        self.policy = policy
        self.attempts = attempts
        self._distrust = distrust
        self._settle_later = settle_later
        self._ends = ends
        self._retried = retried

    async def deploy(self, request: requests.Deploy, wanted: Member | None, request_id: str) -> replies.Deployed:
        """wanted: the host that it must be; None: the best one. Raises a VmstackError.

        Unavailable with outcome "unknown": nobody knows whether the VM runs; its name stays taken until that is clear.
        """
        self._require_new(request.name)
        if not request.dry_run:
            self._members.inventory.arrived(request.level, request.vcpus, request.memory_mib)
        tried: list[int] = []
        refusal: VmstackError | None = None
        while len(tried) < self.attempts:
            choice = self._choose(request, wanted, tried) or await self._choose_again(request, wanted, tried)
            if choice is None:
                break
            member = self._members.at(choice.host)
            try:
                reply = await self._ask_to_deploy(request, member, request_id)
            except _ELSEWHERE as error:
                if error.details.get("outcome") == "unknown" or self._ends():
                    raise
                refusal = error
                tried.append(choice.host)
                if request.dry_run is False:
                    self._retried()
                log.info("host-refused", request=request_id, host=member.name, vm=request.name, why=error.message)
                self._require_new(request.name)
            else:
                return msgspec.structs.replace(reply, host=member.name, score=choice.score)
        if wanted is not None:
            raise refusal if refusal is not None else self.why_not(request, wanted)
        raise self.why_nowhere(request, tried, refusal)

    def _require_new(self, name: str) -> None:
        owners = self._members.owners(name)
        if owners:
            where = " and ".join(f"{member.name!r}" for member in owners)
            raise AlreadyExists(f"a VM {name!r} is on host {where} already")
        claim = self._members.claims.get(name)
        if claim is not None and claim.uncertain:
            raise AlreadyExists(
                f"whether {name!r} was started on host {claim.member.name!r} is not known yet; "
                "it will be in a moment, or when that host is back"
            )
        if claim is not None:
            raise AlreadyExists(f"{name!r} is being deployed on host {claim.member.name!r} just now")

    def _choose(self, request: requests.Deploy, wanted: Member | None, tried: list[int]) -> Choice | None:
        inventory = self._members.inventory
        if wanted is None:
            return inventory.choose(self.policy, request.level, request.vcpus, request.memory_mib, tried)
        if tried:
            return None
        score = inventory.score(self.policy, wanted.number, request.level, request.vcpus, request.memory_mib)
        return None if score is None else Choice(wanted.number, score)

    async def _choose_again(self, request: requests.Deploy, wanted: Member | None, tried: list[int]) -> Choice | None:
        """What has just been removed makes room that its host tells of in a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_S):
                while self._members.behind:
                    await asyncio.sleep(NEWS_S / 50)
                    if choice := self._choose(request, wanted, tried):
                        self._require_new(request.name)
                        return choice
        return None

    async def _ask_to_deploy(self, request: requests.Deploy, member: Member, request_id: str) -> replies.Deployed:
        """Raises what the host answers; Unavailable with outcome "unknown" if nobody knows whether the VM runs."""
        client = member.connection
        order = msgspec.structs.replace(request, host="")
        if request.dry_run:
            return self._believed(request, member, await answer_of(client.deploy(order, request_id=request_id)))
        reservation = self._members.reserve(request.name, member, request.level, request.vcpus, request.memory_mib)
        try:
            reply = self._believed(request, member, await answer_of(client.deploy(order, request_id=request_id)))
        except VmstackError as error:
            if error is client.lost or isinstance(error, Internal) or error.details.get("outcome") == "unknown":
                raise self._uncertain(reservation, error) from error
            self._members.release(reservation)  # the host itself has said no
            raise
        except BaseException:
            self._uncertain(reservation, Unavailable("globald is stopping"))
            raise
        self._members.confirm(reservation, reply.generation)
        return reply

    def _believed(self, request: requests.Deploy, member: Member, reply: replies.Deployed) -> replies.Deployed:
        """The answer. Raises Unavailable if it cannot be one to this request, and tells the link."""
        if (
            (reply.name, reply.level, reply.dry_run) == (request.name, request.level, request.dry_run)
            and 0 <= reply.generation <= MAX_GENERATION
            and len(reply.cpus) <= MAX_CPUS
            and min(reply.cpus, default=0) >= 0
            and max(reply.cpus, default=0) < MAX_CPUS
        ):
            return reply
        self._distrust(member, f"asked to deploy {request.name!r}, it answered {short(str(reply))}")
        raise Unavailable("it answered what cannot be true", outcome="unknown")

    def _uncertain(self, reservation: Reservation, error: VmstackError) -> Unavailable:
        """The link broke, or the host's own link to its hypervisor: the VM may run. Its name stays taken."""
        member, name = reservation.member, reservation.name
        if reservation.seen or member.dropped:
            self._members.release(reservation)
        else:
            reservation.uncertain = True
            self._settle_later(member)
        return Unavailable(
            f"whether {name!r} was started on host {member.name!r} is unknown: {error.message.partition(';')[0]}; "
            f"look with vmstackctl list --host {member.name}",
            outcome="unknown",
            host=member.name,
        )

    def why_nowhere(self, request: _Sized, tried: Sequence[int] = (), last: VmstackError | None = None) -> NoCapacity:
        """How many hosts there are for each reason not to have the VM. last: what the last of those tried said."""
        counts = self._members.inventory.refusals(request.level, request.vcpus, request.memory_mib, tried)
        if tried:
            counts["refused"] = len(tried)
        hosts = len(self._members)
        fitting = hosts - sum(counts.values())
        if fitting and last is not None:
            counts["not asked"] = fitting
        reasons = ", ".join(f"{count} {_IN_WORDS.get(reason, reason)}" for reason, count in counts.items() if count)
        text = f"{hosts} {'host' if hosts == 1 else 'hosts'}: {reasons}"
        if not hosts:
            text = "there are no hosts; vmstackctl host add ADDRESS adds one"
        if last is not None:
            text += f"; the last one asked said: {last.message}"
        resource = max(("cpu", "memory"), key=lambda reason: counts.get(reason, 0))
        if not counts.get(resource):
            resource = next(iter(counts), "hosts")
        details: dict[str, str | int] = {reason.replace(" ", "_").replace("-", "_"): n for reason, n in counts.items()}
        return NoCapacity(f"no host for it: {text}", resource=resource, hosts=hosts, **details)

    def why_not(self, request: _Sized, member: Member) -> VmstackError:
        """Why the VM cannot go on this host."""
        state, reason = member.shown_state
        status = member.expected
        if member.closed == replies.CORDONED:
            return Cordoned(f"host {member.name!r} takes no new VMs: {reason or 'it is cordoned'}")
        if member.closed or status is None:
            return Unavailable(f"host {member.name!r} is {state}: {reason}")
        short = refusal_on(status, request.level, request.vcpus, request.memory_mib) or "cpu"
        free = status.free_cpus if short == "cpu" else status.free_mib
        return NoCapacity(
            f"not enough {short} on host {member.name!r}: {free} {'CPUs' if short == 'cpu' else 'MiB'} free",
            resource=short,
            free=free,
        )
