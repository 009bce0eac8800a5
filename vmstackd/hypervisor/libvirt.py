"""VMs through libvirt: libvirtd, its embedded QEMU driver, or its mock driver ``test``.

A daemon serves only a few calls of one connection at a time, hence the connections of ``link``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, cast

import msgspec

from core.cpuset import format_cpu_list
from vmstackd.hypervisor.base import (
    HypervisorError,
    HypervisorEvent,
    HypervisorUnreachable,
    Measured,
    ObservedVm,
    Record,
    VmDefinition,
    VmMissing,
)
from vmstackd.hypervisor.domain_read import DomainFacts, read_domain
from vmstackd.hypervisor.domain_xml import DomainOptions, domain_xml
from vmstackd.hypervisor.embedded import embedded_root, prepare_root, probed_before
from vmstackd.hypervisor.kvm import kvm_works
from vmstackd.hypervisor.libvirt_types import Connection, CpuMap, Domain
from vmstackd.hypervisor.link import Link
from vmstackd.hypervisor.metadata import NAMESPACE, PREFIX, record_text
from vmstackd.hypervisor.options import HypervisorOptions
from vmstackd.hypervisor.qemu_process import QemuProcesses
from vmstackd.hypervisor.qemu_threads import QemuThreads
from vmstackd.hypervisor.workers import Workers
from vmstackd.images import resolve_image

# Read once, when libvirt is loaded. The embedded driver would mix each VM's start into our log.
os.environ.setdefault("LIBVIRT_DEBUG", "4")
import libvirt

log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 2, 3
"""A daemon that answers nothing for interval x (count + 1) seconds counts as lost."""

_CLOSE_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "broken",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "closed by the daemon",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the daemon does not answer",
}
_DEAD_LINK = {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN}
_FLAGS_REFUSED = {libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT}
_SHARES_REFUSED = {libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_OPERATION_INVALID}
_NO_AFFINITY = {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_SYSTEM_ERROR}
_UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM,
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA,
)


class LibvirtHypervisor:
    """See base.Hypervisor. Raises ValueError for an embed root that cannot work."""

    def __init__(self, uri: str, options: HypervisorOptions) -> None:
        self.uri = uri
        self.immediate = False
        self._options = options
        self._root = embedded_root(uri)
        self._link = Link(_Driver(uri) if self._root is None else _EmbeddedDriver(uri), options.workers)
        self._kvm: asyncio.Task[bool] | None = None
        self._shares = True
        self._processes = QemuProcesses()
        self._threads = QemuThreads()

    async def open(self, on_event: Callable[[HypervisorEvent], None]) -> None:
        """As in base. The first time on an embed root, QEMU is asked what it can do: seconds."""
        first = False
        if self._root is not None:
            try:
                await asyncio.to_thread(prepare_root, self._root)
            except OSError as error:
                raise HypervisorUnreachable(f"{self.uri}: {error}") from error
            first = not await asyncio.to_thread(probed_before, self._root)
        start_event_loop()
        await self._link.open(on_event)
        if first:
            log.info("asking QEMU what it can do; the first time this takes about ten seconds")
            try:
                await self._link.call(_capabilities)
            except BaseException:
                await self.close()
                raise
        self._look_for_kvm()

    async def close(self) -> None:
        """As in base."""
        if self._kvm is not None:
            self._kvm.cancel()
            await asyncio.gather(self._kvm, return_exceptions=True)
        await self._link.close()

    def reconfigure(self, options: HypervisorOptions) -> None:
        """As in base."""
        self._options = options

    async def check_image(self, image: str) -> str:
        """As in base: a regular file inside one of options.image_roots."""
        return await asyncio.to_thread(resolve_image, image, self._options.image_roots)

    async def observe(self, names: Iterable[str] | None = None) -> list[ObservedVm]:
        """As in base."""
        wanted = await self._link.call(_names) if names is None else list(dict.fromkeys(names))
        count = self._options.workers
        parts = [wanted[start::count] for start in range(min(count, len(wanted)))]
        answers = await asyncio.gather(
            *(self._link.call(functools.partial(_observe_all, names=part)) for part in parts)
        )
        found = {vm.name: vm for answer in answers for vm in answer}
        seen = [found[name] for name in wanted if name in found]
        if self._processes_are_elsewhere:
            return seen
        return await asyncio.to_thread(_with_threads, seen, self._threads, search=names is None)

    async def measure(self) -> Measured:
        """As in base."""
        return await self._link.call_aside(functools.partial(_measure, processes=self._processes))

    async def create(self, definition: VmDefinition) -> None:
        """As in base."""
        cpus = definition.record.cpus
        options = await self._domain_options(definition.record.image)
        try:
            await self._link.call(functools.partial(_create_on, xml=domain_xml(definition, options), cpus=cpus))
        except HypervisorError as error:
            if not options.shares_per_vcpu or _code(error.__cause__) not in _SHARES_REFUSED:
                raise
            # Without a cgroup CPU controller libvirt starts no VM that has shares. Its errors do not
            # tell that apart from others; trying without does.
            options = msgspec.structs.replace(options, shares_per_vcpu=0)
            await self._link.call(functools.partial(_create_on, xml=domain_xml(definition, options), cpus=cpus))
            self._shares = False
            log.warning("new VMs go without CPU shares: %s", error)

    async def destroy(self, name: str) -> None:
        """As in base."""
        await self._link.call(functools.partial(_destroy, name=name))

    async def pin(self, name: str, cpus: Sequence[int]) -> frozenset[int]:
        """As in base. After an error some of the threads may have been pinned."""
        return await self._link.call(functools.partial(_pin, name=name, cpus=frozenset(cpus), threads=self._threads))

    async def write_record(self, name: str, record: Record) -> None:
        """As in base."""
        await self._link.call(functools.partial(_write_record, name=name, record=record))

    @property
    def _processes_are_elsewhere(self) -> bool:
        return self.uri.startswith("test:")

    async def _domain_options(self, image: str) -> DomainOptions:
        shares, max_shares = _cgroup_weights()
        return DomainOptions(
            virt_type=await self._virt_type(),
            machine=self._options.machine,
            emulator=self._options.emulator,
            network=self._options.network,
            shares_per_vcpu=shares if self._shares else 0,
            max_shares=max_shares,
            direct_io=await asyncio.to_thread(_direct_io, image),
        )

    async def _virt_type(self) -> Literal["kvm", "qemu", "test"]:
        if self.uri.startswith("test:"):
            return "test"
        if self._options.virt_type != "auto":
            return self._options.virt_type
        return "kvm" if await asyncio.shield(self._look_for_kvm()) else "qemu"

    def _look_for_kvm(self) -> asyncio.Task[bool]:
        """Begin, unless it was done: it takes seconds where KVM does not work, and only ``create`` needs it."""
        if self._kvm is None:
            self._kvm = asyncio.create_task(self._find_kvm())
        return self._kvm

    async def _find_kvm(self) -> bool:
        if self._options.virt_type != "auto" or self.uri.startswith("test:"):
            return False
        emulator = self._options.emulator or shutil.which("qemu-system-x86_64") or ""
        worker = Workers(1, "kvm", _ignore)  # not asyncio's threads: the end of the process would wait for them
        try:
            works = await worker.submit(functools.partial(kvm_works, emulator))
        finally:
            await worker.stop(0)
        log.info("new VMs run under %s", "KVM" if works else "TCG, which is slow: KVM does not run guests here")
        return works


class _Driver:
    """link.Driver for libvirt: a daemon, or ``test``."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._callbacks: dict[Connection, int] = {}

    def connect(self) -> Connection:
        connection = self._open()
        # The drivers without a daemon have no keepalive, and need none.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        return connection

    def disconnect(self, connection: Connection) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()

    def watch(self, connection: Connection, on_lost: Callable[[str], None], on_changed: Callable[[str], None]) -> None:
        def closed(_connection: Connection, reason: int, _opaque: None) -> None:
            on_lost(f"connection to {self._uri}: {_CLOSE_REASONS.get(reason, 'closed')}")

        def changed(_connection: Connection, domain: Domain, _event: int, _detail: int, _opaque: None) -> None:
            on_changed(domain.name())

        self._watch_link(connection, closed)
        self._callbacks[connection] = connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, changed, None
        )

    def unwatch(self, connection: Connection) -> None:
        callback = self._callbacks.pop(connection, None)
        with contextlib.suppress(libvirt.libvirtError):
            if callback is not None:
                connection.domainEventDeregisterAny(callback)
        with contextlib.suppress(libvirt.libvirtError):
            connection.unregisterCloseCallback()

    def _open(self) -> Connection:
        try:
            return cast("Connection", libvirt.open(self._uri))
        except libvirt.libvirtError as error:
            raise HypervisorUnreachable(f"{self._uri}: {error}") from error

    def _watch_link(self, connection: Connection, closed: Callable[[Connection, int, None], None]) -> None:
        connection.registerCloseCallback(closed, None)

    @contextlib.contextmanager
    def errors(self, connection: Connection) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            if _code(error) == libvirt.VIR_ERR_NO_DOMAIN:
                raise VmMissing(str(error)) from error
            if _broken(connection, error):
                raise HypervisorUnreachable(f"{self._uri}: {error}") from error
            raise HypervisorError(str(error)) from error


