"""A saved inventory, and why a host is chosen, as what rich can print. Everything that somebody named is escaped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from core.demand import Lesson, Market
from vmstackctl.explaining import Candidate, Explanation
from vmstackctl.host_tables import HostTable
from vmstackctl.saved_inventory import SavedInventory
from vmstackctl.tables import cell, new_table
from vmstackctl.values import count, memory, percent, printable, ratio
from vmstackd.api.replies import HostReply, HostsReply

POPULAR = 10
"""Shapes that are shown."""
ROWS = 20
"""Hosts of each sort that are shown, unless all are wanted."""


class InventoryPicture:
    """The hosts of a file as those of a cluster, and what has been learnt from arrivals."""

    def __init__(self, saved: SavedInventory, path: Path) -> None:
        self._saved = saved
        self._path = path

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        saved = self._saved
        hosts = [
            HostReply(
                name=host.name,
                address=host.address,
                uuid="",
                state=host.state,
                reason=host.reason,
                since=saved.time,
                age=None,
                source=str(self._path),
                status=host.status,
            )
            for host in saved.hosts
        ]
        yield HostTable(HostsReply(hosts=tuple(hosts)))
        if untold := sum(host.vms is None for host in saved.hosts):
            yield Text(f"the VMs of {count(untold, 'host')} are not known one by one")
        yield Text(f"saved {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(saved.time))} UTC")
        yield Text()
        yield Text(f"policy {printable(saved.policy)}, {count(saved.lesson.seen, 'VM')} asked for")
        yield from _learnt(saved.lesson)


def _learnt(lesson: Lesson) -> RenderResult:
    if lesson.market is not None:
        yield Text(_scarcer(lesson.market))
    total = sum(shape.count for shape in lesson.shapes)
    shapes = sorted(lesson.shapes, key=lambda shape: shape.count, reverse=True)
    if not shapes:
        return
    table = new_table(*(columns := ("LEVEL", "VCPUS", "MEMORY", "ASKED FOR", "%")), right=columns)
    for shape in shapes[:POPULAR]:
        cells = (ratio(shape.level), str(shape.vcpus), memory(shape.memory_mib), str(shape.count))
        table.add_row(*(cell(text) for text in (*cells, percent(shape.count / total))))
    yield table
    if len(shapes) > POPULAR:
        yield Text(f"... {len(shapes) - POPULAR} more shapes: --output json has them", "dim")


def _scarcer(market: Market) -> str:
    if market.cpu_use == market.memory_use:
        return "CPU and memory are equally scarce"
    scarcer, other, use = "CPU", "memory", market.memory_use
    if market.memory_use > market.cpu_use:
        scarcer, other, use = "memory", "CPU", market.cpu_use
    return f"{scarcer} is scarcer: of {other}, only {percent(use)} % as large a share was sold"


class ExplanationTable:
    """Hosts that would take the VM, then those that would not, and why. every: show all of them."""

    def __init__(self, explanation: Explanation, *, every: bool) -> None:
        self._explanation = explanation
        self._most = len(explanation.hosts) if every else ROWS

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        found = self._explanation
        taking = [host for host in found.hosts if host.score is not None]
        refusing = found.hosts[len(taking) :]
        size = f"{count(found.vcpus, 'vCPU')}, {memory(found.memory_mib)}, level {ratio(found.level)}"
        yield Text(f"{size}, chosen by policy {printable(found.policy)}: {_fitting(len(taking), len(found.hosts))}")
        if taking:
            yield _taking(taking[: self._most])
            yield from _rest(len(taking) - self._most)
            yield Text("* is chosen: the highest score, of equals the first host. CPUs that the level would gain.")
        if refusing:
            yield _refusing(refusing[: self._most])
            yield from _rest(len(refusing) - self._most)


def _fitting(taking: int, hosts: int) -> str:
    return f"{taking} of {count(hosts, 'host')} would take it"


def _taking(hosts: Sequence[Candidate]) -> Table:
    right = ("SCORE", "GAINED CPUS", "FREE CPUS", "FREE MEMORY")
    table = new_table("", "HOST", *right, right=right)
    for column in (table.columns[0], *table.columns[2:]):
        column.no_wrap = True
    for place, host in enumerate(hosts):
        best = place == 0
        table.add_row(
            cell("*" if best else "", "bold green"),
            cell(printable(host.name), "bold" if best else ""),
            cell(f"{host.score:.6f}", "bold green" if best else ""),
            cell(str(host.needed_cpus)),
            cell(str(host.free_cpus)),
            cell(memory(host.free_mib or 0)),
        )
    return table


def _refusing(hosts: Sequence[Candidate]) -> Table:
    table = new_table("", "HOST", "WOULD NOT")
    for host in hosts:
        table.add_row(cell(""), cell(printable(host.name)), cell(printable(host.why), "dim"))
    return table


def _rest(hosts: int) -> RenderResult:
    if hosts > 0:
        yield Text(f"... {count(hosts, 'more host')}: --all shows them", "dim")
