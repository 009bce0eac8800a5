"""What a cluster can be asked: the host of a new VM is chosen from what the hosts have told, and asked to deploy it.

Nothing is asked of any host to choose one. Everything is decided in the event loop, in microseconds.
"""

from __future__ import annotations

import asyncio
import heapq
import platform
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import get_args

import msgspec

from core.admission import MAX_GENERATION
from core.host_policy import HOST_POLICIES, HostPolicy
from core.usage import HostUsage
from globald.asking import answer_of
from globald.link import Link
from globald.member import Member, State, short
from globald.members import Members
from globald.placing import Placing
from globald.sources import STATIC, Entry, Folder, read_address, together
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Unavailable,
    VmstackError,
)
from vmstackd.daemon import log
from vmstackd.daemon.feed import Feed
from vmstackd.daemon.operations import NOT_REFUSALS, Operations, Outcome, operation_of
from vmstackd.tls import Tls

LOOK_S = 2.0
"""Seconds between two looks into the folder of hosts."""
AT_ONCE = 64
"""Hosts that are asked at the same time for something that all must tell."""
PROGRESS = HOST_POLICIES["progress"]
"""What the operation of that name tells, whatever chooses hosts."""
CHECK_S = 20.0
"""Seconds that a host gets to compare its VMs and repair what it finds: fewer than vmstackctl waits for all of them."""
MOST_CHECKED = 1 << 32
"""VMs or findings of one host, that are believed."""
READ_S = 10.0
"""Seconds that a host gets to answer what changes nothing."""
HOSTS_AT_ONCE = 2000
"""In one answer, which has its limit of bytes."""
SHOWN_PROBLEMS = 20
MOST_SHAPES = 4096
"""What VMs are sold as, that are told at once."""
MOST_DUPLICATES = 1000
"""Names on several hosts that are told at once."""
CONNECTS_AT_ONCE = 256


