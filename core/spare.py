"""How many more VMs a cluster takes: as it is, and with hosts lost whose VMs have found a place on the others.

Nothing is promised that was not reached step by step: each figure is of hosts that took one VM after the other by the
rules of ``core.admission``. With more skill more may fit.

VMs of a lost host are placed again in this way: the largest first, in shares of the cluster's CPUs and memory; each on
the first host that takes it and had room for such a VM before, the fullest hosts first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from core.admission import copies_on, with_vm
from core.status import HostStatus

TRIED = 128
"""Hosts of which each is tried as the lost one. In a larger cluster they are the heaviest by size and load."""

Size = tuple[int, int, int]
"""Level, vCPUs (1 or more), MiB (1 or more)."""
Vms = tuple[int, int, int, int]
"""VMs that are alike: level, vCPUs, MiB, and how many there are."""


class SpareHost(msgspec.Struct, frozen=True, gc=False):
    """A host with the VMs on it. open: whether it takes new ones. vms: None if they are not known (``presumed``)."""

    status: HostStatus
    open: bool
    vms: tuple[Vms, ...] | None


class Fit(msgspec.Struct, frozen=True, gc=False):
    """How many VMs of a size fit, if no others come.

    by_cpu, by_memory: what would fit now if the other of both were without end. after: what fits in the worst case of
    loss, never more than now; None if no loss was asked for. worst: the hosts lost in that case.
    """

    level: int
    vcpus: int
    memory_mib: int
    now: int
    by_cpu: int
    by_memory: int
    after: int | None
    worst: tuple[int, ...]

    @property
    def short(self) -> Literal["cpu", "memory"]:
        """What more of would let more such VMs fit now."""
        return "memory" if self.by_memory < self.by_cpu else "cpu"


class Uncovered(msgspec.Struct, frozen=True, gc=False):
    """A loss after which so many VMs are without a place."""

    hosts: tuple[int, ...]
    vms: int


class Spare(msgspec.Struct, frozen=True):
    """Hosts by their place among those that were given.

    fits: as they were asked for. lost: the losses that were tried, each of the hosts that are lost together.
    uncovered: those of them after which not all VMs have a place; then no further VM counts as covered. presumed:
    lost hosts whose VMs were not known.
    """

    fits: tuple[Fit, ...]
    lost: tuple[tuple[int, ...], ...]
    uncovered: tuple[Uncovered, ...]
    presumed: tuple[int, ...]


def spare(hosts: Sequence[SpareHost], wanted: Sequence[Size], lost: int = 1) -> Spare:
    """What fits in all and after a loss.

    lost: how many hosts at once. One: whichever it is, see TRIED; more: the heaviest of all.
    """
    cluster = _Cluster(hosts)
    counts = [_counted(hosts, size) for size in wanted]
    losses = cluster.losses(lost)
    afters = [fits.now for fits in counts]
    worst: list[tuple[int, ...]] = [()] * len(wanted)
    uncovered: list[Uncovered] = []
    for gone in losses:
        changed, homeless = cluster.after(gone)
        if homeless:
            uncovered.append(Uncovered(gone, homeless))
        for place, size in enumerate(wanted):
            left = 0 if homeless else counts[place].after(size, gone, changed)
            if left < afters[place] or not worst[place]:
                afters[place], worst[place] = min(left, afters[place]), gone
    return Spare(
        fits=tuple(
            [
                Fit(*size, found.now, found.by_cpu, found.by_memory, after if losses else None, gone)
                for size, found, after, gone in zip(wanted, counts, afters, worst, strict=True)
            ]
        ),
        lost=losses,
        uncovered=tuple(uncovered),
        presumed=tuple(sorted({host for gone in losses for host in gone if hosts[host].vms is None})),
    )


def presumed(status: HostStatus) -> tuple[Vms, ...]:
    """VMs that a host with these figures may have.

    In each level one is as wide as its widest (if that is known), the others share its vCPUs as evenly as they can;
    memory is in proportion to vCPUs, rounded up.
    """
    sold = sum([found.vcpus for found in status.levels])
    vms: list[Vms] = []
    for found in status.levels:
        widths = {found.widest: 1} if found.widest else {}
        others = found.vms - len(widths)
        if others > 0:
            each, wider = divmod(found.vcpus - found.widest, others)
            for vcpus, count in ((each + 1, wider), (each, others - wider)):
                if count:
                    widths[vcpus] = widths.get(vcpus, 0) + count
        for vcpus, count in widths.items():
            vms.append((found.level, vcpus, -(-status.allocated_mib * vcpus // sold), count))
    return tuple(vms)


class _Counted:
    """How many VMs of a size fit on each host, 0 on those that are closed, and in all."""

    def __init__(self, copies: list[int], by_cpu: int, by_memory: int) -> None:
        self.copies = copies
        self.now = sum(copies)
        self.by_cpu = by_cpu
        self.by_memory = by_memory

    def after(self, size: Size, gone: tuple[int, ...], changed: dict[int, HostStatus]) -> int:
        """How many fit when some hosts are gone and others have changed."""
        left = self.now
        for host in gone:
            left -= self.copies[host]
        for host, status in changed.items():
            left += copies_on(status, *size) - self.copies[host]
        return left


def _counted(hosts: Sequence[SpareHost], size: Size) -> _Counted:
    level, vcpus, memory_mib = size
    copies: list[int] = []
    all_by_cpu = all_by_memory = 0
    for host in hosts:
        if not host.open:
            copies.append(0)
            continue
        by_cpu = copies_on(host.status, level, vcpus, 0)
        by_memory = host.status.free_mib // memory_mib
        all_by_cpu += by_cpu
        all_by_memory += by_memory
        copies.append(min(by_cpu, by_memory))
    return _Counted(copies, all_by_cpu, all_by_memory)


def _power(number: int) -> int:
    """The largest power of two that is not above it; 0 for 0."""
    return 1 << number.bit_length() >> 1


class _Cluster:
    """Hosts, ready to lose some of them."""

    def __init__(self, hosts: Sequence[SpareHost]) -> None:
        self._hosts = hosts
        self._cpus = sum([host.status.cpus for host in hosts])
        self._mib = max(1, sum([host.status.memory_mib for host in hosts]))
        room = [(self._share(host.status.free_cpus, host.status.free_mib), place) for place, host in enumerate(hosts)]
        self._order = [place for _, place in sorted(room) if hosts[place].open]
        self._takers: dict[Size, _Takers] = {}

    def losses(self, lost: int) -> tuple[tuple[int, ...], ...]:
        """Which hosts to lose together, in each case to be tried."""
        weights = [
            (-self._share(2 * one.cpus - one.free_cpus, one.memory_mib + one.allocated_mib), place)
            for place, one in enumerate([host.status for host in self._hosts])
        ]
        heaviest = [place for _, place in sorted(weights)]
        if not heaviest or not lost:
            return ()
        if lost == 1:
            return tuple([(host,) for host in sorted(heaviest[:TRIED])])
        return (tuple(sorted(heaviest[:lost])),)

    def after(self, gone: tuple[int, ...]) -> tuple[dict[int, HostStatus], int]:
        """The hosts on which VMs of lost ones are placed, as they are then; and how many VMs find no place."""
        counts: dict[Size, int] = {}
        for place in gone:
            host = self._hosts[place]
            for level, vcpus, memory_mib, count in presumed(host.status) if host.vms is None else host.vms:
                size = (level, vcpus, memory_mib)
                counts[size] = counts.get(size, 0) + count
        largest = sorted([(-self._share(size[1], size[2]), size) for size in counts])
        changed: dict[int, HostStatus] = {}
        homeless, lost = 0, frozenset(gone)
        for _, size in largest:
            homeless += self._place(size, counts[size], lost, changed)
        return changed, homeless

    def _place(self, size: Size, count: int, lost: frozenset[int], changed: dict[int, HostStatus]) -> int:
        """How many of these VMs find no place."""
        for host in self._takers_of(size).walk():
            if host in lost:
                continue
            status = changed.get(host, self._hosts[host].status)
            taken = min(count, copies_on(status, *size))
            for _ in range(taken):
                status = with_vm(status, *size)
            if taken:
                changed[host] = status
                count -= taken
                if not count:
                    break
        return count

    def _takers_of(self, size: Size) -> _Takers:
        found = self._takers.get(size)
        if found is None:
            # Whoever refuses a smaller VM refuses this one. There are few sizes that are powers of two.
            level, vcpus, memory_mib = size
            smaller = (level, _power(vcpus), _power(memory_mib))
            among = iter(self._order) if smaller == size else self._takers_of(smaller).walk()
            found = self._takers[size] = _Takers(self._hosts, among, size)
        return found

    def _share(self, cpus: int, mib: int) -> int:
        """Of the cluster's CPUs and of its memory, added, in parts that suit."""
        return cpus * self._mib + mib * self._cpus


class _Takers:
    """The hosts that take a VM of a size, looked for only as far as somebody walks: most often the first will do."""

    def __init__(self, hosts: Sequence[SpareHost], among: Iterator[int], size: Size) -> None:
        """among: those that may, in the order of walking."""
        self._hosts = hosts
        self._among = among
        self._size = size
        self._found: list[int] = []

    def walk(self) -> Iterator[int]:
        """In order."""
        place = 0
        while place < len(self._found) or self._look():
            yield self._found[place]
            place += 1

    def _look(self) -> bool:
        """Whether there is another one."""
        for host in self._among:
            if copies_on(self._hosts[host].status, *self._size):
                self._found.append(host)
                return True
        return False
