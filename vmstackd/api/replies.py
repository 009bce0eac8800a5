"""What operations answer. Readers ignore fields they do not know."""

from __future__ import annotations

import msgspec

from core.status import HostStatus


class Deployed(msgspec.Struct, frozen=True):
    """The VM runs on the CPUs of its subset, in attribution order; with dry_run it would."""

    name: str
    level: int
    cpus: tuple[int, ...]
    dry_run: bool = False


class Removed(msgspec.Struct, frozen=True):
    """The VM is gone; released: the CPUs that its subset gave up, now free."""

    name: str
    released: tuple[int, ...]
    dry_run: bool = False


class ProgressReply(msgspec.Struct, frozen=True):
    """MiB per CPU, larger is better."""

    progress: float


class UnplacedVm(msgspec.Struct, frozen=True):
    """A running VM that fits into no subset, and why. Its CPUs are held where they were free."""

    name: str
    reason: str
    cpus: tuple[int, ...]
    memory_mib: int


class StatusReply(msgspec.Struct, frozen=True):
    """See core.status. hypervisor: "up", or "down" while changes are refused. degraded: in words, what
    is not as it should be; empty on a healthy host.
    """

    host: HostStatus
    hypervisor: str
    unplaced: tuple[UnplacedVm, ...]
    stopped: tuple[str, ...]
    degraded: tuple[str, ...]


class VmReply(msgspec.Struct, frozen=True):
    """One VM. cpus: its subset, in attribution order; pinned: as last read back, ascending.
    state: "starting", "running" or "removing".
    """

    name: str
    vcpus: int
    memory_mib: int
    level: int
    cpus: tuple[int, ...]
    pinned: tuple[int, ...]
    state: str
    image: str


class ListReply(msgspec.Struct, frozen=True):
    """VMs by level in order of creation, each level in order of arrival."""

    vms: tuple[VmReply, ...]


class CpuReply(msgspec.Struct, frozen=True):
    """One usable CPU. use: "free", "held" or the level that owns it, as "1.5"."""

    id: int
    package: int
    node: int
    core: int
    caches: tuple[int, ...]
    use: str


class TopologyReply(msgspec.Struct, frozen=True):
    """The usable CPUs in list order."""

    name: str
    host_cpus: int
    cache_names: tuple[str, ...]
    nodes: tuple[int, ...]
    node_distances: tuple[tuple[int, ...], ...]
    memory_mib: int
    cpus: tuple[CpuReply, ...]


Reply = Deployed | Removed | ProgressReply | StatusReply | ListReply | VmReply | TopologyReply
