"""watch and events without a terminal, over restarts of the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.running import PATIENCE, ROOT
from tests.vmstackctl.cluster import Served, usual
from tests.vmstackctl.command import Host, environment, words


class Follower:
    """A command that goes on, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def wait_for(self, pattern: str, again: object = None) -> str:
        """The first line with the pattern; until it comes, call ``again`` now and then."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in list(self._lines):
                if re.search(pattern, line):
                    return line
            if callable(again):
                again()
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self._lines}")

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C; returns the exit code and stderr."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        return code, self.process.stderr.read()


@contextlib.contextmanager
def following(host: Host | Served, *arguments: str) -> Iterator[Follower]:
    with subprocess.Popen(
        words("--socket", str(host.socket), *arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield Follower(process)
        finally:
            process.kill()


@pytest.fixture
def own_host() -> Iterator[Host]:
    """One whose daemon may be restarted."""
    host = Host()
    yield host
    host.close()


def deploy_again(host: Host) -> None:
    """Whether the command listens already is not to be seen from outside."""
    host.deploy("web1")
    host.ctl("remove", "web1")


@pytest.mark.parametrize("how", ["table", "json"])
def test_events_are_lines_until_ctrl_c(host: Host, how: str) -> None:
    with following(host, "events", "--output", how) as follower:
        line = follower.wait_for("deployed", lambda: deploy_again(host))
        if how == "json":
            found = json.loads(line)
            assert (found["event"], found["name"], found["level_text"]) == ("deployed", "web1", "2.0")
        else:
            assert re.fullmatch(r"[0-9:]{8} deployed web1: level 2:1 on CPUs [0-9,-]+\n", line)
        follower.wait_for("removed")
        assert follower.interrupt() == (0, "")


def test_events_end_well_when_nobody_reads_them_any_more(host: Host) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        words("--socket", str(host.socket), "events"),
        cwd=ROOT,
        env=environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(read)
        os.close(write)
        try:
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < deadline:
                deploy_again(host)
            assert process.stderr is not None
            assert (process.returncode, process.stderr.read()) == (0, "")
        finally:
            process.kill()


def test_events_go_on_after_a_restart_and_tell_the_gap(own_host: Host) -> None:
    with contextlib.ExitStack() as last:
        with own_host.daemon():
            follower = last.enter_context(following(own_host, "events", "--output", "json"))
            follower.wait_for("deployed", lambda: deploy_again(own_host))
        follower.wait_for('"disconnected"')
        with own_host.daemon():
            follower.wait_for('"connected"')
            own_host.deploy("web2")
            follower.wait_for('"web2"')
            assert follower.interrupt()[0] == 0


def test_watch_without_a_terminal_prints_a_line_per_change(host: Host) -> None:
    with following(host, "watch", "--interval", "0") as follower:
        follower.wait_for(r"^[0-9:]{8} 0 VMs, 16 of 16 CPUs free, 64 GiB of 64 GiB free$")
        host.deploy("web1")
        follower.wait_for("1 VM, 15 of 16 CPUs free, 63.5 GiB of 64 GiB free, 2:1 1 vCPU on 1 CPU$")
        assert follower.interrupt() == (0, "")


def test_watch_as_json_prints_statuses_only(host: Host) -> None:
    with following(host, "watch", "--output", "json", "--interval", "0") as follower:
        assert json.loads(follower.wait_for("generation"))["host"]["cpus"] == 16
        assert follower.interrupt() == (0, "")


def test_events_of_a_cluster_name_the_host() -> None:
    with Served(usual()) as cluster, following(cluster, "events") as follower:

        def again() -> None:
            cluster.ctl("cordon", "server1", "--reason", "disks")

        line = follower.wait_for("host server1", again)
        assert re.fullmatch(r"[0-9:]{8} host server1 is cordoned: disks\n", line)
        cluster.deploy("web1", 2, "--host", "server3")
        follower.wait_for(r"deployed web1: level 2:1 on CPUs 0-1 of server3$")
        cluster.ctl("remove", "web1")
        follower.wait_for(r"removed web1: freed CPUs 0-1 of server3$")
        cluster.stop()
        follower.wait_for(r"disconnected: .*; what happens until globald is back is not told$")
        assert follower.interrupt() == (0, "")


def test_watch_of_a_cluster_without_a_terminal_prints_sums() -> None:
    with Served(usual()) as cluster, following(cluster, "watch", "--interval", "0") as follower:
        follower.wait_for(r"^[0-9:]{8} 6 VMs, 31 of 48 CPUs free, 186 GiB of 192 GiB free, 1:1 12 vCPUs on 12 CPUs, ")
        assert follower.interrupt() == (0, "")
