"""The workloads of a folder, and their means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmstackctl.plan.sized import Row
from vmstackctl.plan.source import WorkloadError
from vmstackctl.plan.sweep import Means, files_of, means


def row(workload: str, policy: str, servers: int | None, dedicated: int | None, bound: int) -> Row:
    return Row(
        workload=workload,
        policy=policy,
        servers=servers,
        dedicated=dedicated,
        lower_bound=bound,
        saved_percent=None if servers is None or dedicated is None else 100 * (dedicated - servers) / dedicated,
        gap_percent=None if servers is None else 100 * (servers - bound) / bound,
        accounting="host",
        critical_size=2,
        vms=1,
        shared=None,
        levels=(),
        notes=(),
    )


def test_files_are_known_by_their_endings_and_sorted(tmp_path: Path) -> None:
    for name in ("b.csv.gz", "a.csv", "B.csv", "x.properties", "c.csv~", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.csv").symlink_to("nowhere")
    files, others = files_of(tmp_path)
    assert [file.name for file in files] == ["B.csv", "a.csv", "b.csv.gz", "gone.csv", "x.properties"]
    assert others == ["c.csv~", "notes.txt", "pipe.csv"]


def test_a_folder_without_any_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for folder, said in ((tmp_path, "holds no workload"), (tmp_path / "notes.txt", "cannot be read")):
        with pytest.raises(WorkloadError, match=f"{folder}: {said}"):
            files_of(folder)


def test_means_are_over_workloads_and_sums_over_servers() -> None:
    rows = [
        row("a", "worth", 8, 10, 8),
        row("a", "progress", 9, 10, 8),
        row("b", "worth", 100, 100, 80),
        row("b", "progress", None, 100, 80),
        row("c", "worth", 5, None, 5),
    ]
    assert means(rows) == [
        Means("worth", 2, 3, 108, 110, 88, saved_percent=10.0, gap_percent=12.5),
        Means("progress", 1, 2, 9, 10, 8, saved_percent=10.0, gap_percent=12.5),
    ]
    assert means([row("b", "progress", None, 100, 80)]) == []
