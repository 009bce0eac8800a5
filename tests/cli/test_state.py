"""What the daemon keeps from one start to the next: who the host is, and its cordon."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.command import one_line
from tests.cli.test_doors import SIM, ctl
from tests.running import Daemon, run
from vmstackd.local_state import UUID_FILE

DEPLOY = "/deploy?name={}&cpu=1&mem=1&oc=1&qcow2=/i/a"


def told_uuid(daemon: Daemon) -> str:
    return daemon.wait_for(r" starting .* host=h1 uuid=([0-9a-f-]{36}) ")[1]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_host_stays_itself_and_cordoned(tmp_path: Path, end: signal.Signals) -> None:
    socket, state = tmp_path / "s", tmp_path / "state"
    flags = (*SIM, "--socket", str(socket), "--state-dir", str(state), "--name", "h1")
    with Daemon(*flags) as daemon:
        uuid = told_uuid(daemon)
        ctl(socket, "cordon", "--reason", "new fans")
        daemon.wait_for(r" info cordon request=\S+ caller=\S+ reason=\"new fans\" outcome=ok ")
        daemon.stop(end)
    with Daemon(*flags) as daemon:
        assert told_uuid(daemon) == uuid
        refused = daemon.get(DEPLOY.format("a"))
        assert (refused.status, refused.json["error"]) == (503, "Cordoned")
        assert "new fans" in refused.json["reason"]
        ctl(socket, "uncordon")
        assert daemon.get(DEPLOY.format("a")).status == 200
        daemon.stop(end)
    with Daemon(*flags) as daemon:
        assert told_uuid(daemon) == uuid
        assert daemon.get(DEPLOY.format("b")).status == 200
    assert [path.name for path in state.iterdir()] == [UUID_FILE]


def test_without_a_folder_it_is_another_host_each_time() -> None:
    uuids = set()
    for _ in range(2):
        with Daemon(*SIM, "--state-dir", "none", "--name", "h1") as daemon:
            uuids.add(told_uuid(daemon))
    assert len(uuids) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is not there; make it, or name another folder with state_dir, or none"),
        ("nonsense", "not a UUID; delete the file to make this a new host"),
    ],
)
def test_a_folder_that_cannot_be_used_ends_the_start_with_78(tmp_path: Path, content: str | None, told: str) -> None:
    state = tmp_path / "no" / "state"
    if content is not None:
        state.mkdir(parents=True)
        (state / UUID_FILE).write_text(content, encoding="utf-8")
    done = run(*SIM, "--http-port", "0", "--state-dir", str(state))
    assert (done.code, done.out) == (78, "")
    line = one_line(done.err)
    assert line.startswith(f"vmstackd: state_dir: {state}")
    assert line.endswith(told)
