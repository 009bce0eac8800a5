"""Constructs and joins the parts of the daemon of a host."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from core.allocator import empty_state
from core.cpuset import format_cpu_list
from core.model import HostState, Rules
from core.policy import POLICIES
from core.topology import Topology, TopologyError
from core.trace import Sample
from vmstackd.daemon.life import EXIT_FAILED, EXIT_UNAVAILABLE, CannotStart, Daemon
from vmstackd.daemon.operations import Outcome
from vmstackd.daemon.supervision import status_line
from vmstackd.daemon.table import SettingsError
from vmstackd.engine import Engine
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor.base import Hypervisor, HypervisorError
from vmstackd.local_state import LocalState, LocalStateError
from vmstackd.metrics import Metrics
from vmstackd.recorder import Plan, Recorder
from vmstackd.settings import TABLE, Settings
from vmstackd.topology_source import load_topology
from vmstackd.transports.dbus import DbusTransport, NameTaken
from vmstackd.transports.http import HostHttp
from vmstackd.version import VERSION


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


def hypervisor(settings: Settings, topology: Topology | None = None) -> Hypervisor:
    """The hypervisor that the settings name, not yet connected. topology: as for ``open_hypervisor``.

    Raises SettingsError, or HypervisorError where its library is missing.
    """
    try:
        return open_hypervisor(settings.hypervisor, _options(settings), topology)
    except ValueError as error:
        raise SettingsError(f"hypervisor: {error}") from error


def engine(
    settings: Settings,
    observer: Callable[[Outcome], None] = lambda _: None,
    record: Callable[[Sample], None] = lambda _: None,
) -> Engine:
    """The engine of the host that the settings describe, not yet started. Needs a running event loop.

    Raises SettingsError, or HypervisorError where the hypervisor's library is missing.
    """
    state = host_state(settings)
    return Engine(
        state,
        POLICIES[settings.policy],
        hypervisor(settings, state.topology),
        local=_local_state(settings),
        name=settings.name,
        period=settings.period,
        delay=settings.delay,
        record=record,
        observer=observer,
    )


def _local_state(settings: Settings) -> LocalState:
    try:
        return LocalState(None if settings.state_dir == "none" else Path(settings.state_dir))
    except LocalStateError as error:
        raise SettingsError(f"state_dir: {error}") from error


def _rules(settings: Settings) -> Rules:
    return Rules(critical_size=settings.critical_size, critical_sizes=settings.critical_sizes)


def _plan(settings: Settings) -> Plan:
    path = Path(settings.trace).absolute() if settings.trace else None
    return Plan(path=path, size=settings.record_size, files=settings.record_files)


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
    return await _HostDaemon(TABLE, settings, read_settings).run()


class _HostDaemon(Daemon[Settings]):
    _engine: Engine

    def build(self) -> Engine:
        self._metrics = Metrics(per_vm=lambda: self.settings.metrics_per_vm, certificate=self.certificate_expiry)
        self._recorder = Recorder(_plan(self.settings))
        try:
            self._engine = engine(self.settings, self._metrics.count, self._recorder.take)
        except HypervisorError as error:
            raise self._unreachable(error) from error
        return self._engine

    def _unreachable(self, error: HypervisorError) -> CannotStart:
        uri = self.settings.hypervisor
        next_step = (
            "end the process that uses this directory, or name another one with --hypervisor"
            if uri.startswith("qemu:///embed")
            else "start it (systemctl start libvirtd), or name another with --hypervisor"
        )
        return CannotStart(EXIT_UNAVAILABLE, "hypervisor-unreachable", error, next_step, uri=uri)

    def facts(self) -> Mapping[str, object]:
        settings, state = self.settings, self._engine.state
        return {
            "version": VERSION,
            "host": self._engine.identity.host,
            "uuid": self._engine.identity.uuid,
            "hypervisor": settings.hypervisor,
            "topology": state.topology.name,
            "cpus": format_cpu_list(sorted(state.topology.cpu_ids)),
            "memory_mib": state.memory_mib,
            "policy": settings.policy,
            "critical_size": settings.critical_size,
            "record": _plan(settings).path,
        }

    async def join(self, parts: contextlib.AsyncExitStack) -> Mapping[str, object]:
        # The bus name is taken before VMs are touched: whoever has it is the host's one daemon.
        if self.settings.dbus == "none":
            return {}
        transport = DbusTransport(self._engine, self.settings.dbus)
        try:
            await transport.start()
        except NameTaken as error:
            next_step = "end it (systemctl stop vmstackd), or use another bus with --dbus (or none)"
            raise CannotStart(EXIT_FAILED, "name-taken", error, next_step) from error
        except OSError as error:
            next_step = "start it (systemctl start dbus), or do without with --dbus none"
            raise CannotStart(EXIT_UNAVAILABLE, "dbus-unreachable", error, next_step, bus=transport.address) from error
        parts.push_async_callback(transport.stop)
        return {"dbus": transport.address}

    async def start(self) -> None:
        self.tell(f"connecting to {self.settings.hypervisor}")
        self._recorder.start()
        try:
            await self._engine.start(require_hypervisor=self.settings.require_hypervisor)
        except HypervisorError as error:
            raise self._unreachable(error) from error
        self._metrics.watch(self._engine)

    async def stop(self) -> None:
        await self._engine.stop()
        await asyncio.to_thread(self._recorder.stop)

    def endpoint(self, listener: socket.socket) -> HostHttp:
        return HostHttp(self._engine, self._metrics, listener, self.settings.http_names)

    def line(self) -> str:
        return status_line(self._engine.status())

    def use(self, settings: Settings) -> None:
        self._engine.reconfigure(
            _rules(settings), POLICIES[settings.policy], settings.period, settings.delay, _options(settings)
        )
        self._recorder.use(_plan(settings))

    def farewell(self) -> Mapping[str, object]:
        vms = self._engine.status().host.vms
        return {"vms": vms, "note": "VMs keep running" if vms else None}
