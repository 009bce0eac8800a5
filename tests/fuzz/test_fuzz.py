"""A little fuzzing finds nothing, and what is planted is found."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.__main__ import AT_ONCE
from tests.fuzz.running import Outcome, fuzz, repeat
from tests.fuzz.target import FOLDER, TARGETS, load

SHORT = 50
"""Part of a long run that is done here: one in so many inputs."""
PLANTED = {
    "raises": "IndexError",
    "slow": "Costly: [0-9]+ bytes took [0-9.]+ s",
    "large": "Costly: [0-9]+ bytes took [0-9]+ MiB",
}

needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None, reason=f"atheris is not there for Python {sys.version_info[0]}.{sys.version_info[1]}"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    findings = tmp_path_factory.mktemp("findings")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {
            outcome.name: outcome
            for outcome in pool.map(lambda name: fuzz(name, load(name).runs // SHORT, 1, findings), TARGETS)
        }


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_made_up_inputs_decode_as_they_should(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert not outcome.found, f"{outcome.found}\n{outcome.report}\nonce more: {outcome.command}"
    assert outcome.inputs >= load(name).runs // SHORT
    assert outcome.coverage > 0
    assert outcome.corpus > 1


@needs_atheris
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found_and_can_be_had_again(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = fuzz(f"tests.fuzz.planted.{name}", 100_000, 1, tmp_path)
    assert re.match(PLANTED[name], outcome.found), outcome
    (kept,) = tmp_path.iterdir()
    assert outcome.command.endswith(f" tests.fuzz.planted.{name} --repeat {kept}")
    assert repeat(f"tests.fuzz.planted.{name}", kept) != 0
    assert re.search(PLANTED[name], capfd.readouterr().out)


@needs_atheris
def test_the_program_tells_what_it_found_by_its_exit_code(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--seed", "1", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(FOLDER.parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )

    found = run("tests.fuzz.planted.raises", "--runs", "100000")
    assert found.returncode == 1
    assert "1 targets with findings" in found.stdout
    command = re.search(r"once more: (.*)", found.stderr)
    assert command
    again = subprocess.run(command[1].split(), cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    assert "IndexError" in again.stdout
    fine = run("queries", "--runs", "2000")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert re.search(r"^queries +[0-9,]+ ", fine.stdout, re.MULTILINE)
