"""Constructs and joins the parts of the daemon of a cluster."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from core.host_policy import HOST_POLICIES
from globald.cluster import Cluster
from globald.http import ClusterHttp
from globald.metrics import ClusterMetrics
from globald.settings import TABLE, Settings
from vmstackd.daemon.life import Daemon
from vmstackd.version import VERSION

COLLECT_AFTER = (50_000, 10, 10)
"""For the garbage collector. What is known of thousands of hosts is not garbage, and each look at it takes long: with
Python's own figures, half of the time of 10,000 hosts goes there.
"""


async def run(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. SIGHUP reads the settings again.

    Raises SettingsError before anything starts.
    """
    gc.set_threshold(*COLLECT_AFTER)
    return await _ClusterDaemon(TABLE, settings, read_settings).run()


class _ClusterDaemon(Daemon[Settings]):
    _cluster: Cluster

    def build(self) -> Cluster:
        settings = self.settings
        self._metrics = ClusterMetrics(self.certificate_expiry)
        self._cluster = Cluster(
            settings.hosts,
            None if settings.hosts_dir == "none" else Path(settings.hosts_dir),
            HOST_POLICIES[settings.policy],
            attempts=settings.attempts,
            patience=settings.patience,
            tls=self.tls,
            observer=self._metrics.count,
            retried=lambda: self._metrics.retries(1),
        )
        return self._cluster

    def facts(self) -> Mapping[str, object]:
        settings = self.settings
        return {
            "version": VERSION,
            "hosts": len(settings.hosts),
            "hosts_dir": settings.hosts_dir,
            "policy": settings.policy,
            "tls": "no" if self.tls is None else "yes",
        }

    async def join(self, parts: contextlib.AsyncExitStack) -> Mapping[str, object]:  # noqa: ARG002  there are no others
        return {}

    async def start(self) -> None:
        await self._cluster.start()
        self._metrics.watch(self._cluster.hosts)

    async def stop(self) -> None:
        await self._cluster.stop()

    def endpoint(self, listener: socket.socket) -> ClusterHttp:
        return ClusterHttp(self._cluster, self._metrics, listener, self.settings.http_names)

    def line(self) -> str:
        status = self._cluster.status()
        host = status.host
        text = f"{len(self._cluster.members)} hosts, {host.vms} VMs, {host.free_cpus} of {host.cpus} CPUs free"
        return f"DEGRADED: {status.degraded[0]}; {text}" if status.degraded else text

    def use(self, settings: Settings) -> None:
        self._cluster.reconfigure(HOST_POLICIES[settings.policy], settings.attempts)

    def farewell(self) -> Mapping[str, object]:
        return {"hosts": len(self._cluster.members), "note": "hosts and VMs run on"}
