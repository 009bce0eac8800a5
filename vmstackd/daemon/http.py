"""An HTTP endpoint as users of the prototype know it (SEMANTICS 10): JSON in its form, and who may call it."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import Denied, Internal, InvalidRequest, NotFound, VmstackError
from vmstackd.daemon import http_values, log, openapi, peers
from vmstackd.daemon.http_connections import Connections
from vmstackd.daemon.http_routes import FORM, REQUEST_ID, Answers, Handler, Route
from vmstackd.daemon.metrics import CONTENT_TYPE, DaemonMetrics
from vmstackd.daemon.operations import Operations
from vmstackd.daemon.restraint import Restraint

MAX_FORM_BYTES = 16 * 1024
FORM_PATIENCE_S = 10.0
"""Seconds in which a form that is posted must have come."""
BACKLOG = 512

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class _Call:
    """One HTTP request. asked: whether it has come so far that the operations were asked."""

    __slots__ = ("asked", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.asked = False


_CALL: ContextVar[_Call] = ContextVar("call")
_R = TypeVar("_R", bound=replies.Reply)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is known before anything else is started. Raises OSError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"not a host name: {error}") from error
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


class HttpTransport(ABC):
    """The endpoint of one daemon.

    names: host names, beside the loopback ones and the address called, that a request may be
    addressed to; any other Host header is refused, as is every request that a browser sends from
    another site.
    """

    def __init__(
        self, operations: Operations, metrics: DaemonMetrics, listener: socket.socket, names: Iterable[str] = ()
    ) -> None:
        """metrics: told at /metrics. listener: from ``listen``; closed by ``stop``."""
        self._operations = operations
        self._metrics = metrics
        self._listener = listener
        self.rename(names)
        self._numbers = itertools.count(1)
        self._restraint = Restraint()
        self._runner: web.AppRunner | None = None
        self._routes = self.routes()

    welcome: ClassVar[str]
    """What the prototype said at /."""
    answers: ClassVar[Answers]

    def routes(self) -> dict[str, Route]:
        """What there is, by path: what the prototype's host and its cluster had, and metrics and health."""
        size = ("cpu", "mem", "oc")
        vm = ("name", *size, "qcow2")
        example = "/deploy?name=example&cpu=1&mem=1&oc=1.0&qcow2=/var/lib/libvirt/images/volume.qcow2"
        answers = self.answers
        return {
            "/": Route(self._welcome, "Is it there?", media="text/html"),
            "/status": Route(self.status, "Figures.", answers.status),
            "/listvm": Route(self.list, "Names of all VMs.", list[str]),
            "/deploy": Route(self.deploy, "Start a VM.", answers.deploy, changing=True, parameters=vm, example=example),
            "/remove": Route(
                self.remove,
                "Stop a VM; its image stays.",
                answers.remove,
                changing=True,
                parameters=("name",),
                example="/remove?name=example",
            ),
            "/progress": Route(
                self.progress,
                "How good a place for a VM this is.",
                answers.progress,
                parameters=size,
                example="/progress?cpu=1&mem=1&oc=1.0",
            ),
            "/metrics": Route(self._metrics_text, "Metrics for Prometheus.", media=CONTENT_TYPE.partition(";")[0]),
            "/healthz": Route(self.health, "Whether all is well.", answers.health, unwell=True),
            "/openapi.json": Route(self._description, "This description.", dict[str, Any]),
        }

    async def _welcome(self, _: web.Request) -> web.Response:
        return web.Response(text=self.welcome, content_type="text/html")

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _description(self, _: web.Request) -> web.Response:
        return web.json_response(openapi.description(self._operations.identity.program, self._routes))

    @abstractmethod
    async def status(self, http: web.Request) -> web.Response:
        """Figures."""

    @abstractmethod
    async def list(self, http: web.Request) -> web.Response:
        """Names of VMs."""

    @abstractmethod
    async def deploy(self, http: web.Request) -> web.Response:
        """Start a VM."""

    @abstractmethod
    async def remove(self, http: web.Request) -> web.Response:
        """Stop a VM."""

    @abstractmethod
    async def progress(self, http: web.Request) -> web.Response:
        """How good a place for a VM is."""

    @abstractmethod
    async def health(self, _: web.Request) -> web.Response:
        """Whether all is well here."""

    def reason(self, error: VmstackError) -> str:
        """The error in the words of the prototype, where it had any."""
        return error.message

    def rename(self, names: Iterable[str]) -> None:
        """Use these names, beside the loopback ones, from now on."""
        self._names = frozenset(name.lower() for name in (*_LOOPBACK_NAMES, *names))

    @property
    def address(self) -> str:
        """The URL of the endpoint."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Begin to answer."""
        app = web.Application(middlewares=[self._guarded], client_max_size=MAX_FORM_BYTES)
        for path, route in self._routes.items():
            app.router.add_get(path, route.handler, allow_head=not route.changing)
            app.router.add_post(path, route.handler)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_aiohttp_log, handle_signals=False, shutdown_timeout=5.0
        )
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise TypeError("a runner that is set up has a server")
        loop = asyncio.get_running_loop()
        self._connections = Connections(server)
        self._accepting = await loop.create_server(self._connections.admit, sock=self._listener, backlog=BACKLOG)
        self._watching = loop.create_task(self._connections.watch())

    async def stop(self) -> None:
        """Stop listening; requests in progress get a moment to end."""
        if self._runner is not None:
            self._accepting.close()
            self._watching.cancel()
            await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        call = _Call(given if re.fullmatch(REQUEST_ID, given) else f"http-{next(self._numbers)}")
        _CALL.set(call)
        self._connections.begins(request.protocol)
        try:
            response = await self._answer(request, handler, call)
        finally:
            self._connections.ends(request.protocol)
        response.headers["X-Request-Id"] = call.request_id
        return response

    async def _answer(self, request: web.Request, handler: Handler, call: _Call) -> web.StreamResponse:
        try:
            self._refuse_other_sites(request)
            return await handler(request)
        except VmstackError as error:
            if not call.asked:  # what the operations were asked is in the log already
                self._restraint.tell(
                    "http-refused",
                    request=call.request_id,
                    caller=f"http:{request.remote}",
                    asked=f"{request.method} {request.raw_path[:200]}",
                    outcome=error.code,
                    why=error.message,
                )
            return self._error(error)
        except web.HTTPNotFound:
            return self._error(
                NotFound(f"there is no {request.path[:80]!r} here; see / and the README for what there is")
            )
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            refusal = InvalidRequest(f"{request.method} is not possible here, only {allowed}")
            return self._error(refusal, error.status, {"Allow": allowed})
        except web.HTTPException as error:
            return self._error(InvalidRequest(error.text or error.reason), error.status)
        except Exception:
            log.logger.exception("unexpected error in the HTTP endpoint, request %s", call.request_id)
            return self._error(
                Internal(f"internal error; the log of {self._operations.identity.program} has the details")
            )

    def _refuse_other_sites(self, request: web.Request) -> None:
        header = request.headers.get("Host")
        # Browsers always say which host they mean; only old programs leave it out, in HTTP/1.0.
        if header is not None:
            host = _host_name(header)
            if host not in self._names and host != _own_address(request):
                raise Denied(
                    f"the request is addressed to {header[:80]!r}, which is not a name of this host; "
                    "add it to http_names if it is"
                )
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Denied("requests that a browser sends from another site are refused")
        origin = request.headers.get("Origin")
        if origin is not None and (header is None or _site(origin) != header.lower()):
            raise Denied("requests that a browser sends from another site are refused")

    async def ask(self, http: web.Request, request: requests.Request, answer: type[_R]) -> _R:
        """Have a request handled. Raises a VmstackError."""
        caller = await _caller(http, request)
        call = _CALL.get()
        call.asked = True
        try:
            reply = await self._operations.handle(request, caller, call.request_id)
        except InvalidRequest as error:
            raise _in_own_words(error) from error
        if not isinstance(reply, answer):
            raise TypeError(f"{type(request).__name__} was answered with {type(reply).__name__}")
        return reply

    async def parameters(self, http: web.Request) -> Mapping[str, str]:
        """The parameters of a call, each given exactly once, in the query or in a form that was posted."""
        encoded = http.raw_path.partition("?")[2]
        if http.method == "POST":
            self._connections.awaits_form(http.protocol)
            encoded += "&" + await _form(http)
            self._connections.begins(http.protocol)
        route = self._routes[http.path]
        return http_values.parameters(encoded, route.parameters, route.example)

    def _error(self, error: VmstackError, status: int = 0, headers: Mapping[str, str] | None = None) -> web.Response:
        """The prototype's form; what it did not say is beside it."""
        body = {
            "success": False,
            "reason": self.reason(error),
            "error": error.code,
            "message": error.message,
            **error.details,
        }
        return web.json_response(body, status=status or error.http_status, headers=headers)