class _EmbeddedDriver(_Driver):
    """One connection serves all threads, for as long as the process lives.

    The driver is in this process, so there is nothing to wait for and no link to lose. And libvirt
    registers it anew at each connection, in a table that a dozen or so fill (seen in 9.0).
    """

    _shared: ClassVar[dict[str, Connection]] = {}
    _lock: ClassVar = threading.Lock()

    def connect(self) -> Connection:
        with self._lock:
            if self._uri not in self._shared:
                self._shared[self._uri] = self._open()
            return self._shared[self._uri]

    def disconnect(self, connection: Connection) -> None:
        pass

    def _watch_link(self, connection: Connection, closed: Callable[[Connection, int, None], None]) -> None:
        pass


# What follows runs in worker threads and raises libvirtError.


def _capabilities(connection: Connection) -> None:
    connection.getDomainCapabilities(virttype="qemu")


def _names(connection: Connection) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains()]


def _measure(connection: Connection, processes: QemuProcesses) -> Measured:
    running = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    uuids = {domain.name(): domain.UUIDString() for domain in running}
    at = time.monotonic()
    counters = processes.counters(uuids.values())
    return Measured(at=at, vms={name: counters[uuid] for name, uuid in uuids.items()})


def _observe_all(connection: Connection, names: Sequence[str]) -> list[ObservedVm]:
    found = []
    for name in names:
        try:
            found.append(_observe(connection, connection.lookupByName(name)))
        except libvirt.libvirtError as error:
            if _code(error) == libvirt.VIR_ERR_NO_DOMAIN:
                continue
            if _broken(connection, error):
                raise
            found.append(_unseen(name, error))
        except HypervisorError as error:
            found.append(_unseen(name, error))
    return found


