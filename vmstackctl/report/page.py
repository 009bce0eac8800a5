"""The page with all pictures: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence

from vmstackctl.report.pictures import Picture, as_svg, clock
from vmstackctl.report.series import LevelSummary, Series
from vmstackctl.values import count, memory, ratio
from vmstackd.version import VERSION

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #fafafa; --line: #d0d0d0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #b4b4b4; --paper: #161616; --line: #444444 }
}
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 1.6rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p { max-width: 46rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem }
dt, footer { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom }
th:first-child { text-align: left }
img { display: block; box-sizing: border-box; width: 100%; height: auto; padding: .5rem; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px }
footer { margin-top: 3rem; font-size: .85rem }
"""
_COLUMNS = ("Level", "Most VMs", "Most vCPUs", "Most CPUs", "Mean busy CPUs", "Mean busy share", "p99 vCPU delay")
_UNKNOWN = "–"  # noqa: RUF001  a dash


def page(name: str, series: Series, shown: Sequence[Picture], notes: Iterable[str] = ()) -> str:
    """The whole page. name: of the trace, in printable signs. notes: what was found odd when it was read."""
    return "".join(f"{line}\n" for line in _lines(name, series, shown, notes))


def _lines(name: str, series: Series, shown: Sequence[Picture], notes: Iterable[str]) -> Iterator[str]:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    title = html.escape(f"Report of {name}")
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'sha256-{digest}'\">"
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "</head>"
    yield "<body>"
    yield f"<h1>{title}</h1>"
    yield "<dl>"
    for term, text in _facts(series):
        yield f"<dt>{term}</dt><dd>{html.escape(text)}</dd>"
    for note in notes:
        yield f"<dt>Note</dt><dd>{html.escape(note)}</dd>"
    yield "</dl>"
    if series.samples_per_step > 1:
        yield f"<p>{html.escape(_reduction(series))}</p>"
    if series.summaries:
        yield from _table(series.summaries)
    for picture in shown:
        yield f"<h2>{picture.heading}</h2>"
        if picture.missing:
            yield f"<p>Left out. {html.escape(picture.missing)}</p>"
            continue
        data = base64.b64encode(as_svg(picture)).decode()
        yield f"<p>{html.escape(picture.text)}</p>"
        yield f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(picture.alt)}">'
    yield f"<footer>vmstackctl report, version {html.escape(VERSION)}</footer>"
    yield "</body>"
    yield "</html>"


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


def _table(summaries: Iterable[LevelSummary]) -> Iterator[str]:
    yield "<h2>Figures by level</h2>"
    yield (
        "<p>Most: at one time. Mean: over the samples that tell it. p99 vCPU delay: in 99 of 100 cases, a VM's vCPUs "
        "waited for a CPU no longer than this part of the time.</p>"
    )
    yield '<div class="wide"><table>'
    heads = "".join(f'<th scope="col">{column}</th>' for column in _COLUMNS)
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for row in summaries:
        cells = (
            str(row.most_vms),
            str(row.most_vcpus),
            str(row.most_cpus),
            _UNKNOWN if row.busy_cpus is None else f"{row.busy_cpus:.1f}",
            _percent(row.busy_share),
            _percent(row.delay_p99),
        )
        rest = "".join(f"<td>{cell}</td>" for cell in cells)
        yield f'<tr><th scope="row">{ratio(row.level)}</th>{rest}</tr>'
    yield "</tbody>"
    yield "</table></div>"


def _percent(part: float | None) -> str:
    return _UNKNOWN if part is None else f"{100 * part:.1f} %"
