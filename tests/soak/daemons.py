"""The daemons of the run: real processes on simulated hosts, whose logs are read, counted and thrown away."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.farm import SOURCES
from tests.running import Daemon
from tests.soak.samples import Moment, Process, look_at

HOSTS = 10
RESTARTED = (8, 9)
"""Hosts whose daemon is ended and started again during the run; those of the others live through it."""
STEADY_KIND, RESTARTED_KIND, GLOBALD_KIND = "vmstackd", "vmstackd, restarted", "globald"
RECORD_MIB, RECORD_FILES = 1, 2
KEPT_LINES = 50
_LINE = re.compile(r"\S+Z (debug|info|warning) ")


class Log:
    """Of a daemon and those that took its place. complaints: lines of errors and tracebacks; the first ones."""

    def __init__(self) -> None:
        self.bytes = 0
        self.complaints: list[str] = []

    def add(self, line: str) -> None:
        """A line was written."""
        self.bytes += len(line.encode())
        if not _LINE.match(line) and len(self.complaints) < KEPT_LINES:
            self.complaints.append(line.rstrip())


class Quiet(Daemon):
    """A daemon of which only the newest lines are kept."""

    def __init__(self, program: str, log: Log, flags: Iterable[str]) -> None:
        super().__init__(*flags)
        self.written = log
        if program != "vmstackd":
            self.command = [sys.executable, "-m", program, *flags]

    def _collect(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.written.add(line)
                with self._news:
                    self._lines.append(line)
                    del self._lines[:-KEPT_LINES]
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class Server:
    """One daemon and its successors (lives). held: connections to it that clients hold for long."""

    def __init__(self, program: str, name: str, kind: str, folder: Path, flags: Iterable[str]) -> None:
        self.name, self.kind, self.folder = name, kind, folder
        self.held = 0
        self.lives: list[Quiet] = []
        self.log = Log()
        self.config = folder / "config.toml"
        self.config.touch()
        self.socket = folder / "socket"
        self._program = program
        self.address = ""
        self._flags = ("--config", str(self.config), "--socket", str(self.socket), "--http-port", "0", *flags)

    @property
    def daemon(self) -> Quiet:
        """The one of now."""
        return self.lives[-1]

    def start(self) -> None:
        """Return when it answers. What serves a TCP port does so at the same one in all its lives (address)."""
        port = ("--tcp-port", self.address.rpartition(":")[2] or "0")
        self.lives.append(Quiet(self._program, self.log, (*self._flags, *port)).__enter__())
        if found := re.search(r" tcp=tcp:(\S+)", self.daemon.log):
            self.address = found[1]

    def stop(self) -> int:
        """Return its exit code."""
        return self.daemon.stop()

    def look(self) -> Process:
        """As it is now. Raises RuntimeError if it has ended."""
        pid = self.daemon.process.pid
        if self.daemon.process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended:\n{self.daemon.log}")
        return look_at(pid, self.name, self.kind, held=self.held, log_bytes=self.log.bytes)


class Servers:
    """globald and its hosts."""

    def __init__(self, globald: Server, hosts: list[Server]) -> None:
        self.globald = globald
        self.hosts = hosts
        self.all = [globald, *hosts]
        self._begin = time.monotonic()

    def begin(self) -> None:
        """The run begins now."""
        self._begin = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the begin of the run."""
        return time.monotonic() - self._begin

    def look(self) -> Moment:
        """All processes as they are now."""
        return Moment(at=self.now, processes=tuple([server.look() for server in self.all]))

    def recorded(self, host: Server) -> int:
        """Bytes of all files of its recording."""
        return sum(path.stat().st_size for path in host.folder.glob("trace.csv*"))

    @property
    def complaints(self) -> list[str]:
        """What is in the logs and should not be."""
        found = [f"{server.name} logged: {line}" for server in self.all for line in server.log.complaints]
        found += [
            f"{server.name} has ended with {server.daemon.process.returncode}"
            for server in self.all
            if server.daemon.process.poll() is not None
        ]
        for host in self.hosts:
            size = self.recorded(host)
            if size > RECORD_FILES * RECORD_MIB << 20:
                found.append(f"the recording of {host.name} has {size} bytes")
        return found


@contextmanager
def started(hosts: int = HOSTS) -> Iterator[Servers]:
    """A cluster of so many hosts that have no VMs yet, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="vmstack-soak-") as place, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        servers = [_host(Path(place), number) for number in range(hosts)]
        globald = _globald(Path(place))
        stack.callback(_end, [globald, *servers])
        list(pool.map(Server.start, servers))
        for host in servers:
            file = globald.folder / "hosts.d" / f"{host.name}.toml"
            file.write_text(f'address = "{host.address}"\n', encoding="utf-8")
        globald.start()
        globald.daemon.wait_for(r" learned ")
        yield Servers(globald, servers)


def _host(place: Path, number: int) -> Server:
    """Measured and recorded as shipped; of some, every second, so that files become full."""
    name = f"host{number}"
    folder = place / name
    (folder / "state").mkdir(parents=True)
    flags = {
        "--name": name,
        "--hypervisor": "sim:",
        "--topology": SOURCES[number % len(SOURCES)],
        "--critical-size": "0" if number % 2 else "6",
        "--state-dir": str(folder / "state"),
        "--record": str(folder / "trace.csv"),
        "--record-size": str(RECORD_MIB),
        "--record-files": str(RECORD_FILES),
        "--tcp-host": "127.0.0.1",
    }
    if number % 4 == 1:
        flags["--delay"] = "1"
    kind = RESTARTED_KIND if number in RESTARTED else STEADY_KIND
    return Server("vmstackd", name, kind, folder, [word for pair in flags.items() for word in pair])


def _globald(place: Path) -> Server:
    folder = place / "globald"
    (folder / "hosts.d").mkdir(parents=True)
    flags = ("--hosts-dir", str(folder / "hosts.d"), "--tcp-host", "none")
    return Server("globald", "globald", GLOBALD_KIND, folder, flags)


def _end(servers: Iterable[Server]) -> None:
    """All at once, whatever they are doing."""
    running = [server.daemon for server in servers if server.lives]
    for daemon in running:
        daemon.process.terminate()
    for daemon in running:
        daemon.__exit__(None, None, None)
