"""The servers that one workload needs, found by ``core.sizing``, and the figures to be shown of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from core.cluster_use import ClusterUse, cluster_use
from core.course import Course, by_level
from core.host_policy import HOST_POLICIES
from core.packing import PAPER_LEVELS
from core.sizing import dedicated, lower_bound, servers_of, smallest
from core.workload import Accounting, Workload
from vmstackctl.plan.mix import relevel
from vmstackctl.plan.question import Question, told
from vmstackctl.plan.source import WorkloadError, capped, read_workload, without_too_large
from vmstackctl.values import count, number, ratio

Tell = Callable[[str], None]
"""Takes what is being done, in words."""

OF_DEDICATED = "first-fit"
"""The policy of dedicated clusters, as in the published experiment."""


class Level(msgspec.Struct, frozen=True):
    """The VMs of a level. dedicated: what they use of a cluster for them alone; None if there are too few servers."""

    level: int
    vms: int
    dedicated: ClusterUse | None


class Shared(msgspec.Struct, frozen=True):
    """One cluster for all levels under a policy. use: None if there are too few servers."""

    policy: str
    use: ClusterUse | None


class Sized(msgspec.Struct, frozen=True):
    """A workload and its servers. lower_bound: None if all servers are too few. levels: ascending. given: as it was
    read, where more is to be found of it.
    """

    workload: str
    vms: int
    lower_bound: int | None
    levels: tuple[Level, ...]
    shared: tuple[Shared, ...]
    notes: tuple[str, ...]
    given: Workload | None = None

    @property
    def dedicated(self) -> int | None:
        """Servers of the dedicated clusters in all; None if there are too few."""
        uses = [level.dedicated for level in self.levels]
        return None if None in uses else sum(use.servers for use in uses if use is not None)


class Figures(msgspec.Struct, frozen=True):
    """Of a cluster. cpus, memory_mib: of all servers; unused at its peak, when most is sold: peak_s, in the workload's
    own time, when there are peak_vms. saturated: of which the larger share is used then.
    """

    servers: int
    cpus: int
    memory_mib: int
    peak_s: float
    peak_vms: int
    unused_cpus: int
    unused_mib: int
    saturated: Literal["cpu", "memory"]


class LevelRow(msgspec.Struct, frozen=True):
    """The VMs of a level, and their cluster if they have one of their own. None: there are too few servers."""

    level: int
    vms: int
    dedicated: Figures | None


class Row(msgspec.Struct, frozen=True):
    """What a plan tells of one workload and policy. None: there are too few servers.

    saved_percent: servers, against dedicated clusters with first fit. gap_percent: servers above the lower bound.
    """

    workload: str
    policy: str
    servers: int | None
    dedicated: int | None
    lower_bound: int | None
    saved_percent: float | None
    gap_percent: float | None
    accounting: Accounting
    critical_size: int
    vms: int
    shared: Figures | None
    levels: tuple[LevelRow, ...]
    notes: tuple[str, ...]


def size(path: Path, question: Question, tell: Tell) -> Sized:
    """Read a workload and find its servers. Raises WorkloadError."""
    return size_of(path, read_workload(path), question, tell)


def size_of(path: Path, given: Workload, question: Question, tell: Tell) -> Sized:
    """Find the servers of a workload. path: where it was read from. Raises WorkloadError."""
    workload = _asked_for(path, given, question)
    course, levels = Course(workload.vms), by_level(workload.vms)

    def trying(what: str) -> Callable[[int], None]:
        return lambda servers: tell(f"{path.name}: {what}, {count(servers, 'server')}")

    apart = dedicated(
        levels,
        question.kinds,
        HOST_POLICIES[OF_DEDICATED],
        critical_size=question.critical_size,
        accounting=question.accounting,
        tried=trying("dedicated clusters"),
    )
    uses = {cluster.level: cluster.use for cluster in apart}
    return Sized(
        workload=path.name,
        vms=len(workload.vms),
        lower_bound=lower_bound(course, question.kinds, question.accounting),
        levels=tuple(Level(level, len(alone.vms), uses[level]) for level, alone in levels.items()),
        shared=tuple(Shared(name, _shared(course, name, question, trying(name))) for name in question.policies),
        notes=workload.notes,
        given=given,
    )


def _shared(course: Course, name: str, question: Question, tried: Callable[[int], None]) -> ClusterUse | None:
    policy, critical_size, accounting = HOST_POLICIES[name], question.critical_size, question.accounting
    least = smallest(course, question.kinds, policy, critical_size=critical_size, accounting=accounting, tried=tried)
    if least is None:
        return None
    return cluster_use(
        course,
        servers_of(question.kinds, least),
        policy,
        critical_size=critical_size,
        accounting=accounting,
        over_time=question.over_time,
    )


def _asked_for(path: Path, workload: Workload, question: Question) -> Workload:
    """The workload as it is to be planned for. Raises WorkloadError."""
    if question.mix is not None:
        workload = relevel(workload, question.mix, question.seed)
        shares = ", ".join(f"{number(share)} % at {ratio(level)}" for level, share in question.mix)
        note = f"levels were dealt anew with seed {question.seed}: {shares}"
        workload = Workload(workload.vms, (*workload.notes, note))
    if question.memory_cap_mib is not None:  # of VMs above 1:1, so after the levels are dealt
        workload = capped(workload, question.memory_cap_mib)
    try:
        workload = without_too_large(
            workload,
            question.kinds,
            leave_out=question.leave_out_too_large,
            with_itself=question.accounting == "paper" and question.critical_size <= 1,
        )
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from None
    if question.accounting == "paper":
        for vm in workload.vms:
            if vm.level not in PAPER_LEVELS:
                raise WorkloadError(
                    f"{path}: a VM has level {ratio(vm.level)}, and --accounting paper knows "
                    f"{', '.join(map(ratio, PAPER_LEVELS))} only; plan with --accounting host"
                )
    return workload


def rows(sized: Sized, question: Question) -> list[Row]:
    """One for each policy."""
    apart, least = sized.dedicated, sized.lower_bound
    levels = tuple(LevelRow(level.level, level.vms, _figures(level.dedicated)) for level in sized.levels)
    found = []
    for shared in sized.shared:
        servers = None if shared.use is None else shared.use.servers
        found.append(
            Row(
                workload=sized.workload,
                policy=shared.policy,
                servers=servers,
                dedicated=apart,
                lower_bound=least,
                saved_percent=None if servers is None or not apart else 100 * (apart - servers) / apart,
                gap_percent=None if servers is None or not least else 100 * (servers - least) / least,
                accounting=question.accounting,
                critical_size=question.critical_size,
                vms=sized.vms,
                shared=_figures(shared.use),
                levels=levels,
                notes=sized.notes,
            )
        )
    return found


def _figures(use: ClusterUse | None) -> Figures | None:
    if use is None:
        return None
    return Figures(
        servers=use.servers,
        cpus=use.cpus,
        memory_mib=use.memory_mib,
        peak_s=use.peak.time,
        peak_vms=use.peak.vms,
        unused_cpus=use.unused_cpus,
        unused_mib=use.unused_mib,
        saturated=use.saturated,
    )


def too_few(sized: Sized, question: Question) -> list[str]:
    """What the servers that there are do not suffice for, in words."""
    given = " and ".join(told(kind) for kind in question.kinds)
    found = [f"policy {shared.policy}" for shared in sized.shared if shared.use is None]
    found += [f"the dedicated cluster of {ratio(level.level)}" for level in sized.levels if level.dedicated is None]
    return [f"{sized.workload}: {given} are not enough for {what}; plan with more" for what in found]
