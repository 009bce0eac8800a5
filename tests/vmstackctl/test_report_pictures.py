from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from itertools import pairwise

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from core.trace import Sample
from tests.vmstackctl.recorded import MANY, any_samples, level, samples
from tests.vmstackctl.test_report_series import of, sample
from vmstackctl.report.groups import COLOURS, FREE, groups
from vmstackctl.report.pictures import (
    Picture,
    as_png,
    as_svg,
    clock,
    cpu_ticks,
    drawing,
    owner_codes,
    pictures,
)

NAMES = ("levels", "host", "cpus", "delay", "vms")
PNG = b"\x89PNG\r\n\x1a\n"


def drawn(recorded: Iterable[Sample]) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures(of(recorded))}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def figure_of(picture: Picture) -> Figure:
    with drawing():
        figure = picture.draw()
        figure.savefig(io.BytesIO(), format="png")  # so that all texts are there
    return figure


def points(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


# What they say


@pytest.mark.parametrize(
    ("name", "title", "units", "legend"),
    [
        ("levels", "What each level owned, sold and used", {"CPUs, vCPUs"}, {"vCPUs sold", "CPUs owned", "CPUs busy"}),
        (
            "host",
            "What the host had, gave to levels and used",
            {"CPUs", "GiB"},
            {"CPUs usable", "CPUs owned by levels", "CPUs busy", "memory of the host", "memory sold to VMs"},
        ),
        ("cpus", "Which CPU belonged to which level", {"CPU id"}, {"1:1", "2:1", "3:1", "free"}),
        ("delay", "How long vCPUs waited for a CPU", {"% of the time"}, {"p99 of the VMs", "median of the VMs"}),
        ("vms", "How many VMs there were", {"VMs"}, {"1:1", "2:1", "3:1", "all"}),
    ],
)
def test_each_has_a_title_units_a_legend_and_times(name: str, title: str, units: set[str], legend: set[str]) -> None:
    figure = figure_of(drawn(samples(60))[name])
    found = texts(figure)
    assert title in found
    assert {axes.get_ylabel() for axes in figure.axes} == units
    assert legend <= set(found)
    assert figure.axes[-1].get_xlabel() == "time since the recording began (h:mm)"
    assert {"0:00", "0:30", "1:00"} <= set(found)


def test_a_level_has_the_same_colour_in_all_pictures() -> None:
    found = drawn(samples(30))
    blue = mpl.colors.to_rgba(COLOURS[0])
    for name in ("levels", "delay", "vms"):
        assert blue in {mpl.colors.to_rgba(line.get_color()) for line in figure_of(found[name]).axes[0].lines}
    legend = figure_of(found["cpus"]).legends[0]
    assert [mpl.colors.to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == [*COLOURS[:3], FREE]


def test_lines_are_where_the_samples_are() -> None:
    recorded = list(samples(4))
    axes = figure_of(drawn(recorded)["levels"]).axes[1]
    owned = next(line for line in axes.lines if line.get_linestyle() == "-")
    heights = [next(one.cpus for one in moment.levels if one.level == 2000) for moment in recorded]
    for moment, height in zip(recorded, heights, strict=True):
        assert np.interp(moment.time + 30, *points(owned)) == height
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= 2 * max(heights)  # of the vCPUs sold


def test_memory_is_in_gib() -> None:
    axes = figure_of(drawn(samples(3))["host"]).axes[1]
    assert set(points(axes.lines[0])[1]) == {512.0}


# What cannot be drawn


def test_pictures_that_would_be_empty_say_why() -> None:
    found = drawn([sample(0), sample(60)])
    assert list(found) == list(NAMES)
    assert [name for name in NAMES if found[name].missing] == ["levels", "cpus", "delay", "vms"]
    assert "no level" in found["levels"].missing
    found = drawn(samples(5, delay=False))
    assert [name for name in NAMES if found[name].missing] == ["delay"]
    assert "does not tell how long vCPUs waited" in found["delay"].missing


def test_without_descriptions_there_is_no_map() -> None:
    silent = type(level(1000, []))(level=1000, cpus=2)
    assert "does not tell which CPUs" in drawn([sample(0, [silent])])["cpus"].missing


@given(any_samples(most=6))
@settings(max_examples=8)
def test_whatever_was_recorded_can_be_drawn(recorded: list[Sample]) -> None:
    for picture in drawn(recorded).values():
        if not picture.missing:
            assert as_svg(picture).startswith(b"<?xml")


# The map of CPUs


def test_the_map_tells_whose_each_cpu_was() -> None:
    recorded = of(
        [
            sample(0, [level(1000, [4, 0]), level(2000, [2])]),
            sample(60, [level(2000, [2, 4])]),
            sample(120, [type(level(1000, []))(level=1000, cpus=1)]),
        ]
    )
    assert recorded.cpu_ids == (0, 2, 4)
    assert owner_codes(recorded, groups(recorded)).tolist() == [[1, 0, 3], [2, 2, 3], [1, 2, 3]]
    assert "not recorded" in texts(figure_of(next(one for one in pictures(recorded) if one.name == "cpus")))


@given(st.lists(st.integers(0, 8191), unique=True, min_size=1, max_size=600).map(sorted))
def test_labels_of_cpus_are_few_and_apart(cpu_ids: list[int]) -> None:
    rows = cpu_ticks(cpu_ids)
    assert rows[0] == 0
    assert 1 <= len(rows) <= 37
    every = max(1, len(cpu_ids) / 36)
    assert all(after - before >= every / 2 for before, after in pairwise(rows))


def test_labels_of_cpus_are_round_numbers() -> None:
    assert cpu_ticks(range(8)) == list(range(8))
    assert cpu_ticks(range(128)) == list(range(0, 128, 8))
    cpu_ids = [*range(12, 64), *range(140, 192)]
    assert [cpu_ids[row] for row in cpu_ticks(cpu_ids)] == [12, 24, 32, 40, 48, 56, 140, 152, 160, 168, 176, 184]


# As files


@pytest.mark.parametrize("name", NAMES)
def test_a_png_can_be_read_and_is_not_blank(name: str) -> None:
    png = as_png(drawn(samples(20))[name])
    assert png.startswith(PNG)
    pixels = mpl.image.imread(io.BytesIO(png))
    assert pixels.shape[1] == 1920
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_an_svg_is_the_same_each_time_and_its_text_is_text() -> None:
    first, second = (as_svg(drawn(samples(20))["levels"]) for _ in range(2))
    assert first == second
    root = ET.fromstring(first)
    words = {"".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"CPUs, vCPUs", "vCPUs sold", "2:1", "time since the recording began (h:mm)"} <= words
    assert not re.search(rb' d="[^"]*\.\d{3}', first)


def test_a_long_trace_makes_no_large_file() -> None:
    sizes = {name: len(as_svg(picture)) for name, picture in drawn(samples(3000, MANY)).items()}
    assert sum(sizes.values()) < 3_000_000, sizes


def test_the_settings_of_a_user_change_nothing() -> None:
    picture = drawn(samples(10))["vms"]
    usual = as_svg(picture)
    with mpl.rc_context({"lines.linewidth": 9, "axes.grid": False, "font.size": 30, "svg.fonttype": "path"}):
        assert as_svg(picture) == usual
        assert mpl.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("time", "short", "long"),
    [(0, "0:00", "0:00:00"), (61, "0:01", "0:01:01"), (3600, "1:00", "1:00:00"), (360_000, "100:00", "100:00:00")],
)
def test_times_are_hours_and_minutes(time: int, short: str, long: str) -> None:
    assert (clock(time), clock(time, seconds=True)) == (short, long)


def test_seconds_are_told_where_minutes_are_too_coarse() -> None:
    figure = figure_of(drawn(samples(10, step=2))["host"])
    assert figure.axes[-1].get_xlabel() == "time since the recording began (h:mm:ss)"
    assert "0:00:10" in texts(figure)
