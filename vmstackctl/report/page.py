"""The page with all pictures: one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from vmstackctl.report import frame
from vmstackctl.report.pictures import Picture, clock
from vmstackctl.report.series import LevelSummary, Series
from vmstackctl.values import count, memory, ratio

_COLUMNS = ("Level", "Most VMs", "Most vCPUs", "Most CPUs", "Mean busy CPUs", "Mean busy share", "p99 vCPU delay")
_UNKNOWN = "–"  # noqa: RUF001  a dash


def page(name: str, series: Series, shown: Sequence[Picture], notes: Iterable[str] = ()) -> str:
    """The whole page. name: of the trace, in printable signs. notes: what was found odd when it was read."""
    return frame.framed(f"Report of {name}", "vmstackctl report", _body(series, shown, notes))


def _body(series: Series, shown: Sequence[Picture], notes: Iterable[str]) -> Iterator[str]:
    yield from frame.facts((*_facts(series), *(("Note", note) for note in notes)))
    if series.samples_per_step > 1:
        yield f"<p>{html.escape(_reduction(series))}</p>"
    if series.summaries:
        yield "<h2>Figures by level</h2>"
        yield (
            "<p>Most: at one time. Mean: over the samples that tell it. p99 vCPU delay: in 99 of 100 cases, a VM's "
            "vCPUs waited for a CPU no longer than this part of the time.</p>"
        )
        yield from frame.table(_COLUMNS, map(_cells, series.summaries))
    for picture in shown:
        yield from frame.shown(picture)


def _facts(series: Series) -> Iterator[tuple[str, str]]:
    begin = series.steps[0].time
    cpus = max(step.cpus for step in series.steps)
    mib = max(step.memory_mib for step in series.steps)
    yield "Span", f"from {clock(begin, seconds=True)} to {clock(series.end, seconds=True)} (h:mm:ss)"
    yield "Samples", f"{series.samples}, one every {round((series.end - begin) / series.samples)} s on average"
    yield "Host", f"{count(cpus, 'usable CPU')}, {memory(mib)}"
    yield "Levels", ", ".join(ratio(summary.level) for summary in series.summaries) or "none"


def _reduction(series: Series) -> str:
    return (
        f"The trace is long: {series.samples_per_step} samples became one step of the pictures. Of CPUs owned, vCPUs, "
        "VMs and memory sold, the most in a step is drawn; of what was busy or used, the mean; of delays, the mean of "
        "the medians and the highest p99. The CPU map shows the last sample of each step. The table is of all samples."
    )


def _cells(row: LevelSummary) -> tuple[str, ...]:
    return (
        ratio(row.level),
        str(row.most_vms),
        str(row.most_vcpus),
        str(row.most_cpus),
        _UNKNOWN if row.busy_cpus is None else f"{row.busy_cpus:.1f}",
        _percent(row.busy_share),
        _percent(row.delay_p99),
    )


def _percent(part: float | None) -> str:
    return _UNKNOWN if part is None else f"{100 * part:.1f} %"