def _unseen(name: str, error: Exception) -> ObservedVm:
    """One VM that cannot be looked at, such as one that is dying, must not hide the others."""
    return ObservedVm(name=name, uuid="", running=True, vcpus=0, memory_mib=0, pinned=frozenset(), unknown=str(error))


def _observe(connection: Connection, domain: Domain) -> ObservedVm:
    # "Active" covers every state in which a process holds CPUs: running, blocked, paused, suspended.
    running = bool(domain.isActive())
    facts = _facts(domain)
    maps: list[CpuMap] = []
    pinned: frozenset[int] = frozenset()
    uneven = False
    if running:
        try:
            maps = domain.vcpus()[1]
        except libvirt.libvirtError as error:
            if _code(error) not in _NO_AFFINITY or error.get_error_domain() == libvirt.VIR_FROM_RPC:
                raise
            running = bool(domain.isActive())
    if running:
        everywhere = frozenset(range(len(maps[0]) if maps else connection.getCPUMap()[0]))
        # No vCPU threads: starting; ending, which libvirt has yet to notice; or one thread for all
        # vCPUs. The definition says where they may be, as it does of all other threads.
        vcpus = _union(maps) or (everywhere if facts.pinned is None else facts.pinned)
        others = everywhere if facts.others_pinned is None else facts.others_pinned
        pinned = vcpus | others
        uneven = len(set(maps)) > 1 or vcpus != others
    return ObservedVm(
        name=domain.name(),
        uuid=domain.UUIDString(),
        running=running,
        vcpus=facts.vcpus,
        memory_mib=facts.memory_mib,
        pinned=pinned,
        record=facts.record,
        foreign_level=facts.foreign_level,
        uneven=uneven,
    )


def _with_threads(vms: Sequence[ObservedVm], threads: QemuThreads, *, search: bool) -> list[ObservedVm]:
    found = threads.look([vm.uuid for vm in vms if vm.running and not vm.unknown], search=search)
    return [msgspec.structs.replace(vm, threads=found[vm.uuid]) if vm.uuid in found else vm for vm in vms]


def _facts(domain: Domain) -> DomainFacts:
    try:
        return read_domain(domain.XMLDesc())
    except ValueError as error:
        raise HypervisorError(f"libvirt's description of domain '{domain.name()}' is not understood: {error}") from None


def _create_on(connection: Connection, xml: str, cpus: Collection[int]) -> None:
    # Checked first: libvirt 9.0 hangs for 40 s over an emulator pinned to a CPU that is not there.
    _cpu_map(connection, cpus)
    _create(connection, xml)


