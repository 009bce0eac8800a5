"""The README is run: every line that it tells a newcomer to type, and what it says is printed then."""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from globald.http import ClusterHttp
from globald.settings import TABLE as GLOBALD
from tests.readme import README, Step, check_printed, part, steps
from tests.running import PATIENCE, ROOT, clean_environment
from tests.test_tools import Runner, needs_embedded, purged, qemus, state_path
from tools.state_dir import DEFAULT
from vmstackd.daemon.http import HttpTransport
from vmstackd.daemon.table import Table
from vmstackd.settings import TABLE as VMSTACKD
from vmstackd.settings import load_settings

__all__ = ["state_path"]

URL = "http://127.0.0.1:8099"
CLUSTER_URL = "http://127.0.0.1:8100"
HOST_FILE = "/tmp/host.json"
PORTS = ("8097", "8197", "8199")
"""Of both hosts' TCP, and the second's HTTP."""

NOT_RUN = {
    "make run": "the daemons that the other lines talk to are started by the same tools.run",
    "make test": "this test is a part of it",
    ".venv/bin/vmstackd --dbus none --socket none --exclude-cpus 0-1 --reserved-memory 4096": (
        "would take in the VMs of this machine's libvirtd; tests/hypervisor has a libvirtd of its own"
    ),
}
"""Lines that are not run here, and why."""

ON_SERVER = [
    *steps(part("## On a server", "### From a clone")),
    *steps(part("### A cluster of servers", "### HTTP calls of globald")),
]
"""For a server with the package: tests/system/test_readme.py has one."""
TALKING = [
    *steps(part("## Use it", "## On a server")),
    *steps(part("## A cluster", "### A cluster of servers")),
]
"""In their order: they build on each other."""
OFFLINE = steps(part("## Recordings", "## A cluster"))
"""In their order: the first one makes what the others read."""
ALONE = [step for step in steps() if step not in (*TALKING, *ON_SERVER, *OFFLINE) and step.line not in NOT_RUN]


APART = {"VMSTACKD_STATE_DIR": "none", "VMSTACKD_TCP_HOST": "none"}
"""What keeps a daemon from what this machine has; a line that names something else wins."""


