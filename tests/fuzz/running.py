"""Runs a target in a process of its own, and says what came of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.fuzz.target import CORPUS, FOLDER, load

_HANG_S = 60
"""Seconds after which an input that goes on is given up, whatever the machine is busy with."""
_REPORTED = 4000
"""Characters of what a process said last."""
MOST_LEARNT = 36
"""Files of a corpus that the fuzzer has made."""
LARGEST = 2048
"""Bytes of one."""


class Outcome(msgspec.Struct, frozen=True):
    """corpus: inputs that cover more than others. peak: MiB. found: what went wrong; empty if nothing did.

    report: what the process said of it. command: does it once more.
    """

    name: str
    inputs: int
    seconds: float
    coverage: int = 0
    features: int = 0
    corpus: int = 0
    peak: int = 0
    found: str = ""
    report: str = ""
    command: str = ""


def fuzz(name: str, runs: int | None, seed: int, findings: Path, *, keep: bool = False) -> Outcome:
    """Run a target with so many inputs, beginning with its corpus. runs: as many as the target says, if not given.

    findings: where the input goes that found something. keep: leave what led somewhere new below findings.
    """
    target = load(name)
    findings.mkdir(parents=True, exist_ok=True)
    with _scratch() as (folder, environment):
        made = findings / f"new-{name}" if keep else folder / "new"
        made.mkdir(exist_ok=True)
        words = folder / "words"
        words.write_text("".join(f"{_quoted(word)}\n" for word in target.words), encoding="ascii")
        begin = time.monotonic()
        done = _process(
            name,
            environment,
            f"-runs={runs or target.runs}",
            f"-seed={seed}",
            f"-max_len={target.longest}",
            f"-timeout={_HANG_S}",
            "-rss_limit_mb=0",  # by what one input adds, see ``limited``
            "-print_final_stats=1",
            *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={findings.resolve()}/{name}-",
            str(made),
            *(str(path) for path in (CORPUS / name,) if path.is_dir()),
        )
        seconds = time.monotonic() - begin
    return _outcome(name, done, seconds)


def repeat(name: str, file: Path) -> int:
    """Decode one input; the exit code is that of the process."""
    with _scratch() as (_, environment):
        return _process(name, environment, str(file), quiet=False).returncode


def learn(name: str, findings: Path) -> None:
    """Put into the corpus the fewest of what ``fuzz`` kept that cover all of it; the smallest, if they are many."""
    made, given = (findings / f"new-{name}").resolve(), CORPUS / name
    for old in _learnt(given):
        shutil.move(old, made / old.name)
    with _scratch() as (folder, environment):
        chosen = folder / "chosen"
        chosen.mkdir()
        _process(name, environment, "-set_cover_merge=1", str(chosen), str(given), str(made))
        known = {file.read_bytes() for file in given.iterdir()}
        new = [file for file in chosen.iterdir() if file.read_bytes() not in known and file.stat().st_size <= LARGEST]
        for file in sorted(new, key=lambda file: (file.stat().st_size, file.name))[:MOST_LEARNT]:
            shutil.copyfile(file, given / file.name)
    shutil.rmtree(made)


def _learnt(folder: Path) -> list[Path]:
    """Files that libFuzzer has named, by what they hold."""
    return [file for file in folder.iterdir() if re.fullmatch("[0-9a-f]{40}", file.name)]


def _outcome(name: str, done: subprocess.CompletedProcess[str], seconds: float) -> Outcome:
    said = done.stderr
    status = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", said) or [("0", "0", "0")]
    coverage, features, corpus = map(int, status[-1])
    outcome = Outcome(
        name=name,
        inputs=_figure(said, "number_of_executed_units"),
        seconds=seconds,
        coverage=coverage,
        features=features,
        corpus=corpus,
        peak=_figure(said, "peak_rss_mb"),
    )
    if done.returncode == 0:
        return outcome
    file = (re.findall(r"Test unit written to (\S+)", said) or [""])[-1]
    error = re.search(r"=== Uncaught Python exception: ===\n(.*)", done.stdout)
    return msgspec.structs.replace(
        outcome,
        found=error[1][:300] if error else f"the process ended with {done.returncode}",
        report=done.stdout[-_REPORTED:] if error else said[-_REPORTED:],
        command=f"{sys.executable} -m tests.fuzz {name} --repeat {file}",
    )


def _figure(said: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s*(\d+)", said)
    return int(found[1]) if found else 0


def _process(
    name: str, environment: Mapping[str, str], *arguments: str, quiet: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.one", name, *arguments],
        cwd=FOLDER.parents[1],
        env=environment,
        capture_output=quiet,
        text=True,
        errors="replace",
        check=False,
    )


@contextmanager
def _scratch() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder for one process, and the environment that makes it use it: on no disk where there is such a place."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vmstack-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder), os.environ | {"TMPDIR": folder}


def _quoted(word: str) -> str:
    """As dictionaries of libFuzzer have it."""
    escaped = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02X}" for byte in word.encode())
    return f'"{"".join(escaped)}"'
