"""The HTTP endpoint of a host: the prototype's paths (SEMANTICS 7 and 10), metrics, and a health check."""

from __future__ import annotations

from aiohttp import web

from vmstackd.api import replies, requests
from vmstackd.api.errors import VmstackError
from vmstackd.daemon import http_answers, http_values
from vmstackd.daemon.http import HttpTransport
from vmstackd.daemon.http_answers import answer
from vmstackd.daemon.http_routes import Answers


class HostHttp(HttpTransport):
    """See the module."""

    welcome = "Scheduler is working and waiting for instructions"
    answers = Answers(
        status=http_answers.Figures,
        deploy=http_answers.Done,
        remove=http_answers.Done,
        progress=http_answers.Gain,
        health=http_answers.Health,
    )

    def reason(self, error: VmstackError) -> str:
        return http_values.legacy_reason(error)

    async def status(self, http: web.Request) -> web.Response:
        reply = await self.ask(http, requests.Status(), replies.StatusReply)
        return answer(http_answers.figures(reply.host))

    async def list(self, http: web.Request) -> web.Response:
        reply = await self.ask(http, requests.List(), replies.ListReply)
        return answer([vm.name for vm in reply.vms])

    async def deploy(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        await self.ask(http, requests.Deploy(**http_values.read(given)), replies.Deployed)
        return answer(http_answers.Done(success=True, reason=None))

    async def remove(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        await self.ask(http, requests.Remove(**http_values.read(given)), replies.Removed)
        return answer(http_answers.Done(success=True, reason=None))

    async def progress(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, requests.Progress(**http_values.read(given)), replies.ProgressReply)
        return answer(http_answers.Gain(progress=reply.progress))

    async def health(self, _: web.Request) -> web.Response:
        status = self._operations.status()
        healthy = status.hypervisor == "up"
        return answer(
            http_answers.Health(healthy=healthy, hypervisor=status.hypervisor, degraded=status.degraded),
            200 if healthy else 503,
        )
