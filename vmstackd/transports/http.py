"""HTTP as users of the prototype type it (SEMANTICS 7 and 10), with metrics and a health check.

Only here are levels called ``oc`` and memory counted in GB (1 GB = 1024 MiB).
"""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aiohttp import web

from core.level import UNIT, LevelError, format_level, parse_level
from vmstackd import log
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import Denied, Internal, InvalidRequest, NoCapacity, NotFound, VmstackError
from vmstackd.engine import Engine
from vmstackd.metrics import CONTENT_TYPE, Metrics

WELCOME = "Scheduler is working and waiting for instructions"
MAX_QUERY_BYTES = 8190

_EXAMPLES = {
    "/deploy": "/deploy?name=example&cpu=1&mem=1&oc=1.0&qcow2=/var/lib/libvirt/images/volume.qcow2",
    "/remove": "/remove?name=example",
    "/progress": "/progress?cpu=1&mem=1&oc=1.0",
}
_PARAMETERS = {
    "/deploy": ("name", "cpu", "mem", "oc", "qcow2"),
    "/remove": ("name",),
    "/progress": ("cpu", "mem", "oc"),
}
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_R = TypeVar("_R", bound=replies.Reply)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is known before anything else is started. Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=128)


class HttpTransport:
    """The endpoint of one engine.

    names: host names, beside the loopback ones and the address called, that a request may be
    addressed to; any other Host header is refused, as is every request that a browser sends from
    another site.
    """

    def __init__(self, engine: Engine, metrics: Metrics, listener: socket.socket, names: Iterable[str] = ()) -> None:
        """listener: from ``listen``; closed by ``stop``."""
        self._engine = engine
        self._metrics = metrics
        self._listener = listener
        self._names = frozenset(name.lower() for name in (*_LOOPBACK_NAMES, *names))
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        """The URL of the endpoint."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Begin to answer."""
        app = web.Application(middlewares=[self._guarded])
        for path, handler in (
            ("/", self._welcome),
            ("/status", self._status),
            ("/listvm", self._list),
            ("/deploy", self._deploy),
            ("/remove", self._remove),
            ("/progress", self._progress),
            ("/metrics", self._metrics_text),
            ("/healthz", self._health),
        ):
            app.router.add_get(path, handler)
            app.router.add_post(path, handler)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def stop(self) -> None:
        """Stop listening; requests in progress get a moment to end."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            self._refuse_other_sites(request)
            return await handler(request)
        except VmstackError as error:
            return _error(error)
        except web.HTTPNotFound:
            return _error(NotFound(f"there is no {request.path[:80]!r} here; see / and the README for what there is"))
        except web.HTTPException as error:
            return web.json_response({"success": False, "reason": error.reason}, status=error.status)
        except Exception:
            log.logger.exception("unexpected error in the HTTP endpoint")
            return _error(Internal("internal error; the log of vmstackd has the details"))

    def _refuse_other_sites(self, request: web.Request) -> None:
        host = _host_name(request.headers.get("Host", ""))
        if host not in self._names and host != _own_address(request):
            raise Denied(
                f"the request is addressed to {host[:80]!r}, which is not a name of this host; "
                "add it to http_names if it is"
            )
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Denied("requests that a browser sends from another site are refused")
        origin = request.headers.get("Origin")
        if origin is not None and (urlsplit(origin).netloc.lower() != request.headers["Host"].lower()):
            raise Denied("requests that a browser sends from another site are refused")

    async def _ask(self, http: web.Request, request: requests.Request, answer: type[_R]) -> _R:
        # As with the prototype, whoever reaches the port may change things; hence loopback by default.
        caller = Caller(transport="http", identity=http.remote or "unknown", role=Role.OPERATOR)
        given = http.headers.get("X-Request-Id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else f"http-{next(self._numbers)}"
        reply = await self._engine.handle(request, caller, request_id)
        if not isinstance(reply, answer):
            raise TypeError(f"{type(request).__name__} was answered with {type(reply).__name__}")
        return reply

    async def _welcome(self, _: web.Request) -> web.Response:
        return web.Response(text=WELCOME, content_type="text/html")

    async def _status(self, http: web.Request) -> web.Response:
        return web.json_response(legacy_status(await self._ask(http, requests.Status(), replies.StatusReply)))

    async def _list(self, http: web.Request) -> web.Response:
        reply = await self._ask(http, requests.List(), replies.ListReply)
        return web.json_response([vm.name for vm in reply.vms])

    async def _deploy(self, http: web.Request) -> web.Response:
        given = await _parameters(http)
        await self._ask(
            http,
            requests.Deploy(
                name=given["name"],
                vcpus=_whole("cpu", given["cpu"]),
                memory_mib=_memory_mib(given["mem"]),
                level=_level(given["oc"]),
                image=given["qcow2"],
            ),
            replies.Deployed,
        )
        return web.json_response({"success": True, "reason": None})

    async def _remove(self, http: web.Request) -> web.Response:
        given = await _parameters(http)
        await self._ask(http, requests.Remove(name=given["name"]), replies.Removed)
        return web.json_response({"success": True, "reason": None})

    async def _progress(self, http: web.Request) -> web.Response:
        given = await _parameters(http)
        reply = await self._ask(
            http,
            requests.Progress(
                vcpus=_whole("cpu", given["cpu"]),
                memory_mib=_memory_mib(given["mem"]),
                level=_level(given["oc"]),
            ),
            replies.ProgressReply,
        )
        return web.json_response({"progress": reply.progress})

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        status = self._engine.status()
        healthy = status.hypervisor == "up"
        return web.json_response(
            {"healthy": healthy, "hypervisor": status.hypervisor, "degraded": list(status.degraded)},
            status=200 if healthy else 503,
        )


def legacy_status(reply: replies.StatusReply) -> dict[str, Any]:
    """The prototype's status (SEMANTICS 7)."""
    host = reply.host
    memory: dict[str, Any] = {}
    if host.levels:
        memory["1"] = {
            "pcap": host.allocated_mib,
            "palloc": host.allocated_mib,
            "vavail": 0,
            "vpotential": host.free_mib,
        }
    return {
        "cpu": {
            "avail": host.free_cpus,
            "subset": {
                format_level(level.level): {
                    "pcap": level.cpus,
                    "palloc": level.vcpus,
                    "vavail": level.available_thousandths / UNIT,
                    "vpotential": level.potential_thousandths / UNIT,
                }
                for level in host.levels
            },
        },
        "mem": {"avail": host.free_mib, "subset": memory},
    }


