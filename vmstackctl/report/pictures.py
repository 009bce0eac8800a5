"""The pictures of a trace, drawn with matplotlib."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from vmstackctl.report.groups import FREE, UNKNOWN, Dashes, Group, Line, groups, labels, peak, total
from vmstackctl.report.series import Series, Step
from vmstackctl.values import MIB_PER_GIB

WIDTH = 12.0
"""Inches; with 72 points and 4/3 pixels each, 1152 pixels on a page."""
_DPI = 160
_TITLE: dict[str, Any] = {"x": 0.008, "ha": "left", "fontsize": 13, "fontweight": "bold"}
INK, GREY, _GRID = "#1a1a1a", "#6b6b6b", "#e4e4e4"
_LOOK: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": _DPI,
    "savefig.dpi": _DPI,
    # Text stays text: it can be read aloud, and is sharp at any size.
    "svg.fonttype": "none",
    # The same trace gives the same file.
    "svg.hashsalt": "vmstack",
}
_LONG: Dashes = (0, (6, 2))
_DOTS: Dashes = (0, (1.5, 1.5))
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400)
"""Seconds between two labels of a time axis."""
_MOST_TICKS = 13
_MOST_CPU_TICKS = 18
_DENSE = 250
"""Steps from which on lines are thinner."""


class Picture(msgspec.Struct, frozen=True):
    """name: of its file. heading: two or three words. text: how to read it. alt: for those who do not see it.
    missing: why it cannot be drawn; empty if it can.
    """

    name: str
    heading: str
    text: str
    alt: str
    missing: str
    draw: Callable[[], Figure]


def pictures(series: Series) -> list[Picture]:
    """All of them, in order. None is drawn yet."""
    shown = groups(series)
    of = f"levels {labels(shown)}" if shown else "no level"
    many = len(series.summaries) > len(shown)
    rest = " The levels with the fewest CPUs are drawn as one: other levels." if many else ""
    no_level = "" if shown else "There was no VM, and so no level."
    return [
        Picture(
            name="levels",
            heading="Levels",
            text="Owned: CPUs that belong to the level. Sold: vCPUs of its VMs, which may be as many as its CPUs times "
            "the level. Busy: so many of its CPUs had work; where nothing is drawn, it was not recorded."
            f"{rest}",
            alt=f"For each of {of}, over time: CPUs owned, vCPUs sold, CPUs busy.",
            missing=no_level,
            draw=lambda: _levels(series, shown),
        ),
        Picture(
            name="host",
            heading="Host",
            text="Above, the CPUs: all that are usable, those owned by any level, and how many were busy. Below, the "
            "memory: all, what the VMs were sold, and what was really in use.",
            alt="For the host, over time: CPUs usable, owned and busy; memory in all, sold and used.",
            missing="",
            draw=lambda: _host(series),
        ),
        Picture(
            name="cpus",
            heading="CPU map",
            text="A row for each CPU that any level ever owned, a colour for each level; white is free. Where there is "
            f"a line between two rows, CPUs are left out that no level ever owned.{rest}",
            alt=f"Map of {len(series.cpu_ids)} CPUs over time, coloured by which of {of} owned them.",
            missing=no_level or ("" if series.cpu_ids else "The trace does not tell which CPUs the levels had."),
            draw=lambda: _cpu_map(series, shown),
        ),
        Picture(
            name="delay",
            heading="vCPU delay",
            text="Of the time between two samples, the part that a vCPU was ready to run and waited for a CPU. Half of "
            "the VMs of a level waited no longer than the median, 99 of 100 no longer than p99."
            + (" Of the other levels, the highest is shown." if many else ""),
            alt=f"For {of}, over time: median and p99 over VMs of the share of time that vCPUs waited.",
            missing=no_level
            or (
                ""
                if series.has_delay
                else "The trace does not tell how long vCPUs waited: the prototype did not record it, and it is not "
                "known where vmstackd cannot see the threads of VMs."
            ),
            draw=lambda: _delay(series, shown),
        ),
        Picture(
            name="vms",
            heading="VMs",
            text=f"How many VMs there were, in all and of each level.{rest}",
            alt=f"Number of VMs over time, in all and of {of}.",
            missing=no_level,
            draw=lambda: _vms(series, shown),
        ),
    ]


def as_svg(picture: Picture) -> bytes:
    """To be shown by a browser; its text is text."""
    found = _saved(picture, "svg", {"Date": None, "Title": picture.heading})
    # Hundredths of a point are more than anybody sees, and half of the bytes.
    return _NUMBERS.sub(lambda path: _DECIMALS.sub(rb"\1", path[0]), found)


def as_png(picture: Picture) -> bytes:
    """Of 1920 pixels across."""
    return _saved(picture, "png", {"Title": picture.heading})


_NUMBERS = re.compile(rb'(?<= d=")[^"]*')
_DECIMALS = re.compile(rb"(\.\d\d)\d+")


def _saved(picture: Picture, kind: str, metadata: dict[str, str | None]) -> bytes:
    file = io.BytesIO()
    with drawing():
        picture.draw().savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within, everything looks as here, whatever the user's own settings of matplotlib are."""
    # It warns of caches that it cannot keep, which are no concern of those who want a report.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_LOOK)
        yield


