"""The typed client over TCP: with TLS anywhere, in the clear within this machine, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.running import PATIENCE
from tests.transports.endpoint import until
from tests.transports.rpc import Door, door, packed
from vmstackd.api import requests
from vmstackd.api.errors import Denied, InvalidRequest, Unavailable, VmstackError
from vmstackd.client import Client
from vmstackd.daemon import tcp
from vmstackd.daemon.stream import StreamTransport
from vmstackd.tls import Tls, TlsFiles

HELLO_REPLY = {"version": 1, "program": "x", "program_version": "0", "host": "h", "role": "reader"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@asynccontextmanager
async def _serving(tls: Tls | None, host: str = "127.0.0.1") -> AsyncIterator[tuple[Door, int]]:
    """The real server on a port."""
    async with door() as behind:
        listener = tcp.listen(host, 0, tls)
        port = listener.getsockname()[1]
        transport = StreamTransport(behind.engine, listener, tls=tls)
        await transport.start()
        try:
            yield behind, port
        finally:
            await transport.stop()


@asynccontextmanager
async def _saying(answer: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that says the same to everybody and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def _failure(address: str, tls: Tls | None, timeout: float = PATIENCE) -> VmstackError:  # noqa: ASYNC109
    with pytest.raises(VmstackError) as caught:
        await Client.connect(address, program="test", tls=tls, timeout=timeout)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("host", "listening"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("[::1]", "::1"), ("tcp:127.0.0.1", "127.0.0.1")],
)
@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
def test_it_is_as_over_the_unix_socket(host: str, listening: str, authority: Authority, *, secure: bool) -> None:
    async def check() -> None:
        server = authority.host() if secure else None
        tls = authority.client("operator") if secure else None
        async with _serving(server, listening) as (behind, port), asyncio.timeout(PATIENCE):
            client = await Client.connect(f"{host}:{port}", program="test", tls=tls)
            async with client:
                assert client.hello.role == "operator"
                await client.deploy(requests.Deploy(name="a", vcpus=1, memory_mib=1, level=1000, image="/images/a"))
                told, pushes = await client.watch(names=True)
                assert told.names == ("a",)
                assert await anext(pushes) == behind.engine.status()
                await asyncio.gather(*(client.ping() for _ in range(200)))
                connection = client._link._transport.get_extra_info("socket")  # type: ignore[union-attr]
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    asyncio.run(check())


def test_a_lost_server_ends_calls_and_subscriptions(authority: Authority) -> None:
    async def check() -> None:
        async with _serving(authority.host()) as (_, port), asyncio.timeout(PATIENCE):
            client = await Client.connect(f"localhost:{port}", program="test", tls=authority.client("reader"))
            _, pushes = await client.watch()
            await anext(pushes)
        with pytest.raises(Unavailable, match="closed the connection"):
            await anext(pushes)
        with pytest.raises(Unavailable, match="closed the connection"):
            await client.status()
        await client.close()

    asyncio.run(check())


def test_a_new_certificate_is_used_for_the_next_connection(authority: Authority) -> None:
    async def check() -> None:
        tls = authority.client("reader")
        async with _serving(authority.host()) as (_, port):
            async with await Client.connect(f"localhost:{port}", program="test", tls=tls) as client:
                assert client.hello.role == "reader"
            other = authority.client("operator", "other").files
            tls.files.certificate.write_bytes(other.certificate.read_bytes())
            async with await Client.connect(f"localhost:{port}", program="test", tls=tls) as client:
                assert client.hello.role == "reader"  # half of a pair is not used
            tls.files.key.write_bytes(other.key.read_bytes())
            async with await Client.connect(f"localhost:{port}", program="test", tls=tls) as client:
                assert client.hello.role == "operator"

    asyncio.run(check())


# What is said when there is no connection


@pytest.mark.parametrize("address", ["10.0.0.5:8097", "[fd00::1]:8097", "0.0.0.0:8097"])
def test_beyond_this_machine_tls_is_needed(address: str) -> None:
    error = asyncio.run(_failure(address, None))
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith(
        f"{address} is not within this machine, so TLS is needed: give --tls-ca, --tls-cert"
    )
    assert error.details == {"field": "address"}


def test_a_name_is_within_this_machine_only_if_all_it_means_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async def found(*_: object, **__: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 1)) for host in ("127.0.0.1", "192.0.2.1")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found, raising=False)
        assert isinstance(await _failure("both:1", None), InvalidRequest)

    asyncio.run(check())


def test_nobody_there() -> None:
    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        error = await _failure(f"localhost:{port}", None)
        assert isinstance(error, Unavailable)
        assert f"cannot reach localhost:{port}: nobody listens there; is vmstackd running?" in error.message
        assert "tcp_port" in error.message
        error = await _failure("no-such-host.invalid:8097", None)
        assert "the name no-such-host.invalid is not known" in error.message

    asyncio.run(check())


@pytest.mark.parametrize("name", ["a..b", "x" * 70])
@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
def test_what_is_no_host_name(name: str, authority: Authority, *, secure: bool) -> None:
    error = asyncio.run(_failure(f"{name}:8097", authority.client("reader") if secure else None))
    assert isinstance(error, InvalidRequest)
    assert "is no host name" in error.message


def _expired(authority: Authority) -> Tls:
    return authority.host("old", days=-1)


def _elsewhere(authority: Authority) -> Tls:
    return authority.host("far", "10.9.9.9", "far.example.org")


def _of_another(authority: Authority) -> Tls:
    return Authority(authority.folder / "other").host()


def _for_clients(authority: Authority) -> Tls:
    return authority.client("operator", "backwards")


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (_expired, "it has expired; renew it with vmstackctl pki host NAME"),
        (_of_another, "it is not signed by our authority (tls_ca); use the ca.crt of its cluster"),
        (_for_clients, "it is not for servers; vmstackctl pki --help"),
    ],
)
def test_a_server_that_is_not_to_be_trusted(
    server: Callable[[Authority], Tls], text: str, authority: Authority
) -> None:
    async def check() -> None:
        async with _serving(server(authority)) as (_, port):
            error = await _failure(f"127.0.0.1:{port}", authority.client("reader"))
            assert isinstance(error, Denied)
            assert error.message.startswith(f"cannot trust the certificate of 127.0.0.1:{port}: {text}")

    asyncio.run(check())


def test_a_server_whose_certificate_cannot_be_read(authority: Authority) -> None:
    async def check() -> None:
        async with _serving(authority.garbled("host", "127.0.0.1")) as (_, port):
            error = await _failure(f"127.0.0.1:{port}", authority.client("reader"))
            assert isinstance(error, Denied)
            assert error.message.startswith(f"the certificate of 127.0.0.1:{port} holds what is no text; ")

    asyncio.run(check())


def test_a_server_of_another_name_is_told_by_its_names(authority: Authority) -> None:
    async def check() -> None:
        async with _serving(_elsewhere(authority)) as (_, port):
            error = await _failure(f"127.0.0.1:{port}", authority.client("reader"))
            assert isinstance(error, Denied)
            assert error.message.startswith(
                f"the certificate at 127.0.0.1:{port} is for 10.9.9.9, far.example.org, not for 127.0.0.1; "
            )

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["another authority", "expired", "for servers"])
def test_a_server_that_does_not_take_our_certificate(kind: str, authority: Authority) -> None:
    async def check() -> None:
        match kind:
            case "another authority":
                other = Authority(authority.folder / "other").client("operator").files
                tls = Tls(TlsFiles(authority.folder / "ca.crt", other.certificate, other.key))
            case "expired":
                tls = authority.client("operator", days=-1)
            case _:
                tls = authority.host("backwards")
        async with _serving(authority.host()) as (_, port):
            error = await _failure(f"127.0.0.1:{port}", tls)
            assert isinstance(error, Unavailable)  # a server that is being stopped does the same
            assert "does not accept our certificate" in error.message
            assert "; " in error.message

    asyncio.run(check())


def test_what_a_server_says_of_our_certificate_is_told(authority: Authority) -> None:
    """One that is not ours sends the alert that belongs to it."""
    tls = authority.client("operator", days=-1)
    failures: list[Exception] = []

    def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
        accepted, _ = listener.accept()
        accepted.settimeout(PATIENCE)
        with context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as connection:
            try:
                connection.do_handshake()
            except ssl.SSLError as error:
                failures.append(error)
            raw = socket.socket(fileno=connection.detach())
        with raw:
            raw.settimeout(PATIENCE)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):  # else what the client has sent would reset the connection, and the alert be lost
                pass

    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener, authority.host().server()))
            error = await _failure(f"localhost:{listener.getsockname()[1]}", tls)
            await serving
            assert isinstance(error, Denied)
            assert "does not accept our certificate: it has expired; " in error.message
            assert failures

    asyncio.run(check())


def test_a_role_that_is_not_let_in(authority: Authority) -> None:
    async def check() -> None:
        async with _serving(authority.host()) as (_, port):
            error = await _failure(f"127.0.0.1:{port}", authority.client("host", "peer"))
            assert isinstance(error, Denied)
            assert "its certificate has the role host" in error.message

    asyncio.run(check())


def test_tls_where_there_is_none_and_none_where_there_is(authority: Authority) -> None:
    async def check() -> None:
        tls = authority.client("reader")
        async with _serving(None) as (_, plain), _serving(authority.host()) as (_, secure):
            error = await _failure(f"127.0.0.1:{plain}", tls)
            assert isinstance(error, Unavailable)
            assert "does it speak TLS" in error.message
            error = await _failure(f"127.0.0.1:{secure}", None, timeout=1.0)
            assert isinstance(error, Unavailable)
            assert "if it expects TLS, give --tls-ca" in error.message
        async with _saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
            error = await _failure(f"127.0.0.1:{port}", tls)
            assert "does not speak TLS" in error.message
            error = await _failure(f"127.0.0.1:{port}", None)
            assert "does not speak our protocol" in error.message
        async with _saying(b"HTTP/1.1 400 Bad Request\r\n\r\n", authority.host("web").server()) as port:
            error = await _failure(f"localhost:{port}", tls)
            assert "does not speak our protocol" in error.message

    asyncio.run(check())


def test_a_server_of_old_tls(authority: Authority) -> None:
    async def check() -> None:
        context = authority.host().server()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with _saying(b"", context) as port:
            error = await _failure(f"localhost:{port}", authority.client("reader"))
            assert isinstance(error, Unavailable)
            assert re.search("does not speak TLS 1.3|hung up during the handshake", error.message)

    asyncio.run(check())


def test_a_server_that_hangs_up_later_is_no_denial(authority: Authority) -> None:
    async def check() -> None:
        async with _saying(packed([1, 1, None, HELLO_REPLY]), authority.host().server()) as port:
            client = await Client.connect(f"localhost:{port}", program="test", tls=authority.client("reader"))
            await until(lambda: client._link.lost is not None)
            with pytest.raises(Unavailable, match="closed the connection"):
                await client.status()

    asyncio.run(check())
