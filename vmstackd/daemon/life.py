"""The life of a daemon: it takes over the signals, opens its doors, runs until a signal, and reads its settings again
when it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from vmstackd.address import is_loopback
from vmstackd.daemon import http, log, peers, stream, supervision, tcp, unix_socket
from vmstackd.daemon.http import HttpTransport
from vmstackd.daemon.operations import Operations
from vmstackd.daemon.systemd import Notifier, PassedSocketsError, forget, passed_sockets, watchdog_interval
from vmstackd.daemon.table import SettingsError, Table

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 6

RPC, TCP, HTTP = "rpc", "tcp", "http"
"""What sockets are named that systemd passes (FileDescriptorName=)."""
_INET = (socket.AF_INET, socket.AF_INET6)
_FAMILIES = {RPC: (socket.AF_UNIX,), TCP: _INET, HTTP: _INET}


class CannotStart(Exception):
    """code: the exit code. event, next_step: for the log."""

    def __init__(self, code: int, event: str, reason: object, next_step: str, **fields: object) -> None:
        super().__init__(str(reason))
        self.code = code
        self.event = event
        self.fields = {**fields, "reason": reason, "next_step": next_step}


class DoorSettings(Protocol):
    """What the settings of every daemon have; see their tables."""

    @property
    def socket(self) -> str: ...
    @property
    def tcp_host(self) -> str: ...
    @property
    def tcp_port(self) -> int: ...
    @property
    def tls_ca(self) -> str: ...
    @property
    def tls_certificate(self) -> str: ...
    @property
    def tls_key(self) -> str: ...
    @property
    def http_host(self) -> str: ...
    @property
    def http_port(self) -> int: ...
    @property
    def http_names(self) -> tuple[str, ...]: ...
    @property
    def debug(self) -> int: ...


S = TypeVar("S", bound=DoorSettings)


class Daemon(ABC, Generic[S]):
    """One daemon; ``run`` it once."""

    operations: Operations

    def __init__(self, table: Table, settings: S, read_settings: Callable[[], S]) -> None:
        """Takes over the signals. Needs a running event loop. Raises SettingsError."""
        self.settings = settings
        self.tls = tcp.tls_from(settings.tls_ca, settings.tls_certificate, settings.tls_key)
        self._table = table
        self._read_settings = read_settings
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._reload_due = False
        self._notifier = Notifier(os.environ)
        self._watchdog = watchdog_interval(os.environ)
        self._http: HttpTransport | None = None
        self._ready = False

    # What is special about each daemon

    @abstractmethod
    def build(self) -> Operations:
        """What the daemon does, not yet started. Raises CannotStart, SettingsError."""

    @abstractmethod
    def facts(self) -> Mapping[str, object]:
        """For the first line of the log."""

    @abstractmethod
    async def join(self, parts: contextlib.AsyncExitStack) -> Mapping[str, object]:
        """Open further doors before the start; what is opened is closed with parts. Returns what the log tells of them.

        Raises CannotStart.
        """

    @abstractmethod
    async def start(self) -> None:
        """Start the operations. Raises CannotStart."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop them."""

    @abstractmethod
    def endpoint(self, listener: socket.socket) -> HttpTransport:
        """The HTTP endpoint."""

    @abstractmethod
    def line(self) -> str:
        """What ``systemctl status`` shows."""

    @abstractmethod
    def use(self, settings: S) -> None:
        """Use these settings from now on: they differ in rows that can be reloaded."""

    @abstractmethod
    def farewell(self) -> Mapping[str, object]:
        """For the last line of the log."""

    # What is the same

    async def run(self) -> int:
        """Serve until SIGINT or SIGTERM; returns the exit code. SIGHUP reads the settings again.

        Raises SettingsError before anything starts.
        """
        try:
            async with contextlib.AsyncExitStack() as parts:
                # Before anything could start a program that would get them too.
                passed = self._passed_sockets(parts)
                forget(os.environ)
                self.operations = self.build()
                await self._serve(parts, passed)
        except CannotStart as error:
            log.error(error.event, **error.fields)
            return error.code
        return EXIT_DONE

    def _passed_sockets(self, parts: contextlib.AsyncExitStack) -> dict[str, socket.socket]:
        try:
            passed = passed_sockets(os.environ, os.getpid())
        except PassedSocketsError as error:
            raise CannotStart(EXIT_FAILED, "sockets-unusable", error, "correct the .socket units") from error
        for name, listener in passed.items():
            parts.enter_context(listener)
            if name not in _FAMILIES:
                known = ", ".join(_FAMILIES)
                log.warning("socket-unknown", socket=name, next_step=f"name it {known} (FileDescriptorName=)")
            elif listener.family not in _FAMILIES[name]:
                reason = f"the passed socket {name} is of the family {listener.family.name}"
                next_step = (
                    f"in its .socket unit, {RPC} needs ListenStream=/A/PATH, {TCP} and {HTTP} ListenStream=ADDRESS:PORT"
                )
                raise CannotStart(EXIT_FAILED, "sockets-unusable", reason, next_step)
            elif name == TCP and self.tls is None and not is_loopback(listener.getsockname()[0]):
                reason = f"the passed socket {name} is not on loopback, and there is no TLS"
                next_step = (
                    "set tls_ca, tls_certificate and tls_key, or ListenStream=127.0.0.1:PORT in its .socket unit"
                )
                raise CannotStart(EXIT_FAILED, "sockets-unusable", reason, next_step)
        return passed

    async def _serve(self, parts: contextlib.AsyncExitStack, passed: dict[str, socket.socket]) -> None:
        """Open the doors, start the operations, and wait for a signal. What is opened is closed with parts."""
        raise_file_limit()
        # First the one whose error says which process has it.
        listeners = {
            RPC: passed.get(RPC) or self._listen_rpc(parts),
            TCP: passed.get(TCP) or self._listen_tcp(parts),
        }
        http_listener = passed.get(HTTP) or self._listen_http(parts)
        log.info("starting", **self.facts())
        joined = await self.join(parts)
        if not await self._start():
            log.info("stopping", note="before the start had ended")
            return
        parts.push_async_callback(self.stop)
        if not self._stop.is_set():
            await self._open_doors(parts, listeners, http_listener, joined)
            await self._stop.wait()
        self._ready = False
        self._notifier.stopping()
        log.info("stopping", **self.farewell())

    async def _start(self) -> bool:
        """False if a signal came first."""
        starting = asyncio.create_task(self.start(), name="start")
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        starting.result()
        return True

    async def _open_doors(
        self,
        parts: contextlib.AsyncExitStack,
        listeners: Mapping[str, socket.socket | None],
        http_listener: socket.socket,
        joined: Mapping[str, object],
    ) -> None:
        """Begin to answer, and say so."""
        addresses: dict[str, str] = {}
        for name, listener in listeners.items():
            if listener is not None:
                rpc = stream.StreamTransport(self.operations, listener, tls=self.tls if name == TCP else None)
                await rpc.start()
                parts.push_async_callback(rpc.stop)
                addresses[name] = rpc.address
        self._http = self.endpoint(http_listener)
        await self._http.start()
        parts.push_async_callback(self._http.stop)
        tasks = [asyncio.create_task(supervision.show_status(self.operations, self._notifier, self.line))]
        if self._watchdog is not None:
            feeding = supervision.feed_watchdog(self.operations, self._notifier, self._watchdog)
            tasks.append(asyncio.create_task(feeding))
        for task in tasks:
            parts.callback(task.cancel)
        log.info("ready", http=self._http.address, socket=addresses.get(RPC), tcp=addresses.get(TCP), **joined)
        self._ready = True
        self._notifier.ready()

    def _listen_http(self, parts: contextlib.AsyncExitStack) -> socket.socket:
        settings = self.settings
        try:
            return parts.enter_context(http.listen(settings.http_host, settings.http_port))
        except OSError as error:
            raise CannotStart(
                EXIT_FAILED,
                "http-failed",
                error.strerror or error,
                "free the address, or choose another with --http-host and --http-port",
                address=f"{settings.http_host}:{settings.http_port}",
            ) from error

    def _listen_tcp(self, parts: contextlib.AsyncExitStack) -> socket.socket | None:
        settings = self.settings
        if settings.tcp_host == "none":
            return None
        try:
            return parts.enter_context(tcp.listen(settings.tcp_host, settings.tcp_port, self.tls))
        except OSError as error:
            raise CannotStart(
                EXIT_FAILED,
                "tcp-failed",
                error.strerror or error,
                "free the address, or choose another with --tcp-host (or none) and --tcp-port",
                address=f"{settings.tcp_host}:{settings.tcp_port}",
            ) from error

    def _listen_rpc(self, parts: contextlib.AsyncExitStack) -> socket.socket | None:
        path = self.settings.socket
        if path == "none":
            return None
        try:
            return parts.enter_context(unix_socket.listen(Path(path), peers.READERS))
        except OSError as error:
            raise CannotStart(
                EXIT_FAILED,
                "socket-failed",
                error.strerror or error,
                "end the other daemon, make the directory, or choose another path with --socket (or none)",
                path=path,
            ) from error

    def tell(self, text: str) -> None:
        """Show what the start is waiting for."""
        self._notifier.status(text)

    def certificate_expiry(self) -> float | None:
        """Seconds since 1970; None without TLS."""
        return None if self.tls is None else self.tls.expires

    # Reload

    def _hang_up(self) -> None:
        """Reload, once for all signals that come until then."""
        if not self._reload_due:
            self._reload_due = True
            asyncio.get_running_loop().call_soon(self._reload)

    def _reload(self) -> None:
        """Read the settings again, and use those that can change while we run."""
        self._reload_due = False
        if self._ready:  # else the end of the reload would be taken for that of the start
            self._notifier.reloading()
        try:
            read = self._read_settings()
        except SettingsError as error:
            log.error("reload-failed", reason=error, next_step="correct it and reload; the settings before stay in use")
        else:
            self._change(read)
        if self.tls is not None:
            self.tls.refresh()
        if self._ready:
            self._notifier.ready()

    def _change(self, read: S) -> None:
        changed = [row for row in self._table.rows if getattr(read, row.key) != getattr(self.settings, row.key)]
        now = {row.key: getattr(read, row.key) for row in changed if row.reload}
        later = [row.key for row in changed if not row.reload]
        self.settings = msgspec.structs.replace(self.settings, **now)  # type: ignore[type-var]  # it is a struct
        self.use(self.settings)
        if self._http is not None:
            self._http.rename(self.settings.http_names)
        log.set_level(debug=self.settings.debug > 0)
        log.info("reloaded", changed=",".join(now) or "nothing", needs_restart=",".join(later) or None)


def raise_file_limit() -> None:
    """As many descriptors as we may have: every connection takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