def _create(connection: Connection, xml: str) -> None:
    # Defined before it is started: libvirt forgets a running VM whose first definition it cannot write, on a full disk
    # for one (seen in 9.0), and QEMU runs on. The text has no UUID, so libvirt refuses a name that is taken.
    domain = connection.defineXML(xml)
    try:
        domain.create()
    except libvirt.libvirtError as error:
        try:
            _undefine(domain)
        except libvirt.libvirtError as second:
            if _broken(connection, second):
                raise
            raise HypervisorError(f"{error}; it does not run, but is still defined: {second}") from second
        raise


def _destroy(connection: Connection, name: str) -> None:
    domain = connection.lookupByName(name)
    persistent = domain.isPersistent()
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if _code(error) != libvirt.VIR_ERR_OPERATION_INVALID or domain.isActive():
            raise
    if persistent:
        _undefine(domain)


def _undefine(domain: Domain) -> None:
    try:
        for flags in _UNDEFINE_FLAGS:
            try:
                domain.undefineFlags(flags)
            except libvirt.libvirtError as error:
                if _code(error) not in _FLAGS_REFUSED:
                    raise
            else:
                return
        domain.undefine()
    except libvirt.libvirtError as error:
        if _code(error) != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def _pin(connection: Connection, name: str, cpus: frozenset[int], threads: QemuThreads) -> frozenset[int]:
    """What reads back right need not be so in the description, where ``_observe`` finds the threads
    that are not vCPUs; so these are pinned without asking first, and before the vCPUs.
    """
    domain = connection.lookupByName(name)
    wanted = _cpu_map(connection, cpus)
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    domain.pinEmulator(wanted, live)
    found = [domain.emulatorPinInfo(live)]
    # Asking about I/O threads goes through QEMU's monitor, where a hung QEMU never answers.
    if _facts(domain).io_threads:
        for thread, _ in domain.ioThreadInfo(live):
            domain.pinIOThread(thread, wanted, live)
        found += [tuple(current) for _, current in domain.ioThreadInfo(live)]
    _, maps = domain.vcpus()
    changed = False
    for index, current in enumerate(maps):
        if current != wanted:
            domain.pinVcpu(index, wanted)
            changed = True
    threads.confine(domain.UUIDString(), cpus)
    return _union([*found, *(domain.vcpus()[1] if changed else maps)])


def _write_record(connection: Connection, name: str, record: Record) -> None:
    domain = connection.lookupByName(name)
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, record_text(record), PREFIX, NAMESPACE, flags)


def _cpu_map(connection: Connection, cpus: Collection[int]) -> CpuMap:
    """Raises HypervisorError unless the host has all of these; whether they are online libvirt must say.

    libvirt-python cuts off those that the host does not have, without a word.
    """
    size = connection.getCPUMap()[0]
    if not cpus or max(cpus) >= size:
        shown = format_cpu_list(sorted(cpus))
        raise HypervisorError(f"cannot pin to CPUs [{shown}]: the host has 0-{size - 1}")
    return tuple(cpu in cpus for cpu in range(size))


def _union(maps: Iterable[CpuMap]) -> frozenset[int]:
    return frozenset(cpu for allowed in set(maps) for cpu, is_allowed in enumerate(allowed) if is_allowed)


def _code(error: BaseException | None) -> int | None:
    return cast("int | None", error.get_error_code()) if isinstance(error, libvirt.libvirtError) else None


def _broken(connection: Connection, error: libvirt.libvirtError) -> bool:
    """Whether the link is to blame for this error."""
    if _code(error) in _DEAD_LINK or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return True
    return not _alive(connection)


def _alive(connection: Connection) -> bool:
    try:
        return connection.isAlive() == 1
    except libvirt.libvirtError:
        return False


def _cgroup_weights() -> tuple[int, int]:
    """The default weight of a cgroup, and the highest: libvirt passes shares on as they are."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return (100, 10000) if unified else (1024, 262144)


def _direct_io(image: str) -> bool:
    """Whether the image's file system takes O_DIRECT; true where it cannot be told."""
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


_started = threading.Lock()


def start_event_loop() -> None:
    """Run libvirt's own event loop, in a daemon thread, once per process and before the first connection."""
    if not _started.acquire(blocking=False):
        return
    libvirt.registerErrorHandler(_ignore, None)  # the default one prints what is raised anyway
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_event_loop, name="libvirt-loop", daemon=True).start()


def _run_event_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop")
            time.sleep(1)


def _ignore(*_args: object) -> None:
    pass