class Cluster(Operations):
    """See the module. Create it in a running event loop, ``start`` it, ``handle`` requests, ``stop`` it."""

    accepted = frozenset((*get_args(requests.HostRequest), *get_args(requests.ClusterRequest)))

    def __init__(
        self,
        hosts: Iterable[str],
        folder: Path | None,
        policy: HostPolicy,
        *,
        attempts: int,
        patience: float,
        tls: Tls | None,
        observer: Callable[[Outcome], None] = lambda _: None,
        retried: Callable[[], None] = lambda: None,
    ) -> None:
        """hosts: addresses that the settings name. folder: whose files name others.

        attempts: hosts that are asked for one VM. patience: seconds that hosts may take to answer at the start.
        """
        super().__init__(session.Identity(program="globald", host=platform.node()), Feed(), observer)
        self.members = Members()
        self._static = tuple(hosts)
        self._folder = None if folder is None else Folder(folder)
        self._placing = Placing(
            self.members,
            policy,
            attempts,
            distrust=self._distrust,
            settle_later=lambda member: self._links[member.number].settle_later(),
            ends=lambda: self._stopping,
            retried=retried,
        )
        self._patience = patience
        self._tls = tls
        self._links: dict[int, Link] = {}
        self._cut: set[asyncio.Task[None]] = set()
        """Of links to hosts that were taken out, and that hang up."""
        self._tasks: list[asyncio.Task[None]] = []
        self._problems: list[str] = []
        self._learned = asyncio.Event()
        self._turn = asyncio.Semaphore(CONNECTS_AT_ONCE)

    # Life

    async def start(self) -> None:
        """Begin to reach for the hosts; requests are answered at once, but see ``learned``."""
        self._look()
        self._tasks = [asyncio.create_task(self._keep_looking()), asyncio.create_task(self._learn())]
        self._started.set()

    async def stop(self) -> None:
        """Let operations in progress end, then hang up. VMs and hosts do not notice."""
        await self.end_operations()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.stop() for link in self._links.values()))
        await asyncio.gather(*self._cut, return_exceptions=True)

    def reconfigure(self, policy: HostPolicy, attempts: int) -> None:
        """Choose in another way from now on."""
        self._placing.policy, self._placing.attempts = policy, attempts

    @property
    def running(self) -> bool:
        return self.started and not self._tasks[0].done() and not any(link.task.done() for link in self._links.values())

    @property
    def learned(self) -> bool:
        """Whether every host has told what it has, or has had its time to."""
        return self._learned.is_set()

    async def _learn(self) -> None:
        waiting = [asyncio.create_task(link.told.wait()) for link in self._links.values()]
        if waiting:
            _, missing = await asyncio.wait(waiting, timeout=self._patience)
            for task in missing:
                task.cancel()
        self._learned.set()
        log.info("learned", hosts=len(self.members), vms=self.status().host.vms, not_told=self._silent() or None)

    def _silent(self) -> int:
        return sum(not link.told.is_set() for link in self._links.values())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look()
            except Exception:
                log.logger.exception("unexpected error with the files of hosts")

    def _look(self) -> None:
        """Make the members those that the settings and the folder name."""
        files, problems = ([], []) if self._folder is None else self._folder.read()
        entries, doubles = together(self._static, files)
        problems += doubles
        for problem in problems:
            if problem not in self._problems:
                log.warning("hosts-file", problem=problem, next_step="correct the file; it is read again by itself")
        self._problems = problems
        wanted = {entry.address: entry for entry in entries}
        for member in list(self.members):
            entry = wanted.get(member.entry.address)
            if entry is None:
                self._take_out(member)
            else:
                member.entry = entry
        for entry in entries:
            if self.members.at_address(entry.address) is None:
                self._take_in(entry)

    def _take_in(self, entry: Entry) -> None:
        member = self.members.add(entry)
        log.info("host-added", address=entry.address, source=entry.source)
        link = self._links[member.number] = Link(member, self.members, self.feed, self._tls, self._turn)
        link.start()
        self.feed.touch()

    def _take_out(self, member: Member) -> None:
        link = self._links.pop(member.number)
        link.cut()
        self._cut.add(link.task)
        link.task.add_done_callback(self._cut.discard)
        vms = len(member.names)
        log.info("host-removed", host=member.name, address=member.entry.address, vms=vms)
        self.members.drop(member)
        self.feed.publish(session.HostChanged(time=time.time(), host=member.name, state="removed"))
        self.feed.touch()

    # Answers

    def at_once(self, request: requests.Request) -> bool:
        if isinstance(request, requests.Status):
            return not request.host
        return isinstance(request, requests.Progress | requests.Hosts | requests.Demand)

    async def answer(self, request: requests.Request, request_id: str) -> replies.Reply:
        match request:
            case requests.Deploy():
                return await self._deploy(request, request_id)
            case requests.Remove():
                return await self._remove(request, request_id)
            case requests.Cordon() | requests.Uncordon():
                return await self._set_cordon(request, request_id)
            case requests.Check():
                return await self._check(request, request_id)
            case requests.Progress():
                return self._progress(request)
            case requests.Status():
                return await self._status_of(request.host, request_id) if request.host else self.status()
            case requests.List():
                return await self._list(request.host, request_id)
            case requests.Describe():
                return await self._describe(request, request_id)
            case requests.Topology():
                return await self._topology(request.host, request_id)
            case requests.Hosts():
                return self._some_hosts(request.first)
            case requests.Demand():
                return self._demand()
            case requests.HostAdd():
                return self._host_add(request)
            case requests.HostRemove():
                return self._host_remove(request)

    def publish(self, request: requests.Change, reply: replies.Reply | None, outcome: str, why: str) -> None:
        """What has been done, the hosts tell; here is told only what came to nothing."""
        if reply is None and isinstance(request, requests.VmChange) and outcome not in NOT_REFUSALS:
            self.feed.publish(
                session.VmRefused(
                    time=time.time(), name=request.name, operation=operation_of(request), code=outcome, reason=why
                )
            )

    async def _deploy(self, request: requests.Deploy, request_id: str) -> replies.Deployed:
        if self._stopping:
            raise Unavailable("globald is stopping; try again in a moment")
        self._require_learned()
        wanted = self._member(request.host) if request.host else None
        return await self._placing.deploy(request, wanted, request_id)

    # Remove

    def _distrust(self, member: Member, reason: str) -> None:
        link = self._links.get(member.number)
        if link is not None and not member.dropped:
            link.distrust(reason)

    async def _remove(self, request: requests.Remove, request_id: str) -> replies.Removed:
        member = self._owner(request.name, request.host)
        client = member.connection
        removal = self.members.remove(request.name, member)
        generation: int | None = None
        try:
            reply = await answer_of(client.remove(msgspec.structs.replace(request, host=""), request_id=request_id))
            if (reply.name, reply.dry_run) != (request.name, request.dry_run):
                self._distrust(member, f"asked to remove {request.name!r}, it answered {short(str(reply))}")
                raise Unavailable(f"host {member.name!r} answered what cannot be true")
            if not reply.dry_run:
                generation = min(max(0, reply.generation), MAX_GENERATION)
        except VmstackError as error:
            if error is client.lost and not request.dry_run:
                raise Unavailable(
                    f"whether {request.name!r} was removed from host {member.name!r} is unknown: "
                    f"{error.message.partition(';')[0]}; it will be known when that host is back",
                    outcome="unknown",
                    host=member.name,
                ) from error
            raise
        finally:
            self.members.removal_ended(removal, generation)
        return msgspec.structs.replace(reply, host=member.name)

    def _require_learned(self) -> None:
        if not self.learned:
            raise Unavailable(
                f"{self._silent()} of {len(self.members)} hosts have not told yet what they have; try again in a moment"
            )

    def _owner(self, name: str, host: str) -> Member:
        """Where a VM is. Raises NotFound; Unavailable where it may be on a host that has not told yet what it has;
        InvalidRequest where only the caller can say which one is meant.
        """
        owners = self.members.owners(name)
        if host:
            wanted = self._member(host)
            if wanted not in owners:
                link = self._links.get(wanted.number)
                if link is not None and not link.told.is_set():
                    raise Unavailable(f"host {wanted.name!r} has not told yet what it has; try again in a moment")
                raise NotFound(f"{name!r} does not exist on host {wanted.name!r}")
            return wanted
        if len(owners) > 1:
            where = ", ".join(member.name for member in owners)
            raise InvalidRequest(f"{name!r} is on {len(owners)} hosts: {where}; say which with host", field="host")
        if not owners:
            claim = self.members.claims.get(name)
            if claim is not None:
                raise Unavailable(f"{name!r} is being deployed on host {claim.member.name!r}; try again in a moment")
            self._require_learned()
            raise NotFound(f"{name!r} does not exist in this cluster")
        return owners[0]

    # Hosts

    def _member(self, host: str) -> Member:
        member = self.members.find(host)
        if member is None:
            raise NotFound(f"there is no host {host!r} in this cluster; vmstackctl hosts shows those that are")
        return member

    async def _set_cordon(self, request: requests.Cordon | requests.Uncordon, request_id: str) -> replies.CordonReply:
        if not request.host:
            raise InvalidRequest("host: which host is meant must be said", field="host")
        member = self._member(request.host)
        client = member.connection
        if isinstance(request, requests.Cordon):
            reply = await answer_of(client.cordon(msgspec.structs.replace(request, host=""), request_id=request_id))
        else:
            reply = await answer_of(client.uncordon(msgspec.structs.replace(request, host=""), request_id=request_id))
        if member.reply is not None:
            cordoned = msgspec.structs.replace(member.reply, cordoned=reply.cordoned, cordon_reason=reply.reason)
            member.reply = cordoned  # at once, and not only when the host pushes it
            self.members.refresh(member)
        return msgspec.structs.replace(reply, host=member.name)

    async def _check(self, request: requests.Check, request_id: str) -> replies.CheckReply:
        """Of one host, or of all at the same time; then those that do not answer are among the findings."""
        asked = msgspec.structs.replace(request, host="")
        turn = asyncio.Semaphore(AT_ONCE)

        async def of(member: Member) -> replies.CheckReply:
            async with turn:
                reply = await answer_of(member.connection.check(asked, timeout=CHECK_S, request_id=request_id))
            return _as_checked(member, reply)

        async def of_any(member: Member) -> replies.CheckReply:
            try:
                return await of(member)
            except VmstackError as error:
                text = f"it could not be compared: {error.message}"[: replies.MOST_TEXT]
                finding = replies.Finding(kind="unchecked", vm="", text=text, repaired=False, host=member.name)
                return replies.CheckReply(findings=(finding,), vms=0)

        if request.host:
            return await of(self._member(request.host))
        told = await asyncio.gather(*(of_any(member) for member in self.members))
        findings = sorted((finding for reply in told for finding in reply.findings), key=lambda one: one.repaired)
        return replies.CheckReply(
            findings=tuple(findings[: replies.MOST_FINDINGS]),
            vms=sum(reply.vms for reply in told),
            hidden=sum(reply.hidden for reply in told),
            busy=sum(reply.busy for reply in told),
            left_out=sum(reply.left_out for reply in told) + max(0, len(findings) - replies.MOST_FINDINGS),
            dry_run=request.dry_run,
            hosts=sum(reply.hosts for reply in told),
        )

    def hosts(self) -> replies.HostsReply:
        """All hosts of this moment."""
        now = asyncio.get_running_loop().time()
        return replies.HostsReply(
            hosts=tuple(_host_reply(member, now) for member in self.members),
            duplicates=self.members.duplicates(MOST_DUPLICATES),
            problems=tuple(self._problems[:SHOWN_PROBLEMS]),
        )

    def _some_hosts(self, first: int) -> replies.HostsReply:
        members = list(self.members)
        if not 0 <= first <= len(members):
            raise InvalidRequest(f"first: there are {len(members)} hosts", field="first")
        now = asyncio.get_running_loop().time()
        end = first + HOSTS_AT_ONCE
        return replies.HostsReply(
            hosts=tuple(_host_reply(member, now) for member in members[first:end]),
            duplicates=self.members.duplicates(MOST_DUPLICATES) if first == 0 else (),
            problems=tuple(self._problems[:SHOWN_PROBLEMS]) if first == 0 else (),
            following=end if end < len(members) else None,
        )

    def _host_add(self, request: requests.HostAdd) -> replies.HostListed:
        if self._folder is None:
            raise InvalidRequest("hosts_dir is none, so that no host can be added while globald runs", field="host")
        try:
            address = read_address(request.address)
        except ValueError as error:
            raise InvalidRequest(f"address: must be {error}", field="address") from error
        known = self.members.at_address(address)
        if known is not None:
            raise AlreadyExists(
                f"{address} is host {known.name!r} already ({known.entry.source}); see vmstackctl hosts"
            )
        source = self._folder.add(address, request.name)
        self._look()
        return replies.HostListed(address=address, name=source, listed=True)

    def _host_remove(self, request: requests.HostRemove) -> replies.HostListed:
        member = self._member(request.host)
        if self._folder is None or member.entry.source == STATIC:
            raise InvalidRequest(
                f"{member.name!r} is named by the setting hosts; take {member.entry.address} out there and restart",
                field="host",
            )
        self._folder.remove(member.entry)
        vms = len(member.names)
        self._look()
        address = member.entry.address
        listed = self.members.at_address(address) is not None  # another file names it too
        return replies.HostListed(address=address, name=member.name, listed=listed, vms=vms)

    # Reading

    def status(self, *, usage: bool = True) -> replies.StatusReply:  # noqa: ARG002  hosts tell theirs themselves
        return replies.StatusReply(
            host=self.members.inventory.totals(),
            hypervisor="up",
            unplaced=(),
            stopped=(),
            degraded=tuple(self._troubles()),
        )

    def names(self) -> tuple[str, ...]:
        return ()

    def _troubles(self) -> Iterable[str]:
        troubled = self.members.troubled
        for member in islice(troubled.values(), SHOWN_PROBLEMS):
            state, reason = member.shown_state
            yield f"host {member.name} is {state}: {reason}"
        if len(troubled) > SHOWN_PROBLEMS:
            yield f"and {len(troubled) - SHOWN_PROBLEMS} more hosts; see vmstackctl hosts"
        for duplicate in self.members.duplicates(SHOWN_PROBLEMS):
            yield f"VM {short(duplicate.name)!r} is on several hosts: {', '.join(duplicate.hosts[:SHOWN_PROBLEMS])}"
        yield from self._problems[:SHOWN_PROBLEMS]

    async def _status_of(self, host: str, request_id: str) -> replies.StatusReply:
        member = self._member(host)
        usage = await self._usage_of(member, request_id)
        if member.reply is None:
            raise Unavailable(f"host {member.name!r} is {member.state.value}: {member.reason}", host=member.name)
        if member.state is State.UP:
            return msgspec.structs.replace(member.reply, usage=usage)
        state, reason = member.shown_state
        return msgspec.structs.replace(
            member.reply, hypervisor=state, degraded=(f"the host is {state}: {reason}; this is what it told last",)
        )

    async def _usage_of(self, member: Member, request_id: str) -> HostUsage | None:
        """What a host really does, which it does not tell unasked; None if it does not answer."""
        try:
            return (await member.connection.status(timeout=READ_S, request_id=request_id)).usage
        except VmstackError:
            return None

    def _progress(self, request: requests.Progress) -> replies.ProgressReply:
        wanted = self._member(request.host) if request.host else None
        size = request.level, request.vcpus, request.memory_mib
        found = self.members.inventory.scores(PROGRESS, *size)
        if wanted is not None:
            found = [score for score in found if score[0] == wanted.number]
        fitting = [(score, -number) for number, score, _ in found if score is not None]
        if not fitting:
            raise self._placing.why_nowhere(request) if wanted is None else self._placing.why_not(request, wanted)
        hosts = tuple(
            replies.HostProgress(host=self.members.at(number).name, progress=score, reason=reason)
            for number, score, reason in found
        )
        best, number = max(fitting)
        return replies.ProgressReply(progress=best, host=self.members.at(-number).name, hosts=hosts)

    def _demand(self) -> replies.DemandReply:
        lesson = self.members.inventory.demand.lesson()
        if len(lesson.shapes) > MOST_SHAPES:
            places = heapq.nlargest(
                MOST_SHAPES, range(len(lesson.shapes)), key=lambda place: lesson.shapes[place].count
            )
            # In the order in which they came, which decides between those that are equally frequent.
            lesson = msgspec.structs.replace(lesson, shapes=tuple([lesson.shapes[place] for place in sorted(places)]))
        return replies.DemandReply(policy=self._placing.policy.name, lesson=lesson)

    async def _list(self, host: str, request_id: str) -> replies.ListReply:
        members = [self._member(host)] if host else list(self.members)
        turn = asyncio.Semaphore(AT_ONCE)

        async def vms_of(member: Member) -> tuple[replies.VmReply, ...]:
            async with turn:
                try:
                    reply = await member.connection.list(timeout=READ_S, request_id=request_id)
                except VmstackError:
                    return tuple(_unknown(name, member) for name in sorted(member.names))
            return tuple([msgspec.structs.replace(vm, host=member.name) for vm in reply.vms])

        found = await asyncio.gather(*(vms_of(member) for member in members))
        return replies.ListReply(vms=tuple(vm for vms in found for vm in vms))

    async def _describe(self, request: requests.Describe, request_id: str) -> replies.VmReply:
        member = self._owner(request.name, request.host)
        try:
            reply = await answer_of(
                member.connection.describe(
                    msgspec.structs.replace(request, host=""), timeout=READ_S, request_id=request_id
                )
            )
        except (Unavailable, DeadlineExceeded):
            return _unknown(request.name, member)
        return msgspec.structs.replace(reply, host=member.name)

    async def _topology(self, host: str, request_id: str) -> replies.TopologyReply:
        if not host:
            raise InvalidRequest("host: which host is meant must be said", field="host")
        return await answer_of(self._member(host).connection.topology(timeout=READ_S, request_id=request_id))


