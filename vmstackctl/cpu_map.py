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
from core.level import UNIT, format_level
from core.status import LevelStatus
from core.topology import NO_CACHE
from vmstackd.api.replies import CpuReply, StatusReply, TopologyReply

_COLOURS = ("green", "yellow", "magenta", "cyan", "blue", "red")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FREE, _HELD = "free", "held"
_LABEL = 15
_GAP = 2
"""Columns before each row for the CPUs in it, and between two groups."""


class Mark(msgspec.Struct, frozen=True):
    """How a CPU in some use is drawn."""

    symbol: str
    style: str


def marks(levels: Iterable[int]) -> dict[str, Mark]:
    """A mark for each use of a CPU, by its name in ``CpuReply.use``.

    A whole level up to 9 is its digit; others are letters, beginning again after the last.
    """
    found = {_FREE: Mark(".", "dim"), _HELD: Mark("#", "bold red")}
    others = 0
    for index, level in enumerate(sorted(levels)):
        style = f"bold black on {_COLOURS[index % len(_COLOURS)]}"
        if level % UNIT == 0 and level < 10 * UNIT:
            symbol = str(level // UNIT)
        else:
            symbol = _LETTERS[others % len(_LETTERS)]
            others += 1
        found[format_level(level)] = Mark(symbol, style)
    return found


class CpuMap:
    """The map with its legend, to be printed by rich. It fits 80 columns; wider consoles make it shorter."""

    def __init__(self, topology: TopologyReply, status: StatusReply) -> None:
        self._topology = topology
        self._status = status

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        look = marks(level.level for level in self._status.host.levels)
        places = [(place, cpus, _groups(self._topology, cpus)) for place, cpus in _places(self._topology.cpus)]
        yield _title(self._topology, self._status)
        for place, cpus, groups in places:
            yield Text()
            yield _heading(place, cpus)
            yield _grid(groups, _per_row([group for _, _, groups in places for group in groups], options), look)
        yield Text()
        yield _legend(self._status, look)
        yield Text()
        yield _key(self._topology)


def _title(topology: TopologyReply, status: StatusReply) -> Text:
    host = status.host
    unused = topology.host_cpus - len(topology.cpus)
    text = Text.assemble((topology.name, "bold"), f": {host.cpus} CPUs")
    if unused:
        text.append(f" ({unused} more not for VMs)")
    text.append(f", {host.vms} VMs, {host.allocated_mib // 1024} of {host.memory_mib // 1024} GiB sold")
    for problem in status.degraded:
        text.append(f"\n{problem}", "bold red")
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


def _groups(topology: TopologyReply, cpus: Sequence[CpuReply]) -> list[list[CpuReply]]:
    """The CPUs that share an outermost cache."""
    groups: dict[tuple[int, int], list[CpuReply]] = {}
    for cpu in cpus:
        groups.setdefault(_outermost_cache(topology, cpu), []).append(cpu)
    return list(groups.values())


def _per_row(groups: Sequence[Sequence[CpuReply]], options: ConsoleOptions) -> int:
    """How many groups fit into a row: 1, 2, 4, ..., so that rows end where sockets and dies tend to."""
    widest = max((_drawn(group, {}).cell_len for group in groups), default=1)
    count = 1
    while count < len(groups) and _LABEL + 2 * count * (_GAP + widest) <= options.max_width:
        count *= 2
    return count


def _grid(groups: Sequence[Sequence[CpuReply]], per_row: int, look: Mapping[str, Mark]) -> Table:
    """Rows of groups, the CPUs of each row named before it."""
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(style="dim", width=_LABEL, no_wrap=True)
    for _ in range(per_row):
        table.add_column(no_wrap=True)
    for start in range(0, len(groups), per_row):
        row = groups[start : start + per_row]
        label = format_cpu_list(sorted(cpu.id for group in row for cpu in group))
        table.add_row(label, *(_drawn(group, look) for group in row))
    return table


def _drawn(cpus: Iterable[CpuReply], look: Mapping[str, Mark]) -> Text:
    """A block for each core."""
    text = Text()
    for number, core in enumerate(_cores(cpus)):
        if number:
            text.append(" ")
        for cpu in core:
            mark = look.get(cpu.use, Mark("?", "bold red"))
            text.append(mark.symbol, mark.style)
    return text


def _outermost_cache(topology: TopologyReply, cpu: CpuReply) -> tuple[int, int]:
    """Its place among the caches and its number; the same for all CPUs without caches."""
    for place in reversed(range(len(topology.cache_names))):
        if cpu.caches[place] != NO_CACHE:
            return place, cpu.caches[place]
    return -1, 0


def _cores(cpus: Iterable[CpuReply]) -> list[list[CpuReply]]:
    """SMT siblings together, both in ascending order."""
    cores: dict[int, list[CpuReply]] = {}
    for cpu in sorted(cpus, key=lambda cpu: cpu.id):
        cores.setdefault(cpu.core, []).append(cpu)
    return list(cores.values())


def _legend(status: StatusReply, look: Mapping[str, Mark]) -> Table:
    host = status.host
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    table.add_column("")
    table.add_column("level")
    for name in ("CPUs", "needed", "vCPUs", "VMs", "ratio now"):
        table.add_column(name, justify="right")
    for level in sorted(host.levels, key=lambda level: level.level):
        table.add_row(*_level_row(level, look[format_level(level.level)]))
    table.add_row(_block(look[_FREE]), _FREE, str(host.free_cpus))
    if host.held_cpus:
        table.add_row(_block(look[_HELD]), _HELD, str(host.held_cpus))
    return table


def _level_row(level: LevelStatus, mark: Mark) -> Iterator[RenderableType]:
    yield _block(mark)
    yield _ratio(level.level)
    yield str(level.cpus)
    yield Text(f"{level.needed}", "bold red") if level.degraded else str(level.needed)
    yield str(level.vcpus)
    yield str(level.vms)
    yield _ratio(level.ratio)


def _block(mark: Mark) -> Text:
    return Text(mark.symbol * 2, mark.style)


def _ratio(thousandths: int) -> str:
    return format_level(thousandths).removesuffix(".0") + ":1"


def _key(topology: TopologyReply) -> Text:
    shared = f"an {topology.cache_names[-1]} cache" if topology.cache_names else "nothing but the socket"
    return Text(f"Signs side by side are SMT siblings of one core; a group shares {shared}.", "dim")