def typed(
    line: str, exported: Mapping[str, str] | None = None, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a line as typed into a shell (not as its argument, which pgrep -f would find)."""
    return subprocess.run(
        ["sh", "-s"],
        input=line + "\n",
        cwd=folder,
        env=clean_environment(APART | dict(exported or {})),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def calls(url: str) -> set[str]:
    """Paths that are called below it."""
    return {match for step in TALKING for match in re.findall(re.escape(url) + r"(/\w*)", step.line)}


def test_every_kind_of_call_is_documented_and_run() -> None:
    assert calls(URL) == {"/", "/status", "/listvm", "/deploy", "/remove", "/progress", "/metrics", "/healthz"}
    assert calls(CLUSTER_URL) == {"/readyz", "/status", "/listvm", "/deploy", "/remove"}
    assert all(step.kind for step in TALKING if step.line.startswith("curl")), "every call shows what it prints"


@pytest.mark.parametrize("path", re.findall(r"^\| `(/\w*)` \|", README, re.MULTILINE))
def test_the_table_of_calls_is_that_of_globald(path: str) -> None:
    routes = inspect.getsource(ClusterHttp.routes) + inspect.getsource(HttpTransport.routes)
    assert f'"{path}"' in routes


def test_nothing_is_excused_that_is_not_there() -> None:
    assert set(NOT_RUN) <= {step.line for step in steps()}


@pytest.mark.real
@needs_embedded
def test_every_line_that_talks_to_the_daemon_prints_what_the_readme_shows(state_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("the README's two VMs need 2 CPUs")

    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    exported: dict[str, str] = {}

    def here(text: str) -> str:
        text = text.replace(URL, runner.url).replace(CLUSTER_URL, runner.cluster_url).replace(DEFAULT, str(state_path))
        for shown, taken in ports.items():
            text = re.sub(rf"\b{shown}\b", str(taken), text)
        return text

    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(Runner(state_path, "--name", "server1", "--tcp-port", str(ports["8097"])))
        for step in TALKING:
            line = here(step.line)
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                exported[name] = value
            elif line.startswith(".venv/bin/vmstackd "):
                stack.enter_context(served(line, {}))
            else:
                wait_for_the_second_host(step, exported)
                done = typed(line, exported)
                assert done.returncode == 0, (line, done.stderr)
                check_printed(msgspec.structs.replace(step, printed=here(step.printed)), without_blanks(done.stdout))
        assert {".venv/bin/vmstackctl hosts", ".venv/bin/vmstackctl list"} <= {step.line for step in TALKING}
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


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that has what a clone has, and nothing that is made by what the README says."""
    for entry in ROOT.iterdir():
        if entry.name not in {".git", "results", "report.html"}:
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def test_the_lines_that_ask_no_daemon_work_in_their_order(clone: Path) -> None:
    printed = {}
    for step in OFFLINE:
        done = typed(step.line, folder=clone)
        assert done.returncode == 0, (step.line, done.stderr)
        check_printed(step, without_blanks(done.stdout))
        printed[step.line] = done.stdout
    replays = [text for line, text in printed.items() if "--load" in line]
    assert len(replays) == len(set(replays)) == 4, "each what-if is another experiment"
    assert all("720 samples" in text for text in replays)
    assert (clone / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in (clone / "results").iterdir()) == [
        "cpus.png",
        "delay.png",
        "host.png",
        "levels.png",
        "monitoring.csv",
        "plan.html",
        "vms.png",
        "workloads",
    ]


def free_ports(count: int) -> list[int]:
    """Nobody has them now. Of four digits, as those of the README: columns are as wide as they are."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            with contextlib.suppress(OSError):
                listener = stack.enter_context(socket.create_server(("127.0.0.1", random.randrange(2000, 10000))))
                found.append(listener.getsockname()[1])
        return found


def without_blanks(text: str) -> str:
    """Without those at the ends of lines, which no README shows."""
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def wait_for_the_second_host(step: Step, exported: Mapping[str, str]) -> None:
    """It has been added; whoever types has taken longer to do so than it takes to connect."""
    if not step.line.endswith("vmstackctl hosts"):
        return
    deadline = time.monotonic() + PATIENCE
    while "2 hosts: 2 up" not in typed(step.line, exported).stdout:
        assert time.monotonic() < deadline, "the second host is not up"
        time.sleep(0.1)


def check_serves(line: str) -> None:
    """A daemon starts, says that it is ready, and ends when told to."""
    with served(re.sub(r"--http-port \d+", "--http-port 0", line), APART):
        pass


@contextlib.contextmanager
def served(line: str, environment: Mapping[str, str]) -> Iterator[None]:
    """While the daemon of a line is ready."""
    with subprocess.Popen(
        ["sh", "-c", f"exec {line}"], cwd=ROOT, env=clean_environment(environment), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = []
        for text in process.stderr:
            said.append(text)
            if " info ready http=" in text:
                break
        else:
            raise AssertionError("".join(said))
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_the_toml_example_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"^```toml\n((?!# /).*?)^```\n", README, re.MULTILINE | re.DOTALL)
    path = tmp_path / "vmstackd.toml"
    path.write_text(example, encoding="utf-8")
    settings = load_settings({}, {}, config_file=path)
    assert settings.critical_sizes == {1500: 4, 3000: 8}
    assert settings.exclude_cpus == (0, 1, 64, 65)


@pytest.mark.parametrize(
    ("table", "begin", "end"),
    [(VMSTACKD, "### Settings", "### Topologies"), (GLOBALD, "### Settings of globald", "## Make targets")],
    ids=["vmstackd", "globald"],
)
def test_the_table_has_every_setting_with_its_default(table: Table, begin: str, end: str) -> None:
    text = part(begin, end)
    assert re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? ?\| ", text, re.MULTILINE) == [
        (row.key, row.shown_default) for row in table.rows
    ]
    assert all(f"`{row.legacy}`" in text for row in table.rows if row.legacy)


def test_the_table_has_every_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(re.findall(r"^\| `make ([a-z-]+)`", README, re.MULTILINE)) == sorted(targets)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "docs/reliability.md",
        "docs/scale.md",
        "docs/sizing.md",
    ],
)
def test_links_and_named_files_exist(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    top = "core|vmstackd|globald|vmstackctl|tests|tools|topologies|benchmarks|monitoring"
    files = re.findall(rf"`((?:{top})/[\w./-]*\.(?:py|pyx|pyi|json|md))`", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [file for file in files if not (ROOT / file).exists()] == []
