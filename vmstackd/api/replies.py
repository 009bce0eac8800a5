"""What operations answer. Readers ignore fields they do not know."""

from __future__ import annotations

import msgspec

from core.demand import Lesson
from core.status import HostStatus
from core.usage import HostUsage, VmUsage


class Deployed(msgspec.Struct, frozen=True):
    """The VM runs on the CPUs of its subset, in attribution order; with dry_run it would.

    generation: of the decision; a status of the same host with this one or a higher tells of the VM too.
    host: where it is, if a cluster was asked, and score: what made this host the best one (larger is better).
    """

    name: str
    level: int
    cpus: tuple[int, ...]
    dry_run: bool = False
    generation: int = 0
    host: str = ""
    score: float | None = None


class Removed(msgspec.Struct, frozen=True):
    """The VM is gone; released: the CPUs that its subset gave up, now free.

    host: where it was, if a cluster was asked.
    """

    name: str
    released: tuple[int, ...]
    dry_run: bool = False
    generation: int = 0
    host: str = ""


class CordonReply(msgspec.Struct, frozen=True):
    """Whether a host has no new VMs, and why in its operator's words. host: which, if a cluster was asked."""

    cordoned: bool
    reason: str
    host: str = ""


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it was decided.

    kind: one of vmstackd.host.DRIFT, or "unchecked": a host of a cluster that did not answer. vm: empty where it is
    about the host. text: what was found, and what to do about it if it has not been repaired; at most MOST_TEXT
    characters. host: which, if a cluster was asked.
    """

    kind: str
    vm: str
    text: str
    repaired: bool
    host: str = ""


MOST_FINDINGS, MOST_TEXT = 1000, 500
"""In one answer, which has its limit of bytes."""


class CheckReply(msgspec.Struct, frozen=True):
    """What a comparison has found, that which is not repaired first; at most MOST_FINDINGS.

    vms: how many were compared. hidden: of these, the running ones whose threads could not be looked at. busy: VMs that
    were left alone, because they were being changed. left_out: findings that are too many for one answer. hosts: how
    many of a cluster were compared; 0 where a host answers.
    """

    findings: tuple[Finding, ...]
    vms: int
    hidden: int = 0
    busy: int = 0
    left_out: int = 0
    dry_run: bool = False
    hosts: int = 0


class HostProgress(msgspec.Struct, frozen=True):
    """Of one host of a cluster. progress: None where the VM does not fit, for this reason."""

    host: str
    progress: float | None
    reason: str = ""


class ProgressReply(msgspec.Struct, frozen=True):
    """MiB per CPU, larger is better. Of a cluster: the best one, of host, and of every host."""

    progress: float
    host: str = ""
    hosts: tuple[HostProgress, ...] = ()


class UnplacedVm(msgspec.Struct, frozen=True):
    """A running VM that fits into no subset, and why. Its CPUs are held where they were free."""

    name: str
    reason: str
    cpus: tuple[int, ...]
    memory_mib: int


class StatusReply(msgspec.Struct, frozen=True):
    """See core.status. hypervisor: "up", or "down" while changes are refused. degraded: in words, what
    is not as it should be; empty on a healthy host. cordoned: it gets no new VMs, for this reason.
    starting: names of VMs that are decided and not yet running; host counts them already.
    usage: what the host and its levels really did of late; None where that is not measured, or of a cluster.
    """

    host: HostStatus
    hypervisor: str
    unplaced: tuple[UnplacedVm, ...]
    stopped: tuple[str, ...]
    degraded: tuple[str, ...]
    cordoned: bool = False
    cordon_reason: str = ""
    starting: tuple[str, ...] = ()
    usage: HostUsage | None = None

    @property
    def state(self) -> tuple[str, str]:
        """One of HOST_STATES, as a host that answers says itself, and why it is not up."""
        if self.hypervisor != "up":
            return HYPERVISOR_DOWN, "; ".join(self.degraded[:10])
        if self.cordoned:
            return CORDONED, self.cordon_reason
        return UP, ""


class VmReply(msgspec.Struct, frozen=True):
    """One VM. cpus: its subset, in attribution order; pinned: as last read back, ascending.
    state: "starting", "running" or "removing". host: where it is, if a cluster was asked.
    usage: what it really did of late; None where that is not known.
    """

    name: str
    vcpus: int
    memory_mib: int
    level: int
    cpus: tuple[int, ...]
    pinned: tuple[int, ...]
    state: str
    image: str
    host: str = ""
    usage: VmUsage | None = None


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


UP, CORDONED, HYPERVISOR_DOWN = "up", "cordoned", "hypervisor-down"
CONNECTING, SILENT, QUARANTINED = "connecting", "unknown", "quarantined"
HOST_STATES = (UP, CORDONED, HYPERVISOR_DOWN, CONNECTING, SILENT, QUARANTINED)
"""Of a host of a cluster."""


def closed(state: str) -> str:
    """Why a host in this state can have no new VM, as ``core.inventory`` counts it; empty if it can."""
    return {UP: "", CONNECTING: SILENT}.get(state, state)


class HostReply(msgspec.Struct, frozen=True):
    """One host of a cluster. name: as it calls itself, or its address until it has said so.

    state: one of HOST_STATES, "unknown" if it is silent, and what it last told stands here; reason: why it is not up.
    since: seconds since 1970. age: seconds since it last told anything; None if it never has. status: None until it
    has told. source: "static", or the file that names it.
    """

    name: str
    address: str
    uuid: str
    state: str
    reason: str
    since: float
    age: float | None
    source: str
    version: str = ""
    status: HostStatus | None = None


class DuplicateVm(msgspec.Struct, frozen=True):
    """One name on several hosts. It is for an operator to say which of them is to go."""

    name: str
    hosts: tuple[str, ...]


class HostsReply(msgspec.Struct, frozen=True):
    """In host order. following: the first of those that did not fit into this answer; None if these are the last.

    problems: with what names the hosts, in words.
    """

    hosts: tuple[HostReply, ...]
    duplicates: tuple[DuplicateVm, ...] = ()
    problems: tuple[str, ...] = ()
    following: int | None = None


class DemandReply(msgspec.Struct, frozen=True):
    """policy: a key of core.host_policy.HOST_POLICIES. lesson: of all shapes that are known, the most frequent ones."""

    policy: str
    lesson: Lesson


class HostListed(msgspec.Struct, frozen=True):
    """A host was made part of the cluster, or taken out of it (listed: False). vms: that were known on it."""

    address: str
    name: str
    listed: bool
    vms: int = 0


Reply = (
    Deployed
    | Removed
    | CordonReply
    | CheckReply
    | ProgressReply
    | StatusReply
    | ListReply
    | VmReply
    | TopologyReply
    | HostsReply
    | DemandReply
    | HostListed
)
