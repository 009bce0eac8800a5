"""The HTTP endpoint of a host: the prototype's paths (SEMANTICS 7 and 10), metrics, and a health check."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from aiohttp import web

from vmstackd.api import replies, requests
from vmstackd.api.errors import VmstackError
from vmstackd.daemon import http_values
from vmstackd.daemon.http import HttpTransport, Route, vm_routes
from vmstackd.engine import Engine
from vmstackd.metrics import CONTENT_TYPE, Metrics

WELCOME = "Scheduler is working and waiting for instructions"


class HostHttp(HttpTransport):
    """See the module."""

    def __init__(self, engine: Engine, metrics: Metrics, listener: socket.socket, names: Iterable[str] = ()) -> None:
        """As HttpTransport."""
        self._metrics = metrics
        super().__init__(engine, listener, names)

    def routes(self) -> Mapping[str, Route]:
        return {
            "/": Route(self._welcome),
            "/status": Route(self._status),
            "/listvm": Route(self._list),
            **vm_routes(self._deploy, self._remove, self._progress),
            "/metrics": Route(self._metrics_text),
            "/healthz": Route(self._health),
        }

    def reason(self, error: VmstackError) -> str:
        return http_values.legacy_reason(error)

    async def _welcome(self, _: web.Request) -> web.Response:
        return web.Response(text=WELCOME, content_type="text/html")

    async def _status(self, http: web.Request) -> web.Response:
        reply = await self.ask(http, requests.Status(), replies.StatusReply)
        return web.json_response(http_values.legacy_status(reply.host))

    async def _list(self, http: web.Request) -> web.Response:
        reply = await self.ask(http, requests.List(), replies.ListReply)
        return web.json_response([vm.name for vm in reply.vms])

    async def _deploy(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        await self.ask(http, http_values.deploy(given), replies.Deployed)
        return web.json_response({"success": True, "reason": None})

    async def _remove(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        await self.ask(http, requests.Remove(name=given["name"]), replies.Removed)
        return web.json_response({"success": True, "reason": None})

    async def _progress(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, http_values.progress(given), replies.ProgressReply)
        return web.json_response({"progress": reply.progress})

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        status = self._operations.status()
        healthy = status.hypervisor == "up"
        return web.json_response(
            {"healthy": healthy, "hypervisor": status.hypervisor, "degraded": list(status.degraded)},
            status=200 if healthy else 503,
        )
