"""The pictures of a plan, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, PercentFormatter

from core.cluster_use import ClusterUse
from vmstackctl.plan.mixes import Heat, told
from vmstackctl.plan.sized import Sized
from vmstackctl.report.groups import COLOURS, Dashes
from vmstackctl.report.pictures import GREY, INK, WIDTH, Picture, clock, head, tick
from vmstackctl.values import count, ratio

_DASHES: tuple[Dashes, ...] = ("solid", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def heat_map(heat: Heat | None, missing: str = "") -> Picture:
    """missing: why there is none."""
    heading = "Servers saved, by mix"
    if heat is None:
        return Picture("mixes", heading, "", "", missing, Figure)
    names = [ratio(level) for level in heat.levels]
    return Picture(
        name="mixes",
        heading=f"{heading}: {heat.of}" if heat.of else heading,
        text=f"How many servers one cluster for all levels saves, in percent of those of a cluster for each level. To "
        f"the right, more of the VMs are at {names[0]}; up, more at {names[1]}; the rest is at {names[2]}. "
        f"{told(heat)}",
        alt="; ".join(
            f"{first} % at {names[0]}, {second} % at {names[1]}: {saved:.1f} % saved"
            for (first, second), saved in sorted(heat.saved.items())
        ),
        missing="" if heat.saved else told(heat),
        draw=lambda: _heat_map(heat, names),
    )


def fill(sized: Sized) -> Picture:
    """CPUs and memory in use over time. A plan of which the course was asked for."""
    found = [(shared.policy, shared.use) for shared in sized.shared if shared.use is not None]
    return Picture(
        name="fill",
        heading="What is in use",
        text="Shares of the CPUs and of the memory of the shared cluster that are in use, over the time of the "
        "workload. The cluster is as small as it can be under each policy, so that it is full once, at its peak.",
        alt="Over time, for each policy: the share of CPUs and that of memory in use.",
        missing="" if found else "There are too few servers under every policy.",
        draw=lambda: _fill(found),
    )


def _heat_map(heat: Heat, names: Sequence[str]) -> Figure:
    xs = sorted({first for first, _ in heat.saved})
    ys = sorted({second for _, second in heat.saved})
    cells = np.full((len(ys), len(xs)), np.nan)
    for (first, second), saved in heat.saved.items():
        cells[ys.index(second), xs.index(first)] = saved
    figure = Figure(figsize=(WIDTH, 1.6 + 0.75 * len(ys)), layout="constrained")
    axes = figure.subplots()
    least, most = min(0.0, *heat.saved.values()), max(1.0, *heat.saved.values())
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap="cividis_r", vmin=least, vmax=most)
    for row, second in enumerate(ys):
        for column, first in enumerate(xs):
            if (first, second) in heat.saved:
                saved = heat.saved[first, second]
                dark = saved - least > 0.55 * (most - least)
                axes.text(column, row, f"{saved:.1f}", ha="center", va="center", fontsize=12,
                          color="white" if dark else INK)  # fmt: skip
    axes.set_xticks(range(len(xs)), [f"{first} %" for first in xs])
    axes.set_yticks(range(len(ys)), [f"{second} %" for second in ys])
    axes.set_xlabel(f"VMs at {names[0]}")
    axes.set_ylabel(f"VMs at {names[1]}")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(f"servers saved, in percent; the rest of the VMs at {names[2]}")
    return figure


def _fill(found: Sequence[tuple[str, ClusterUse]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 6.5), layout="constrained")
    panels = list(figure.subplots(2, 1, sharex=True, sharey=True))
    begin = min(use.course[0].time for _, use in found)
    end = max(begin + 1, *(use.course[-1].time for _, use in found))
    entries: list[Line2D] = []
    for (policy, use), colour, dashes in zip(found, COLOURS, _DASHES * 2, strict=False):
        times = [one.time - begin for one in use.course]
        shares = ([one.cpus / use.cpus for one in use.course], [one.memory_mib / use.memory_mib for one in use.course])
        for axes, share in zip(panels, shares, strict=True):
            axes.plot(times, share, color=colour, linestyle=dashes, linewidth=1.5, drawstyle="steps-post")
        label = f"{policy}, {count(use.servers, 'server')}"
        entries.append(Line2D([], [], color=colour, linestyle=dashes, label=label))
    every = tick(round(end - begin))
    for axes, what in zip(panels, ("CPUs", "memory"), strict=True):
        axes.axhline(1.0, color=GREY, linewidth=0.8)
        axes.set_ylabel(f"{what} in use")
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[-1].set_xlim(0, end - begin)
    panels[-1].xaxis.set_major_locator(MultipleLocator(every))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(round(x), seconds=every % 60 != 0)))
    panels[-1].set_xlabel(f"time since the first VM arrived ({'h:mm:ss' if every % 60 else 'h:mm'})")
    head(figure, "The shared cluster over time", entries)
    return figure
