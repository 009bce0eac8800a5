"""The page in a real browser."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from core.trace import Sample
from tests.vmstackctl.chromium import PROGRAM, Seen, look
from tests.vmstackctl.recorded import MANY, USUAL, samples
from tests.vmstackctl.test_report_series import of, sample
from vmstackctl.report.page import page
from vmstackctl.report.pictures import as_svg, pictures

pytestmark = [pytest.mark.real, pytest.mark.skipif(not PROGRAM, reason="not installed: chromium")]

SCRIPT = """({
  width: document.documentElement.scrollWidth,
  language: document.documentElement.lang,
  title: document.title,
  text: document.body.innerText,
  headings: [...document.querySelectorAll("h1, h2")].map(heading => heading.innerText),
  images: [...document.images].map(image => [image.alt, image.naturalWidth, image.width, image.height]),
  rows: [...document.querySelectorAll("tr")].map(row => [...row.cells].map(cell => cell.innerText)),
  ink: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor,
})"""
HEADINGS = ["Figures by level", "Levels", "Host", "CPU map", "vCPU delay", "VMs"]

Open = Callable[..., Seen]


@pytest.fixture
def open_page(tmp_path: Path) -> Open:
    def opened(content: str, script: str = SCRIPT, *, width: int = 1280, dark: bool = False) -> Seen:
        file = tmp_path / "page.html"
        file.write_text(content)
        seen = look(file, script, width=width, dark=dark)
        assert seen.wrong == []
        assert seen.requests == [file.as_uri()]
        return seen

    return opened


def page_of(recorded: Iterable[Sample], name: str = "monitoring.csv", notes: Sequence[str] = ()) -> str:
    found = of(recorded)
    return page(name, found, pictures(found), notes)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (800, True), (2000, False)])
def test_the_page_is_readable(open_page: Open, width: int, dark: bool) -> None:
    seen = open_page(page_of(samples(60)), width=width, dark=dark)
    assert seen.value["width"] <= width
    assert seen.value["language"] == "en"
    assert seen.value["title"] == "Report of monitoring.csv"
    assert seen.value["headings"] == ["Report of monitoring.csv", *HEADINGS]
    assert len(seen.value["images"]) == 5
    for alt, natural, shown, height in seen.value["images"]:
        assert len(alt) > 20
        assert natural == 1152
        assert shown > 0.75 * min(width, 1200)
        assert height > 100
    assert _contrast(seen.value["ink"], seen.value["paper"]) > 7
    assert (_luminance(seen.value["paper"]) < 0.1) == dark
    pixels = matplotlib.image.imread(io.BytesIO(seen.screenshot))[:, :, :3]
    # Of each picture, the colours of all three levels are there.
    assert len(np.unique((pixels * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 300


def _luminance(colour: str) -> float:
    """Of "rgb(r, g, b)", 0 to 1."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_has_the_figures(open_page: Open) -> None:
    recorded = list(samples(60))
    seen = open_page(page_of(recorded, notes=["line 9: cut off"]))
    text = seen.value["text"]
    assert "from 0:00:00 to 1:00:00 (h:mm:ss)" in text
    assert "60, one every 60 s on average" in text
    assert "128 usable CPUs, 512 GiB" in text
    assert "line 9: cut off" in text
    assert "The trace is long" not in text
    heads, *rows = seen.value["rows"]
    assert heads[:4] == ["Level", "Most VMs", "Most vCPUs", "Most CPUs"]
    summaries = of(recorded).summaries
    assert [row[:4] for row in rows] == [
        [f"{one.level // 1000}:1", str(one.most_vms), str(one.most_vcpus), str(one.most_cpus)] for one in summaries
    ]
    assert [row[4] for row in rows] == [f"{one.busy_cpus:.1f}" for one in summaries]
    for column, part in ((5, "busy_share"), (6, "delay_p99")):
        assert [row[column] for row in rows] == [f"{100 * getattr(one, part):.1f} %" for one in summaries]


def test_a_long_trace_with_many_levels_says_what_was_summed_up(open_page: Open) -> None:
    content = page_of(samples(3000, MANY))
    assert len(content) < 4_000_000
    seen = open_page(content)
    assert seen.value["width"] <= 1280
    assert "The trace is long: 4 samples became one step" in seen.value["text"]
    assert "drawn as one: other levels" in seen.value["text"]
    assert len(seen.value["rows"]) == 1 + len(MANY)


def test_what_is_left_out_has_its_reason_in_its_place(open_page: Open) -> None:
    seen = open_page(page_of([sample(0), sample(60)]))
    assert seen.value["headings"] == ["Report of monitoring.csv", *HEADINGS[1:]]
    assert seen.value["text"].count("Left out. There was no VM, and so no level.") == 4
    assert len(seen.value["images"]) == 1


def test_names_are_only_names(open_page: Open) -> None:
    name = """<script>document.title = "gone"</script><img src="http://192.0.2.1/x">'&.csv"""
    content = page_of(samples(3), name, notes=["<b>note</b>"])
    seen = open_page(content)
    assert seen.value["title"] == f"Report of {name}"
    assert "<b>note</b>" in seen.value["text"]
    assert html.escape(name) in content


def test_the_policy_of_the_page_lets_no_script_run(open_page: Open, tmp_path: Path) -> None:
    content = page_of(samples(3)).replace("</body>", "<script>document.title = 'gone'</script></body>")
    with pytest.raises(AssertionError, match="security"):
        open_page(content)
    assert look(tmp_path / "page.html", "document.title").value == "Report of monitoring.csv"


@pytest.mark.parametrize(("levels", "counts"), [(USUAL, (1, 7, 60)), (MANY, (60, 3000))])
def test_no_text_of_a_picture_lies_upon_another(open_page: Open, levels: Sequence[int], counts: Sequence[int]) -> None:
    drawn = [picture for count in counts for picture in pictures(of(samples(count, levels))) if not picture.missing]
    bodies = [as_svg(picture).decode().partition("<svg")[2] for picture in drawn]
    content = "<!DOCTYPE html><title>x</title>" + "".join(f"<svg{body}" for body in bodies)
    script = """[...document.querySelectorAll("svg")].map(svg => {
      const box = element => { const r = element.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom] };
      return { box: box(svg), texts: [...svg.querySelectorAll("text")].map(text => [text.textContent, ...box(text)]) };
    })"""
    found = open_page(content, script).value
    assert len(found) == len(drawn)
    for picture, svg in zip(drawn, found, strict=True):
        assert len(svg["texts"]) > 5
        for one, other in combinations(svg["texts"], 2):
            assert not _overlap(one, other), (picture.name, one, other)
        for _, left, right, top, bottom in svg["texts"]:
            assert svg["box"][0] <= left < right <= svg["box"][1]
            assert svg["box"][2] <= top < bottom <= svg["box"][3]


def _overlap(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """By more than the room that a font leaves above and below its letters."""
    _, left, right, top, bottom = one
    _, other_left, other_right, other_top, other_bottom = other
    across = min(right, other_right) - max(left, other_left)
    return bool(across > 1 and min(bottom, other_bottom) - max(top, other_top) > 4)
