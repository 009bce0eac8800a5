"""What a cluster has room for, as what rich can print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from core.spare import TRIED
from vmstackctl.capacity import Capacity, ShapeFits, Source
from vmstackctl.tables import cell, new_table
from vmstackctl.values import count, memory, printable, ratio

_MOST = 5
"""Hosts that are named, and losses that are told, in the text."""
_RESOURCES = {"cpu": "CPU", "memory": "memory"}
_SIZES_FROM: dict[Source, str] = {
    "arrivals": "Sizes: those asked for most often.",
    "vms": "Sizes: those of most VMs; what was asked for before is not known.",
    "usual": "Sizes: usual ones, for nothing is known of what is asked for; --shape says which.",
}


class CapacityTable:
    """One size a line, one level a column; what that means for sales; and what is not as it should be."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._sizes: dict[tuple[int, int], dict[int, ShapeFits]] = {}
        for fits in capacity.shapes:
            self._sizes.setdefault((fits.vcpus, fits.memory_mib), {})[fits.level] = fits

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        yield self._table()
        yield Text()
        yield Text(_figures(self._capacity))
        if self._capacity.sizes_from in _SIZES_FROM:
            yield Text(_SIZES_FROM[self._capacity.sizes_from])
        trades = [text for size, levels in self._sizes.items() if (text := _trade(size, levels))]
        if trades:
            yield Text()
            reserve = f" with {_lost(self._capacity)} lost" if self._capacity.tried else ""
            yield Text(f"What may still be sold{reserve}, if of one size:")
            for text in trades:
                yield Text(f"  {text}")
        for text in _troubles(self._capacity):
            yield Text.assemble(("! ", "bold red"), text)

    def _table(self) -> Table:
        levels = sorted({fits.level for fits in self._capacity.shapes})
        names = [ratio(level) for level in levels]
        table = new_table("SIZE", *names, "SHORT", right=names)
        for column in table.columns[:-1]:
            column.no_wrap = True
        for size, found in self._sizes.items():
            cells = [cell(_cell(found.get(level))) for level in levels]
            table.add_row(cell(_size(*size), "bold"), *cells, cell(_short(found)))
        return table


def _cell(fits: ShapeFits | None) -> str:
    if fits is None:
        return "-"
    return str(fits.now) if fits.after is None else f"{fits.now} / {fits.after}"


def _size(vcpus: int, memory_mib: int) -> str:
    return f"{vcpus} x {memory(memory_mib)}"


def _short(levels: Mapping[int, ShapeFits]) -> str:
    """Which resource, with the levels where it is not the same at all."""
    where: dict[str, list[str]] = {}
    for level in sorted(levels):
        where.setdefault(_RESOURCES[levels[level].short], []).append(ratio(level))
    if len(where) == 1:
        return next(iter(where))
    return ", ".join(f"{resource} at {' '.join(names)}" for resource, names in where.items())


def _trade(size: tuple[int, int], levels: Mapping[int, ShapeFits]) -> str:
    """One sentence; empty where there is nothing to choose."""
    if len(levels) < 2:
        return ""
    offers: dict[int, list[str]] = {}
    for level in sorted(levels):
        fits = levels[level]
        offers.setdefault(fits.now if fits.after is None else fits.after, []).append(ratio(level))
    (most, best), *others = sorted(offers.items(), reverse=True)
    rest = "".join(f", or {number or 'none'} at {' or '.join(names)}" for number, names in others)
    return f"{most or 'no'} more of {_size(*size)} at {' or '.join(best) if others else 'any of these levels'}{rest}"


def _figures(capacity: Capacity) -> str:
    """What the figures are."""
    hosts = f"{capacity.open} of {count(capacity.hosts, 'host')}" if capacity.closed else count(capacity.hosts, "host")
    lost = f" / with {_lost(capacity)} lost" if capacity.tried else ""
    which = f": {_names(capacity.tried[0])}" if capacity.tried and len(capacity.tried[0]) > 1 else ""
    return f"How many more VMs fit now on {hosts}{lost}{which}."


def _lost(capacity: Capacity) -> str:
    """What the second figures are without."""
    if len(capacity.tried) > 1:
        return f"any one of the {TRIED} heaviest hosts" if len(capacity.tried) == TRIED else "any one host"
    [gone] = capacity.tried
    return _names(gone) if len(gone) == 1 else f"the {len(gone)} heaviest hosts"


def _names(hosts: Sequence[str]) -> str:
    names = [printable(host) for host in hosts[:_MOST]]
    if len(hosts) > _MOST:
        return f"{', '.join(names)} and {count(len(hosts) - _MOST, 'other host')}"
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _troubles(capacity: Capacity) -> Iterator[str]:
    for loss in capacity.uncovered[:_MOST]:
        yield f"not covered: with {_names(loss.hosts)} lost, {count(loss.vms, 'VM')} would be without a place"
    if len(capacity.uncovered) > _MOST:
        yield f"not covered: the loss of {count(len(capacity.uncovered) - _MOST, 'other host')}; --output json has all"
    if capacity.closed:
        reasons = ", ".join(f"{number} {printable(reason)}" for reason, number in capacity.closed.items())
        yield f"no new VMs on {count(capacity.hosts - capacity.open, 'host')}: {reasons}"
    if capacity.presumed:
        yield (
            f"which VMs are on {_names(capacity.presumed)} is not known: those of a level are taken as alike but for "
            "the widest, with memory in proportion to vCPUs"
        )
