"""What is really on the screen: vmstackctl in a terminal that tmux emulates."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT
from tests.vmstackctl.cluster import Served, level, member, usual
from tests.vmstackctl.command import LARGE_HOST, Host, environment, words
from tests.vmstackctl.hosts import ESCAPE

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

HEIGHT = 30
PROMPT = "ready>"


class Terminal:
    """A shell in a tmux server of its own."""

    def __init__(self, width: int, height: int = HEIGHT) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tmux-"))
        self._width = width
        shell = f"env PS1={shlex.quote(PROMPT)} sh"
        size = ("-x", str(width), "-y", str(height))
        self._tmux("-f", os.devnull, "new-session", "-d", *size, shell)
        try:
            self.wait_for(PROMPT)
        except BaseException:
            self.close()
            raise

    def _tmux(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-u", "-S", str(self._folder / "s"), *arguments],
            cwd=ROOT,
            env=environment({"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        ).stdout

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it has ended with its shell
            self._tmux("kill-server")
        shutil.rmtree(self._folder)

    def type(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def start(self, *command: str) -> None:
        self.enter(f"clear; {shlex.join(command)}")

    def enter(self, line: str) -> None:
        self._tmux("send-keys", "-l", line)
        self.type("Enter")

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self, *, coloured: bool = False) -> str:
        return self._tmux("capture-pane", "-p", *(("-e",) if coloured else ()))

    def joined(self) -> str:
        """The screen with lines that the terminal wrapped put together again."""
        return self._tmux("capture-pane", "-p", "-J")

    def state(self, name: str) -> str:
        """One of tmux's formats."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    def wait_for(self, pattern: str) -> str:
        """The screen once it shows this."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if re.search(pattern, screen := self.screen(), re.MULTILINE):
                return screen
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} on the screen:\n{screen}")


@pytest.fixture(params=[80, 200])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    opened = Terminal(request.param)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def large_host() -> Iterator[Host]:
    host = Host(LARGE_HOST)
    try:
        with host.daemon():
            for number, level in enumerate(("1", "2", "1.5", "3")):
                for vcpus in (1, 5, 13):
                    assert host.deploy(f"vm{number}-{vcpus}", vcpus, level).code == 0
            yield host
    finally:
        host.close()


def ctl(host: Host | Served, *arguments: str) -> tuple[str, ...]:
    return tuple(words("--socket", str(host.socket), *arguments))


def is_well_drawn(terminal: Terminal) -> None:
    """No line is wrapped, and colours begin and end."""
    assert [line.rstrip() for line in terminal.joined().splitlines()] == [
        line.rstrip() for line in terminal.screen().splitlines()
    ]
    coloured = terminal.screen(coloured=True)
    assert "\033[" in coloured
    rest = ESCAPE.sub("", coloured)
    assert rest.replace("\n", "").isprintable(), "an escape sequence is broken"


def test_status_fits_the_terminal(terminal: Terminal, large_host: Host) -> None:
    terminal.start(*ctl(large_host, "status"))
    screen = terminal.wait_for(r"a group shares an L3 cache\.\n+" + PROMPT)
    is_well_drawn(terminal)
    assert screen.count("Socket ") == 2
    assert re.search(r"^33  3:1 ", screen, re.MULTILINE)
    assert re.search(r"^aa  1.5:1 ", screen, re.MULTILINE)
    # Behind each colour of a level is its sign, in black on that colour.
    found = set(re.findall(r"\033\[1m\033\[30m\033\[(4[1-7])m([0-9a-z])", terminal.screen(coloured=True)))
    assert {sign for _, sign in found} == {"1", "a", "2", "3"}
    assert len({colour for colour, _ in found}) == 4


@pytest.mark.parametrize("command", ["list", "topology", "describe vm1-5"])
def test_tables_fit_the_terminal(terminal: Terminal, large_host: Host, command: str) -> None:
    terminal.start(*ctl(large_host, *command.split()))
    terminal.wait_for(rf"\n{PROMPT}$")
    is_well_drawn(terminal)


def test_watch_draws_anew_and_gives_the_screen_back(terminal: Terminal, large_host: Host) -> None:
    terminal.start("echo", "before")
    terminal.wait_for(r"^before$")
    terminal.enter(shlex.join(ctl(large_host, "watch", "--interval", "0")))
    before = terminal.wait_for("q or Ctrl-C ends")
    is_well_drawn(terminal)
    assert terminal.state("alternate_on") == "1"
    assert terminal.state("cursor_flag") == "0"
    assert not re.search(r"^44", before, re.MULTILINE)
    vms = re.search(r"([0-9]+) VMs,", before)
    assert vms is not None
    try:
        large_host.deploy("another", 2, "4")
        # The event may be drawn a moment before the status that goes with it.
        after = terminal.wait_for(rf"(?s){int(vms[1]) + 1} VMs,.*deployed another: level 4:1")
        assert re.search(r"^44  4:1 ", after, re.MULTILINE)
        is_well_drawn(terminal)
    finally:
        large_host.ctl("remove", "another")
    terminal.wait_for("removed another")
    terminal.type("x")
    terminal.type("C-c")
    terminal.wait_for(rf"^{PROMPT}$")
    terminal.enter("echo code $?")
    screen = terminal.wait_for("^code 0$")
    assert screen.startswith("before\n")
    assert "Socket" not in screen
    assert terminal.state("alternate_on") == "0"
    assert terminal.state("cursor_flag") == "1"
    # The shell shows again what is typed.
    assert "echo code" in screen


def test_watch_shows_every_measurement(terminal: Terminal) -> None:
    host = Host(LARGE_HOST, "--delay", "1")
    try:
        with host.daemon():
            for number in range(12):
                host.deploy(f"vm{number}", 4, ("1.5", "2", "3")[number % 3])
            terminal.start(*ctl(host, "watch", "--interval", "0"))
            screen = terminal.wait_for(r"^22  2:1 .* [0-9]+\.[0-9] +[0-9.]+/[0-9.]+$")
            is_well_drawn(terminal)
            figure = re.search(r"^CPUs .* free, ([0-9]+\.[0-9]) busy", screen, re.MULTILINE)
            assert figure is not None
            assert float(figure[1]) > 0
            assert re.search(r"^memory .* GiB free, [0-9.]+ GiB used", screen, re.MULTILINE)
            terminal.wait_for(rf"^CPUs .* free, (?!{re.escape(figure[1])} )[0-9.]+ busy")
            is_well_drawn(terminal)
            terminal.type("q")
            terminal.wait_for(rf"^{PROMPT}$")
    finally:
        host.close()


def test_watch_follows_the_size_of_the_terminal(large_host: Host) -> None:
    terminal = Terminal(80)
    try:
        terminal.start(*ctl(large_host, "watch"))
        terminal.wait_for(r"^0-15,128-143 ")
        terminal.resize(200, HEIGHT)
        terminal.wait_for(r"^0-31,128-159 ")
        is_well_drawn(terminal)
        terminal.resize(80, 10)
        terminal.wait_for(r"^\.\.\. [0-9]+ more lines: make the window taller\n.*q or Ctrl-C ends")
        is_well_drawn(terminal)
        terminal.type("q")
        terminal.wait_for(rf"^{PROMPT}$")
    finally:
        terminal.close()


def test_watch_can_be_suspended(large_host: Host) -> None:
    terminal = Terminal(80)
    try:
        terminal.start(*ctl(large_host, "watch"))
        terminal.wait_for("q or Ctrl-C ends")
        terminal.type("C-z")
        terminal.wait_for(rf"{PROMPT}$")
        assert terminal.state("alternate_on") == "0"
        terminal.type("fg", "Enter")
        terminal.wait_for("q or Ctrl-C ends")
        terminal.type("q")
        terminal.wait_for(rf"{PROMPT}$")
    finally:
        terminal.close()


def test_watch_outlives_the_daemon_and_says_so() -> None:
    terminal = Terminal(80)
    host = Host(LARGE_HOST)
    try:
        with host.daemon():
            host.deploy("web1")
            terminal.start(*ctl(host, "watch"))
            terminal.wait_for(r"1 VM, hypervisor up")
        terminal.wait_for(r"^vmstackd is away: .*; trying again$")
        is_well_drawn(terminal)
        with host.daemon():
            # sim: has forgotten the VM; what matters is that the picture is the new one.
            terminal.wait_for(r"0 VMs, hypervisor up")
            terminal.wait_for("connected: vmstackd is back with 0 VMs")
            screen = terminal.wait_for("q or Ctrl-C ends")
            assert "is away" not in screen
            is_well_drawn(terminal)
            terminal.type("q")
            terminal.wait_for(rf"^{PROMPT}$")
    finally:
        terminal.close()
        host.close()


def test_watch_can_be_ended_while_the_daemon_hangs() -> None:
    terminal = Terminal(80)
    host = Host(LARGE_HOST)
    try:
        with host.daemon() as daemon:
            terminal.start(*ctl(host, "watch"))
            terminal.wait_for("q or Ctrl-C ends")
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                terminal.resize(100, HEIGHT)  # it asks for the topology again
                time.sleep(1)
                terminal.type("q")
                begin = time.monotonic()
                terminal.wait_for(rf"^{PROMPT}$")
                assert time.monotonic() - begin < 10
            finally:
                daemon.process.send_signal(signal.SIGCONT)
    finally:
        terminal.close()
        host.close()


@pytest.mark.parametrize("command", ["hosts", "host list", "status", "list", "progress --vcpus 1 --memory 1 --level 1"])
def test_tables_of_a_cluster_fit_the_terminal(terminal: Terminal, command: str) -> None:
    hosts = (
        member("日本語のホスト" * 10, "up", "", *(level(1000 * n, 1) for n in range(1, 17))),
        member("\033[2J"),
        *usual(),
    )
    with Served(hosts) as cluster:
        cluster.do(lambda: cluster.cluster.add("日本語の名前" * 20, hosts[0].name))
        terminal.start(*ctl(cluster, *command.split()))
        terminal.wait_for(rf"\n{PROMPT}$")
        is_well_drawn(terminal)


def test_watch_shows_the_hosts_of_a_cluster_and_what_becomes_of_them(terminal: Terminal) -> None:
    with Served(usual()) as cluster:
        terminal.start(*ctl(cluster, "watch", "--interval", "0"))
        terminal.wait_for("q or Ctrl-C ends")
        screen = terminal.wait_for(r"^server1 +up ")
        assert re.search(r"^! server3 is unknown: silent for 12 s", screen, re.MULTILINE)
        is_well_drawn(terminal)
        cluster.ctl("cordon", "server1", "--reason", "new fans")
        terminal.wait_for(r"(?s)^server1 +cordoned .*^! server1 is cordoned: new fans.*host server1 is cordoned")
        cluster.deploy("web1", 1, "--host", "server1")
        terminal.wait_for("deployed web1: level 2:1 on CPUs 0 of server1")
        cluster.ctl("host", "add", "server9:8097", "--name", "server9")
        terminal.wait_for(r"^server9 +connecting ")
        is_well_drawn(terminal)
        cluster.stop()
        terminal.wait_for(r"^globald is away: ")
        assert re.search(r"^server9 +connecting ", terminal.screen(), re.MULTILINE)
        is_well_drawn(terminal)
        terminal.type("q")
        terminal.wait_for(rf"^{PROMPT}$")


def test_watch_of_many_hosts_shows_trouble_and_events_whatever_the_size() -> None:
    terminal = Terminal(80, 20)
    hosts = [member(f"server{n}", "unknown" if n == 250 else "up", "silent" if n == 250 else "") for n in range(300)]
    try:
        with Served(hosts) as cluster:
            terminal.start(*ctl(cluster, "watch", "--interval", "0"))
            terminal.wait_for("q or Ctrl-C ends")
            cluster.deploy("web1", 1)
            screen = terminal.wait_for("deployed web1")
            assert re.search(r"^server250 +unknown ", screen, re.MULTILINE)
            assert re.search(r"^\.\.\. [0-9]+ more hosts: make the window taller\n300 hosts: ", screen, re.MULTILINE)
            assert "more lines" not in screen
            before = screen.count("\nserver")
            terminal.resize(80, 40)
            terminal.wait_for(rf"(?s)(^server[0-9]+ .*){{{before + 5}}}^\.\.\. ")
            is_well_drawn(terminal)
            terminal.type("q")
            terminal.wait_for(rf"^{PROMPT}$")
    finally:
        terminal.close()