async def _caller(http: web.Request, request: requests.Request) -> Caller:
    """Who calls. Everybody who reaches the port may read.

    Of this machine's users only those may change things who may over the other transports too. Callers from
    elsewhere cannot be told apart: whoever lets them in (http_host) lets them change things.
    """
    identity = http.remote or "unknown"
    if not isinstance(request, requests.Change):
        return Caller(transport="http", identity=identity, role=Role.READER)
    try:
        # One of our own: its number cannot become another connection's while the thread looks.
        connection = None if http.transport is None else http.transport.get_extra_info("socket").dup()
    except OSError:
        connection = None
    if connection is None:  # it has hung up
        return Caller(transport="http", identity=identity, role=Role.READER)
    with connection:
        uid, local = await asyncio.to_thread(lambda: (peers.tcp_peer_uid(connection), peers.is_local(connection)))
    if uid is None:
        return Caller(transport="http", identity=identity, role=Role.READER if local else Role.OPERATOR)
    peer = peers.user_peer(uid)
    role = max(Role.READER, peers.role_of(peer))
    return Caller(transport="http", identity=f"{peer.user}@{identity}", role=role)


def _in_own_words(error: InvalidRequest) -> InvalidRequest:
    """The error with the field called what it is called here."""
    field = str(error.details.get("field", ""))
    word = http_values.FIELD_NAMES.get(field, field)
    if word == field:
        return error
    rest = error.message.removeprefix(f"{field}: ")
    return InvalidRequest(f"{word}: {rest}", **(error.details | {"field": word}))


