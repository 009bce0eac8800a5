"""One lab for the whole session, one plain box for each module that wants it; journals of failed tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.system.box import Box
from tests.system.lab import Lab, missing


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if missing():
        pytest.skip(f"boxes: {missing()}")
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[Box]:
    """A box that sees nothing but its system. Tests of a module share it."""
    with Box(lab, "box") as box:
        yield box


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = item.funcargs.get("lab") if isinstance(item, pytest.Function) else None
    if report.failed and isinstance(lab, Lab):
        for name, box in lab.boxes.items():
            report.sections.append((f"journal of box {name}", box.journal("--lines=200", f"--since=@{call.start}")))
    return report
