"""Prometheus metrics of a cluster: what its hosts have told, as of the moment of the scrape.

A cluster may have 10,000 hosts, and then 300,000 series. Their lines are written here directly: the library's values
for samples and families would take ten times as long, and everything else waits meanwhile.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import Counter

from core.level import UNIT, format_level
from core.status import HostStatus, LevelStatus
from vmstackd.api.replies import HostReply, HostsReply
from vmstackd.daemon.metrics import CONTENT_TYPE, MIB, DaemonMetrics

__all__ = ["CONTENT_TYPE", "STATES", "ClusterMetrics"]

STATES = ("connecting", "up", "cordoned", "unknown", "hypervisor-down", "quarantined")
"""Of a host; see HostReply."""
_WORKING = frozenset({"up", "cordoned"})
_REASONS = ("cpu", "memory", *(state for state in STATES if state not in {"connecting", "up"}), "refused", "hosts")
"""refused: the hosts that were asked said no. hosts: there are none."""

_OF_A_HOST: tuple[tuple[str, str, Callable[[HostStatus], int]], ...] = (
    ("vmstack_host_cpus", "CPUs that VMs may use.", lambda host: host.cpus),
    ("vmstack_host_free_cpus", "CPUs that no level owns.", lambda host: host.free_cpus),
    ("vmstack_host_held_cpus", "CPUs kept back because something may run there.", lambda host: host.held_cpus),
    ("vmstack_host_memory_bytes", "Memory that VMs may use.", lambda host: host.memory_mib * MIB),
    ("vmstack_host_memory_allocated_bytes", "Memory sold to VMs.", lambda host: host.allocated_mib * MIB),
    ("vmstack_host_memory_free_bytes", "Memory that a new VM may take.", lambda host: host.free_mib * MIB),
    ("vmstack_host_vms", "VMs of all levels.", lambda host: host.vms),
)
_OF_A_LEVEL: tuple[tuple[str, str, Callable[[LevelStatus], float]], ...] = (
    ("vmstack_host_level_cpus", "CPUs that a level owns.", lambda level: level.cpus),
    ("vmstack_host_level_needed_cpus", "CPUs that its VMs need.", lambda level: level.needed),
    ("vmstack_host_level_vcpus", "vCPUs sold at a level.", lambda level: level.vcpus),
    ("vmstack_host_level_vms", "VMs of a level.", lambda level: level.vms),
    ("vmstack_host_level_ratio", "vCPUs that a CPU may serve now.", lambda level: level.ratio / UNIT),
    ("vmstack_host_level_degraded", "Whether CPUs are owed.", lambda level: int(level.degraded)),
)


class ClusterMetrics(DaemonMetrics):
    """All metrics of one globald."""

    def __init__(self, certificate: Callable[[], float | None] = lambda: None) -> None:
        """certificate: as for DaemonMetrics."""
        super().__init__(_REASONS, certificate)
        self._source: Callable[[], HostsReply] = lambda: HostsReply(hosts=())
        self._retries = Counter(
            "vmstack_deploy_retries",
            "Times that a VM was offered to another host, because the one before refused it.",
            registry=self.registry,
        )

    def watch(self, source: Callable[[], HostsReply]) -> None:
        """Take the figures of the hosts from here at each scrape."""
        self._source = source

    def retries(self, count: int = 1) -> None:
        """A host has refused a VM that was chosen for it, and the next one is asked; so many times."""
        self._retries.inc(count)

    def text(self) -> bytes:
        reply = self._source()
        # By name, because two series of one name would make Prometheus refuse them all.
        hosts = {_escaped(host.name): host for host in reply.hosts}
        return b"".join((super().text(), *map(str.encode, (*_of_the_cluster(reply), *_of_hosts(hosts)))))


def _of_the_cluster(reply: HostsReply) -> Iterable[str]:
    states = Tally(host.state for host in reply.hosts)
    yield _family("vmstack_hosts", "Hosts by state.", [f'{{state="{state}"}} {states[state]}' for state in STATES])
    problems = "Files of hosts that are wrong, or name one twice; vmstackctl hosts tells what."
    yield _family("vmstack_hosts_file_problems", problems, [f" {len(reply.problems)}"])
    yield _family("vmstack_duplicate_vms", "Names of VMs that are on several hosts.", [f" {len(reply.duplicates)}"])


def _of_hosts(hosts: Mapping[str, HostReply]) -> Iterable[str]:
    yield _family(
        "vmstack_host_info",
        "The address of a host and its state; vmstackctl hosts tells the reason.",
        [
            f'{{host="{name}",address="{_escaped(host.address)}",state="{_escaped(host.state)}"}} 1'
            for name, host in hosts.items()
        ],
    )
    yield _family(
        "vmstack_host_up",
        "Whether it answers and its VMs can be managed.",
        [f'{{host="{name}"}} {int(host.state in _WORKING)}' for name, host in hosts.items()],
    )
    yield _family(
        "vmstack_host_inventory_age_seconds",
        "Time since it last told anything.",
        [f'{{host="{name}"}} {host.age:.3f}' for name, host in hosts.items() if host.age is not None],
    )
    told = [(f'{{host="{name}"', host.status) for name, host in hosts.items() if host.status is not None]
    for family, text, of_host in _OF_A_HOST:
        yield _family(family, text, [f"{labels}}} {of_host(status)}" for labels, status in told])
    levels = [
        (f'{labels},level="{format_level(level.level)}"}}', level) for labels, status in told for level in status.levels
    ]
    for family, text, of_level in _OF_A_LEVEL:
        yield _family(family, text, [f"{labels} {of_level(level)}" for labels, level in levels])


def _family(name: str, text: str, samples: Sequence[str]) -> str:
    lines = "".join([f"{name}{sample}\n" for sample in samples])
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{lines}"


def _escaped(label: str) -> str:
    """Hosts choose their names themselves."""
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
