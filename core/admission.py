"""What a host would decide about a VM, from its figures alone.

Every answer is that of ``core.capacity`` and ``core.allocator`` on the state which the figures are of, so that
somebody far away from a host neither sends it a VM that it refuses nor passes it over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from core.capacity import cpus_needed
from core.level import HIGHEST, LOWEST, UNIT, format_level
from core.status import HostStatus, LevelStatus, level_status

MAX_CPUS = 1 << 20
MAX_VCPUS = 1 << 30
MAX_MEMORY_MIB = 1 << 40
MAX_CRITICAL_SIZE = 1 << 30
MAX_GENERATION = 1 << 62
"""Beyond these a figure of a host is called absurd."""


def refusal_on(status: HostStatus, level: int, vcpus: int, memory_mib: int) -> Literal["cpu", "memory"] | None:
    """What is short for a VM of this size, CPU before memory; None if the host takes it."""
    if growth_on(status, level, vcpus) > status.free_cpus:
        return "cpu"
    if memory_mib > status.free_mib:
        return "memory"
    return None


def growth_on(status: HostStatus, level: int, vcpus: int) -> int:
    """CPUs that the level must gain for one more VM of so many vCPUs; never negative."""
    for found in status.levels:
        if found.level == level:
            ratio = _ratio(status, level, found.vms + 1)
            return max(0, cpus_needed(ratio, found.vcpus + vcpus, max(found.widest, vcpus)) - found.cpus)
    return vcpus


def copies_on(status: HostStatus, level: int, vcpus: int, memory_mib: int) -> int:
    """How many VMs of this size, one after the other, the host would take; without limit of memory for memory_mib 0."""
    reach, sold, vms, widest = status.free_cpus, 0, 0, 0
    for found in status.levels:
        if found.level == level:
            reach, sold, vms, widest = reach + found.cpus, found.vcpus, found.vms, found.widest
    if reach < max(vcpus, widest):
        return 0
    copies = max(0, (reach * level // UNIT - sold) // vcpus)
    at_one = _critical(status, level) - 1 - vms  # VMs that the level still gets without being oversubscribed
    if at_one > 0:
        early = max(0, (reach - sold) // vcpus)
        if early < at_one:
            copies = early
    return min(copies, status.free_mib // memory_mib) if memory_mib else copies


def progress_on(status: HostStatus, level: int, vcpus: int, memory_mib: int) -> float:
    """How much a VM would bring the host's memory per CPU nearer to the hardware's, as ``core.allocator.progress``."""
    used = 0
    for found in status.levels:
        used += found.cpus
    optimal = status.memory_mib / status.cpus
    current = status.allocated_mib / used if used else optimal
    after = (status.allocated_mib + memory_mib) / (used + growth_on(status, level, vcpus))
    gain = abs(current - optimal) - abs(after - optimal)
    return gain * (1 + used / status.cpus) if gain < 0 else gain


def with_vm(status: HostStatus, level: int, vcpus: int, memory_mib: int) -> HostStatus:
    """The status that the host will report once it has deployed such a VM; its generation stays.

    That the VM fits is the caller's to ensure.
    """
    taken = growth_on(status, level, vcpus)
    free = status.free_cpus - taken
    levels: list[LevelStatus] = []
    present = False
    for found in status.levels:
        if found.level == level:
            present = True
            levels.append(
                _level(
                    status,
                    level,
                    cpus=found.cpus + taken,
                    vcpus=found.vcpus + vcpus,
                    vms=found.vms + 1,
                    widest=max(found.widest, vcpus),
                    free_cpus=free,
                )
            )
        elif taken:
            levels.append(
                _level(
                    status,
                    found.level,
                    cpus=found.cpus,
                    vcpus=found.vcpus,
                    vms=found.vms,
                    widest=found.widest,
                    free_cpus=free,
                )
            )
        else:
            levels.append(found)
    if not present:
        levels.append(_level(status, level, cpus=taken, vcpus=vcpus, vms=1, widest=vcpus, free_cpus=free))
    return HostStatus(
        cpus=status.cpus,
        free_cpus=free,
        held_cpus=status.held_cpus,
        memory_mib=status.memory_mib,
        allocated_mib=status.allocated_mib + memory_mib,
        free_mib=status.free_mib - memory_mib,
        vms=status.vms + 1,
        generation=status.generation,
        levels=tuple(levels),
        critical_size=status.critical_size,
        critical_sizes=status.critical_sizes,
    )


def fault(status: HostStatus) -> str:
    """Why no host can have these figures; empty if one may.

    Debts, held CPUs and more memory in use than there is are true of hosts that were found so.
    """
    return next(_faults(status), "")


def _critical(status: HostStatus, level: int) -> int:
    for exception, size in status.critical_sizes:
        if exception == level:
            return size
    return status.critical_size


def _ratio(status: HostStatus, level: int, vm_count: int) -> int:
    return level if vm_count >= _critical(status, level) else UNIT


def _level(
    status: HostStatus, level: int, *, cpus: int, vcpus: int, vms: int, widest: int, free_cpus: int
) -> LevelStatus:
    return level_status(
        level=level,
        ratio=_ratio(status, level, vms),
        following=_ratio(status, level, vms + 1),
        cpus=cpus,
        vcpus=vcpus,
        vms=vms,
        widest=widest,
        free_cpus=free_cpus,
    )


def _faults(status: HostStatus) -> Iterator[str]:
    yield from _absurd(
        "host",
        (
            ("cpus", status.cpus, 1, MAX_CPUS),
            ("free_cpus", status.free_cpus, 0, MAX_CPUS),
            ("held_cpus", status.held_cpus, 0, MAX_CPUS),
            ("memory_mib", status.memory_mib, 0, MAX_MEMORY_MIB),
            ("allocated_mib", status.allocated_mib, 0, MAX_MEMORY_MIB),
            ("free_mib", status.free_mib, 0, MAX_MEMORY_MIB),
            ("vms", status.vms, 0, MAX_VCPUS),
            ("generation", status.generation, 0, MAX_GENERATION),
            ("critical_size", status.critical_size, 0, MAX_CRITICAL_SIZE),
        ),
    )
    for found in status.levels:
        yield from _level_faults(found)
    levels = [found.level for found in status.levels]
    if len(set(levels)) != len(levels):
        yield "a level is there twice"
    owned = sum([found.cpus for found in status.levels])
    if status.free_cpus + status.held_cpus + owned != status.cpus:
        yield f"{status.free_cpus} free, {status.held_cpus} held and {owned} owned CPUs are not {status.cpus}"
    if status.free_mib > max(0, status.memory_mib - status.allocated_mib):
        yield f"{status.free_mib} MiB are free of {status.memory_mib}, with {status.allocated_mib} allocated"
    vms = sum([found.vms for found in status.levels])
    if vms != status.vms:
        yield f"{status.vms} VMs, but {vms} in its levels"
    before = 0
    for level, size in status.critical_sizes:
        if not LOWEST <= level <= HIGHEST or level <= before or not 0 <= size <= MAX_CRITICAL_SIZE:
            yield f"critical size {size} for level {level}"
        before = level


def _level_faults(found: LevelStatus) -> Iterator[str]:
    if not LOWEST <= found.level <= HIGHEST:
        yield f"{found.level} thousandths are no level"
    name = f"level {format_level(found.level)}"
    yield from _absurd(
        name,
        (
            ("cpus", found.cpus, 1, MAX_CPUS),
            ("vms", found.vms, 1, MAX_VCPUS),
            ("vcpus", found.vcpus, found.vms, MAX_VCPUS),
            ("needed", found.needed, 1, MAX_VCPUS),
            ("potential_thousandths", found.potential_thousandths, 0, MAX_CPUS * HIGHEST),
            ("available_thousandths", found.available_thousandths, -MAX_VCPUS * UNIT, MAX_CPUS * HIGHEST),
        ),
    )
    if found.ratio not in {found.level, UNIT}:
        yield f"{name}: serves at ratio {found.ratio}"
    if found.widest and not found.widest <= found.vcpus - (found.vms - 1) <= found.vcpus <= found.widest * found.vms:
        yield f"{name}: {found.vms} VMs with {found.vcpus} vCPUs, the widest with {found.widest}"


def _absurd(name: str, figures: tuple[tuple[str, int, int, int], ...]) -> Iterator[str]:
    for figure, value, least, most in figures:
        if not least <= value <= most:
            yield f"{name}: {figure} is {value}"
