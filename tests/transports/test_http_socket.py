"""What is not HTTP, and clients that hang up."""

from __future__ import annotations

import asyncio
import logging
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import PATIENCE
from tests.transports.endpoint import VM, Endpoint, endpoint, parse, until
from vmstackd.daemon.http import listen
from vmstackd.hypervisor.base import HypervisorError, VmDefinition
from vmstackd.hypervisor.sim import SimHypervisor

GARBAGE = {
    "bytes": b"\x00\xff\x13\x37 garbage\r\n\r\n",
    "a line": b"hello\r\n\r\n",
    "no target": b"GET\r\n\r\n",
    "unknown method": b"DEPLOY /deploy HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a very long target": b"GET /remove?name=" + b"n" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a very long header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 10_000 + b"\r\n",
    "a header without colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n",
    "bytes in the target": b"GET /remove?name=\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a null in the target": b"GET /remove?name=a\x00b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a broken URL": b"GET http://[/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an impossible port": b"GET http://localhost:99999999/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an unknown expectation": b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nConnection: close\r\n\r\n",
    "two lengths": b"POST /remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "length and chunks": b"POST /remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "broken chunks": b"POST /remove HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "another request behind": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGARBAGE\r\nforged\r\n\r\n",
}


def _quiet(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


async def _alive(host: Endpoint) -> None:
    assert (await host.get("/listvm")).json == ["here"]


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_not_http_is_refused_without_a_word_in_the_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM)
            answers = re.split(rb"(?=HTTP/1\.[01] [0-9]{3} )", await host.raw(GARBAGE[kind]))
            last = parse(answers[-1])
            assert 400 <= last.status < 500
            await _alive(host)

    asyncio.run(check())
    assert _quiet(caplog)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_no_bytes_bring_a_500_or_a_traceback(caplog: pytest.LogCaptureFixture, parts: list[bytes]) -> None:
    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM)
            for part in parts:
                reader, writer = await asyncio.open_connection(host.host, host.port)
                writer.write(b"GET /remove?name=" + part + b"\r\n\r\n")
                writer.write_eof()
                assert b" 500 " not in (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n")[0]
                writer.close()
            await _alive(host)

    asyncio.run(check())
    assert _quiet(caplog)


class SlowSim(SimHypervisor):
    """Starts a VM only when told to; then it fails if ``fail`` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.fail = False

    async def create(self, definition: VmDefinition) -> None:
        self.asked.set()
        await self.go_on.wait()
        if self.fail:
            raise HypervisorError("no disk")
        await super().create(definition)


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("fail", [False, True])
def test_a_deploy_ends_although_its_client_hangs_up(
    abruptly: bool, fail: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def check() -> None:
        sim = SlowSim()
        sim.fail = fail
        async with endpoint(sim) as host:
            _, writer = await asyncio.open_connection(host.host, host.port)
            writer.write(f"GET {VM} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await asyncio.wait_for(sim.asked.wait(), PATIENCE)
            if abruptly:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
            assert (await host.get("/listvm")).json == ["here"]
            sim.go_on.set()
            await until(lambda: any(record.message == "deploy" for record in caplog.records))
            (fields,) = [record.__dict__["fields"] for record in caplog.records if record.message == "deploy"]
            assert fields["outcome"] == ("HypervisorError" if fail else "ok")
            assert (await host.get("/listvm")).json == ([] if fail else ["here"])
            assert list(sim.vms) == ([] if fail else ["here"])
            assert host.engine.status().host.free_cpus == (16 if fail else 14)

    asyncio.run(check())
    assert not [record for record in caplog.records if record.exc_info]


def test_reading_goes_on_while_a_vm_starts() -> None:
    async def check() -> None:
        sim = SlowSim()
        async with endpoint(sim) as host:
            deploying = asyncio.create_task(host.get(VM))
            await asyncio.wait_for(sim.asked.wait(), PATIENCE)
            assert (await host.get("/status")).json["cpu"]["avail"] == 14
            second = await host.get(VM)
            assert (second.status, second.json["error"]) == (409, "AlreadyExists")
            sim.go_on.set()
            assert (await deploying).json == {"success": True, "reason": None}

    asyncio.run(check())


@pytest.mark.parametrize("name", ["a" * 70, "a..b", "nowhere.invalid", "203.0.113.1"])
def test_an_address_that_cannot_be_listened_at_is_an_oserror(name: str) -> None:
    with pytest.raises(OSError, match=r".") as error:
        listen(name, 0)
    assert error.value.strerror


def test_listens_at_ipv6_loopback_where_there_is_one() -> None:
    try:
        probe = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    probe.close()

    async def check() -> None:
        async with endpoint(address="::1") as host:
            assert (await host.get("/status", {"Host": f"[::1]:{host.port}"})).status == 200

    asyncio.run(check())
