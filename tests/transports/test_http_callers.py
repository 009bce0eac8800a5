"""Who may change things over HTTP: this machine's users as over the other transports."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.running import PATIENCE
from tests.transports.endpoint import VM, endpoint, until
from vmstackd.daemon import peers

NOBODY = 65534
CHANGES = [VM, "/remove?name=here"]
READS = ["/", "/status", "/listvm", "/progress?cpu=1&mem=1&oc=1", "/metrics", "/healthz"]

_ASK_AND_LEAVE = """
import os, socket, struct, sys
address, port, how, target = sys.argv[1:]
connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
connection.connect((address, int(port)))
connection.sendall(f"GET {target} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode())
if how == "half":
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
elif how == "reset":
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
connection.close()
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


async def as_user(uid: int, url: str, *options: str) -> tuple[int, Any]:
    """What curl gets as another user."""
    process = await asyncio.create_subprocess_exec(
        "curl",
        "-s",
        "-g",
        "-w",
        "\n%{http_code}",
        *options,
        url,
        user=uid,
        group=uid,
        extra_groups=[],
        stdout=subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    body, _, code = out.decode().rpartition("\n")
    return int(code), body


@needs_root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_unprivileged_user_may_read_and_change_nothing(address: str) -> None:
    async def run() -> None:
        async with endpoint(address=address) as http:
            base = f"http://[{address}]:{http.port}" if ":" in address else f"http://{address}:{http.port}"
            assert (await http.get(VM)).status == 200
            before = (await http.get("/status")).body
            for change in CHANGES:
                for options in ((), ("-X", "POST")):
                    code, body = await as_user(NOBODY, base + change, *options)
                    answer = json.loads(body)
                    assert (code, answer["success"], answer["error"]) == (403, False, "Denied")
                    assert "nobody@" in answer["message"]
            assert (await http.get("/status")).body == before
            for read in READS:
                assert (await as_user(NOBODY, base + read))[0] == 200
            assert (await as_user(0, base + "/remove?name=here"))[0] == 200

    asyncio.run(run())


@needs_root
@pytest.mark.parametrize("how", ["half", "closed", "reset"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_unprivileged_user_that_hangs_up_may_change_nothing_either(address: str, how: str) -> None:
    async def run() -> None:
        async with endpoint(address=address) as http:
            refused: list[str] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(http.engine, "_observer", lambda outcome: refused.append(outcome.outcome))
                for number in range(10):
                    target = VM.replace("here", f"vm{number}")
                    arguments = [sys.executable, "-I", "-c", _ASK_AND_LEAVE, address, str(http.port), how, target]
                    process = await asyncio.create_subprocess_exec(
                        *arguments, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/"
                    )
                    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
                await until(lambda: len(refused) == 10)
            assert set(refused) == {"Denied"}
            assert http.engine.status().host.vms == 0

    asyncio.run(run())


@needs_root
def test_a_member_of_the_group_of_operators_may(monkeypatch: pytest.MonkeyPatch) -> None:
    gids: Callable[[str], int | None] = {peers.OPERATORS: NOBODY, peers.READERS: None}.get
    monkeypatch.setattr(peers, "_gid", gids)

    async def run() -> None:
        async with endpoint() as http:
            assert (await as_user(NOBODY, f"http://127.0.0.1:{http.port}{VM}"))[0] == 200

    asyncio.run(run())


def test_a_caller_that_cannot_be_found_in_this_machine_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "tcp_peer_uid", lambda _: None)

    async def run() -> None:
        async with endpoint() as http:
            assert (await http.get(VM)).status == 403

    asyncio.run(run())


def test_a_caller_from_elsewhere_may_as_with_the_prototype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "tcp_peer_uid", lambda _: None)
    monkeypatch.setattr(peers, "is_local", lambda _: False)

    async def run() -> None:
        async with endpoint() as http:
            assert (await http.get(VM)).status == 200

    asyncio.run(run())
