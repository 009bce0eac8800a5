"""The hosts of a cluster as what rich can print, at the width there is. Everything that somebody named is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from core.status import HostStatus
from vmstackctl.cpu_map import bar
from vmstackctl.lines import duplicate
from vmstackctl.tables import WIDE, cell, new_table
from vmstackctl.values import ago, count, gib, number, printable, ratio
from vmstackd.api.replies import HostProgress, HostReply, HostsReply, ProgressReply, StatusReply

_STATES = {"up": "green", "cordoned": "yellow", "connecting": "yellow", "quarantined": "bold red"}
_OTHER_STATE = "red"
_COUNTED_ON = ("up", "cordoned")
"""States in which what a host told is true."""
_BAR = 6
_BAR_IN_WIDE = 12
_BARS_FROM = 72
"""Columns from which on there is room for bars."""


class HostTable:
    """One host a line, why some are not up, the sums, and names that are on several hosts.

    room: lines for hosts and what is wrong with them; None: all that are needed. Where it is not enough, those
    that are not up are shown first.
    """

    def __init__(self, reply: HostsReply, *, room: int | None = None) -> None:
        self._reply = reply
        self._room = room

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        hosts = self._reply.hosts
        shown = _fitting(hosts, self._room)
        yield _hosts(shown, options.max_width, ascii_only=options.ascii_only)
        for host in shown:
            if host.reason:
                yield _trouble(host, one_line=self._room is not None)
        if len(shown) < len(hosts):
            yield Text(f"... {len(hosts) - len(shown)} more hosts: make the window taller", "dim")
        yield _sums(hosts)
        for vm in self._reply.duplicates:
            yield Text.assemble(("! ", "bold red"), (duplicate(vm), "red"))
        for problem in self._reply.problems:
            yield Text.assemble(("! ", "bold red"), (printable(problem), "red"))


def _fitting(hosts: Sequence[HostReply], room: int | None) -> Sequence[HostReply]:
    if room is None or sum(_lines(host) for host in hosts) <= room:
        return hosts
    found: list[HostReply] = []
    left = room - 1  # for the number of those that are left out
    for host in sorted(hosts, key=lambda host: host.state == "up"):
        left -= _lines(host)
        if left < 0:
            break
        found.append(host)
    return found


def _lines(host: HostReply) -> int:
    return 2 if host.reason else 1


def _hosts(hosts: Sequence[HostReply], width: int, *, ascii_only: bool) -> Table:
    wide = width >= WIDE
    right = ("CPUS", "MEMORY", "VMS", "AGE")
    table = new_table(
        *("NAME", "STATE", "CPUS", "MEMORY", "VMS", "LEVELS", "AGE"), *(("ADDRESS",) if wide else ()), right=right
    )
    for column in (*table.columns[1:5], table.columns[6]):
        column.no_wrap = True
    columns = _BAR_IN_WIDE if wide else _BAR if width >= _BARS_FROM else 0
    digits = max((len(_cpus(host.status)) for host in hosts if host.status is not None), default=0)
    for host in hosts:
        table.add_row(
            cell(printable(host.name), "bold"),
            cell(printable(host.state), _STATES.get(host.state, _OTHER_STATE)),
            *_figures(host, columns, digits, ascii_only=ascii_only),
            cell("-" if host.age is None else ago(host.age), "dim"),
            *((cell(printable(host.address), "dim"),) if wide else ()),
        )
    return table


def _cpus(status: HostStatus) -> str:
    return f"{status.cpus - status.free_cpus}/{status.cpus}"


def _figures(host: HostReply, columns: int, digits: int, *, ascii_only: bool) -> Iterator[Text]:
    """CPUs, memory, VMs and levels. What a host told before it fell silent is dim.

    columns: of the bar before the CPUs. digits: that the longest of these takes.
    """
    status = host.status
    if status is None:
        yield from (cell("-", "dim"), cell("-", "dim"), cell("-", "dim"), cell(""))
        return
    style = "" if host.state in _COUNTED_ON else "dim"
    cpus = cell("")
    if columns:
        share = 1 - status.free_cpus / status.cpus if status.cpus else 0.0
        cpus.append_text(bar([(share, style)], columns, ascii_only=ascii_only)).append(" ")
    yield cpus.append(f"{_cpus(status):>{digits}}", style)
    yield cell(f"{gib(status.allocated_mib)}/{gib(status.memory_mib)} GiB", style)
    yield cell(str(status.vms), style)
    levels = sorted(status.levels, key=lambda level: level.level)
    yield cell(", ".join(f"{ratio(level.level)} {level.cpus}" for level in levels), style)


def _trouble(host: HostReply, *, one_line: bool) -> Text:
    style = _STATES.get(host.state, _OTHER_STATE)
    text = f"{printable(host.name)} is {printable(host.state)}: {printable(host.reason)}"
    return Text.assemble(("! ", style), text, no_wrap=one_line, overflow="ellipsis" if one_line else None)


def _sums(hosts: Sequence[HostReply]) -> Text:
    """How many there are in which state, and what is left on those that are up."""
    if not hosts:
        return Text("no hosts; vmstackctl host add ADDRESS adds one")
    states = Counter(host.state for host in hosts)
    text = Text(f"{count(len(hosts), 'host')}: ")
    parts = [Text(f"{states[state]} {printable(state)}") for state in sorted(states, key=lambda state: state != "up")]
    text.append_text(Text(", ").join(parts))
    told = [host.status for host in hosts if host.status is not None]
    text.append(f"; {count(sum(status.vms for status in told), 'VM')}")
    up = [host.status for host in hosts if host.status is not None and host.state == "up"]
    if up:
        cpus = f"{sum(status.free_cpus for status in up)} of {sum(status.cpus for status in up)} CPUs"
        memory = f"{gib(sum(status.free_mib for status in up))} of {gib(sum(status.memory_mib for status in up))} GiB"
        text.append(f"; up and free: {cpus}, {memory}")
    return text


class HostList:
    """Of what hosts the cluster consists, and who says so."""

    def __init__(self, reply: HostsReply) -> None:
        self._reply = reply

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        table = new_table("NAME", "ADDRESS", "SOURCE")
        for host in self._reply.hosts:
            table.add_row(
                cell(printable(host.name), "bold"), cell(printable(host.address)), cell(printable(host.source), "dim")
            )
        yield table


class ClusterStatus:
    """The cluster at a glance: its hosts, and the sums of their levels."""

    def __init__(self, hosts: HostsReply, status: StatusReply) -> None:
        self._hosts = hosts
        self._status = status

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        yield HostTable(self._hosts)
        for problem in self._status.degraded:
            if not self._is_shown(problem):
                yield Text.assemble(("! ", "bold red"), (printable(problem), "red"))
        yield Text()
        yield _levels(self._status)

    def _is_shown(self, problem: str) -> bool:
        """Whether the table of hosts has it already."""
        return (
            any(host.reason and host.name in problem and host.reason in problem for host in self._hosts.hosts)
            or any(vm.name in problem and all(host in problem for host in vm.hosts) for vm in self._hosts.duplicates)
            or (problem in self._hosts.problems)
        )


def _levels(status: StatusReply) -> Table:
    host = status.host
    right = ("CPUS", "VCPUS", "VMS", "VCPUS PER CPU", "FIT NOW")
    table = new_table("LEVEL", *right, right=right)
    for level in sorted(host.levels, key=lambda level: level.level):
        per_cpu = f"{level.vcpus / level.cpus:.2f}" if level.cpus else "-"
        fit = number(level.available_thousandths)
        cells = (ratio(level.level), str(level.cpus), str(level.vcpus), str(level.vms), per_cpu, fit)
        table.add_row(*(cell(text) for text in cells))
    table.add_row(cell("free"), cell(str(host.free_cpus)))
    if host.held_cpus:
        table.add_row(cell("held"), cell(str(host.held_cpus)))
    return table


class ProgressTable:
    """How well a VM would fit on each host, the best one first, then why it fits nowhere else."""

    def __init__(self, reply: ProgressReply) -> None:
        self._reply = reply

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        table = new_table("", "HOST", "PROGRESS", "REASON", right=("PROGRESS",))
        table.columns[0].no_wrap = table.columns[2].no_wrap = True
        for host in sorted(self._reply.hosts, key=self._order):
            best = host.progress is not None and host.host == self._reply.host
            table.add_row(
                cell("*" if best else "", "bold green"),
                cell(printable(host.host), "bold" if best else ""),
                cell("-" if host.progress is None else f"{host.progress:.1f}", "bold green" if best else ""),
                cell(printable(host.reason), "dim"),
            )
        yield table
        yield Text("* is the best host. In MiB per CPU nearer to the hardware's; larger is better.")

    def _order(self, host: HostProgress) -> tuple[bool, bool, float]:
        if host.progress is None:
            return True, True, 0.0
        return False, host.host != self._reply.host, -host.progress
