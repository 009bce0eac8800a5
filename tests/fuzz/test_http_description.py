"""What the daemons serve is as they describe it, and a daemon of which that is not so is found."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any

import pytest

from globald.http import ClusterHttp
from tests.fuzz.http_description import check, run
from vmstackd.daemon import openapi
from vmstackd.daemon.http_routes import Route

EXAMPLES = 12
"""Of each call."""

pytestmark = pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")


def test_both_daemons_answer_as_they_describe() -> None:
    outcome = run(1, EXAMPLES)
    assert not outcome.found, outcome.report
    assert outcome.inputs > 2 * 9 * EXAMPLES


HEALTHY = {"healthy": True}


@contextmanager
def answering(status: int, body: Any) -> Iterator[str]:  # noqa: ANN401  whatever JSON can hold
    """A server with /healthz and its description, that answers something else."""
    route = Route(print, "Whether all is well.", ClusterHttp.answers.health, unwell=True)  # type: ignore[arg-type]  # not called
    described = json.dumps(openapi.description("globald", {"/healthz": route})).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(*((200, described) if self.path == "/openapi.json" else (status, json.dumps(body).encode())))

        def do_POST(self) -> None:
            self.answer(200, json.dumps(HEALTHY).encode())

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Request-Id", "a")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (500, {"success": False, "reason": "", "error": "Internal", "message": ""}, "Undocumented status code"),
        (503, {"success": False, "reason": "", "error": "Internal", "message": ""}, "Response violates schema"),
        (200, {"healthy": "yes"}, "Response violates schema"),
    ],
)
def test_an_answer_that_is_not_described_is_found(status: int, body: object, complaint: str) -> None:
    with answering(status, body) as url:
        made, found = check(url, 3, 1)
    assert made > 0
    assert complaint in found