# Each picture


def _levels(series: Series, shown: Sequence[Group]) -> Figure:
    figure, panels = _panels(series, [1.75] * len(shown))
    for axes, group in zip(panels, shown, strict=True):
        owned = total(series, group, lambda level: level.cpus)
        busy = total(series, group, lambda level: level.busy_cpus.value)
        _fill(axes, series, owned, group.colour, 0.16)
        _fill(axes, series, busy, group.colour, 0.45)
        _step(axes, series, owned, group.colour)
        # Above it, because at 1:1 both are the same.
        _step(axes, series, total(series, group, lambda level: level.vcpus), INK, _LONG)
        _step(axes, series, busy, group.colour, _DOTS)
        axes.set_title(group.label, loc="left", fontweight="bold")
        axes.set_ylabel("CPUs, vCPUs")
    _from_zero(panels)
    head(
        figure,
        "What each level owned, sold and used",
        [
            Line2D([], [], color=INK, linestyle=_LONG, label="vCPUs sold"),
            _swatch(GREY, 0.16, "CPUs owned"),
            _swatch(GREY, 0.6, "CPUs busy", _DOTS),
        ],
    )
    return figure


def _host(series: Series) -> Figure:
    figure, (cpus, memory) = _panels(series, [2.6, 2.6])
    figure.suptitle("What the host had, gave to levels and used", **_TITLE)

    def of(value: Callable[[Step], float | None]) -> Line:
        return [value(step) for step in series.steps]

    def gib(value: float | None) -> float | None:
        return None if value is None else value / MIB_PER_GIB

    for axes, unit, rows in (
        (
            cpus,
            "CPUs",
            (
                ("CPUs usable", of(lambda step: step.cpus)),
                ("CPUs owned by levels", of(lambda step: step.owned_cpus)),
                ("CPUs busy", of(lambda step: step.busy_cpus.value)),
            ),
        ),
        (
            memory,
            "GiB",
            (
                ("memory of the host", of(lambda step: gib(step.memory_mib))),
                ("memory sold to VMs", of(lambda step: gib(step.sold_mib))),
                ("memory used", of(lambda step: gib(step.used_mib.value))),
            ),
        ),
    ):
        for (label, line), colour, dashes, shade in zip(
            rows, (INK, "#0035b0", "#b06a00"), (_LONG, "solid", _DOTS), (0, 0.14, 0.3), strict=True
        ):
            _fill(axes, series, line, colour, shade)
            _step(axes, series, line, colour, dashes, label)
        axes.set_ylabel(unit)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    _from_zero((cpus, memory))
    return figure


