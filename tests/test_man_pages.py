from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from globald.settings import TABLE as GLOBALD
from tests.running import PATIENCE, ROOT
from tests.vmstackctl.command import every_command
from tools import man_pages
from vmstackctl.commands import SHELLS, cli
from vmstackctl.options import EXIT_CODES
from vmstackd.daemon.table import Table
from vmstackd.settings import TABLE as VMSTACKD

GROFF = ("groff", "-ww", "-man", "-Tutf8", "-P-c", "-rLL=100n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory, made as the package makes it."""
    directory = tmp_path_factory.mktemp("man") / "made"
    subprocess.run([sys.executable, "-m", "tools.man_pages", str(directory)], cwd=ROOT, check=True, timeout=PATIENCE)
    return directory


def shown(page: Path) -> str:
    """The page as people read it, in lines that are put together again."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run([*GROFF, str(page)], capture_output=True, encoding="utf-8", check=True, timeout=PATIENCE)
    assert done.stderr == ""
    return " ".join(re.sub(r".\x08", "", done.stdout).split())


def test_everything_is_written_once(made: Path) -> None:
    pages = {"vmstackctl.1", "vmstackd.8", "vmstackd.toml.5", "globald.8", "globald.toml.5"}
    assert {path.name for path in made.iterdir()} == pages | {f"vmstackctl.{shell}" for shell in SHELLS}


@pytest.mark.parametrize("name", man_pages.PAGES)
def test_groff_has_no_warnings(made: Path, name: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run([*GROFF, str(made / name)], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stderr == ""
    assert done.stdout


@pytest.mark.parametrize("name", man_pages.PAGES)
def test_man_has_no_warnings(made: Path, name: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--warnings=w", "-l", str(made / name)],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("name", man_pages.PAGES)
def test_pages_have_the_usual_sections(made: Path, name: str) -> None:
    found = re.findall(r"^\.SH (.*)$", (made / name).read_text(), re.MULTILINE)
    assert found[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
    assert found[-2:] == ["EXAMPLES", "SEE ALSO"]
    assert len(set(found)) == len(found)


def test_each_command_option_and_exit_code_is_in_the_page(made: Path) -> None:
    text = (made / "vmstackctl.1").read_text()
    commands = list(every_command(cli))
    assert {("host", "add"), ("pki", "client"), ("status",)} <= {path for path, _ in commands}
    for path, command in commands:
        begin = text.index(f"\n.SS {' '.join(path)}")
        section = text[begin : text.find("\n.S", begin + 1)]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert man_pages.escaped(option.opts[0]) in section
    for code in EXIT_CODES:
        assert f"\n\\fB{code}\\fR\n" in text


@pytest.mark.parametrize("table", [VMSTACKD, GLOBALD], ids=lambda table: table.program)
def test_each_setting_is_in_both_pages_of_its_daemon(made: Path, table: Table) -> None:
    keys, flags = (made / f"{table.program}.toml.5").read_text(), (made / f"{table.program}.8").read_text()
    assert keys.count("\n.TP\n") == len(table.rows)
    for row in table.rows:
        assert f".TP\n\\fB{row.key}\\fR\n" in keys
        assert man_pages.escaped(table.variable(row)) in keys
        assert f"\\fB{man_pages.escaped(row.flag)}\\fR" in flags
    assert "TABLE" not in keys + flags


def test_what_is_literal_is_shown_as_it_is_typed(made: Path) -> None:
    text = shown(made / "vmstackctl.1")
    assert "vmstackctl list --output name | xargs -d '\\n' vmstackctl remove" in text
    assert """jq 'select(.event == "refused")'""" in text


def test_signs_of_roff_are_only_signs() -> None:
    assert man_pages.escaped(".a-b\\c'd\n'e\n.f é") == "\\&.a\\-b\\ec\\(aqd\n\\(aqe\n\\&.f \\[u00E9]"


def test_a_directory_must_be_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.man_pages"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (1, "usage: python -m tools.man_pages DIRECTORY\n")
