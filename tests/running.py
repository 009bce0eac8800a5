"""The real daemon as a process of its own: started with given flags, asked over HTTP, stopped by a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

ROOT = Path(__file__).resolve().parent.parent
SMALL_HOST = "synthetic:sockets=1,l3=2,cores=4,smt=2,memory=65536"
"""16 CPUs, 64 GiB."""

PATIENCE = 30.0
"""Seconds before a test gives up waiting; nothing should ever take so long."""


class Answer(msgspec.Struct, frozen=True):
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        """The body as JSON."""
        return json.loads(self.body)


class Finished(msgspec.Struct, frozen=True):
    """A process that has ended."""

    code: int
    out: str
    err: str


APART = {
    "--config": os.devnull,
    "--dbus": "none",
    "--socket": "none",
    "--tcp-host": "none",
    "--state-dir": "none",
    "--record": "none",
}
"""Flags that keep a daemon from what this machine has, unless a test names something else."""


def command(*flags: str) -> list[str]:
    """The command line."""
    given = {flag.split("=")[0] for flag in flags}
    apart = [word for flag, value in APART.items() if flag not in given for word in (flag, value)]
    return [sys.executable, "-m", "vmstackd", *apart, *flags]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of vmstackd."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VMSTACKD_")}
    return kept | dict(extra or {})


def run(*flags: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Run the daemon's command until it ends by itself."""
    done = subprocess.run(
        command(*flags),
        cwd=ROOT,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr)


class Daemon:
    """A running daemon; use it in a ``with`` statement.

    Without flags: 16 simulated CPUs. ``--http-port 0`` and what APART says are added unless given. Entering waits
    until it answers (unless wait is False), leaving ends it, whatever it takes. folder: that it is started in.
    """

    patience = PATIENCE

    def __init__(
        self, *flags: str, environment: Mapping[str, str] | None = None, wait: bool = True, folder: Path = ROOT
    ) -> None:
        flags = flags or ("--hypervisor", "sim:", "--topology", SMALL_HOST)
        if not any(flag.split("=")[0] == "--http-port" for flag in flags):
            flags = (*flags, "--http-port", "0")
        self.command = command(*flags)
        self._environment = clean_environment(environment)
        self._wait = wait
        self._folder = folder
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.url = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        try:
            if self._wait:
                self.wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def log(self) -> str:
        """Everything on stderr so far."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in the log, now or soon."""
        deadline = time.monotonic() + self.patience
        with self._news:
            while True:
                if found := re.search(pattern, "".join(self._lines)):
                    return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no {pattern!r} in the log:\n{''.join(self._lines)}")
                self._news.wait(left)

    def wait_ready(self) -> None:
        """Return when /healthz answers."""
        self.url = self.wait_for(r" ready http=(\S+)")[1]
        assert self.get("/healthz").status == 200

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET a path with its query."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=self.patience) as reply:
                return Answer(status=reply.status, headers=dict(reply.headers), body=reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(status=error.code, headers=dict(error.headers), body=error.read())

    @property
    def port(self) -> int:
        """The port of the HTTP endpoint."""
        return int(self.url.rpartition(":")[2])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, and for the last line of the log; returns the exit code."""
        code = self.process.wait(self.patience)
        self._reader.join(self.patience)
        return code

    def _collect(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(self.patience)
        self._reader.join(self.patience)
