"""Replies as what rich can print, each at the width there is. Everything a user chose is escaped."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from vmstackctl.cpu_map import outermost_cache
from vmstackctl.values import count, cpu_list, memory, percent, printable, ratio
from vmstackd.api.replies import CpuReply, TopologyReply, VmReply

WIDE = 120
"""Columns from which on there is room for more than the essential."""

_STATES = {"running": "green", "starting": "yellow", "removing": "yellow"}
_MOST_NODES = 16
"""Whose distances fit into 80 columns."""


def new_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """One whose columns may be shortened, unless no_wrap is set."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        # Cells do not wrap, but rich may only make a column narrower that could.
        table.add_column(Text(column, no_wrap=True), justify="right" if column in right else "left")
    return table


def cell(text: str, style: str = "") -> Text:
    """A text that takes one line, however short it must become."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


class VmTable:
    """VMs, one a line; of a cluster with their hosts, in a wide place with their images."""

    def __init__(self, vms: Sequence[VmReply], *, hosts: bool = False) -> None:
        self._vms = vms
        self._hosts = hosts

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        wide = options.max_width >= WIDE
        names = ("NAME", "HOST") if self._hosts else ("NAME",)
        rest = ("LEVEL", "VCPUS", "MEMORY", "STATE", "CPUS")
        table = new_table(*names, *rest, *(("IMAGE",) if wide else ()), right=("LEVEL", "VCPUS", "MEMORY"))
        for column in table.columns[len(names) : len(names) + 4]:
            column.no_wrap = True
        for vm in self._vms:
            cells = [cell(printable(vm.name), "bold"), *((cell(printable(vm.host)),) if self._hosts else ())]
            if is_known(vm):
                cells += [cell(ratio(vm.level)), cell(str(vm.vcpus)), cell(memory(vm.memory_mib))]
            else:
                cells += [cell("-", "dim")] * 3
            cells += [_state(vm), _cpus(vm)]
            table.add_row(*cells, *([cell(printable(vm.image), "dim")] if wide else ()))
        yield table


def is_known(vm: VmReply) -> bool:
    """Whether more is known of it than its name and host, because the host answers."""
    return vm.state != "unknown"


def _state(vm: VmReply) -> Text:
    return cell(printable(vm.state), _STATES.get(vm.state, "red"))


def _memory(vm: VmReply) -> str:
    """What it was given, and how much of that it has touched, if known."""
    resident = None if vm.usage is None else vm.usage.resident_mib
    return memory(vm.memory_mib) if resident is None else f"{memory(vm.memory_mib)}, {memory(resident)} of it resident"


def _cpus(vm: VmReply) -> Text:
    """Where it is to run; before that, where it runs, if that is somewhere else."""
    text = cell("")
    if vm.pinned != tuple(sorted(vm.cpus)):
        text.append(f"now on {cpu_list(vm.pinned) or 'unknown'}, to be on ", "bold red")
    return text.append(cpu_list(vm.cpus))


class VmDetails:
    """One VM, one property a line."""

    def __init__(self, vm: VmReply) -> None:
        self._vm = vm

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        vm = self._vm
        room = max(20, options.max_width - 12)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True)
        if vm.host:
            table.add_row("  host", Text(printable(vm.host)))
        if not is_known(vm):
            table.add_row("  state", Text("unknown: its host does not answer", "red"))
            yield Text(printable(vm.name), "bold", overflow="ellipsis", no_wrap=True)
            yield table
            return
        table.add_row("  level", f"{ratio(vm.level)}, {count(len(vm.cpus), 'CPU')}")
        table.add_row("  vCPUs", str(vm.vcpus))
        table.add_row("  memory", _memory(vm))
        table.add_row("  state", _state(vm))
        if vm.usage is not None and vm.usage.busy_cpus is not None:
            table.add_row("  busy", f"{vm.usage.busy_cpus:.2f} CPUs")
        if vm.usage is not None and vm.usage.delay_ratio is not None:
            table.add_row("  waits", f"{percent(vm.usage.delay_ratio)} % of the time, for a CPU")
        table.add_row("  CPUs", folded(cpu_list(vm.cpus), room))
        pinned = vm.pinned == tuple(sorted(vm.cpus))
        table.add_row(
            "  pinned",
            Text("as decided", "green") if pinned else Text(folded(cpu_list(vm.pinned) or "unknown", room), "bold red"),
        )
        table.add_row("  image", Text("\n".join(textwrap.wrap(printable(vm.image), room, break_on_hyphens=False))))
        yield Text(printable(vm.name), "bold", overflow="ellipsis", no_wrap=True)
        yield table


def folded(cpus: str, room: int) -> str:
    """A CPU list in lines of at most so many columns, broken after commas."""
    lines = [""]
    for part in cpus.split(","):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > room:
            lines.append("")
        lines[-1] += f"{part},"
    return "\n".join(lines).removesuffix(",")


class TopologyTables:
    """The host's CPUs by what they share, and how far its NUMA nodes are from each other."""

    def __init__(self, topology: TopologyReply) -> None:
        self._topology = topology

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        topology = self._topology
        cpus = topology.cpus
        yield Text.assemble(
            (printable(topology.name), "bold"),
            f"  {count(len(cpus), 'CPU')}, {count(len({(cpu.package, cpu.core) for cpu in cpus}), 'core')}, "
            f"{count(len({cpu.package for cpu in cpus}), 'socket')}, {count(len(topology.nodes), 'NUMA node')}, "
            f"{memory(topology.memory_mib)}",
        )
        if unused := topology.host_cpus - len(cpus):
            yield Text(f"{count(unused, 'more CPU')} not for VMs")
        yield Text()
        yield _shared(topology)
        if 1 < len(topology.nodes) <= _MOST_NODES:
            yield Text()
            yield _distances(topology)


def _shared(topology: TopologyReply) -> Table:
    cache = printable(topology.cache_names[-1]) if topology.cache_names else "CACHE"
    right = ("SOCKET", "NODE", cache, "CORES", "FREE")
    table = new_table("SOCKET", "NODE", cache, "CORES", "CPUS", "FREE", "LEVELS", right=right)
    for column in (*table.columns[:4], table.columns[5]):
        column.no_wrap = True
    groups: dict[tuple[int, int, int, int], list[CpuReply]] = {}
    for cpu in topology.cpus:
        groups.setdefault((cpu.package, cpu.node, *outermost_cache(topology, cpu)), []).append(cpu)
    for (package, node, place, number), cpus in sorted(groups.items()):
        table.add_row(
            *(cell(str(value)) for value in (package, node, number if place >= 0 else "-")),
            cell(str(len({(cpu.package, cpu.core) for cpu in cpus}))),
            cell(cpu_list(cpu.id for cpu in cpus)),
            cell(str(sum(cpu.use == "free" for cpu in cpus))),
            cell(_uses(cpus)),
        )
    return table


def _uses(cpus: Iterable[CpuReply]) -> str:
    uses = dict.fromkeys(cpu.use for cpu in cpus if cpu.use != "free")
    return ", ".join(printable(use) if use == "held" else f"{printable(use).removesuffix('.0')}:1" for use in uses)


def _distances(topology: TopologyReply) -> Table:
    nodes = [str(node) for node in topology.nodes]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("node distances", style="bold", justify="right", no_wrap=True)
    for node in nodes:
        table.add_column(node, justify="right", no_wrap=True)
    for node, row in zip(nodes, topology.node_distances, strict=False):
        table.add_row(node, *(str(distance) for distance in row))
    return table
