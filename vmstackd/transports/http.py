"""The HTTP endpoint of a host: the prototype's paths (SEMANTICS 7 and 10), metrics, and a health check."""

from __future__ import annotations

from aiohttp import web

from vmstackd.api import replies, requests
from vmstackd.api.errors import VmstackError
from vmstackd.daemon import http_values
from vmstackd.daemon.http import HttpTransport


class HostHttp(HttpTransport):
    """See the module."""

    welcome = "Scheduler is working and waiting for instructions"

    def reason(self, error: VmstackError) -> str:
        return http_values.legacy_reason(error)

    async def status(self, http: web.Request) -> web.Response:
        reply = await self.ask(http, requests.Status(), replies.StatusReply)
        return web.json_response(http_values.legacy_status(reply.host))

    async def list(self, http: web.Request) -> web.Response:
        reply = await self.ask(http, requests.List(), replies.ListReply)
        return web.json_response([vm.name for vm in reply.vms])

    async def deploy(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        await self.ask(http, http_values.deploy(given), replies.Deployed)
        return web.json_response({"success": True, "reason": None})

    async def remove(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        await self.ask(http, requests.Remove(name=given["name"]), replies.Removed)
        return web.json_response({"success": True, "reason": None})

    async def progress(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, http_values.progress(given), replies.ProgressReply)
        return web.json_response({"progress": reply.progress})

    async def health(self, _: web.Request) -> web.Response:
        status = self._operations.status()
        healthy = status.hypervisor == "up"
        return web.json_response(
            {"healthy": healthy, "hypervisor": status.hypervisor, "degraded": list(status.degraded)},
            status=200 if healthy else 503,
        )
