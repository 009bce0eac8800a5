"""Methods and bodies: GET and POST do the same, HEAD changes nothing, the rest is refused."""

from __future__ import annotations

import asyncio
import json
import logging
import zlib

import pytest

from tests.transports.endpoint import VM, Endpoint, endpoint

PATHS = ("/", "/status", "/listvm", "/deploy", "/remove", "/progress", "/metrics", "/healthz")
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_refused_and_told_which_are_not(method: str, path: str) -> None:
    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM)
            before = host.engine.status()
            answer = await host.send(method, f"{path}?name=here")
            assert (answer.status, answer.json["error"]) == (405, "InvalidRequest")
            assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))
            assert method in answer.json["reason"]
            assert host.engine.status() == before

    asyncio.run(check())


@pytest.mark.parametrize(
    ("target", "status"), [("/status", 200), ("/healthz", 200), ("/progress?cpu=1&mem=1&oc=1", 200), (VM, 405)]
)
def test_head_reads_and_never_changes(target: str, status: int) -> None:
    async def check() -> None:
        async with endpoint() as host:
            before = host.engine.status()
            answer = await host.send("HEAD", target)
            assert (answer.status, answer.body) == (status, b"")
            assert host.engine.status() == before

    asyncio.run(check())


def test_head_does_not_remove() -> None:
    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM)
            assert (await host.send("HEAD", "/remove?name=here")).status == 405
            assert (await host.get("/listvm")).json == ["here"]

    asyncio.run(check())


def test_post_takes_parameters_from_a_form_the_query_or_both() -> None:
    async def check() -> None:
        async with endpoint() as host:
            form = b"name=a&cpu=1&mem=0.5&oc=1.5&qcow2=%2Fimages%2Fa"
            assert (await host.send("POST", "/deploy", {"Content-Type": FORM}, form)).json["success"]
            plain = {"Content-Type": f"{FORM}; charset=UTF-8"}
            assert (await host.send("POST", "/deploy?name=b&oc=1", plain, b"cpu=1&mem=1&qcow2=/images/b")).json[
                "success"
            ]
            assert (await host.send("POST", "/deploy?name=c&cpu=1&mem=1&oc=1&qcow2=/images/c")).json["success"]
            assert (
                await host.send("POST", "/deploy", plain, "name=ü&cpu=1&mem=1&oc=1&qcow2=/ü".encode())
            ).status == 200
            assert (await host.get("/listvm")).json == ["a", "b", "c", "ü"]
            twice = await host.send("POST", "/remove?name=a", {"Content-Type": FORM}, b"name=b")
            assert (twice.status, twice.json["field"]) == (400, "name")
            assert (await host.send("POST", "/status")).status == 200

    asyncio.run(check())


async def _refused(host: Endpoint, headers: dict[str, str], body: bytes, status: int = 400) -> None:
    before = host.engine.status()
    answer = await host.send("POST", "/remove", headers, body)
    assert (answer.status, answer.json["error"]) == (status, "InvalidRequest")
    assert host.engine.status() == before


BODIES = {
    "JSON": ({"Content-Type": "application/json"}, json.dumps({"name": "here"}).encode()),
    "multipart": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nhere\r\n--x--\r\n',
    ),
    "a file": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        b'--x\r\nContent-Disposition: form-data; name="name"; filename="here"\r\n\r\nhere\r\n--x--\r\n',
    ),
    "multipart without boundary": ({"Content-Type": "multipart/form-data"}, b"--x"),
    "text": ({"Content-Type": "text/plain"}, b"name=here"),
    "no type": ({}, b"name=here"),
    "a nonsense type": ({"Content-Type": "///;;;"}, b"name=here"),
    "an unknown charset": ({"Content-Type": f"{FORM}; charset=nonsense"}, b"name=here"),
    "another charset": ({"Content-Type": f"{FORM}; charset=utf-16"}, "name=here".encode("utf-16")),
    "bytes that are not UTF-8": ({"Content-Type": FORM}, b"name=\xff"),
    "a broken compression": ({"Content-Type": FORM, "Content-Encoding": "gzip"}, b"name=here"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_not_a_form_is_refused(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM)
            await _refused(host, *BODIES[kind])

    asyncio.run(check())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_form_beyond_the_bound_is_refused_even_when_it_arrives_small(compressed: bool) -> None:
    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM)
            body = b"name=here" + b" " * 1_000_000
            if compressed:
                headers = {"Content-Type": FORM, "Content-Encoding": "deflate"}
                await _refused(host, headers, zlib.compress(body), 413)
            else:
                await _refused(host, {"Content-Type": FORM}, body, 413)

    asyncio.run(check())