class _ClientFaults(logging.Filter):
    """Keeps what a client did wrong out of the log, unless one looks for it, and above all its bytes."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | web.RequestPayloadError | ClientError | ConnectionError):
            return True
        log.event(logging.DEBUG, "http-malformed", reason=type(error).__name__, text=str(error)[:200])
        return False


_aiohttp_log = logging.getLogger(f"{log.logger.name}.http")
_aiohttp_log.addFilter(_ClientFaults())


def _own_address(request: web.Request) -> str:
    """The address at which the request arrived: as a Host header it cannot come from another site's name."""
    return str(request.transport.get_extra_info("sockname", ("",))[0]) if request.transport is not None else ""


def _site(origin: str) -> str:
    """Host and port of an Origin header; empty for "null" and for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _host_name(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([^:\[\]]*)(?::[0-9]+)?", header.strip())
    return (match[1] or match[2] or "").lower() if match else header.lower()


async def _form(http: web.Request) -> str:
    if not http.body_exists:
        return ""
    if http.content_type != FORM or (http.charset or "utf-8").lower() != "utf-8":
        given = http.headers.get("Content-Type", "no Content-Type")
        raise InvalidRequest(f"a body must be a form in UTF-8 ({FORM}), not {given[:80]!r}", field="Content-Type")
    try:
        async with asyncio.timeout(FORM_PATIENCE_S):
            return (await http.read()).decode("utf-8").strip()
    except TimeoutError as error:
        raise InvalidRequest("the form did not come in time", field="body") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("the form is not UTF-8", field="body") from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("the body cannot be decoded", field="body") from error
