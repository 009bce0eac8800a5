"""Constructs and joins the parts of the daemon, and runs them until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from core.allocator import empty_state
from core.cpuset import format_cpu_list
from core.model import HostState, Rules
from core.policy import POLICIES
from core.topology import TopologyError
from vmstackd.daemon import http, log, peers, stream, supervision, unix_socket
from vmstackd.daemon.operations import Outcome
from vmstackd.daemon.systemd import Notifier, PassedSocketsError, forget, passed_sockets, watchdog_interval
from vmstackd.daemon.table import SettingsError
from vmstackd.engine import Engine
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor.base import Hypervisor, HypervisorError
from vmstackd.local_state import LocalState, LocalStateError
from vmstackd.metrics import Metrics
from vmstackd.settings import TABLE, Settings
from vmstackd.topology_source import load_topology
from vmstackd.transports.dbus import DbusTransport, NameTaken
from vmstackd.transports.http import HostHttp
from vmstackd.version import VERSION

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 6

RPC, HTTP = "rpc", "http"
"""What sockets are named that systemd passes (FileDescriptorName=)."""
_FAMILIES = {RPC: (socket.AF_UNIX,), HTTP: (socket.AF_INET, socket.AF_INET6)}


class _CannotStart(Exception):
    """code: the exit code. event, next_step: for the log."""

    def __init__(self, code: int, event: str, reason: object, next_step: str, **fields: object) -> None:
        super().__init__(str(reason))
        self.code = code
        self.event = event
        self.fields = {**fields, "reason": reason, "next_step": next_step}


def host_state(settings: Settings) -> HostState:
    """The empty host that the settings describe. Raises SettingsError."""
    try:
        topology = load_topology(settings.topology, settings.exclude_cpus)
    except TopologyError as error:
        raise SettingsError(f"topology: {error}") from error
    if settings.reserved_memory >= topology.memory_mib:
        raise SettingsError(
            f"reserved_memory: {settings.reserved_memory} MiB leaves nothing of the host's {topology.memory_mib} MiB"
        )
    return empty_state(topology, _rules(settings), settings.reserved_memory)


def hypervisor(settings: Settings) -> Hypervisor:
    """The hypervisor that the settings name, not yet connected.

    Raises SettingsError, or HypervisorError where its library is missing.
    """
    try:
        return open_hypervisor(settings.hypervisor, _options(settings))
    except ValueError as error:
        raise SettingsError(f"hypervisor: {error}") from error


def engine(settings: Settings, observer: Callable[[Outcome], None] = lambda _: None) -> Engine:
    """The engine of the host that the settings describe, not yet started. Needs a running event loop.

    Raises SettingsError, or HypervisorError where the hypervisor's library is missing.
    """
    return Engine(
        host_state(settings),
        POLICIES[settings.policy],
        hypervisor(settings),
        local=_local_state(settings),
        name=settings.name,
        period=settings.period,
        observer=observer,
    )


def _local_state(settings: Settings) -> LocalState:
    try:
        return LocalState(None if settings.state_dir == "none" else Path(settings.state_dir))
    except LocalStateError as error:
        raise SettingsError(f"state_dir: {error}") from error


def _rules(settings: Settings) -> Rules:
    return Rules(critical_size=settings.critical_size, critical_sizes=settings.critical_sizes)


def _options(settings: Settings) -> HypervisorOptions:
    return HypervisorOptions(
        image_roots=settings.image_roots,
        machine=settings.machine,
        emulator=settings.emulator,
        network=settings.network,
        virt_type=settings.virt_type,
        workers=settings.workers,
    )


async def run(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. SIGHUP reads the settings again.

    Raises SettingsError before anything starts.
    """
    return await _Daemon(settings, read_settings).run()


