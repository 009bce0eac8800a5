"""A cluster as globald would answer for it, with hosts that tests describe, behind a real socket."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import msgspec

from core.demand import Lesson
from core.status import HostStatus, LevelStatus
from tests.globald.test_usage import Globald
from tests.running import PATIENCE, Daemon, Finished
from tests.vmstackctl.command import IMAGE, run
from tests.vmstackctl.hosts import cpu, host
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import AlreadyExists, InvalidRequest, NoCapacity, NotFound
from vmstackd.daemon import tcp
from vmstackd.daemon.feed import Feed
from vmstackd.daemon.operations import Operations
from vmstackd.daemon.stream import StreamTransport, listen
from vmstackd.tls import Tls, TlsFiles

REAL_HOST = "synthetic:sockets=1,l3=1,cores=8,smt=1,memory=32768"
HOST_CPUS = 16
HOST_MIB = 65536


def level(thousandths: int = 2000, cpus: int = 4, vcpus: int = 6, vms: int = 2) -> LevelStatus:
    return LevelStatus(
        level=thousandths,
        ratio=thousandths,
        cpus=cpus,
        vcpus=vcpus,
        vms=vms,
        needed=cpus,
        available_thousandths=cpus * thousandths - vcpus * 1000,
        potential_thousandths=0,
    )


def figures(*levels: LevelStatus, cpus: int = HOST_CPUS, memory_mib: int = HOST_MIB) -> HostStatus:
    vms = sum(one.vms for one in levels)
    return HostStatus(
        cpus=cpus,
        free_cpus=cpus - sum(one.cpus for one in levels),
        held_cpus=0,
        memory_mib=memory_mib,
        allocated_mib=1024 * vms,
        free_mib=memory_mib - 1024 * vms,
        vms=vms,
        generation=1,
        levels=levels,
    )


def member(
    name: str, state: str = "up", reason: str = "", *levels: LevelStatus, told: bool = True
) -> replies.HostReply:
    return replies.HostReply(
        name=name,
        address=f"{name}:8097",
        uuid="",
        state=state,
        reason=reason,
        since=0.0,
        age=0.4 if told else None,
        source="static",
        version="1",
        status=figures(*levels) if told else None,
    )


def usual() -> tuple[replies.HostReply, ...]:
    """One host in each state that an operator may meet."""
    return (
        member("server1", "up", "", level(1000, 4, 4), level(2000, 2, 3, 1)),
        member("server2", "cordoned", "new disks on Monday", level(1500, 3, 4, 1)),
        member("server3", "unknown", "silent for 12 s", level(1000, 8, 8, 2)),
        member("server4", "connecting", "not yet reached", told=False),
    )


class Cluster(Operations):
    """VMs are only names here, each on the host of that name; all other things are as the hosts say."""

    accepted = frozenset((*get_args(requests.HostRequest), *get_args(requests.ClusterRequest)))

    def __init__(self, hosts: Iterable[replies.HostReply]) -> None:
        super().__init__(session.Identity(program="globald", host="head"), Feed(), lambda _: None)
        self.hosts = list(hosts)
        self.vms: list[replies.VmReply] = []
        self.asked: list[requests.Request] = []
        self.duplicates: tuple[replies.DuplicateVm, ...] = ()
        self.demand = replies.DemandReply(policy="progress", lesson=Lesson((), 0, 0, None))
        self._started.set()

    @property
    def running(self) -> bool:
        return True

    def names(self) -> tuple[str, ...]:
        return ()

    def at_once(self, request: requests.Request) -> bool:
        return False

    def publish(self, request: requests.Change, reply: replies.Reply | None, outcome: str, why: str) -> None:
        match reply:
            case replies.Deployed(dry_run=False):
                self.feed.publish(
                    session.VmDeployed(
                        time=time.time(), name=reply.name, level=reply.level, cpus=reply.cpus, host=reply.host
                    )
                )
            case replies.Removed(dry_run=False):
                self.feed.publish(
                    session.VmRemoved(time=time.time(), name=reply.name, released=reply.released, host=reply.host)
                )
            case replies.CordonReply():
                state = "cordoned" if reply.cordoned else "up"
                self.feed.publish(
                    session.HostChanged(time=time.time(), host=reply.host, state=state, reason=reply.reason)
                )
        self.feed.touch()

    def status(self, *, usage: bool = True) -> replies.StatusReply:
        told = [one.status for one in self.hosts if one.status is not None]
        levels: dict[int, list[LevelStatus]] = {}
        for status in told:
            for one in status.levels:
                levels.setdefault(one.level, []).append(one)
        sums = [
            level(key, sum(o.cpus for o in ones), sum(o.vcpus for o in ones), sum(o.vms for o in ones))
            for key, ones in levels.items()
        ]
        total = figures(*sums, cpus=sum(one.cpus for one in told), memory_mib=sum(one.memory_mib for one in told))
        troubles = tuple(
            f"host {one.name} is {one.state}: {one.reason}" for one in self.hosts if one.state not in ("up", "cordoned")
        )
        return replies.StatusReply(
            host=total, hypervisor="up", unplaced=(), stopped=(), degraded=(*troubles, "x.toml: not TOML")
        )

    async def answer(self, request: requests.Request, request_id: str) -> replies.Reply:
        self.asked.append(request)
        match request:
            case requests.Hosts():
                return replies.HostsReply(hosts=tuple(self.hosts), duplicates=self.duplicates)
            case requests.Status(host=""):
                return self.status()
            case requests.Status():
                topology, status = self._one(request.host)
                return status
            case requests.Topology():
                topology, _ = self._one(request.host)
                return topology
            case requests.List():
                found = [vm for vm in self.vms if request.host in ("", vm.host)]
                return replies.ListReply(vms=tuple(found))
            case requests.Describe():
                return self._vm(request.name, request.host)
            case requests.Deploy():
                return self._deploy(request)
            case requests.Remove():
                vm = self._vm(request.name, request.host)
                if not request.dry_run:
                    self.vms.remove(vm)
                return replies.Removed(name=vm.name, released=vm.cpus, dry_run=request.dry_run, host=vm.host)
            case requests.Progress():
                return self._progress(request)
            case requests.Cordon() | requests.Uncordon():
                return self._cordon(request)
            case requests.Check():
                return self._check(request)
            case requests.Demand():
                return self.demand
            case requests.HostAdd():
                name = request.name or request.address
                self.hosts.append(
                    msgspec.structs.replace(member(name, "connecting", told=False), address=request.address)
                )
                return replies.HostListed(address=request.address, name=f"/hosts.d/{name}.toml", listed=True)
            case requests.HostRemove():
                index = self._index(request.host)
                gone = self.hosts.pop(index)
                vms = 0 if gone.status is None else gone.status.vms
                return replies.HostListed(address=gone.address, name=gone.name, listed=False, vms=vms)

    def _check(self, request: requests.Check) -> replies.CheckReply:
        """Whoever is not up has not answered."""
        wanted = [self.hosts[self._index(request.host)]] if request.host else self.hosts
        findings = [
            replies.Finding(kind="unchecked", vm="", text=one.reason, repaired=False, host=one.name)
            for one in wanted
            if one.state not in ("up", "cordoned")
        ]
        return replies.CheckReply(
            findings=tuple(findings), vms=len(self.vms), dry_run=request.dry_run, hosts=len(wanted) - len(findings)
        )

    def _index(self, name: str) -> int:
        for index, one in enumerate(self.hosts):
            if one.name == name:
                return index
        raise NotFound(f"there is no host {name!r} in this cluster; vmstackctl hosts shows those that are")

    def _one(self, name: str) -> tuple[replies.TopologyReply, replies.StatusReply]:
        if not name:
            raise InvalidRequest("host: which host is meant must be said", field="host")
        self._index(name)
        return host((cpu(0, 0, "2.0"), cpu(1, 0)), (2000,))

    def _vm(self, name: str, where: str) -> replies.VmReply:
        if where:
            self._index(where)
        found = [vm for vm in self.vms if vm.name == name and where in ("", vm.host)]
        if not found:
            raise NotFound(f"{name!r} does not exist in this cluster")
        if len(found) > 1:
            hosts = ", ".join(vm.host for vm in found)
            raise InvalidRequest(f"{name!r} is on {len(found)} hosts: {hosts}; say which with host", field="host")
        return found[0]

    def _deploy(self, request: requests.Deploy) -> replies.Deployed:
        if any(vm.name == request.name for vm in self.vms):
            raise AlreadyExists(f"a VM {request.name!r} is on host 'server1' already")
        if request.vcpus > HOST_CPUS:
            raise NoCapacity("no host for it: 4 hosts: 1 no cpu, 1 cordoned, 2 unknown", resource="cpu", hosts=4)
        where = request.host or self.hosts[0].name
        self._index(where)
        cpus = tuple(range(request.vcpus))
        if not request.dry_run:
            self.add(request.name, where, vcpus=request.vcpus, level=request.level, cpus=cpus)
        score = 12.345
        return replies.Deployed(
            name=request.name, level=request.level, cpus=cpus, dry_run=request.dry_run, host=where, score=score
        )

    def _progress(self, request: requests.Progress) -> replies.ProgressReply:
        hosts = [
            replies.HostProgress(
                host=one.name,
                progress=float(place) if one.state == "up" else None,
                reason="" if one.state == "up" else one.state,
            )
            for place, one in enumerate(self.hosts)
            if request.host in ("", one.name)
        ]
        fitting = [one for one in hosts if one.progress is not None]
        if not fitting:
            raise NoCapacity(f"no host for 1 vCPUs at level 1.0: {len(hosts)} hosts: {len(hosts)} unknown")
        best = max(fitting, key=lambda one: one.progress or 0.0)
        assert best.progress is not None
        return replies.ProgressReply(progress=best.progress, host=best.host, hosts=tuple(hosts))

    def _cordon(self, request: requests.Cordon | requests.Uncordon) -> replies.CordonReply:
        index = self._index(request.host)
        reason = request.reason if isinstance(request, requests.Cordon) else ""
        state = "cordoned" if isinstance(request, requests.Cordon) else "up"
        self.hosts[index] = msgspec.structs.replace(self.hosts[index], state=state, reason=reason)
        return replies.CordonReply(cordoned=state == "cordoned", reason=reason, host=request.host)

    def add(
        self,
        name: str,
        where: str,
        *,
        vcpus: int = 1,
        level: int = 2000,
        cpus: tuple[int, ...] = (0,),
        state: str = "running",
    ) -> None:
        self.vms.append(
            replies.VmReply(
                name=name,
                vcpus=vcpus,
                memory_mib=512,
                level=level,
                cpus=cpus,
                pinned=tuple(sorted(cpus)),
                state=state,
                image=IMAGE,
                host=where,
            )
        )


class RealCluster:
    """globald and hosts of 8 CPUs and 32 GiB on simulated VMs, each a process of its own; see ``real_cluster``."""

    def __init__(self, socket: Path, hosts: dict[str, Path]) -> None:
        """hosts: their sockets by name."""
        self.socket = socket
        self.hosts = hosts

    def ctl(self, *arguments: str) -> Finished:
        return run("--socket", str(self.socket), *arguments)

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        done = self.ctl(*arguments, "--output", "json")
        assert done.code == 0, done.err
        return msgspec.json.decode(done.out)

    def deploy(self, name: str, vcpus: int, memory: str, level: str, *flags: str) -> Finished:
        size = ("--vcpus", str(vcpus), "--memory", memory, "--level", level)
        return self.ctl("deploy", name, *size, "--image", IMAGE, *flags)


@contextmanager
def real_cluster(names: Iterable[str], *flags: str) -> Iterator[RealCluster]:
    """flags: of globald."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctl-")))
        addresses, sockets = [], {}
        for name in names:
            sockets[name] = folder / name
            own = ("--name", name, "--socket", str(sockets[name]), "--tcp-host", "127.0.0.1", "--tcp-port", "0")
            simulated = ("--hypervisor", "sim:", "--topology", REAL_HOST, "--critical-size", "2")
            host = stack.enter_context(Daemon(*simulated, *own))
            addresses.append(host.wait_for(r" ready .* tcp=(\S+)")[1].removeprefix("tcp:"))
        socket = folder / "globald"
        globald = stack.enter_context(
            Globald("--hosts", ",".join(addresses), "--socket", str(socket), "--attempts", "1", *flags)
        )
        globald.wait_for(rf" learned hosts={len(addresses)} vms=0")
        yield RealCluster(socket, sockets)


