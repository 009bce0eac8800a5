"""Certificates from files, who they say one is, and what happens when the files change."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
import time
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.certificates import Authority
from tests.running import PATIENCE
from vmstackd.tls import ROLE_URI, Tls, TlsError, TlsFiles, hosts_in, name_of, role_of


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def _meet(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost"
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Both shake hands; returns the certificate that each has seen: of the client, of the server."""
    ours, theirs = socket.socketpair()
    seen: list[dict[str, Any] | None] = []
    failures: list[Exception] = []

    def serve() -> None:
        try:
            with server.wrap_socket(ours, server_side=True) as connection:
                seen.append(connection.getpeercert())
                connection.sendall(b"!")
        except (OSError, ValueError) as error:
            failures.append(error)
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        theirs.settimeout(PATIENCE)
        with client.wrap_socket(theirs, server_hostname=name) as connection:
            assert connection.version() == "TLSv1.3"
            certificate = connection.getpeercert()
            assert connection.recv(1) == b"!"  # only then it is known whether the server took our certificate
    finally:
        theirs.close()
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    return seen[0], certificate


def test_both_sides_know_each_other(authority: Authority) -> None:
    server, client = authority.host(), authority.client("operator", "alice")
    of_client, of_server = _meet(server.server(), client.client())
    assert (name_of(of_client), role_of(of_client)) == ("alice", "operator")
    assert (name_of(of_server), role_of(of_server)) == ("server", "host")
    assert set(hosts_in(of_server)) == {"127.0.0.1", "::1", "localhost"}
    assert hosts_in(of_client) == ()


def test_a_client_without_a_certificate_is_refused(authority: Authority) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.load_verify_locations(authority.folder / "ca.crt")
    with pytest.raises(OSError):  # noqa: PT011  TLS 1.3 tells it in more than one way
        _meet(authority.host().server(), stranger)


def test_another_authority_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        _meet(other.host().server(), authority.client("operator").client())
    with pytest.raises(OSError):  # noqa: PT011  TLS 1.3 tells it in more than one way
        _meet(authority.host().server(), _trusting(other.client("operator"), authority).client())


def _trusting(client: Tls, authority: Authority) -> Tls:
    """The client, with its own certificate, that trusts another authority than its own."""
    return Tls(TlsFiles(authority.folder / "ca.crt", client.files.certificate, client.files.key))


def test_the_certificate_must_be_for_the_name(authority: Authority) -> None:
    server, client = authority.host("server", "10.0.0.5"), authority.client("operator")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _meet(server.server(), client.client(), "localhost")
    _, certificate = _meet(server.server(), client.client(any_name=True), "localhost")
    assert hosts_in(certificate) == ("10.0.0.5",)


def test_certificates_are_for_one_side_only(authority: Authority) -> None:
    server, client = authority.host(), authority.client("operator")
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        _meet(client.server(), client.client(any_name=True))
    with pytest.raises(OSError):  # noqa: PT011  TLS 1.3 tells it in more than one way
        _meet(server.server(), server.client())


@pytest.mark.parametrize("side", ["server", "client"])
def test_tls_1_2_is_refused(side: str, authority: Authority) -> None:
    server, client = authority.host().server(), authority.client("operator").client()
    old = server if side == "server" else client
    assert old.minimum_version == ssl.TLSVersion.TLSv1_3
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|unsupported protocol"):
        _meet(server, client)


def test_no_session_outlives_its_certificate(authority: Authority) -> None:
    client = authority.client("operator").client()
    server = authority.host().server()
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with server.wrap_socket(ours, server_side=True) as connection:
            connection.sendall(b"!")
            connection.recv(1)

    answered = threading.Thread(target=serve)
    answered.start()
    with client.wrap_socket(theirs, server_hostname="localhost") as connection:
        assert connection.recv(1) == b"!"
        assert connection.session is None or not connection.session.has_ticket
    answered.join(PATIENCE)


def test_asyncio_keeps_little_for_each_connection() -> None:
    assert SSLProtocol.max_size <= 1 << 15  # it would be 256 KiB, and a cluster has thousands


# Roles


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ((), ""),
        ((("URI", f"{ROLE_URI}reader"),), "reader"),
        ((("DNS", "a"), ("URI", "https://example.org"), ("URI", f"{ROLE_URI}globald")), "globald"),
        ((("DNS", f"{ROLE_URI}operator"),), ""),
        ((("URI", f"{ROLE_URI}root"),), ""),
        ((("URI", ROLE_URI),), ""),
        ((("URI", f"{ROLE_URI}OPERATOR"),), ""),
        ((("URI", f"x{ROLE_URI}operator"),), ""),
        ((("URI", f"{ROLE_URI}reader"), ("URI", f"{ROLE_URI}operator")), ""),
    ],
)
def test_the_role_is_that_of_the_certificate(names: tuple[tuple[str, str], ...], role: str) -> None:
    assert role_of({"subjectAltName": names}) == role


def test_a_certificate_that_says_nothing() -> None:
    for nothing in (None, {}, {"subject": ()}):
        assert (name_of(nothing), role_of(nothing), hosts_in(nothing)) == ("?", "", ())


