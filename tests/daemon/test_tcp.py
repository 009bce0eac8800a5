"""Where a daemon may listen on TCP, and which settings make it TLS."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from tests.certificates import Authority
from vmstackd.daemon import tcp
from vmstackd.daemon.table import SettingsError
from vmstackd.tls import Tls


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Authority(tmp_path / "pki").host()


def _texts(tls: Tls) -> tuple[str, str, str]:
    return str(tls.files.ca), str(tls.files.certificate), str(tls.files.key)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "::ffff:127.0.0.1"])
def test_within_this_machine_no_tls_is_needed(host: str) -> None:
    with tcp.listen(host, 0, None) as listener:
        called = listener.getsockname()
        with socket.create_connection(called[:2]) as connection:
            accepted, _ = listener.accept()
            accepted.close()
            assert connection.getpeername()[1] == called[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.0.2.1", "fd00::1", "::ffff:10.0.0.1"])
def test_beyond_it_plain_tcp_is_refused(host: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tcp.listen(host, 0, None)
    assert str(caught.value) == (
        f"tcp_host = {host}: plain TCP is refused beyond loopback: "
        "set tls_ca, tls_certificate and tls_key, or tcp_host = 127.0.0.1"
    )


def test_a_name_that_means_loopback_and_more_is_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(SettingsError, match="refused beyond loopback"):
        tcp.listen("both.example.org", 0, None)


@pytest.mark.parametrize(
    ("host", "callers"), [("0.0.0.0", ("127.0.0.1",)), ("::", ("127.0.0.1", "::1")), ("::1", ("::1",))]
)
def test_with_tls_every_address_is_possible(host: str, callers: tuple[str, ...], tls: Tls) -> None:
    with tcp.listen(host, 0, tls) as listener:
        for caller in callers:
            with socket.create_connection((caller, listener.getsockname()[1])):
                listener.accept()[0].close()


def test_an_address_that_is_taken() -> None:
    with tcp.listen("127.0.0.1", 0, None) as first:
        with pytest.raises(OSError) as caught:  # noqa: PT011  the number says which one
            tcp.listen("127.0.0.1", first.getsockname()[1], None)
        assert caught.value.errno == errno.EADDRINUSE
    tcp.listen("127.0.0.1", 0, None).close()


def test_the_address_is_free_again_at_once() -> None:
    with tcp.listen("127.0.0.1", 0, None) as first:
        end = first.getsockname()
        with socket.create_connection(end) as caller:
            first.accept()[0].close()  # we close first, so that the end stays reserved for a while
            assert caller.recv(1) == b""
    tcp.listen(end[0], end[1], None).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70 + ".org", "a..b"])
def test_a_name_that_means_nothing(host: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011  gaierror, or that it is no name at all
        tcp.listen(host, 0, None)


# Settings


def test_what_cannot_be_served_is_known_before(tls: Tls) -> None:
    tcp.check("127.0.0.1", 0, "", "", "")
    tcp.check("none", 0, "", "", "")
    tcp.check("0.0.0.0", 0, *_texts(tls))
    tcp.check("no-such-host.invalid", 0, *_texts(tls))
    with pytest.raises(SettingsError, match="plain TCP is refused beyond loopback"):
        tcp.check("0.0.0.0", 0, "", "", "")
    Path(_texts(tls)[0]).unlink()
    with pytest.raises(SettingsError, match=r"^tls_ca: .* cannot be read"):
        tcp.check("none", 0, *_texts(tls))


def test_new_files_are_told_in_the_log(tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    made = tcp.tls_from(*_texts(tls))
    assert made is not None
    whole = made.files.key.read_bytes()
    made.files.key.unlink()
    for _ in range(2):
        made.refresh()
    made.files.key.write_bytes(whole)
    made.files.key.chmod(0o600)
    made.refresh()
    assert [record.msg for record in caplog.records] == ["certificate-unusable", "certificate-read"]


def test_without_settings_there_is_no_tls() -> None:
    assert tcp.tls_from("", "", "") is None


def test_with_all_of_them_there_is(tls: Tls) -> None:
    made = tcp.tls_from(*_texts(tls))
    assert made is not None
    assert made.files == tls.files


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ((True, False, False), "tls_certificate, tls_key: missing"),
        ((False, True, True), "tls_ca: missing"),
        ((True, True, False), "tls_key: missing"),
    ],
)
def test_only_some_of_them_are_not_enough(given: tuple[bool, bool, bool], missing: str, tls: Tls) -> None:
    texts = [text if here else "" for text, here in zip(_texts(tls), given, strict=True)]
    with pytest.raises(SettingsError) as caught:
        tcp.tls_from(*texts)
    assert str(caught.value) == f"{missing}; TLS needs tls_ca, tls_certificate, tls_key, or none of them"


@pytest.mark.parametrize(("place", "key"), [(0, "tls_ca"), (1, "tls_certificate"), (2, "tls_key")])
@pytest.mark.parametrize("harm", ["gone", "garbage"])
def test_the_setting_that_cannot_be_used_is_named(place: int, key: str, harm: str, tls: Tls) -> None:
    path = Path(_texts(tls)[place])
    path.unlink() if harm == "gone" else path.write_bytes(b"garbage")
    with pytest.raises(SettingsError) as caught:
        tcp.tls_from(*_texts(tls))
    assert str(caught.value).startswith(f"{key}: {path}: ")
    assert "; " in str(caught.value)
