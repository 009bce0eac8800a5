"""HTTP as users of the prototype type it for a cluster (SEMANTICS 11), with metrics and checks of health."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from aiohttp import web

from globald.cluster import Cluster
from globald.metrics import ClusterMetrics
from vmstackd.api import replies, requests
from vmstackd.api.errors import NoCapacity, NotFound, VmstackError
from vmstackd.daemon import http_values
from vmstackd.daemon.http import HttpTransport, Route, vm_routes
from vmstackd.daemon.metrics import CONTENT_TYPE

WELCOME = "SchedulerGlobal is working and waiting for instructions"


class ClusterHttp(HttpTransport):
    """The endpoint of one cluster."""

    def __init__(
        self, cluster: Cluster, metrics: ClusterMetrics, listener: socket.socket, names: Iterable[str] = ()
    ) -> None:
        """As HttpTransport."""
        self._cluster = cluster
        self._metrics = metrics
        super().__init__(cluster, listener, names)

    def routes(self) -> Mapping[str, Route]:
        return {
            "/": Route(self._welcome),
            "/status": Route(self._status),
            "/listvm": Route(self._list),
            **vm_routes(self._deploy, self._remove, self._progress),
            "/metrics": Route(self._metrics_text),
            "/healthz": Route(self._health),
            "/readyz": Route(self._readiness),
        }

    def reason(self, error: VmstackError) -> str:
        if isinstance(error, NoCapacity):
            return "No appropriate node found"
        if isinstance(error, NotFound) and "does not exist" in error.message:
            return "Unregistered VM"
        return error.message

    async def _welcome(self, _: web.Request) -> web.Response:
        return web.Response(text=WELCOME, content_type="text/html")

    async def _status(self, http: web.Request) -> web.Response:
        """Of each host that is known now: those that are silent are left out, as before."""
        await self.ask(http, requests.Status(), replies.StatusReply)
        return web.json_response(
            {
                host.name: http_values.legacy_status(host.status)
                for host in self._cluster.hosts().hosts
                if host.status is not None and host.state in _KNOWN
            }
        )

    async def _list(self, http: web.Request) -> web.Response:
        await self.ask(http, requests.Status(), replies.StatusReply)
        return web.json_response(self._cluster.members.vm_names())

    async def _deploy(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, http_values.deploy(given), replies.Deployed)
        return web.json_response({"success": True, "reason": None, "host": reply.host, "score": reply.score})

    async def _remove(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, requests.Remove(name=given["name"]), replies.Removed)
        return web.json_response({"success": True, "reason": None, "host": reply.host})

    async def _progress(self, http: web.Request) -> web.Response:
        """Of each host; null where the VM does not fit."""
        given = await self.parameters(http)
        reply = await self.ask(http, http_values.progress(given), replies.ProgressReply)
        return web.json_response({host.host: host.progress for host in reply.hosts})

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        """Whether globald is alive."""
        running = self._cluster.running
        return web.json_response({"healthy": running}, status=200 if running else 503)

    async def _readiness(self, _: web.Request) -> web.Response:
        """Whether every host has told what it has, or has had its time to: then VMs can be deployed."""
        learned = self._cluster.learned
        states: dict[str, int] = {}
        for host in self._cluster.hosts().hosts:
            states[host.state] = states.get(host.state, 0) + 1
        return web.json_response({"ready": learned, "hosts": states}, status=200 if learned else 503)


_KNOWN = ("up", "cordoned", "hypervisor-down")
