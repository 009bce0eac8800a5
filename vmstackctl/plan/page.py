"""A plan as one page for a browser."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import msgspec

from vmstackctl.plan.question import Question, told
from vmstackctl.plan.sized import OF_DEDICATED, Figures, Row
from vmstackctl.plan.sweep import Means, means
from vmstackctl.report import frame
from vmstackctl.report.pictures import Picture
from vmstackctl.values import count, memory, printable, ratio

_UNKNOWN = "–"  # noqa: RUF001  a dash
_SHORT_OF = {"cpu": "CPU", "memory": "memory"}
_CLUSTERS = ("Cluster", "Servers", "Saved", "Gap", "CPUs left", "Memory left", "Short of")
_WORKLOADS = ("Workload", "Policy", "Servers", "Dedicated", "Bound", "Saved", "Gap")
_MEANS = ("Policy", "Workloads", "Servers", "Dedicated", "Bound", "Mean saved", "Mean gap")


def page(rows: Sequence[Row], question: Question, pictures: Sequence[Picture], *, alone: bool) -> str:
    """rows: one for each workload and policy, at least one. alone: whether there is one workload, asked for by name."""
    rows = [_of_people(row) for row in rows]
    title = f"How many servers? {rows[0].workload}" if alone else "How many servers?"
    return frame.framed(title, "vmstackctl plan", _body(rows, question, pictures, alone=alone))


def _of_people(row: Row) -> Row:
    """With nothing in its names that a page cannot hold."""
    return msgspec.structs.replace(row, workload=printable(row.workload), notes=tuple(map(printable, row.notes)))


def _body(rows: Sequence[Row], question: Question, pictures: Sequence[Picture], *, alone: bool) -> Iterator[str]:
    for answer in (_answer(row) for row in rows) if alone else map(_mean_answer, means(rows)):
        yield f"<p>{html.escape(answer)}</p>"
    yield from frame.facts(_facts(rows, question, alone=alone))
    yield "<h2>Servers</h2>"
    yield (
        f"<p>Dedicated: a cluster for each level, filled by {OF_DEDICATED}. Saved: servers, against these. Gap: "
        "servers above the lower bound; nobody needs fewer than that, even knowing what comes and moving VMs at will. "
        "Left: at the peak, when most is sold of CPUs or of memory.</p>"
    )
    if alone:
        yield from frame.table(_CLUSTERS, _clusters(rows))
    else:
        yield from frame.table(_MEANS, map(_mean, means(rows)))
        yield from frame.table(_WORKLOADS, map(_workload, rows))
    for picture in pictures:
        yield from frame.shown(picture)


def _answer(row: Row) -> str:
    if row.servers is None or row.saved_percent is None:
        return f"With {row.policy}, there are too few servers."
    text = f"With {row.policy}, {count(row.servers, 'server')} for all levels"
    if row.dedicated != row.servers:
        fewer = f"{abs(row.saved_percent):.1f} % {'fewer' if row.saved_percent > 0 else 'more'}"
        text += f" instead of {row.dedicated} in a cluster for each: {fewer}"
    else:
        text += ", as many as in a cluster for each"
    return f"{text}. At least {row.lower_bound} are needed."


def _mean_answer(of: Means) -> str:
    return (
        f"With {of.policy}, {of.saved_percent:.1f} % of the servers are saved on average over "
        f"{count(of.workloads, 'workload')}, {of.gap_percent:.2f} % more are used than the lower bound."
    )


def _facts(rows: Sequence[Row], question: Question, *, alone: bool) -> Iterator[tuple[str, str]]:
    yield "Servers", ", then ".join(map(told, question.kinds))
    if alone:
        levels = ", ".join(f"{level.vms} at {ratio(level.level)}" for level in rows[0].levels)
        yield "VMs", f"{rows[0].vms}: {levels}"
    yield "Accounting", f"{question.accounting}, critical size {question.critical_size}"
    for workload, notes in {row.workload: row.notes for row in rows}.items():
        for note in notes:
            yield "Note", note if alone else f"{workload}: {note}"


def _clusters(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    first = rows[0]
    yield f"dedicated, {OF_DEDICATED}", _number(first.dedicated), "", "", "", "", ""
    for level in first.levels:
        servers = None if level.dedicated is None else level.dedicated.servers
        yield f"dedicated, {ratio(level.level)} alone", _number(servers), "", "", *_left(level.dedicated)
    for row in rows:
        saved, gap = _percent(row.saved_percent), _percent(row.gap_percent)
        yield f"shared, {row.policy}", _number(row.servers), saved, gap, *_left(row.shared)
    yield "lower bound", _number(first.lower_bound), "", "", "", "", ""


def _left(figures: Figures | None) -> tuple[str, str, str]:
    if figures is None:
        return _UNKNOWN, _UNKNOWN, ""
    cpus = f"{figures.unused_cpus} ({100 * figures.unused_cpus / figures.cpus:.1f} %)"
    mib = f"{memory(figures.unused_mib)} ({100 * figures.unused_mib / figures.memory_mib:.1f} %)"
    return cpus, mib, _SHORT_OF[figures.saturated]


def _workload(row: Row) -> tuple[str, ...]:
    numbers = map(_number, (row.servers, row.dedicated, row.lower_bound))
    return row.workload, row.policy, *numbers, _percent(row.saved_percent), _percent(row.gap_percent)


def _mean(of: Means) -> tuple[str, ...]:
    numbers = map(str, (of.workloads, of.servers, of.dedicated, of.lower_bound))
    return of.policy, *numbers, f"{of.saved_percent:.2f} %", f"{of.gap_percent:.2f} %"


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else str(value)


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1f} %"
