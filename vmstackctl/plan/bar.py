"""How far a plan is, on a terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from vmstackctl.plan.sized import Tell
from vmstackctl.values import printable


class Bar(msgspec.Struct, frozen=True):
    """tell: what is being done. advance: one workload is done."""

    tell: Tell
    advance: Callable[[], None]


@contextmanager
def bar(workloads: int) -> Iterator[Bar]:
    """A bar on stderr, gone in the end; of one workload, nobody knows how far it is."""
    if not sys.stderr.isatty():
        yield Bar(lambda _: None, lambda: None)
        return
    # Slow to import, and only needed here.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    columns = [
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
    ]
    if workloads > 1:
        columns.insert(2, MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("planning", total=workloads if workloads > 1 else None)
        yield Bar(lambda what: progress.update(task, description=printable(what)), lambda: progress.advance(task))
