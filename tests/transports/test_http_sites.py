"""Requests that are addressed to another host, or that a browser sends from another site, are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.transports.endpoint import VM, endpoint, parse

PORT = "{port}"
"""Stands for the port of the endpoint in the headers below."""

ACCEPTED = {
    "loopback name": {"Host": "localhost"},
    "with port": {"Host": f"localhost:{PORT}"},
    "another port": {"Host": "localhost:8099"},
    "capitals": {"Host": "LocalHost"},
    "IPv4": {"Host": f"127.0.0.1:{PORT}"},
    "IPv6": {"Host": "[::1]"},
    "IPv6 with port": {"Host": f"[::1]:{PORT}"},
    "configured name": {"Host": "server-1.example.org:80"},
    "same origin": {"Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"},
    "typed by hand": {"Sec-Fetch-Site": "none"},
    "own page": {"Sec-Fetch-Site": "same-origin", "Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"},
}
REFUSED = {
    "foreign name": {"Host": "evil.example"},
    "foreign name with port": {"Host": f"evil.example:{PORT}"},
    "foreign address": {"Host": "203.0.113.1"},
    "a name that begins like ours": {"Host": "localhost.evil.example"},
    "a name that ends like ours": {"Host": "evil-localhost"},
    "user": {"Host": "localhost@evil.example"},
    "foreign IPv6": {"Host": "[2001:db8::1]"},
    "broken brackets": {"Host": "[::1"},
    "no port number": {"Host": "localhost:evil"},
    "empty": {"Host": ""},
    "not ASCII": {"Host": "l\u00f6calhost"},
    "origin null": {"Origin": "null"},
    "origin empty": {"Origin": ""},
    "foreign origin": {"Origin": "http://evil.example"},
    "other port": {"Host": f"localhost:{PORT}", "Origin": "http://localhost:1"},
    "broken origin": {"Origin": "http://["},
    "origin of the same name, addressed by another": {
        "Host": f"127.0.0.1:{PORT}",
        "Origin": f"http://localhost:{PORT}",
    },
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "unknown value": {"Sec-Fetch-Site": "whatever"},
}


def _statuses(headers: dict[str, str], targets: Sequence[str] = (VM, "/status", "/metrics")) -> tuple[set[int], int]:
    """Statuses of the answers, and the number of VMs afterwards."""

    async def ask() -> tuple[set[int], int]:
        async with endpoint(names=["server-1.example.org"]) as host:
            sent = {key: value.replace(PORT, str(host.port)) for key, value in headers.items()}
            answers = [await host.get(target, sent) for target in targets]
            return {answer.status for answer in answers}, host.engine.status().host.vms

    return asyncio.run(ask())


@pytest.mark.parametrize("case", ACCEPTED)
def test_own_names_and_own_pages_are_served(case: str) -> None:
    assert _statuses(ACCEPTED[case]) == ({200}, 1)


@pytest.mark.parametrize("case", REFUSED)
def test_other_names_and_other_sites_are_denied_and_change_nothing(case: str) -> None:
    assert _statuses(REFUSED[case]) == ({403}, 0)


def test_a_preflight_is_never_answered_with_a_permission() -> None:
    async def check() -> None:
        async with endpoint() as host:
            asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
            answer = await host.send("OPTIONS", "/deploy", asked)
            assert answer.status == 403
            assert not [header for header in answer.headers if header.lower().startswith("access-control")]

    asyncio.run(check())


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /listvm HTTP/1.0\r\n\r\n", 200),
        (b"GET /listvm HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /listvm HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /listvm HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n", 403),
        (b"GET /listvm HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /listvm HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 400),
    ],
)
def test_only_http_1_0_may_leave_the_host_out(head: bytes, status: int) -> None:
    async def check() -> None:
        async with endpoint() as host:
            assert parse(await host.raw(head)).status == status

    asyncio.run(check())


def test_the_address_called_is_always_a_name() -> None:
    async def check() -> None:
        async with endpoint(address="127.0.0.2") as host:
            assert (await host.get("/status", {"Host": f"127.0.0.2:{host.port}"})).status == 200
            assert (await host.get("/status", {"Host": f"127.0.0.3:{host.port}"})).status == 403

    asyncio.run(check())


def test_the_refusal_says_how_to_allow_the_name() -> None:
    async def check() -> None:
        async with endpoint() as host:
            answer = (await host.get("/status", {"Host": "server-2"})).json
            assert answer["error"] == "Denied"
            assert "'server-2'" in answer["message"]
            assert "http_names" in answer["message"]

    asyncio.run(check())
