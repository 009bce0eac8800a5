"""The socket over TCP: with TLS from anywhere, in the clear for users of this machine."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.running import PATIENCE
from tests.transports.endpoint import until
from tests.transports.rpc import HELLO, STRANGER, VM, Door, Speaker, as_root, door, packed
from vmstackd.daemon import peers, tcp
from vmstackd.daemon.stream import Limits, StreamTransport
from vmstackd.tls import Tls

QUICK = Limits(handshake=0.3, hello=0.5, frame=0.3, stall=0.5, period=0.05)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


class TcpDoor:
    """An engine behind a TCP listener."""

    def __init__(self, host: Door, transport: StreamTransport, port: int) -> None:
        self.engine = host.engine
        self.transport = transport
        self.port = port

    @asynccontextmanager
    async def stranger(
        self, tls: Tls | ssl.SSLContext | None, source: str = "127.0.0.1", *, narrow: bool = False
    ) -> AsyncIterator[Speaker]:
        """A connection on which hello was not said. narrow: the system takes little of what is not read."""
        context = tls.client() if isinstance(tls, Tls) else tls
        name = None if context is None else "localhost"
        connection = socket.socket()
        connection.setblocking(False)
        if narrow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=context, server_hostname=name, limit=1 << 20
        )
        try:
            yield Speaker(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    @asynccontextmanager
    async def speaker(self, tls: Tls | None, source: str = "127.0.0.1") -> AsyncIterator[Speaker]:
        """A connection on which hello was said."""
        async with self.stranger(tls, source) as speaker:
            await speaker.ask("hello", *HELLO)
            yield speaker

    async def gone(self) -> None:
        """Wait until nobody is there."""
        await until(lambda: not self.transport._connections and not self.transport._users)


@asynccontextmanager
async def tcp_door(tls: Tls | None, limits: Limits | None = None, host: str = "127.0.0.1") -> AsyncIterator[TcpDoor]:
    """For TLS, if tls is given."""
    async with door() as behind:
        listener = tcp.listen(host, 0, tls)
        port = listener.getsockname()[1]
        transport = StreamTransport(behind.engine, listener, limits=limits or Limits(), tls=tls)
        await transport.start()
        try:
            yield TcpDoor(behind, transport, port)
        finally:
            await transport.stop()


def _events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if record.msg == name]


# Who is let in


@pytest.mark.parametrize(("role", "may"), [("operator", "operator"), ("globald", "operator"), ("reader", "reader")])
def test_the_certificate_says_what_one_may_do(
    role: str, may: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def check() -> None:
        async with tcp_door(authority.host()) as host:
            assert host.transport.name == "tcp"
            assert host.transport.address == f"tcp:127.0.0.1:{host.port}"
            async with host.stranger(authority.client(role, "alice")) as client:
                assert (await client.ask("hello", *HELLO))["role"] == may
                await client.ask("status")
                assert await client.ask("ping") == {}
                if may == "operator":
                    await client.ask("deploy", VM)
                else:
                    error = await client.refusal("deploy", VM)
                    assert (error["code"], error["message"]) == ("Denied", "alice@127.0.0.1 may read but not deploy")
            await host.gone()

    asyncio.run(check())
    (deploy,) = _events(caplog, "deploy")
    assert deploy["caller"] == "tcp:alice@127.0.0.1"


@pytest.mark.parametrize(
    ("role", "text"), [("host", "has the role host"), ("admin", "has no role"), ("", "has no role")]
)
def test_other_roles_are_told_what_they_have(
    role: str, text: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def check() -> None:
        async with tcp_door(authority.host()) as host:
            async with host.stranger(authority.client(role, "mallory")) as client:
                error = await client.refusal("hello", *HELLO)
                assert error["code"] == "Denied"
                assert error["message"].startswith("mallory@127.0.0.1 may not use vmstackd; its certificate " + text)
                assert "vmstackctl pki client NAME --role" in error["message"]
                assert await client.receive() is None
            await host.gone()

    asyncio.run(check())
    (dropped,) = _events(caplog, "connection-dropped")
    assert dropped["peer"] == "mallory@127.0.0.1"


def _strangers(authority: Authority, other: Authority) -> dict[str, ssl.SSLContext]:
    """Clients that are not to be let in. They trust everybody."""
    none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old = authority.client("operator", "old").client()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    found = {
        "no certificate": none,
        "another authority": other.client("operator").client(),
        "expired": authority.client("operator", "expired", days=-1).client(),
        "for servers": authority.host("backwards").client(),
        "TLS 1.2": old,
    }
    for context in found.values():
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return found


REASONS = {
    "no certificate": "peer did not return a certificate",
    "another authority": "its certificate is not accepted",
    "expired": "its certificate is not accepted: certificate has expired",
    "for servers": "its certificate is not accepted: unsuitable certificate purpose",
    "TLS 1.2": "unsupported protocol",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_client_without_a_good_certificate_is_not_let_in(
    kind: str, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def check() -> None:
        server = authority.host()
        context = _strangers(authority, Authority(tmp_path / "other"))[kind]
        async with tcp_door(server) as host, host.speaker(authority.client("reader")) as other:
            with suppress(OSError):
                async with host.stranger(context) as client:
                    client.send([0, 1, "hello", HELLO])
                    assert await client.receive() is None
            await until(lambda: bool(_events(caplog, "handshake-failed")))
            await other.ask("status")
            assert len(host.transport._connections) == 1

    asyncio.run(check())
    (failed,) = _events(caplog, "handshake-failed")
    assert failed["peer"] == "127.0.0.1"
    assert failed["reason"].startswith(REASONS[kind])
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        packed([0, 1, "hello", HELLO]) * 200,
        b"\x16\x03\x01\xff\xff" + b"\0" * 99,
        b"\0" * 9999,
    ],
    ids=["HTTP", "in the clear", "a long record", "zeros"],
)
def test_what_is_no_handshake_is_dropped(data: bytes, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def check() -> None:
        async with tcp_door(authority.host(), QUICK) as host:
            async with host.stranger(None) as client:
                client.raw(data)
                with suppress(OSError):
                    assert await client.receive() is None
            await host.gone()
            async with host.speaker(authority.client("reader")) as other:
                await other.ask("status")

    asyncio.run(check())
    assert _events(caplog, "handshake-failed")
    assert not any(record.exc_info for record in caplog.records)


def test_many_failed_handshakes_are_few_lines(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def check() -> None:
        async with tcp_door(authority.host(), Limits(period=PATIENCE)) as host:
            for _ in range(50):
                async with host.stranger(None) as client:
                    client.raw(b"GET / HTTP/1.1\r\n\r\n")
                    with suppress(OSError):
                        await client.receive()
            await host.gone()
            assert host.transport._noted["handshake-failed"] == 50

    asyncio.run(check())
    assert len(_events(caplog, "handshake-failed")) == 1


def test_a_certificate_that_cannot_be_read_leaves_nothing(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stranger = authority.garbled("reader")

    async def check() -> None:
        async with tcp_door(authority.host()) as host:
            with suppress(OSError, AssertionError):
                async with host.stranger(stranger) as speaker:
                    assert await speaker.receive() is None
            await host.gone()

    asyncio.run(check())
    (failed,) = _events(caplog, "handshake-failed")
    assert failed["reason"] == "there is something in its certificate that is no text"


# Handshakes that do not end


def test_a_handshake_that_is_not_finished_is_dropped(authority: Authority) -> None:
    async def check() -> None:
        async with tcp_door(authority.host(), QUICK) as host:
            async with host.stranger(None) as silent, host.stranger(None) as slow:
                slow.raw(b"\x16\x03\x01\x02\x00\x01")
                assert await silent.receive() is None
                assert await slow.receive() is None
            await host.gone()

    asyncio.run(check())


@pytest.mark.parametrize("limits", [Limits(connections=20), Limits(per_user=20)], ids=["of all", "of one address"])
def test_half_open_handshakes_keep_nobody_out(limits: Limits, authority: Authority) -> None:
    async def check() -> None:
        client = authority.client("operator")
        async with tcp_door(authority.host(), limits) as host, AsyncExitStack() as crowd:
            first = await crowd.enter_async_context(host.speaker(client))
            silent = [await crowd.enter_async_context(host.stranger(None)) for _ in range(60)]
            await until(lambda: len(host.transport._connections) == 20)
            async with host.speaker(client) as other:
                await other.ask("status")
            await first.ask("status")
            assert await silent[0].receive() is None  # the oldest made room
            assert len(host.transport._connections) <= 20

    asyncio.run(check())


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
def test_those_who_do_not_say_hello_keep_nobody_out(authority: Authority, *, secure: bool) -> None:
    async def check() -> None:
        client = authority.client("operator") if secure else None
        limits = Limits(connections=20)
        async with tcp_door(authority.host() if secure else None, limits) as host, AsyncExitStack() as crowd:
            first = await crowd.enter_async_context(host.speaker(client))
            silent = [await crowd.enter_async_context(host.stranger(client)) for _ in range(40)]
            here = host.transport._connections
            await until(lambda: len(here) == 20 and all(connection._transport for connection in here))
            async with host.speaker(client) as other:
                await other.ask("status")
            await first.ask("status")
            with suppress(OSError):
                assert await silent[0].receive() is None  # the oldest made room
            assert len(host.transport._connections) <= 20

    asyncio.run(check())


@as_root
@pytest.mark.parametrize("said", [b"", packed([0, 1, "hello", HELLO])[:-1]], ids=["nothing", "half a hello"])
def test_one_user_of_this_machine_cannot_take_all_connections(said: bytes) -> None:
    hold = (
        "import socket, sys\n"
        "held = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for _ in range(10)]\n"
        "for each in held: each.sendall(bytes.fromhex(sys.argv[2]))\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )

    async def check() -> None:
        async with tcp_door(None, Limits(per_user=3)) as host:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", hold, str(host.port), said.hex()),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=STRANGER, group=STRANGER, extra_groups=[], cwd="/",
            )  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdout.readline()  # empty if some were reset already
            await until(lambda: host.transport._users[STRANGER] == 3)
            async with AsyncExitStack() as crowd:
                here = [await crowd.enter_async_context(host.speaker(None)) for _ in range(5)]  # root is not limited
                for speaker in here:
                    await speaker.ask("status")
            assert host.transport._users[STRANGER] <= 3
            process.stdin.close()
            await process.wait()
            await host.gone()

    asyncio.run(check())


def test_those_who_have_said_who_they_are_make_room_for_nobody(authority: Authority) -> None:
    async def check() -> None:
        client = authority.client("operator")
        async with tcp_door(authority.host(), Limits(per_user=3)) as host, AsyncExitStack() as crowd:
            here = [await crowd.enter_async_context(host.speaker(client)) for _ in range(3)]
            with pytest.raises(OSError):  # noqa: PT011  reset, or ended in the handshake
                async with host.speaker(client):
                    pass
            for speaker in here:
                await speaker.ask("status")
            async with host.speaker(client, source="127.0.0.2") as other:  # another address has its own share
                await other.ask("status")

    asyncio.run(check())


def test_the_end_of_the_daemon_waits_for_no_handshake(authority: Authority) -> None:
    async def check() -> None:
        async with tcp_door(authority.host()) as host, host.stranger(None) as silent:
            await until(lambda: len(host.transport._connections) == 1)
            async with asyncio.timeout(PATIENCE / 2):
                await host.transport.stop()
            with suppress(OSError):
                assert await silent.receive() is None
            assert not host.transport._connections

    asyncio.run(check())


# The limits that hold on every socket


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
@pytest.mark.parametrize(
    "data",
    [b"\xc1", packed([0, 5, "status", []])[:-2], packed([1, 1, None, {}]), b"\xdb\x7f\xff\xff\xff"],
    ids=["malformed", "half a frame", "a response", "a long text"],
)
def test_whoever_breaks_the_protocol_is_dropped(data: bytes, authority: Authority, *, secure: bool) -> None:
    async def check() -> None:
        client = authority.client("operator") if secure else None
        async with tcp_door(authority.host() if secure else None, QUICK) as host, host.speaker(client) as other:
            async with host.speaker(client) as bad:
                bad.raw(data)
                assert await bad.receive() is None
            await other.ask("status")
            await until(lambda: host.transport.kept == 0 and len(host.transport._connections) == 1)

    asyncio.run(check())


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
def test_whoever_does_not_say_hello_is_dropped(authority: Authority, *, secure: bool) -> None:
    async def check() -> None:
        client = authority.client("operator") if secure else None
        async with tcp_door(authority.host() if secure else None, QUICK) as host:
            async with host.stranger(client) as silent:
                assert await silent.receive() is None
            await host.gone()

    asyncio.run(check())


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
def test_whoever_does_not_read_is_not_read_and_then_dropped(authority: Authority, *, secure: bool) -> None:
    async def check() -> None:
        client = authority.client("operator") if secure else None
        async with tcp_door(authority.host() if secure else None, QUICK) as host, host.speaker(client) as other:
            async with host.stranger(client, narrow=True) as deaf:
                await deaf.ask("hello", *HELLO)
                deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a stream socket
                for number in range(3000):
                    deaf.send([0, 10 + number, "topology", []])
                await until(lambda: len(host.transport._connections) == 1)
            await other.ask("status")
            assert not host.transport.stalled
            assert host.transport.kept == 0

    asyncio.run(check())


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
def test_many_calls_in_one_piece_are_all_answered(authority: Authority, *, secure: bool) -> None:
    async def check() -> None:
        client = authority.client("reader") if secure else None
        async with tcp_door(authority.host() if secure else None) as host, host.speaker(client) as speaker:
            speaker.send(*([0, 1000 + n, "status", []] for n in range(2000)))
            assert [(await speaker.receive())[1] for _ in range(2000)] == [1000 + n for n in range(2000)]

    asyncio.run(check())


def test_whoever_hangs_up_properly_leaves_nothing(authority: Authority) -> None:
    async def check() -> None:
        async with tcp_door(authority.host()) as host, host.speaker(authority.client("operator")) as speaker:
            await speaker.ask("subscribe")
            speaker.writer.close()
            await host.gone()

    asyncio.run(check())


def test_vanished_peers_are_noticed(authority: Authority) -> None:
    async def check() -> None:
        async with tcp_door(authority.host()) as host, host.speaker(authority.client("reader")):
            (connection,) = host.transport._connections
            assert connection._transport is not None
            accepted = connection._transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 10

    asyncio.run(check())


# Certificates that change


def test_a_new_certificate_is_used_without_a_restart(authority: Authority) -> None:
    async def check() -> None:
        server, client = authority.host(), authority.client("operator")
        async with tcp_door(server) as host, host.speaker(client) as old:
            before = old.writer.get_extra_info("peercert")["serialNumber"]
            authority.host(renew=True)
            async with host.speaker(client) as new:
                assert new.writer.get_extra_info("peercert")["serialNumber"] != before
            await old.ask("deploy", VM)  # whoever is connected stays so
            after = server.files.certificate.read_bytes()
            server.files.certificate.write_bytes(after[:100])
            async with host.speaker(client) as still:
                await still.ask("status")
            assert "server.crt" in server.problem

    asyncio.run(check())


def test_a_new_authority_shuts_the_old_clients_out(authority: Authority, tmp_path: Path) -> None:
    async def check() -> None:
        server, client = authority.host(), authority.client("operator")
        other = Authority(tmp_path / "other")
        theirs, friend = other.host(), other.client("operator")
        async with tcp_door(server) as host:
            async with host.speaker(client):
                pass
            for kind in ("ca", "certificate", "key"):
                getattr(server.files, kind).write_bytes(getattr(theirs.files, kind).read_bytes())
            async with host.speaker(friend):
                pass
            with suppress(OSError):
                async with host.stranger(client) as late:
                    late.send([0, 1, "hello", HELLO])
                    assert await late.receive() is None

    asyncio.run(check())


# In the clear


def test_users_of_this_machine_need_no_certificate() -> None:
    async def check() -> None:
        async with tcp_door(None) as host, host.stranger(None) as client:
            assert (await client.ask("hello", *HELLO))["role"] == "operator"
            await client.ask("deploy", VM)

    asyncio.run(check())


@as_root
def test_other_users_may_what_they_may_on_the_unix_socket(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    said = packed([0, 1, "hello", HELLO]).hex()
    code = (
        "import socket, sys\n"
        "with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as connection:\n"
        "    connection.sendall(bytes.fromhex(sys.argv[2]))\n"
        "    sys.stdout.write(str(connection.recv(4096)))\n"
    )

    async def check() -> None:
        async with tcp_door(None) as host:
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-I", "-c", code, str(host.port), said],
                user=STRANGER,
                group=STRANGER,
                extra_groups=[],
                capture_output=True,
                text=True,
                cwd="/",
                timeout=PATIENCE,
                check=True,
            )
            assert "Denied" in done.stdout
            assert "members of group vmstack may read" in done.stdout

    asyncio.run(check())
    (dropped,) = _events(caplog, "connection-dropped")
    assert dropped["peer"] == f"{peers.user_peer(STRANGER).user}@127.0.0.1"


def test_a_user_that_cannot_be_found_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstackd.daemon.callers.tcp_peer_uid", lambda _: None)

    async def check() -> None:
        async with tcp_door(None) as host, host.stranger(None) as client:
            error = await client.refusal("hello", *HELLO)
            assert error["code"] == "Denied"
            assert error["message"].startswith("?@127.0.0.1 may not use vmstackd")

    asyncio.run(check())


def test_ipv6(authority: Authority) -> None:
    async def check() -> None:
        async with tcp_door(authority.host(), host="::1") as host:
            assert host.transport.address == f"tcp:[::1]:{host.port}"
            reader, writer = await asyncio.open_connection("::1", host.port, ssl=authority.client("reader").client())
            speaker = Speaker(reader, writer)
            await speaker.ask("hello", *HELLO)
            (connection,) = host.transport._connections
            assert connection.visitor.name == "reader@::1"
            writer.close()
            await host.gone()

    asyncio.run(check())