def _error(error: VmstackError) -> web.Response:
    """The prototype's form; what it did not say is beside it."""
    reason = error.message
    if isinstance(error, NoCapacity):
        reason = "Not enough space on res " + ("mem" if error.details["resource"] == "memory" else "cpu")
    elif isinstance(error, NotFound) and "does not exist" in error.message:
        reason = "does not exist"
    body = {"success": False, "reason": reason, "error": error.code, "message": error.message, **error.details}
    return web.json_response(body, status=error.http_status)


def _own_address(request: web.Request) -> str:
    """The address at which the request arrived: as a Host header it cannot come from another site's name."""
    return str(request.transport.get_extra_info("sockname", ("",))[0]) if request.transport is not None else ""


def _host_name(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([^:\[\]]*)(?::[0-9]+)?", header.strip())
    return (match[1] or match[2] or "").lower() if match else header.lower()


async def _parameters(http: web.Request) -> Mapping[str, str]:
    """The parameters of a call, each given exactly once, in the query or in a form that was posted."""
    if len(http.raw_path) > MAX_QUERY_BYTES:
        raise InvalidRequest(f"the request is longer than {MAX_QUERY_BYTES} bytes")
    pairs: list[tuple[str, Any]] = list(http.query.items())
    if http.method == "POST":
        pairs += (await http.post()).items()
    wanted = _PARAMETERS[http.path]
    usage = f"usage: {_EXAMPLES[http.path]}"
    given: dict[str, str] = {}
    for key, value in pairs:
        if key not in wanted:
            raise InvalidRequest(f"{key[:40]!r} is not a parameter here; {usage}", field=key[:40])
        if key in given or not isinstance(value, str):
            raise InvalidRequest(f"{key} is given twice, or as a file; {usage}", field=key)
        given[key] = value
    missing = [key for key in wanted if key not in given]
    if missing:
        raise InvalidRequest(f"missing: {', '.join(missing)}; {usage}", field=missing[0])
    return given


def _whole(field: str, text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise InvalidRequest(f"{field}: {text[:40]!r} is not a whole number of vCPUs", field=field)
    return int(text)


def _memory_mib(text: str) -> int:
    match = re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,18})?", text)
    if match is None:
        raise InvalidRequest(f"mem: {text[:40]!r} is not a number of GB, such as 2 or 0.5", field="mem")
    return int(Fraction(text) * 1024)


def _level(text: str) -> int:
    try:
        return parse_level(text)
    except LevelError as error:
        raise InvalidRequest(f"oc: {error}", field="oc") from error
