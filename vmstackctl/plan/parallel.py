"""Many workloads at once, each in one of as many processes as there are CPUs to use."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec

from vmstackctl.plan.question import Question
from vmstackctl.plan.sized import Sized, Tell, size
from vmstackctl.plan.source import NoWorkload, WorkloadError

_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


class Failed(msgspec.Struct, frozen=True):
    """Why there is nothing to tell of a workload, in a line. foreign: the file is none, and not meant as one."""

    path: Path
    reason: str
    foreign: bool = False


def size_all(paths: Sequence[Path], question: Question, tell: Tell) -> Iterator[tuple[int, Sized | Failed]]:
    """Each as it is found, with its place in paths. What is being done is told where nothing else goes on.

    The workload as it was read is kept of one that is alone.
    """
    workers = min(len(paths), len(os.sched_getaffinity(0)))
    if workers > 1:
        yield from _in_processes(paths, question, workers)
        return
    for place, path in enumerate(paths):
        yield place, _attempt(path, question, tell, keep=len(paths) == 1)


def _attempt(path: Path, question: Question, tell: Tell, *, keep: bool = False) -> Sized | Failed:
    try:
        found = size(path, question, tell)
        return found if keep else msgspec.structs.replace(found, given=None)
    except NoWorkload as error:
        return Failed(path, str(error), foreign=True)
    except WorkloadError as error:
        return Failed(path, str(error))


class _Worker:
    """A process that does one workload after the other. place: of the one that it is at."""

    def __init__(self, question: Question) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.place = -1
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, question), daemon=True)
        # Ctrl-C goes to all processes of the terminal, and is for us to answer: the new one never sees it. What spawn
        # starts beside the first process would let it through again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, place: int, path: Path) -> None:
        self.place = place
        with contextlib.suppress(BrokenPipeError):  # if it has died just now, that is what will be found
            self.line.send(path)

    def found(self, path: Path) -> Sized | Failed:
        """What it has found; if it has died over it, it is over with."""
        try:
            found: Sized | Failed = self.line.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.end()
            return Failed(
                path, f"{path}: the process that planned it ended with {self.process.exitcode}; is memory short?"
            )
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.line.close()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, in whatever way: it may compute for long."""
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and parent.pid != os.getppid():  # it has died already
        os._exit(1)


def _work(line: Connection, question: Question) -> None:
    """Until nobody wants more, or is there any longer."""
    die_with_parent()
    try:
        while True:
            line.send(_attempt(line.recv(), question, lambda _: None))
    except (EOFError, BrokenPipeError):
        pass


def _in_processes(paths: Sequence[Path], question: Question, workers: int) -> Iterator[tuple[int, Sized | Failed]]:
    left = list(enumerate(paths))[::-1]
    team: list[_Worker] = []
    try:
        while len(team) < workers:
            team.append(_Worker(question))
            team[-1].give(*left.pop())
        while team:
            ready = wait([worker.line for worker in team])
            for worker in [worker for worker in team if worker.line in ready]:
                place = worker.place
                yield place, worker.found(paths[place])
                team.remove(worker)
                if left:
                    team.append(_Worker(question) if worker.line.closed else worker)
                    team[-1].give(*left.pop())
                else:
                    worker.end()
    finally:
        for worker in team:
            worker.end()
