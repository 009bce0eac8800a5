"""Many workloads in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest

from core.workload import ServerKind
from vmstackctl.plan import parallel
from vmstackctl.plan.parallel import Failed, size_all
from vmstackctl.plan.question import Question
from vmstackctl.plan.sized import Sized, size

QUESTION = Question(
    kinds=(ServerKind(32, 131072),), policies=("worth", "first-fit"), critical_size=2, accounting="host"
)
HEADER = "vcpus,mem_gb,level,count\n"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two of ten are broken, and one is something else."""
    found = []
    for number in range(10):
        found.append(tmp_path / f"{number}.csv")
        found[-1].write_text(f"{HEADER}{number % 4},2,{1 + number % 3},{number * 10 + 10}\n")
    found[5].write_text("name,age\nx,5\n")
    return found


def silent(_: str) -> None:
    pass


def test_processes_find_what_is_found_here(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    apart = dict(size_all(files, QUESTION, silent))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    said: list[str] = []
    here = dict(size_all(files, QUESTION, said.append))
    assert apart == here
    assert sorted(here) == list(range(10))
    assert not multiprocessing.active_children()
    for place, found in here.items():
        if place in (0, 4, 5, 8):
            assert isinstance(found, Failed)
            assert found.path == files[place]
            assert found.foreign == (place == 5)
            assert found.reason.startswith(f"{files[place]}: line ")
        else:
            assert found == msgspec.structs.replace(size(files[place], QUESTION, silent), given=None)
    assert "1.csv: worth, 1 server" in said
    assert not [one for one in said if one.startswith("0.csv")]


def test_a_process_that_dies_costs_one_workload_at_most(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two, whatever it is at; the rest is done all the same, by another in its place."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    results = size_all(files, QUESTION, silent)
    found = dict([next(results)])
    victim = multiprocessing.active_children()[0]
    victim.kill()
    victim.join()
    found.update(results)
    assert sorted(found) == list(range(10))
    dead = [one for one in found.values() if isinstance(one, Failed) and "ended with -9" in one.reason]
    assert len(dead) <= 1
    assert sum(isinstance(one, Sized) for one in found.values()) >= 5
    assert not multiprocessing.active_children()


def test_a_worker_tells_that_it_has_died(files: list[Path]) -> None:
    worker = parallel._Worker(QUESTION)
    worker.process.kill()
    worker.process.join()
    worker.give(0, files[1])
    assert worker.found(files[1]) == Failed(
        files[1], f"{files[1]}: the process that planned it ended with -9; is memory short?"
    )
    assert worker.line.closed


def test_nobody_is_left_behind_if_somebody_has_seen_enough(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    results = size_all(files, QUESTION, silent)
    next(results)
    assert multiprocessing.active_children()
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert not multiprocessing.active_children()
