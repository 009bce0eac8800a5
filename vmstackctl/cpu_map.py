"""A host's CPUs drawn in a terminal, from what the daemon answers: by socket, shared cache and core.

Every level has a letter or digit of its own, so that nothing is lost without colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from core.cpuset import format_cpu_list
from core.level import UNIT, LevelError, format_level, parse_level
from core.status import LevelStatus
from core.topology import NO_CACHE
from core.usage import HostUsage
from vmstackctl.values import busy, gib, memory, number, percent, printable, ratio
from vmstackd.api.replies import CpuReply, StatusReply, TopologyReply

_COLOURS = ("green", "yellow", "magenta", "cyan", "blue", "red")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FREE, _HELD = "free", "held"
_LABEL = 16
_GAP = 3
"""Columns before each row for the CPUs in it, and between two groups."""
_LONGEST_BAR = 60
_COLUMNS = ("CPUs", "needed", "vCPUs", "VMs", "ratio now", "fit now", "fit on free CPUs")
_COLUMNS_WITH_USAGE = (*_COLUMNS[:4], "ratio\nnow", "fit\nnow", "fit on\nfree CPUs", "CPUs\nbusy", "waits, %\np50/p99")
"""In two lines, so that all fit."""
_USAGE_FROM = 80
"""Columns of the terminal from which on they do."""

_Core = list[CpuReply]


class Mark(msgspec.Struct, frozen=True):
    """How a CPU in some use is drawn; colour is that of its level."""

    symbol: str
    style: str
    colour: str


def marks(levels: Iterable[int]) -> dict[str, Mark]:
    """A mark for each use of a CPU, by its name in ``CpuReply.use``.

    A whole level up to 9 is its digit; others are letters, beginning again after the last.
    """
    found = {_FREE: Mark(".", "dim", "dim"), _HELD: Mark("#", "bold red", "bold red")}
    others = 0
    for index, level in enumerate(sorted(levels)):
        colour = _COLOURS[index % len(_COLOURS)]
        if level % UNIT == 0 and level < 10 * UNIT:
            symbol = str(level // UNIT)
        else:
            symbol = _LETTERS[others % len(_LETTERS)]
            others += 1
        found[format_level(level)] = Mark(symbol, f"bold black on {colour}", colour)
    return found


class CpuMap:
    """The host at a glance, to be printed by rich: figures, map, legend.

    It fits 80 columns; wider consoles make it shorter. host: its name. width: of the map, where the
    console has no end, such as a pipe.
    """

    def __init__(
        self, topology: TopologyReply, status: StatusReply, *, host: str = "", width: int | None = None
    ) -> None:
        self._topology = topology
        self._status = status
        self._host = host
        self._width = width

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        width = min(options.max_width, self._width or options.max_width)
        look = marks(_levels(self._topology, self._status))
        places = [(place, cpus, _groups(self._topology, cpus)) for place, cpus in _places(self._topology.cpus)]
        per_row = _per_row([group for _, _, groups in places for group in groups], width - _LABEL - _GAP)
        yield _title(self._topology, self._status, self._host)
        yield _bars(self._topology, self._status, look, width, ascii_only=options.ascii_only)
        for place, cpus, groups in places:
            yield Text()
            yield _heading(place, cpus)
            yield _grid(groups, per_row, width - _LABEL - _GAP, look)
        yield Text()
        yield _legend(self._status, look, width)
        yield Text()
        if self._status.stopped:
            yield Text("shut off: " + ", ".join(printable(name) for name in self._status.stopped))
        yield _key(self._topology)


def _levels(topology: TopologyReply, status: StatusReply) -> set[int]:
    """Those of both answers: a level may come or go between the two."""
    found = {level.level for level in status.host.levels}
    for use in {cpu.use for cpu in topology.cpus} - {_FREE, _HELD}:
        try:
            found.add(parse_level(use))
        except LevelError:  # a use that a newer daemon knows; drawn as unknown
            continue
    return found


def _title(topology: TopologyReply, status: StatusReply, host: str) -> Text:
    names = " ".join(dict.fromkeys(printable(name) for name in (host, topology.name) if name))
    text = Text.assemble((names, "bold"), f"  {len(topology.cpus)} CPUs, {memory(topology.memory_mib)}, ")
    text.append(f"{status.host.vms} VM{'' if status.host.vms == 1 else 's'}, hypervisor ")
    text.append(printable(status.hypervisor), "green" if status.hypervisor == "up" else "bold red")
    if status.cordoned:
        why = f": {printable(status.cordon_reason)}" if status.cordon_reason else ""
        text.append(f"\ncordoned{why}; it gets no new VMs", "yellow")
    for problem in status.degraded:
        text.append("\n! ", "bold red")
        text.append(printable(problem), "red")
    return text


def _bars(
    topology: TopologyReply, status: StatusReply, look: Mapping[str, Mark], width: int, *, ascii_only: bool
) -> Table:
    """How much of the CPUs and of the memory is taken; that of the CPUs in the colours of their levels."""
    host = status.host
    counts = {use: sum(cpu.use == use for cpu in topology.cpus) for use in look}
    total = len(topology.cpus)
    free = counts.pop(_FREE)
    cpus = f"{total - free} of {total} taken, {free} free"
    sold = f"{gib(host.allocated_mib)} of {gib(host.memory_mib)} GiB sold, {gib(host.free_mib)} GiB free"
    if status.usage is not None:
        if status.usage.busy_cpus is not None:
            cpus += f", {busy(status.usage.busy_cpus)} busy"
        sold += f", {gib(status.usage.used_mib)} GiB used"
    if unused := topology.host_cpus - total:
        cpus += f" ({unused} more not for VMs)"
    columns = max(8, min(_LONGEST_BAR, width - len("memory") - 2 * _GAP - max(len(cpus), len(sold))))
    levels = sorted(counts, key=lambda use: list(look).index(use))
    pieces = [(counts[use] / total if total else 0, look[use].colour) for use in levels]
    share = host.allocated_mib / host.memory_mib if host.memory_mib else 0
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_row("CPUs", bar(pieces, columns, ascii_only=ascii_only), cpus)
    table.add_row("memory", bar([(share, "bold")], columns, ascii_only=ascii_only), sold)
    return table


def bar(pieces: Iterable[tuple[float, str]], width: int, *, ascii_only: bool) -> Text:
    """A bar of so many shares of the whole, each with its style; the rest is empty."""
    taken, rest = ("=", "-") if ascii_only else ("━", "─")
    text = Text()
    begin = 0.0
    for share, style in pieces:
        columns = round((begin + share) * width) - round(begin * width)
        if share and not columns and begin + share < 1:  # little is not nothing
            columns = 1
        columns = min(columns, width - text.cell_len)
        text.append(taken * columns, style)
        begin += share
    text.append(rest * (width - text.cell_len), "dim")
    return text


def _places(cpus: Sequence[CpuReply]) -> Iterator[tuple[tuple[int, int], list[CpuReply]]]:
    """CPUs by package and NUMA node."""
    for place in sorted({(cpu.package, cpu.node) for cpu in cpus}):
        yield place, [cpu for cpu in cpus if (cpu.package, cpu.node) == place]


def _heading(place: tuple[int, int], cpus: Sequence[CpuReply]) -> Text:
    free = sum(cpu.use == _FREE for cpu in cpus)
    return Text.assemble(
        (f"Socket {place[0]}, NUMA node {place[1]}", "bold"), (f"   {free} of {len(cpus)} CPUs free", "dim")
    )


def _groups(topology: TopologyReply, cpus: Sequence[CpuReply]) -> list[list[_Core]]:
    """The cores that share an outermost cache."""
    groups: dict[tuple[int, int], list[CpuReply]] = {}
    for cpu in cpus:
        groups.setdefault(outermost_cache(topology, cpu), []).append(cpu)
    return [_cores(group) for group in groups.values()]


def _per_row(groups: Sequence[Sequence[_Core]], room: int) -> int:
    """How many groups fit into a row: 1, 2, 4, ..., so that rows end where sockets and dies tend to.

    0 if a group is wider than a row.
    """
    widest = max((_drawn(group, {}).cell_len for group in groups), default=1)
    if widest > room:
        return 0
    count = 1
    while count < len(groups) and 2 * count * (_GAP + widest) - _GAP <= room:
        count *= 2
    return count


def _grid(groups: Sequence[list[_Core]], per_row: int, room: int, look: Mapping[str, Mark]) -> Table:
    """Rows of groups, the CPUs of each row named before it; a group that is too wide takes several rows."""
    rows: list[Sequence[list[_Core]]] = []
    if per_row:
        rows += [groups[start : start + per_row] for start in range(0, len(groups), per_row)]
    else:
        for number_of_group, group in enumerate(groups):
            if number_of_group:
                rows.append(())
            rows += [[piece] for piece in _pieces(group, room)]
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(style="dim", width=_LABEL, no_wrap=True)
    for _ in range(max(1, per_row)):
        table.add_column(no_wrap=True)
    for row in rows:
        cpus = [cpu.id for group in row for core in group for cpu in core]
        table.add_row(_label(cpus), *(_drawn(group, look) for group in row))
    return table


def _pieces(cores: Sequence[_Core], room: int) -> Iterator[list[_Core]]:
    """1, 2, 4, ... cores, as many as fit into a row."""
    widest = 1 + max(len(core) for core in cores)
    count = 1
    while 2 * count * widest - 1 <= room:
        count *= 2
    for start in range(0, len(cores), count):
        yield list(cores[start : start + count])


def _label(cpus: Iterable[int]) -> str:
    """CPUs as a list; where that is too long, such as for every second CPU, from which to which."""
    ascending = sorted(cpus)
    text = format_cpu_list(ascending)
    return text if len(text) <= _LABEL else f"{ascending[0]}..{ascending[-1]}"


def _drawn(cores: Iterable[_Core], look: Mapping[str, Mark]) -> Text:
    """A block for each core."""
    text = Text()
    for place, core in enumerate(cores):
        if place:
            text.append(" ")
        for cpu in core:
            mark = look.get(cpu.use, Mark("?", "bold red", "bold red"))
            text.append(mark.symbol, mark.style)
    return text


def outermost_cache(topology: TopologyReply, cpu: CpuReply) -> tuple[int, int]:
    """Its place among the caches and its number; the same for all CPUs without caches."""
    for place in reversed(range(len(topology.cache_names))):
        if cpu.caches[place] != NO_CACHE:
            return place, cpu.caches[place]
    return -1, 0


def _cores(cpus: Iterable[CpuReply]) -> list[_Core]:
    """SMT siblings together, both in ascending order."""
    cores: dict[int, _Core] = {}
    for cpu in sorted(cpus, key=lambda cpu: cpu.id):
        cores.setdefault(cpu.core, []).append(cpu)
    return list(cores.values())


def _legend(status: StatusReply, look: Mapping[str, Mark], width: int) -> Table:
    host = status.host
    usage = status.usage if width >= _USAGE_FROM else None
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("")
    table.add_column("level", no_wrap=True)
    for name in _COLUMNS if usage is None else _COLUMNS_WITH_USAGE:
        table.add_column(name, justify="right", no_wrap=True)
    for level in sorted(host.levels, key=lambda level: level.level):
        measured = () if usage is None else _usage_row(usage, level.level)
        table.add_row(*_level_row(level, look[format_level(level.level)]), *measured)
    table.add_row(_block(look[_FREE]), _FREE, str(host.free_cpus))
    if host.held_cpus:
        table.add_row(_block(look[_HELD]), _HELD, str(host.held_cpus))
    return table


def _level_row(level: LevelStatus, mark: Mark) -> Iterator[RenderableType]:
    yield _block(mark)
    yield ratio(level.level)
    yield str(level.cpus)
    yield Text(f"{level.needed}", "bold red") if level.degraded else str(level.needed)
    yield str(level.vcpus)
    yield str(level.vms)
    yield ratio(level.ratio)
    yield number(level.available_thousandths)
    yield f"+{number(level.potential_thousandths)}"


def _usage_row(usage: HostUsage, level: int) -> Iterator[RenderableType]:
    measured = usage.of_level(level)
    yield busy(measured.busy_cpus)
    if measured.delay_median is None or measured.delay_p99 is None:
        yield "-"
    else:
        yield f"{percent(measured.delay_median)}/{percent(measured.delay_p99)}"


def _block(mark: Mark) -> Text:
    return Text(mark.symbol * 2, mark.style)


def _key(topology: TopologyReply) -> Text:
    shared = f"an {printable(topology.cache_names[-1])} cache" if topology.cache_names else "nothing but the socket"
    return Text(f"Signs side by side are SMT siblings of one core; a group shares {shared}.", "dim")