def _as_checked(member: Member, reply: replies.CheckReply) -> replies.CheckReply:
    """What a host has found, kept to a size that can be told."""
    findings = [
        replies.Finding(
            kind=short(finding.kind),
            vm=short(finding.vm),
            text=finding.text[: replies.MOST_TEXT],
            repaired=finding.repaired,
            host=member.name,
        )
        for finding in reply.findings[: replies.MOST_FINDINGS]
    ]
    vms, hidden, busy, left_out = (
        min(max(0, figure), MOST_CHECKED) for figure in (reply.vms, reply.hidden, reply.busy, reply.left_out)
    )
    return replies.CheckReply(
        findings=tuple(findings),
        vms=vms,
        hidden=hidden,
        busy=busy,
        left_out=left_out + len(reply.findings) - len(findings),
        dry_run=reply.dry_run,
        hosts=1,
    )


def _unknown(name: str, member: Member) -> replies.VmReply:
    """A VM on a host that does not answer."""
    return replies.VmReply(
        name=name, vcpus=0, memory_mib=0, level=0, cpus=(), pinned=(), state="unknown", image="", host=member.name
    )


def _host_reply(member: Member, now: float) -> replies.HostReply:
    state, reason = member.shown_state
    return replies.HostReply(
        name=member.name,
        address=member.entry.address,
        uuid=member.uuid,
        state=state,
        reason=reason,
        since=member.since,
        age=None if member.heard is None else max(0.0, now - member.heard),
        source=member.entry.source,
        version=member.version,
        status=None if member.reply is None else member.reply.host,
    )