class Served:
    """The cluster behind a socket, in a thread of its own, while in a ``with`` statement."""

    def __init__(self, hosts: Iterable[replies.HostReply], tls: TlsFiles | None = None) -> None:
        """tls: of the cluster, to be reached over TCP instead, at port."""
        self._hosts = tuple(hosts)
        self._tls = tls
        self.port = 0
        self._folder = Path(tempfile.mkdtemp(prefix="ctl-"))
        self.socket = self._folder / "globald.sock"
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self.cluster: Any = None
        """A Cluster, once there is one; only looked into from other threads."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def stop(self) -> None:
        """As if globald ended."""
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(PATIENCE)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.cluster = Cluster(self._hosts)
        if self._tls is None:
            transport = StreamTransport(self.cluster, listen(self.socket, "root"))
        else:
            tls = Tls(self._tls)
            listener = tcp.listen("127.0.0.1", 0, tls)
            self.port = listener.getsockname()[1]
            transport = StreamTransport(self.cluster, listener, tls=tls)
        await transport.start()
        self._ready.set()
        await self._end.wait()
        await transport.stop()

    def do(self, work: Any) -> None:  # noqa: ANN401  any callable
        """Call it in the thread of the cluster, and wait for its end."""
        done = threading.Event()

        def call() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(PATIENCE)

    def ctl(self, *arguments: str, **variables: str) -> Finished:
        return run("--socket", str(self.socket), *arguments, **variables)

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        done = self.ctl(*arguments, "--output", "json")
        assert done.code == 0, done.err
        return msgspec.json.decode(done.out)

    def deploy(self, name: str, vcpus: int = 1, *flags: str) -> Finished:
        return self.ctl(
            *("deploy", name, "--vcpus", str(vcpus), "--memory", "512M", "--level", "2", "--image", IMAGE), *flags
        )
