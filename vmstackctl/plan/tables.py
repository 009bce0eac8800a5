"""What plans have found, as what rich can print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from vmstackctl.plan.question import Question, told
from vmstackctl.plan.sized import OF_DEDICATED, Figures, LevelRow, Row
from vmstackctl.plan.sweep import ENDINGS, Means
from vmstackctl.tables import WIDE, cell, new_table
from vmstackctl.values import count, memory, printable, ratio

_SATURATED = {"cpu": "CPU", "memory": "memory"}
_UNKNOWN = "-"


class OnePlan:
    """A workload: its clusters one below the other. rows: those of all policies, at least one."""

    def __init__(self, rows: Sequence[Row], question: Question) -> None:
        self._rows = rows
        self._question = question

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        wide = options.max_width >= WIDE
        first = self._rows[0]
        kinds = ", then ".join(told(kind) for kind in self._question.kinds)
        yield Text.assemble((printable(first.workload), "bold"), f": {count(first.vms, 'VM')} on {kinds}")
        yield Text()
        right = ("SERVERS", "SAVED", "GAP", "CPUS LEFT", "MEMORY LEFT")
        table = new_table("CLUSTER", *right, "SHORT OF", right=right)
        for column in table.columns:
            column.no_wrap = True
        _add(table, f"dedicated, {OF_DEDICATED}", first.dedicated, *_sums(first.levels, wide=wide))
        for level in first.levels:
            servers = None if level.dedicated is None else level.dedicated.servers
            _add(table, f"  {ratio(level.level)}", servers, *_left(level.dedicated, wide=wide), style="dim")
        for row in self._rows:
            _add(
                table,
                f"shared, {row.policy}",
                row.servers,
                *_left(row.shared, wide=wide),
                saved=row.saved_percent,
                gap=row.gap_percent,
                style="bold",
            )
        _add(table, "lower bound", first.lower_bound)
        yield table
        yield Text()
        yield Text(
            "SAVED: servers, against dedicated clusters. GAP: servers above the lower bound. LEFT, SHORT OF: at the "
            "peak of the cluster, when most is sold of CPUs or of memory.",
            "dim",
        )


def _add(
    table: Table,
    name: str,
    servers: int | None,
    cpus: str = "",
    memory_left: str = "",
    short_of: str = "",
    *,
    saved: float | None = None,
    gap: float | None = None,
    style: str = "",
) -> None:
    table.add_row(
        cell(name, style),
        cell(_number(servers), style),
        cell(_percent(saved) if saved is not None else "", "green" if saved is not None and saved > 0 else ""),
        cell(_percent(gap) if gap is not None else ""),
        cell(cpus),
        cell(memory_left),
        cell(short_of),
    )


def _left(figures: Figures | None, *, wide: bool) -> tuple[str, str, str]:
    """What is left of CPUs and of memory, where there is room in numbers too; and which of them is short."""
    if figures is None:
        return _UNKNOWN, _UNKNOWN, ""
    cpus, mib = _both(figures.unused_cpus, figures.cpus, figures.unused_mib, figures.memory_mib, wide)
    return cpus, mib, _SATURATED[figures.saturated]


def _sums(levels: Sequence[LevelRow], *, wide: bool) -> tuple[str, str]:
    """Of all levels: what is left of CPUs and of memory."""
    found = [level.dedicated for level in levels if level.dedicated is not None]
    if len(found) < len(levels):
        return _UNKNOWN, _UNKNOWN
    return _both(
        sum(figures.unused_cpus for figures in found),
        sum(figures.cpus for figures in found),
        sum(figures.unused_mib for figures in found),
        sum(figures.memory_mib for figures in found),
        wide,
    )


def _both(cpus: int, all_cpus: int, mib: int, all_mib: int, wide: bool) -> tuple[str, str]:
    shares = f"{100 * cpus / all_cpus:4.1f} %", f"{100 * mib / all_mib:4.1f} %"
    return (f"{cpus} {shares[0]}", f"{memory(mib)} {shares[1]}") if wide else shares


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else str(value)


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1f} %"


class ManyPlans:
    """Workloads, one a line and policy; then each policy's means."""

    def __init__(self, rows: Sequence[Row], means: Sequence[Means]) -> None:
        self._rows = rows
        self._means = means

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for."""
        wide = options.max_width >= WIDE
        right = ("SERVERS", "DEDICATED", "BOUND", "SAVED", "GAP", *(("CPUS LEFT", "MEMORY LEFT") if wide else ()))
        table = new_table("WORKLOAD", "POLICY", *right, *(("SHORT OF",) if wide else ()), right=right)
        for column in table.columns[1:]:
            column.no_wrap = True
        for row in self._rows:
            cells = [
                cell(_short(row.workload)),
                cell(row.policy),
                cell(_number(row.servers), "bold"),
                cell(_number(row.dedicated)),
                cell(_number(row.lower_bound)),
                cell(_percent(row.saved_percent)),
                cell(_percent(row.gap_percent)),
            ]
            table.add_row(*cells, *(map(cell, _left(row.shared, wide=True)) if wide else ()))
        yield table
        if self._means:
            yield Text()
            yield _means(self._means)


def _means(means: Sequence[Means]) -> Table:
    right = ("WORKLOADS", "SERVERS", "DEDICATED", "BOUND", "MEAN SAVED", "MEAN GAP")
    table = new_table("POLICY", *right, right=right)
    for column in table.columns:
        column.no_wrap = True
    for of in means:
        table.add_row(
            cell(of.policy, "bold"),
            cell(str(of.workloads) if of.workloads == of.of else f"{of.workloads} of {of.of}"),
            cell(str(of.servers), "bold"),
            cell(str(of.dedicated)),
            cell(str(of.lower_bound)),
            cell(f"{of.saved_percent:.2f} %", "green" if of.saved_percent > 0 else ""),
            cell(f"{of.gap_percent:.2f} %"),
        )
    return table


def _short(name: str) -> str:
    """A file's name without what all of them end with."""
    for ending in sorted(ENDINGS, key=len, reverse=True):
        name = name.removesuffix(ending)
    return printable(name)
