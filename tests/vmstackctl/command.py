"""vmstackctl as a process of its own, and the daemon that it talks to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from tests.running import PATIENCE, ROOT, SMALL_HOST, Daemon, Finished

IMAGE = "/var/lib/libvirt/images/any.qcow2"
LARGE_HOST = str(ROOT / "topologies" / "EPYC-7662.json")
UNWANTED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what vmstackctl looks at."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in UNWANTED and not key.startswith(("VMSTACKCTL_", "XDG_CONFIG_"))
    }
    # matplotlib makes its folder of settings, wherever that is.
    apart = {"XDG_CONFIG_HOME": "/nonexistent", "MPLCONFIGDIR": str(Path(tempfile.gettempdir(), "vmstack-matplotlib"))}
    return kept | apart | dict(extra or {})


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Commands with the words that call them, those within others after them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


def words(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vmstackctl", *arguments]


def run(*arguments: str, **variables: str) -> Finished:
    """Run vmstackctl to its end."""
    done = subprocess.run(
        words(*arguments),
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr)


class Host:
    """A simulated host with its socket in a directory of its own, whose path is short as a socket's must be."""

    def __init__(self, topology: str = SMALL_HOST, *flags: str) -> None:
        self._flags = ("--hypervisor", "sim:", "--topology", topology, *flags)
        self._folder = Path(tempfile.mkdtemp(prefix="ctl-"))
        self.socket = self._folder / "s"

    @contextlib.contextmanager
    def daemon(self) -> Iterator[Daemon]:
        """The daemon of this host, as long as it is needed. Without libvirt behind it, it forgets its VMs then."""
        with Daemon(*self._flags, "--socket", str(self.socket)) as daemon:
            yield daemon

    def close(self) -> None:
        shutil.rmtree(self._folder)

    def ctl(self, *arguments: str, **variables: str) -> Finished:
        return run("--socket", str(self.socket), *arguments, **variables)

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        done = self.ctl(*arguments, "--output", "json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def deploy(self, name: str, vcpus: int = 1, level: str = "2:1", *flags: str) -> Finished:
        return self.ctl(
            *("deploy", name, "--vcpus", str(vcpus), "--memory", "512M", "--level", level, "--image", IMAGE), *flags
        )