# Files


def test_when_it_expires(authority: Authority) -> None:
    begin = time.time()
    tls = authority.host(days=7)
    assert begin + 7 * 86400 - 2 <= tls.expires <= time.time() + 7 * 86400 + 2
    assert authority.client("reader", days=-1).expires < begin


def test_a_new_certificate_is_taken(authority: Authority) -> None:
    server, client = authority.host("server", "localhost", days=5), authority.client("operator")
    before, until = server.server(), server.expires
    assert server.server() is before
    authority.host("server", "localhost", "other", days=9, renew=True)
    assert server.server() is not before
    assert server.problem == ""
    assert server.expires > until
    _, certificate = _meet(server.server(), client.client())
    assert set(hosts_in(certificate)) == {"localhost", "other"}
    _, old = _meet(before, client.client())  # whoever has the old one uses it to the end
    assert hosts_in(old) == ("localhost",)


def test_a_new_key_is_taken_when_both_files_are_there(authority: Authority) -> None:
    server = authority.host()
    before = server.server()
    other = authority.host("other").files
    shutil.copy(other.certificate, server.files.certificate)
    assert server.server() is before
    assert "not the key of the certificate" in server.problem
    shutil.copy(other.key, server.files.key)
    after = server.server()
    assert after is not before
    assert server.problem == ""
    _, certificate = _meet(after, authority.client("reader").client())
    assert name_of(certificate) == "other"


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
@pytest.mark.parametrize("harm", ["gone", "empty", "half", "garbage", "another kind", "a folder", "a FIFO"])
def test_a_broken_set_keeps_the_last_good_one(harm: str, which: str, authority: Authority) -> None:
    server, client = authority.host(), authority.client("operator")
    before = server.server()
    path: Path = getattr(server.files, which)
    whole = path.read_bytes()
    other = server.files.key if which != "key" else server.files.certificate
    match harm:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(whole[: len(whole) // 2])
        case "a folder":
            path.unlink()
            path.mkdir()
        case "a FIFO":
            path.unlink()
            os.mkfifo(path)
        case "garbage":
            path.write_bytes(bytes(range(256)))
        case _:
            path.write_bytes(other.read_bytes())
    for _ in range(2):
        assert server.server() is before
        assert str(path) in server.problem
        assert "\n" not in server.problem
    _meet(before, client.client())
    with pytest.raises(TlsError) as caught:
        Tls(server.files)
    assert str(caught.value) == server.problem
    if harm == "a folder":
        path.rmdir()
    elif harm == "a FIFO":
        path.unlink()
    path.write_bytes(whole)
    path.chmod(0o600)
    assert server.client()
    assert server.problem == ""


def test_what_becomes_of_new_files_is_told_once(authority: Authority) -> None:
    told: list[str] = []
    server = Tls(authority.host().files, told.append)
    path = server.files.certificate
    whole = path.read_bytes()
    path.unlink()
    for _ in range(3):
        server.refresh()
    assert len(told) == 1
    assert f"{path}: cannot be read" in told[0]
    path.write_bytes(whole)
    for _ in range(3):
        server.refresh()
    assert told[1:] == [""]


def test_a_name_that_no_file_can_have(authority: Authority) -> None:
    files = authority.host().files
    with pytest.raises(TlsError, match="cannot be read: embedded null byte; "):
        Tls(TlsFiles(Path("/a\0b"), files.certificate, files.key))


def test_what_is_written_in_the_same_moment_is_not_missed(authority: Authority) -> None:
    """Where the broken file cannot be told from the whole one by time and size."""
    server = authority.host()
    path = server.files.certificate
    whole = path.read_bytes()
    broken = whole.replace(b"M", b"!")
    path.write_bytes(broken)
    assert server.server()
    assert server.problem
    noted = path.stat().st_mtime_ns
    path.write_bytes(whole)
    os.utime(path, ns=(noted, noted))
    assert server.server()
    assert server.problem == ""


def test_a_key_that_others_may_read_is_refused(authority: Authority) -> None:
    files = authority.host().files
    files.key.chmod(0o604)
    with pytest.raises(TlsError, match=f"{files.key}: a private key that every user may read .mode 0604.; chmod 0600"):
        Tls(files)
    files.key.chmod(0o640)
    Tls(files)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(authority: Authority) -> None:
    files = authority.host().files
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    assert hasattr(key, "private_bytes")
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsError, match=r"server\.key: it is encrypted; write it without a password"):
        Tls(files)


def test_a_file_that_is_not_there_is_named(authority: Authority, tmp_path: Path) -> None:
    files = authority.host().files
    for broken, name in (
        (TlsFiles(tmp_path / "none", files.certificate, files.key), "none"),
        (TlsFiles(files.ca, tmp_path / "none", files.key), "none"),
        (TlsFiles(files.ca, files.certificate, tmp_path), tmp_path.name),
        (TlsFiles(files.certificate, files.certificate, files.key), "server.crt"),
    ):
        with pytest.raises(TlsError, match=rf"{name}: .+; .+"):
            Tls(broken)
