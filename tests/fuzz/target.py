"""What is fuzzed: a function of bytes that raises only where something is wrong, and what one input may cost."""

from __future__ import annotations

import importlib
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

FOLDER = Path(__file__).resolve().parent
CORPUS = FOLDER / "corpus"
MOST_SECONDS = 1.0
"""Of CPU time for one input; however busy the machine is."""

TARGETS = (
    "calls",
    "answers",
    "hosts_told",
    "queries",
    "domains",
    "topology_files",
    "synthetic",
    "sysfs",
    "traces",
    "host_settings",
    "cluster_settings",
    "host_files",
    "inventories",
    "workloads",
)
"""Modules of ``targets``, each with a TARGET."""


class Target(msgspec.Struct, frozen=True):
    """One decoder.

    take: decodes an input and raises whatever nobody promises, or AssertionError where what was decoded is wrong.
    words: what inputs are likely to hold. longest: bytes of an input. runs: inputs of a long run. growth_mib: by how
    much one input may raise the most memory that the process ever had.
    """

    take: Callable[[bytes], None]
    words: tuple[str, ...] = ()
    longest: int = 4096
    runs: int = 100_000
    growth_mib: int = 48


class Costly(Exception):
    """An input that took more time or memory than any may."""


def load(name: str) -> Target:
    """A target by the name of its module, which may be anywhere."""
    module = importlib.import_module(name if "." in name else f"tests.fuzz.targets.{name}")
    target = module.TARGET
    if not isinstance(target, Target):
        raise TypeError(f"{name} has no TARGET")
    return target


def limited(target: Target) -> Callable[[bytes], None]:
    """As ``target.take``, and raises Costly."""

    def take(data: bytes) -> None:
        peak, begin = _peak_kib(), time.thread_time()
        target.take(data)
        seconds, grown = time.thread_time() - begin, (_peak_kib() - peak) // 1024
        if seconds > MOST_SECONDS:
            raise Costly(f"{len(data)} bytes took {seconds:.1f} s")
        if grown > target.growth_mib:
            raise Costly(f"{len(data)} bytes took {grown} MiB")

    return take


def _peak_kib() -> int:
    """Not what getrusage tells: that begins with the peak of whoever has started this process."""
    return int(re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])


_scratch: list[tempfile.TemporaryDirectory[str]] = []


def scratch() -> Path:
    """A new folder for files that are written for each input, gone when the process ends; TMPDIR says where."""
    folder = tempfile.TemporaryDirectory(prefix="vmstack-fuzz-")
    _scratch.append(folder)
    return Path(folder.name)


def check_told(error: Exception, place: object) -> None:
    """An error for people: one line, with the place in front."""
    text = str(error)
    assert text.startswith(str(place)), text
    assert "\n" not in text, text


def words(lines: str) -> tuple[str, ...]:
    """One word a line; ¶ stands for a line end in it, ← for a carriage return, → for a tab."""
    signs = str.maketrans({"¶": "\n", "←": "\r", "→": "\t"})
    return tuple(line.translate(signs) for line in lines.strip("\n").split("\n"))
