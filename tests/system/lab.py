"""A lab: namespaces of their own for boxes, so that nothing of them outlives the test process.

``missing`` says why this machine cannot have one, for a skip by name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tests.system import keeper

if TYPE_CHECKING:
    from tests.system.box import Box

PATIENCE = 60.0
"""Seconds for what takes under one: generous, so that a busy machine fails nothing."""

TOOLS = ("dbus-daemon", "ip", "journalctl", "mount", "nsenter", "setpriv", "systemd-nspawn", "systemd-run", "unshare")

NAMESPACES = ("--mount", "--propagation", "private", "--pid", "--fork", "--net", "--ipc", "--uts", "--mount-proc")

TRIAL = """set -e
mount -t tmpfs lab /run
cd /run
mkdir cgroup lower upper work root
mount -t cgroup2 cgroup2 cgroup
mount -t overlay lab -o lowerdir=lower:/,upperdir=upper,workdir=work root
"""


@functools.cache
def missing() -> str:
    """Why this machine cannot run boxes; empty if it can."""
    if os.geteuid() != 0:
        return "only root may start one"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not Path("/lib/systemd/systemd").exists():
        absent.append("systemd")
    if absent:
        return f"not installed: {', '.join(absent)}"
    for directory in ("/etc", "/usr", "/var"):
        if Path(directory).is_mount():
            return f"{directory} is a file system of its own"
    trial = subprocess.run(["unshare", *NAMESPACES, "sh", "-c", TRIAL], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        return f"no namespaces, cgroups or overlays: {trial.stderr.strip()}"
    return ""


class Lab:
    """Holds boxes, and a bridge between them that leads nowhere else; use it in a ``with`` statement.

    However this process ends, the kernel ends the lab: its processes, mounts and links are gone.
    """

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.cgroups: dict[str, Path] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--kill-child=KILL", sys.executable, "-S", keeper.__file__, secrets.token_hex(4)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready:
            raise RuntimeError(f"no lab: its first process ended with status {self._process.wait(PATIENCE)}")
        self.pid = children(self._process.pid)[0]
        self.cgroups = {name: Path(path) for name, path in json.loads(ready).items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for box in list(self.boxes.values()):
            box.remove()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin, self._process.stdout:
            pass
        self._process.wait(PATIENCE)

    def path(self, inside: str | Path) -> Path:
        """A file of the lab, as this process sees it. A link to an absolute path leads out of the lab."""
        return Path(f"/proc/{self.pid}/root", str(inside).lstrip("/"))

    def command(self, *argv: str) -> list[str]:
        """The command line that runs this one in the lab, with all of root's capabilities."""
        return ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd", "--", *argv]

    def run(self, *argv: str) -> str:
        """Run a command in the lab; returns what it wrote to standard output."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{argv} ended with status {done.returncode}: {done.stderr}")
        return done.stdout


def children(pid: int) -> list[int]:
    """Pids of the children of a process; none if it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, file.read_text().split())
    return found
