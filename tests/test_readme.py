"""The README is run: every line that it tells a newcomer to type, and what it says is printed then."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.readme import README, Step, check_printed, part, steps
from tests.running import PATIENCE, ROOT, clean_environment
from tests.test_tools import Runner, needs_embedded, purged, qemus, state_path
from tools.state_dir import DEFAULT
from vmstackd.settings import TABLE, load_settings

__all__ = ["state_path"]

URL = "http://127.0.0.1:8099"
HOST_FILE = "/tmp/host.json"

NOT_RUN = {
    "make run": "the daemon that the other lines talk to is started by the same tools.run",
    "make test": "this test is a part of it",
    ".venv/bin/vmstackd --dbus none --socket none --exclude-cpus 0-1 --reserved-memory 4096": (
        "would take in the VMs of this machine's libvirtd; tests/hypervisor has a libvirtd of its own"
    ),
}
"""Lines that are not run here, and why."""

ON_SERVER = steps(part("## On a server", "### From a clone"))
"""For a server with the package: tests/system/test_readme.py has one."""
TALKING = [step for step in steps() if URL in step.line or "/proc/" in step.line or DEFAULT in step.line]
"""In their order: they build on each other."""
ALONE = [step for step in steps() if step not in (*TALKING, *ON_SERVER) and step.line not in NOT_RUN]


APART = {"VMSTACKD_STATE_DIR": "none", "VMSTACKD_TCP_HOST": "none"}
"""What keeps a daemon from what this machine has; a line that names something else wins."""


def typed(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as typed into a shell (not as its argument, which pgrep -f would find)."""
    return subprocess.run(
        ["sh", "-s"],
        input=line + "\n",
        cwd=ROOT,
        env=clean_environment(APART),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_every_kind_of_call_is_documented_and_run() -> None:
    paths = {match for step in TALKING for match in re.findall(re.escape(URL) + r"(/\w*)", step.line)}
    assert paths == {"/", "/status", "/listvm", "/deploy", "/remove", "/progress", "/metrics", "/healthz"}
    assert all(step.kind for step in TALKING if URL in step.line), "every call shows what it prints"


def test_nothing_is_excused_that_is_not_there() -> None:
    assert set(NOT_RUN) <= {step.line for step in steps()}


@pytest.mark.real
@needs_embedded
def test_every_line_that_talks_to_the_daemon_prints_what_the_readme_shows(state_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("the README's two VMs need 2 CPUs")

    def here(text: str) -> str:
        return text.replace(URL, runner.url).replace(DEFAULT, str(state_path))

    with Runner(state_path) as runner:
        for step in TALKING:
            done = typed(here(step.line))
            assert done.returncode == 0, (step.line, done.stderr)
            check_printed(msgspec.structs.replace(step, printed=here(step.printed)), done.stdout)
        assert runner.stop(signal.SIGINT) == 0
        # The form of a decision in the log is as shown.
        for shown in re.findall(r"^\S+Z info (?:deploy|remove) .*$", README, re.MULTILINE):
            keys = re.findall(r" (\w+)=", shown.split("why=")[0])
            logged = [re.findall(r" (\w+)=", line.split("why=")[0]) for line in runner.log.splitlines()]
            assert keys in logged
    assert purged(state_path).returncode == 0
    assert not qemus(state_path)


def _names(step: Step) -> str:
    return step.line


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    path = tmp_path / "host.json"
    path.write_text(typed(".venv/bin/vmstackd --config /dev/null --dump-topology").stdout, encoding="utf-8")
    return path


@pytest.mark.parametrize("step", ALONE, ids=_names)
def test_every_other_line_works(step: Step, host_file: Path) -> None:
    line = step.line.replace(HOST_FILE, str(host_file))
    if line.startswith(".venv/bin/vmstackd") and not re.search("--check-config|--dump-topology", line):
        check_serves(line)
        return
    done = typed(line)
    assert done.returncode == 0, done.stderr
    check_printed(step, done.stdout)


def check_serves(line: str) -> None:
    """A daemon starts, says that it is ready, and ends when told to."""
    line = re.sub(r"--http-port \d+", "--http-port 0", line)
    with subprocess.Popen(
        ["sh", "-c", f"exec {line}"], cwd=ROOT, env=clean_environment(APART), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = []
        for text in process.stderr:
            said.append(text)
            if " info ready http=" in text:
                break
        else:
            raise AssertionError("".join(said))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_the_toml_example_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"^```toml\n(.*?)^```\n", README, re.MULTILINE | re.DOTALL)
    path = tmp_path / "vmstackd.toml"
    path.write_text(example, encoding="utf-8")
    settings = load_settings({}, {}, config_file=path)
    assert settings.critical_sizes == {1500: 4, 3000: 8}
    assert settings.exclude_cpus == (0, 1, 64, 65)


def test_the_table_has_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? ?\| ", README, re.MULTILINE)

    assert rows == [(row.key, row.shown_default) for row in TABLE.rows]


def test_the_old_names_of_settings_are_all_there() -> None:
    assert all(f"`{row.legacy}`" in README for row in TABLE.rows if row.legacy)


def test_the_table_has_every_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(re.findall(r"^\| `make ([a-z-]+)`", README, re.MULTILINE)) == sorted(targets)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_named_files_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    top = "core|vmstackd|tests|tools|topologies|benchmarks"
    files = re.findall(rf"`((?:{top})/[\w./-]*\.(?:py|pyx|pyi|json|md))`", text)
    assert [path for path in (*links, *files) if not (ROOT / path).exists()] == []