class _Daemon:
    def __init__(self, settings: Settings, read_settings: Callable[[], Settings]) -> None:
        """Takes over the signals, and what systemd passed. Raises SettingsError."""
        self._settings = settings
        self._read_settings = read_settings
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._reload_due = False
        self._notifier = Notifier(os.environ)
        self._watchdog = watchdog_interval(os.environ)
        self._metrics = Metrics()
        self._http: HostHttp | None = None
        self._ready = False

    async def run(self) -> int:
        try:
            async with contextlib.AsyncExitStack() as parts:
                # Before anything could start a program that would get them too.
                passed = self._passed_sockets(parts)
                forget(os.environ)
                self._engine = self._make_engine()
                await self._serve(parts, passed)
        except _CannotStart as error:
            log.error(error.event, **error.fields)
            return error.code
        return EXIT_DONE

    def _passed_sockets(self, parts: contextlib.AsyncExitStack) -> dict[str, socket.socket]:
        try:
            passed = passed_sockets(os.environ, os.getpid())
        except PassedSocketsError as error:
            raise _CannotStart(EXIT_FAILED, "sockets-unusable", error, "correct the .socket units") from error
        for name, listener in passed.items():
            parts.enter_context(listener)
            if name not in (RPC, HTTP):
                log.warning("socket-unknown", socket=name, next_step=f"name it {RPC} or {HTTP} (FileDescriptorName=)")
            elif listener.family not in _FAMILIES[name]:
                reason = f"the passed socket {name} is of the family {listener.family.name}"
                next_step = f"in its .socket unit, {RPC} needs ListenStream=/A/PATH, {HTTP} ListenStream=ADDRESS:PORT"
                raise _CannotStart(EXIT_FAILED, "sockets-unusable", reason, next_step)
        return passed

    def _make_engine(self) -> Engine:
        try:
            return engine(self._settings, self._metrics.count)
        except HypervisorError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: HypervisorError) -> _CannotStart:
        uri = self._settings.hypervisor
        next_step = (
            "end the process that uses this directory, or name another one with --hypervisor"
            if uri.startswith("qemu:///embed")
            else "start it (systemctl start libvirtd), or name another with --hypervisor"
        )
        return _CannotStart(EXIT_UNAVAILABLE, "hypervisor-unreachable", error, next_step, uri=uri)

    async def _serve(self, parts: contextlib.AsyncExitStack, passed: dict[str, socket.socket]) -> None:
        """Open the doors, start the engine, and wait for a signal. What is opened is closed with parts."""
        _raise_file_limit()
        settings, host = self._settings, self._engine
        # First the one whose error says which process has it.
        rpc_listener = passed.get(RPC) or self._listen_rpc(parts)
        http_listener = passed.get(HTTP) or self._listen_http(parts)
        topology = host.state.topology
        log.info(
            "starting",
            version=VERSION,
            hypervisor=settings.hypervisor,
            topology=topology.name,
            cpus=format_cpu_list(sorted(topology.cpu_ids)),
            memory_mib=host.state.memory_mib,
            policy=settings.policy,
            critical_size=settings.critical_size,
        )
        # The bus name is taken before VMs are touched: whoever has it is the host's one daemon.
        dbus = await self._join_bus(parts)
        self._notifier.status(f"connecting to {settings.hypervisor}")
        if not await self._start_engine():
            log.info("stopping", note="before the hypervisor answered")
            return
        parts.push_async_callback(host.stop)
        self._metrics.watch(host.status, lambda: host.repins)
        if not self._stop.is_set():
            await self._open_doors(parts, http_listener, rpc_listener, dbus)
            await self._stop.wait()
        self._ready = False
        self._notifier.stopping()
        vms = host.status().host.vms
        log.info("stopping", vms=vms, note="VMs keep running" if vms else None)

    async def _open_doors(
        self,
        parts: contextlib.AsyncExitStack,
        http_listener: socket.socket,
        rpc_listener: socket.socket | None,
        dbus: DbusTransport | None,
    ) -> None:
        """Begin to answer, and say so."""
        host = self._engine
        rpc = None
        if rpc_listener is not None:
            rpc = stream.StreamTransport(host, rpc_listener)
            await rpc.start()
            parts.push_async_callback(rpc.stop)
        self._http = HostHttp(host, self._metrics, http_listener, self._settings.http_names)
        await self._http.start()
        parts.push_async_callback(self._http.stop)
        tasks = [
            asyncio.create_task(
                supervision.show_status(host, self._notifier, lambda: supervision.status_line(host.status()))
            )
        ]
        if self._watchdog is not None:
            tasks.append(asyncio.create_task(supervision.feed_watchdog(host, self._notifier, self._watchdog)))
        for task in tasks:
            parts.callback(task.cancel)
        log.info(
            "ready",
            http=self._http.address,
            socket=rpc.address if rpc else None,
            dbus=dbus.address if dbus else None,
            vms=host.status().host.vms,
        )
        self._ready = True
        self._notifier.ready()

    def _listen_http(self, parts: contextlib.AsyncExitStack) -> socket.socket:
        settings = self._settings
        try:
            return parts.enter_context(http.listen(settings.http_host, settings.http_port))
        except OSError as error:
            raise _CannotStart(
                EXIT_FAILED,
                "http-failed",
                error.strerror or error,
                "free the address, or choose another with --http-host and --http-port",
                address=f"{settings.http_host}:{settings.http_port}",
            ) from error

    def _listen_rpc(self, parts: contextlib.AsyncExitStack) -> socket.socket | None:
        path = self._settings.socket
        if path == "none":
            return None
        try:
            return parts.enter_context(unix_socket.listen(Path(path), peers.READERS))
        except OSError as error:
            raise _CannotStart(
                EXIT_FAILED,
                "socket-failed",
                error.strerror or error,
                "end the other daemon, make the directory, or choose another path with --socket (or none)",
                path=path,
            ) from error

    async def _join_bus(self, parts: contextlib.AsyncExitStack) -> DbusTransport | None:
        if self._settings.dbus == "none":
            return None
        transport = DbusTransport(self._engine, self._settings.dbus)
        try:
            await transport.start()
        except NameTaken as error:
            next_step = "end it (systemctl stop vmstackd), or use another bus with --dbus (or none)"
            raise _CannotStart(EXIT_FAILED, "name-taken", error, next_step) from error
        except OSError as error:
            next_step = "start it (systemctl start dbus), or do without with --dbus none"
            raise _CannotStart(EXIT_UNAVAILABLE, "dbus-unreachable", error, next_step, bus=transport.address) from error
        parts.push_async_callback(transport.stop)
        return transport

    async def _start_engine(self) -> bool:
        """False if a signal came first."""
        starting = asyncio.create_task(
            self._engine.start(require_hypervisor=self._settings.require_hypervisor), name="start"
        )
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        try:
            starting.result()
        except HypervisorError as error:
            raise self._unreachable(error) from error
        return True

    def _hang_up(self) -> None:
        """Reload, once for all signals that come until then."""
        if not self._reload_due:
            self._reload_due = True
            asyncio.get_running_loop().call_soon(self._reload)

    def _reload(self) -> None:
        """Read the settings again, and use those that can change while VMs run."""
        self._reload_due = False
        if self._ready:  # else the end of the reload would be taken for that of the start
            self._notifier.reloading()
        try:
            read = self._read_settings()
        except SettingsError as error:
            log.error("reload-failed", reason=error, next_step="correct it and reload; the settings before stay in use")
        else:
            self._use(read)
        if self._ready:
            self._notifier.ready()

    def _use(self, read: Settings) -> None:
        changed = [row for row in TABLE.rows if getattr(read, row.key) != getattr(self._settings, row.key)]
        now = {row.key: getattr(read, row.key) for row in changed if row.reload}
        later = [row.key for row in changed if not row.reload]
        settings = self._settings = msgspec.structs.replace(self._settings, **now)
        self._engine.reconfigure(_rules(settings), POLICIES[settings.policy], settings.period, _options(settings))
        if self._http is not None:
            self._http.rename(settings.http_names)
        log.set_level(debug=settings.debug > 0)
        log.info("reloaded", changed=",".join(now) or "nothing", needs_restart=",".join(later) or None)


def _raise_file_limit() -> None:
    """As many descriptors as we may have: every connection takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
