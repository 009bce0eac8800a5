"""HTTP as users of the prototype type it for a cluster (SEMANTICS 11), with metrics and checks of health."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable

from aiohttp import web

from globald.cluster import Cluster
from globald.member import State
from globald.metrics import ClusterMetrics
from vmstackd.api import replies, requests
from vmstackd.api.errors import NoCapacity, NotFound, VmstackError
from vmstackd.daemon import http_answers, http_values
from vmstackd.daemon.http import HttpTransport
from vmstackd.daemon.http_answers import answer
from vmstackd.daemon.http_routes import Answers, Route


class ClusterHttp(HttpTransport):
    """The endpoint of one cluster."""

    welcome = "SchedulerGlobal is working and waiting for instructions"
    answers = Answers(
        status=dict[str, http_answers.Figures],
        deploy=http_answers.DeployedOn,
        remove=http_answers.RemovedFrom,
        progress=dict[str, float | None],
        health=http_answers.ClusterHealth,
    )

    def __init__(
        self, cluster: Cluster, metrics: ClusterMetrics, listener: socket.socket, names: Iterable[str] = ()
    ) -> None:
        """As HttpTransport."""
        self._cluster = cluster
        super().__init__(cluster, metrics, listener, names)

    def routes(self) -> dict[str, Route]:
        about = "Whether the hosts have told what they have, or have had their time to."
        return super().routes() | {"/readyz": Route(self._readiness, about, http_answers.Readiness, unwell=True)}

    def reason(self, error: VmstackError) -> str:
        if isinstance(error, NoCapacity):
            return "No appropriate node found"
        if isinstance(error, NotFound) and "does not exist" in error.message:
            return "Unregistered VM"
        return error.message

    async def status(self, http: web.Request) -> web.Response:
        """Of each host that is known now: those that are silent are left out, as before."""
        await self.ask(http, requests.Status(), replies.StatusReply)
        return answer(
            {
                member.name: http_answers.figures(member.reply.host)
                for member in self._cluster.members
                if member.state is State.UP and member.reply is not None
            }
        )

    async def list(self, http: web.Request) -> web.Response:
        await self.ask(http, requests.Status(), replies.StatusReply)
        return answer(self._cluster.members.vm_names())

    async def deploy(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, requests.Deploy(**http_values.read(given)), replies.Deployed)
        return answer(http_answers.DeployedOn(success=True, reason=None, host=reply.host, score=reply.score))

    async def remove(self, http: web.Request) -> web.Response:
        given = await self.parameters(http)
        reply = await self.ask(http, requests.Remove(**http_values.read(given)), replies.Removed)
        return answer(http_answers.RemovedFrom(success=True, reason=None, host=reply.host))

    async def progress(self, http: web.Request) -> web.Response:
        """Of each host; null where the VM does not fit."""
        given = await self.parameters(http)
        reply = await self.ask(http, requests.Progress(**http_values.read(given)), replies.ProgressReply)
        return answer({host.host: host.progress for host in reply.hosts})

    async def health(self, _: web.Request) -> web.Response:
        """Whether globald is alive."""
        running = self._cluster.running
        return answer(http_answers.ClusterHealth(healthy=running), 200 if running else 503)

    async def _readiness(self, _: web.Request) -> web.Response:
        """Whether every host has told what it has, or has had its time to: then VMs can be deployed."""
        learned = self._cluster.learned
        states = Counter(member.shown_state[0] for member in self._cluster.members)
        return answer(http_answers.Readiness(ready=learned, hosts=states), 200 if learned else 503)
