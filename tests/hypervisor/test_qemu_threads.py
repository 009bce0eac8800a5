from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypervisor.test_qemu_process import OTHER, UUID, make_process
from tests.real import WAIT_S
from vmstackd.hypervisor.qemu_process import QemuProcess
from vmstackd.hypervisor.qemu_threads import QemuThreads

ALL = frozenset(os.sched_getaffinity(0))
ONE = frozenset({min(ALL)})

pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="with one CPU nothing can be pinned to another one")

THREADS = """
import sys, threading
for _ in range(2):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def process(uuid: str = UUID) -> Iterator[tuple[int, list[int]]]:
    """One of three threads that says that it is this VM: its id, and those of its threads."""
    command = [sys.executable, "-c", THREADS, "-uuid", uuid]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started.pid, sorted(int(task.name) for task in Path(f"/proc/{started.pid}/task").iterdir())
        started.communicate(timeout=WAIT_S)


def test_threads_are_told_by_where_they_may_run() -> None:
    with process() as (_, ids), process(OTHER) as (_, others):
        looking = QemuThreads()
        assert looking.look([UUID, OTHER, "absent"], search=True) == {
            UUID: {ALL: tuple(ids)},
            OTHER: {ALL: tuple(others)},
        }
        os.sched_setaffinity(ids[1], ONE)
        assert looking.look([UUID], search=False) == {UUID: {ALL: (ids[0], ids[2]), ONE: (ids[1],)}}


def test_only_who_searches_finds_new_ones_and_forgets_old_ones() -> None:
    looking = QemuThreads()
    with process() as (_, ids):
        assert looking.look([UUID], search=False) == {}
        looking.confine(UUID, ONE)
        assert os.sched_getaffinity(ids[1]) == ALL
        assert looking.look([UUID], search=True).keys() == {UUID}
        assert looking.look([UUID], search=False).keys() == {UUID}
    assert looking.look([UUID], search=False) == {}
    with process() as (_, ids):
        assert looking.look([UUID], search=False) == {}
        assert looking.look([UUID], search=True) == {UUID: {ALL: tuple(ids)}}
        assert looking.look([OTHER], search=True) == {}
        assert looking.look([UUID], search=False) == {}


def test_threads_are_confined() -> None:
    with process() as (_, ids), process(OTHER) as (_, others):
        looking = QemuThreads()
        looking.look([UUID, OTHER], search=True)
        os.sched_setaffinity(ids[2], ONE)
        looking.confine(UUID, ONE)
        assert looking.look([UUID, OTHER], search=False) == {UUID: {ONE: tuple(ids)}, OTHER: {ALL: tuple(others)}}
        looking.confine(UUID, ALL)
        assert looking.look([UUID], search=False) == {UUID: {ALL: tuple(ids)}}


def test_what_we_may_not_move_stays_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service that is not root has it; the others are moved all the same."""
    with process() as (_, ids):
        looking = QemuThreads()
        looking.look([UUID], search=True)
        moving = os.sched_setaffinity

        def refused(thread: int, cpus: frozenset[int]) -> None:
            if thread == ids[1]:
                raise PermissionError(1, "Operation not permitted")
            moving(thread, cpus)

        monkeypatch.setattr(os, "sched_setaffinity", refused)
        looking.confine(UUID, ONE)
        assert looking.look([UUID], search=False) == {UUID: {ONE: (ids[0], ids[2]), ALL: (ids[1],)}}


def test_workers_of_the_kernel_are_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are threads of the process, and the kernel moves them as it likes."""
    threads = [("qemu", None), ("iou-wrk-100", None), ("CPU 0/KVM", None)]
    folder = make_process(tmp_path, 100, UUID, threads=threads)
    for thread, flags in ((100, 0), (101, 0x04000000), (102, 0x400000)):
        (folder / "task" / str(thread) / "stat").write_text(f"{thread} (a) b) S 1 1 1 0 -1 {flags} 0 0\n")
    places = {100: {0, 1}, 101: set(range(64)), 102: {0, 1}}
    monkeypatch.setattr(os, "sched_getaffinity", places.__getitem__)
    found = QemuProcess(folder).thread_cpus()
    assert {cpus: set(ids) for cpus, ids in found.items()} == {frozenset({0, 1}): {100, 102}}


def test_a_thread_that_has_just_ended_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_process(tmp_path, 100, UUID, threads=[("qemu", None), ("worker", None), ("worker", None)])
    for thread in (100, 101):
        (folder / "task" / str(thread) / "stat").write_text(f"{thread} (a) S 1 1 1 0 -1 0 0 0\n")

    def affinity(thread: int) -> set[int]:
        if thread == 101:
            raise ProcessLookupError(3, "No such process")
        return {thread - 100}

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    assert QemuProcess(folder).thread_cpus() == {frozenset({0}): (100,)}