def _cpu_map(series: Series, shown: Sequence[Group]) -> Figure:
    rows = len(series.cpu_ids)
    figure, (axes,) = _panels(series, [min(8.0, max(2.2, 0.05 * rows + 1.2))])
    edges = np.array(series.edges)
    axes.pcolormesh(
        edges,
        np.arange(rows + 1),
        owner_codes(series, shown),
        cmap=ListedColormap([FREE, *(group.colour for group in shown), UNKNOWN]),
        vmin=0,
        vmax=len(shown) + 1,
        rasterized=True,
    )
    ticks = cpu_ticks(series.cpu_ids)
    axes.set_yticks([row + 0.5 for row in ticks], [str(series.cpu_ids[row]) for row in ticks])
    axes.grid(visible=False)
    for row, (below, above) in enumerate(pairwise(series.cpu_ids), 1):
        if above - below > 1:
            axes.axhline(row, color=GREY, linewidth=0.6)
    axes.set_ylabel("CPU id")
    axes.set_ylim(0, rows)
    patches = [_patch(group.colour, group.label) for group in shown]
    patches.append(_patch(FREE, "free"))
    if any(step.owners is None for step in series.steps):
        patches.append(_patch(UNKNOWN, "not recorded"))
    head(figure, "Which CPU belonged to which level", patches)
    return figure


def owner_codes(series: Series, shown: Sequence[Group]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A row for each CPU, a column for each step: 0 for free, the number of the group from 1, one more for unknown."""
    rows = {cpu: row for row, cpu in enumerate(series.cpu_ids)}
    code_of = {level: code for code, group in enumerate(shown, 1) for level in group.levels}
    codes = np.zeros((len(rows), len(series.steps)), dtype=np.uint8)
    for column, step in enumerate(series.steps):
        if step.owners is None:
            codes[:, column] = len(shown) + 1
            continue
        for level, cpus in step.owners.items():
            codes[[rows[cpu] for cpu in cpus], column] = code_of[level]
    return codes


def cpu_ticks(cpu_ids: Sequence[int]) -> list[int]:
    """Rows to be labelled, of CPUs whose ids are round where possible, and never too close to each other."""
    every = 1
    while len(cpu_ids) > every * _MOST_CPU_TICKS:
        every *= 2
    rows: list[int] = []
    for row, cpu in enumerate(cpu_ids):
        begins = row == 0 or cpu // every != cpu_ids[row - 1] // every
        if begins and (not rows or row - rows[-1] > every // 2):
            rows.append(row)
    return rows


def _delay(series: Series, shown: Sequence[Group]) -> Figure:
    figure, panels = _panels(series, [1.5] * len(shown), same_scale=True)
    for axes, group in zip(panels, shown, strict=True):
        for line, shade, dashes in (
            (peak(series, group, lambda level: level.delay_p99), 0.16, _DOTS),
            (peak(series, group, lambda level: level.delay_median.value), 0.45, "solid"),
        ):
            percent = [None if value is None else 100 * value for value in line]
            _fill(axes, series, percent, group.colour, shade)
            _step(axes, series, percent, group.colour, dashes)
        axes.set_title(group.label, loc="left", fontweight="bold")
        axes.set_ylabel("% of the time")
    _from_zero(panels, least=0.1)
    head(
        figure,
        "How long vCPUs waited for a CPU",
        [_swatch(GREY, 0.16, "p99 of the VMs", _DOTS), _swatch(GREY, 0.6, "median of the VMs")],
    )
    return figure


def _vms(series: Series, shown: Sequence[Group]) -> Figure:
    figure, (axes,) = _panels(series, [2.6])
    everything: Line = [step.vms for step in series.steps]
    _fill(axes, series, everything, GREY, 0.14)
    _step(axes, series, everything, GREY)
    for group in shown:
        _step(axes, series, total(series, group, lambda level: level.vms), group.colour, group.dashes)
    axes.set_ylabel("VMs")
    _from_zero([axes])
    lines = [Line2D([], [], color=group.colour, linestyle=group.dashes, label=group.label) for group in shown]
    head(figure, "How many VMs there were", [*lines, _swatch(GREY, 0.14, "all")])
    return figure


# What they are made of


def _panels(series: Series, heights: Sequence[float], *, same_scale: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Panels above each other with one time axis. heights: of each, in inches. same_scale: of parts of something, to
    be compared; otherwise each has its own scale, of whole things.
    """
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.3), layout="constrained")
    grid = figure.subplots(len(heights), 1, sharex=True, sharey=same_scale, squeeze=False, height_ratios=heights)
    panels: list[Axes] = list(grid[:, 0])
    for axes in panels:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=not same_scale))
    figure.align_ylabels(panels)
    begin = series.steps[0].time
    every = tick(series.end - begin)
    last = panels[-1]
    last.set_xlim(begin, series.end)
    last.xaxis.set_major_locator(MultipleLocator(every))
    last.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(round(x), seconds=every % 60 != 0)))
    last.set_xlabel(f"time since the recording began ({'h:mm:ss' if every % 60 else 'h:mm'})")
    return figure, panels


