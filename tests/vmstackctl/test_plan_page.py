"""The page of a plan, in a real browser."""

from __future__ import annotations

import html
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.workloads.table import write_csv
from benchmarks.workloads.week import generate
from tests.running import PATIENCE, ROOT
from tests.vmstackctl.chromium import PROGRAM, Seen, look
from tests.vmstackctl.command import environment, run
from tests.vmstackctl.test_commands import failed

pytestmark = [pytest.mark.real, pytest.mark.skipif(not PROGRAM, reason="not installed: chromium")]

SCRIPT = """({
  width: document.documentElement.scrollWidth,
  text: document.body.innerText,
  headings: [...document.querySelectorAll("h1, h2")].map(heading => heading.innerText),
  images: [...document.images].map(image => [image.alt, image.naturalWidth, image.width, image.height]),
  rows: [...document.querySelectorAll("tr")].map(row => [...row.cells].map(cell => cell.innerText)),
})"""


def seen_page(page: Path, *arguments: str, width: int = 1280, dark: bool = False) -> Seen:
    done = run("plan", *arguments, "--output", "html")
    assert done.code == 0, done.err
    page.write_text(done.out)
    seen = look(page, SCRIPT, width=width, dark=dark)
    assert seen.wrong == []
    assert seen.requests == [page.as_uri()]
    assert seen.value["width"] <= width
    return seen


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weeks")
    for mix in ((25, 25, 50), (100, 0, 0)):
        write_csv(folder / f"ovh_{mix[0]}.csv.gz", generate("ovhcloud2023", mix, 5))
    return folder


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (800, True), (2000, False)])
def test_one_workload(week: Path, tmp_path: Path, width: int, dark: bool) -> None:
    seen = seen_page(tmp_path / "plan.html", str(week / "ovh_25.csv.gz"), "--policy", "all", width=width, dark=dark)
    value: Any = seen.value
    assert value["headings"][:2] == ["How many servers? ovh_25.csv.gz", "Servers"]
    assert value["headings"][2].startswith("Servers saved, by mix")
    assert value["headings"][3] == "What is in use"
    for alt, natural, shown, height in value["images"]:
        assert len(alt) > 20
        assert natural == 1152
        assert shown > 0.75 * min(width, 1200)
        assert height > 100
    rows = {first: rest for first, *rest in value["rows"]}
    assert set(rows) >= {
        "dedicated, first-fit",
        "shared, worth",
        "shared, progress",
        "shared, first-fit",
        "lower bound",
    }
    # The page has the figures that programs get.
    servers = rows["shared, worth"][0]
    assert f"With worth, {servers} servers for all levels instead of {rows['dedicated, first-fit'][0]}" in value["text"]
    assert f"At least {rows['lower bound'][0]} are needed." in value["text"]


def test_a_sweep_has_a_map_of_its_own_mixes(week: Path, tmp_path: Path) -> None:
    value = seen_page(tmp_path / "plan.html", "--sweep", str(week)).value
    assert value["headings"] == ["How many servers?", "Servers", "Servers saved, by mix: 2 workloads of ovh"]
    assert [first for first, *_ in value["rows"]] == ["Policy", "worth", "Workload", "ovh_100.csv.gz", "ovh_25.csv.gz"]
    [[alt, *_]] = value["images"]
    assert "25 % at 1:1, 25 % at 2:1: " in alt
    assert "100 % at 1:1, 0 % at 2:1: 0.0 % saved" in alt


def test_workloads_without_mixes_have_no_map_but_a_reason(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("vcpus,mem_gb,level,count\n1,1,1,10\n")
    value = seen_page(tmp_path / "plan.html", str(tmp_path / "one.csv"), str(tmp_path / "two.csv")).value
    assert "Left out. The workloads have not several mixes" in value["text"]
    assert value["images"] == []


def test_names_are_only_names(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>&amp;.csv"
    (tmp_path / name).write_text("vcpus,mem_gb,level,count\n4,8,1,40\n")
    value = seen_page(tmp_path / "plan.html", str(tmp_path / name)).value
    assert value["headings"][0] == f"How many servers? {name}"
    assert html.escape(name) in (tmp_path / "plan.html").read_text()


def test_names_that_a_page_cannot_hold_are_spelt_out(tmp_path: Path) -> None:
    name = "caf\udce9\x1b[31m.csv"
    (tmp_path / name).write_text("vcpus,mem_gb,level,count\n4,8,1,40\n")
    done = run("plan", str(tmp_path / name), "--output", "html")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "caf" in done.out


def test_too_few_servers_are_told(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("vcpus,mem_gb,level,count\n4,8,1,400\n")
    done = run("plan", str(tmp_path / "few.csv"), "--server", "32:128x3", "--output", "html")
    assert done.code == 4
    assert "With worth, there are too few servers." in done.out
    assert "There are too few servers under every policy." in done.out


def test_a_page_is_not_for_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("vcpus,mem_gb,level,count\n1,1,1,10\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vmstackctl", "plan", str(tmp_path / "one.csv"), "--output", "html"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "a page is for a file: add > plan.html" in done.stderr


def test_without_what_draws_there_is_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('No module named matplotlib')\n")
    (tmp_path / "one.csv").write_text("vcpus,mem_gb,level,count\n1,1,1,10\n")
    done = run("plan", str(tmp_path / "one.csv"), "--output", "html", PYTHONPATH=str(tmp_path))
    failed(done, 1, "vmstackctl plan --output html needs matplotlib")
