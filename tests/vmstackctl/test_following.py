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
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.running import PATIENCE, ROOT, SMALL_HOST
from tests.vmstackctl.cluster import Served, usual
from tests.vmstackctl.command import Host, environment, words
from vmstackd import wire
from vmstackd.api.session import Subscribe


class Follower:
    """A command that goes on, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, pattern: str, again: object = None) -> str:
        """The first line with the pattern; until it comes, call ``again`` now and then."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if re.search(pattern, line):
                    return line
            if callable(again):
                again()
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self.lines}")

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C; returns the exit code and stderr."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        return code, self.process.stderr.read()


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def statuses(follower: Follower) -> list[Any]:
    """What was printed so far, as JSON."""
    return [json.loads(line) for line in follower.lines]


def test_watch_as_json_has_a_line_for_every_measurement() -> None:
    host = Host(SMALL_HOST, "--delay", "1")
    try:
        with host.daemon():
            host.deploy("web1", 2)
            with following(host, "watch", "--output", "json", "--interval", "0") as follower:
                until(lambda: len({status["usage"]["time"] for status in statuses(follower) if status["usage"]}) >= 3)
                last = statuses(follower)[-1]
                assert last["usage"]["busy_cpus"] is not None
                assert last["usage"]["levels"][0]["level_text"] == "2.0"
                assert follower.interrupt() == (0, "")
    finally:
        host.close()


def measured_at(host: Host) -> float:
    """When that was last; 0 if never."""
    usage = host.json("status")["usage"]
    return float(usage["time"]) if usage else 0.0


def test_watch_as_text_has_no_line_for_a_measurement() -> None:
    host = Host(SMALL_HOST, "--delay", "1")
    try:
        with host.daemon():
            with following(host, "watch", "--interval", "0") as follower:
                follower.wait_for(" 0 VMs, ")
                until(lambda: measured_at(host) > 0)
                first = measured_at(host)
                until(lambda: measured_at(host) > first + 1.5)  # two rounds
                host.deploy("web1", 2)
                follower.wait_for(" 1 VM, ")
                assert follower.interrupt() == (0, "")
            assert [line for line in follower.lines if " 0 VMs, " in line] == follower.lines[:1]
    finally:
        host.close()


def test_a_daemon_that_is_older_than_its_measurements_is_followed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[frozenset[str]] = []
    read = wire.read_params

    def as_before(params: list[Any], kind: type[Any]) -> Any:  # noqa: ANN401  as the original
        if kind is Subscribe:
            asked.append(frozenset(params[0]))
            if "usage" in params[0]:
                raise wire._unknown_field("usage", kind)
        return read(params, kind)

    monkeypatch.setattr(wire, "read_params", as_before)
    with Served(usual()) as cluster:
        with following(cluster, "watch", "--output", "json") as follower:
            assert json.loads(follower.wait_for("generation"))["usage"] is None
            assert follower.interrupt() == (0, "")
        assert asked == [{"usage"}, set()]
        with following(cluster, "events") as follower:
            until(lambda: asked[2:] == [set()])
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