def tick(span: int) -> int:
    """Seconds between two labels, so that there are not too many."""
    for every in _TICKS:
        if span <= every * _MOST_TICKS:
            return every
    return -(-span // (_TICKS[-1] * _MOST_TICKS)) * _TICKS[-1]


def clock(time: int, *, seconds: bool = False) -> str:
    """Seconds as h:mm or h:mm:ss."""
    minutes, rest = divmod(time, 60)
    text = f"{minutes // 60}:{minutes % 60:02d}"
    return f"{text}:{rest:02d}" if seconds else text


def _outline(series: Series, line: Line) -> tuple[list[int], list[float]]:
    """Each value from the beginning of its step to the end, so that one between two that are not known is seen."""
    xs: list[int] = []
    ys: list[float] = []
    for (begin, end), value in zip(pairwise(series.edges), line, strict=True):
        known = np.nan if value is None else value
        if ys and ys[-1] == known:
            xs[-1] = end
        else:
            xs += (begin, end)
            ys += (known, known)
    return xs, ys


def _step(axes: Axes, series: Series, line: Line, colour: str, dashes: Dashes = "solid", label: str = "") -> None:
    width = 1.8 if len(series.steps) <= _DENSE else 1.1
    axes.plot(*_outline(series, line), color=colour, linestyle=dashes, linewidth=width, label=label or None)


def _fill(axes: Axes, series: Series, line: Line, colour: str, shade: float) -> None:
    axes.fill_between(*_outline(series, line), color=colour, alpha=shade, linewidth=0)


def _from_zero(panels: Sequence[Axes], least: float = 1) -> None:
    """Once all is drawn. least: shown of each scale."""
    for axes in panels:
        axes.set_ylim(0, max(axes.get_ylim()[1], least))


def _swatch(colour: str, shade: float, label: str, dashes: Dashes = "solid") -> Patch:
    return Patch(facecolor=(colour, shade), edgecolor=colour, linewidth=1.2, linestyle=dashes, label=label)


def _patch(colour: str, label: str) -> Patch:
    return Patch(facecolor=colour, edgecolor=GREY, linewidth=0.6, label=label)


def head(figure: Figure, title: str, entries: Sequence[Line2D | Patch]) -> None:
    """A title with the legend below it: only so matplotlib leaves room for both."""
    legend = figure.legend(
        handles=entries,
        loc="outside upper left",
        ncols=len(entries),
        handlelength=2.6,
        columnspacing=1.6,
        title=title,
        title_fontproperties={"size": 13, "weight": "bold"},
        alignment="left",
        borderpad=0.2,
    )
    legend.get_title().set_color(INK)
