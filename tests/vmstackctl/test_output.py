from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT
from tests.vmstackctl.command import Host, environment, words


def on_terminal(*arguments: str, **variables: str) -> str:
    """What a command writes where stdout is a terminal."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            words(*arguments), cwd=ROOT, env=environment({"TERM": "xterm", **variables}), stdout=slave
        )
        os.close(slave)
        pieces = []
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            pieces.append(piece)
        assert process.wait(PATIENCE) == 0
        return b"".join(pieces).decode()
    finally:
        os.close(master)


def test_colours_are_for_terminals_unless_somebody_says_otherwise(host: Host) -> None:
    where = ("--socket", str(host.socket))
    assert "\033[" in on_terminal(*where, "status")
    assert "\033" not in on_terminal(*where, "status", NO_COLOR="1")
    assert "\033" not in on_terminal(*where, "status", TERM="dumb")
    assert "\033" not in on_terminal(*where, "status", "--color", "never")
    assert "\033" not in on_terminal(*where, "list", "--output", "json")
    assert "\033" not in host.ctl("status").out
    assert "\033[" in host.ctl("status", "--color", "always").out
    # What is typed is newer than what is in the environment.
    assert "\033[" in host.ctl("status", "--color", "always", NO_COLOR="1").out


@pytest.mark.parametrize("arguments", [("list",), ("status",), ("topology",), ("list", "--output", "json")])
def test_a_reader_that_has_seen_enough_is_no_failure(host: Host, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            words("--socket", str(host.socket), *arguments),
            cwd=ROOT,
            env=environment(),
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_said_in_one_line(host: Host) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            words("--socket", str(host.socket), "list"),
            cwd=ROOT,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (1, "vmstackctl: cannot write: No space left on device\n")


def test_no_stdout_at_all_is_no_failure(host: Host) -> None:
    line = f"exec {' '.join(words('--socket', str(host.socket), 'list'))} >&-"
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=ROOT, env=environment(), capture_output=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_other_encodings_than_utf8_get_what_they_can_show(host: Host) -> None:
    host.deploy("日本")
    done = host.ctl("list", PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "??" in done.out


def test_pipes_get_whole_names_and_no_trailing_blanks(host: Host) -> None:
    host.deploy("n" * 128)
    out = host.ctl("list", COLUMNS="40").out
    assert "n" * 128 in out
    assert not any(line.endswith(" ") for line in out.splitlines())
