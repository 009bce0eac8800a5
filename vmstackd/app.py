"""Constructs and joins the parts of the daemon, and runs them until a signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from core.allocator import empty_state
from core.cpuset import format_cpu_list
from core.model import HostState, Rules
from core.policy import POLICIES
from core.topology import TopologyError
from vmstackd import log
from vmstackd.engine import Engine, Outcome
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor.base import Hypervisor, HypervisorError
from vmstackd.metrics import Metrics
from vmstackd.settings import Settings, SettingsError
from vmstackd.topology_source import load_topology
from vmstackd.transports.http import HttpTransport, listen
from vmstackd.version import VERSION

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 6


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
    rules = Rules(critical_size=settings.critical_size, critical_sizes=settings.critical_sizes)
    return empty_state(topology, rules, settings.reserved_memory)


def hypervisor(settings: Settings) -> Hypervisor:
    """The hypervisor that the settings name, not yet connected.

    Raises SettingsError, or HypervisorError where its library is missing.
    """
    options = HypervisorOptions(
        image_roots=settings.image_roots,
        machine=settings.machine,
        emulator=settings.emulator,
        network=settings.network,
        virt_type=settings.virt_type,
        workers=settings.workers,
    )
    try:
        return open_hypervisor(settings.hypervisor, options)
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
        period=settings.period,
        observer=observer,
    )


async def run(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises SettingsError before anything starts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    try:
        host = engine(settings, metrics.count)
    except HypervisorError as error:
        return _unreachable(settings, error)
    try:
        listener = listen(settings.http_host, settings.http_port)
    except OSError as error:
        log.error(
            "http-failed",
            address=f"{settings.http_host}:{settings.http_port}",
            reason=error.strerror or error,
            next_step="free the address, or choose another with --http-host and --http-port",
        )
        return EXIT_FAILED
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
    with listener:
        starting = asyncio.create_task(host.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("stopping", note="before the hypervisor answered")
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return EXIT_DONE
        stopping.cancel()
        try:
            starting.result()
        except HypervisorError as error:
            return _unreachable(settings, error)
        metrics.watch(host.status, lambda: host.repins)
        http = HttpTransport(host, metrics, listener, settings.http_names)
        if not stop.is_set():
            await http.start()
            log.info("ready", http=http.address, vms=host.status().host.vms)
            await stop.wait()
        vms = host.status().host.vms
        log.info("stopping", vms=vms, note="VMs keep running" if vms else None)
        await http.stop()
        await host.stop()
    return EXIT_DONE


def _unreachable(settings: Settings, error: HypervisorError) -> int:
    log.error(
        "hypervisor-unreachable",
        uri=settings.hypervisor,
        reason=error,
        next_step="end the process that uses this directory, or name another one with --hypervisor"
        if settings.hypervisor.startswith("qemu:///embed")
        else "start it (systemctl start libvirtd), or name another with --hypervisor",
    )
    return EXIT_UNAVAILABLE
