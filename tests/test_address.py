"""Addresses as people write them."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmstackd.address import Address, is_loopback, parse_address, watch_over
from vmstackd.api.errors import InvalidRequest

PORTS = st.integers(1, 65535)
NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,30}[A-Za-z0-9])?", fullmatch=True)
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=25).map("/".__add__)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/x.sock", Address("unix", path="/run/x.sock")),
        ("unix:/run/x.sock", Address("unix", path="/run/x.sock")),
        ("/with:8097", Address("unix", path="/with:8097")),
        ("localhost:8097", Address("tcp", host="localhost", port=8097)),
        ("tcp:10.0.0.5:1", Address("tcp", host="10.0.0.5", port=1)),
        ("[::1]:65535", Address("tcp", host="::1", port=65535)),
        ("tcp:[fe80::1%eth0]:8097", Address("tcp", host="fe80::1%eth0", port=8097)),
        ("unix:8097", Address("tcp", host="unix", port=8097)),
        ("tcp:8097", Address("tcp", host="tcp", port=8097)),
        ("tcp:tcp:8097", Address("tcp", host="tcp", port=8097)),
    ],
)
def test_every_way_to_write_one(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vmstackd.sock",
        "unix:relative",
        "unix:/" + "x" * 200,
        "/a\0b",
        "localhost",
        "localhost:",
        ":8097",
        ".example.org:8097",
        "-x:8097",
        "localhost:0",
        "localhost:65536",
        "localhost:-1",
        "localhost:٣",
        "::1:8097",
        "[::1]",
        "[localhost]:8097",
        "[1::2::3]:8097",
        "a b:8097",
        "tcp:/run/x.sock",
        "tcp:",
        "http://localhost:8097",
        "localhost:8097/",
        "localhost:8097\n",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_address(text)
    assert caught.value.details == {"field": "address"}
    assert "\n" not in caught.value.message


@given(NAMES, PORTS)
def test_names_are_read_as_they_are_written(name: str, port: int) -> None:
    address = parse_address(f"{name}:{port}")
    assert address == Address("tcp", host=name, port=port)
    assert parse_address(str(address)) == address


@given(st.ip_addresses(), PORTS)
def test_numbers_are_read_as_they_are_written(host: object, port: int) -> None:
    text = f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    address = parse_address(text)
    assert address == Address("tcp", host=str(host), port=port)
    assert str(address) == f"tcp:{text}"
    assert parse_address(str(address)) == address


@given(PATHS)
def test_paths_are_read_as_they_are_written(path: str) -> None:
    address = parse_address(path)
    assert address == parse_address(str(address)) == Address("unix", path=path)


@given(st.text(max_size=40))
def test_whatever_it_is_there_is_an_address_or_an_error(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        address = parse_address(text)
        assert parse_address(str(address)) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1", "::1%lo"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "::ffff:10.0.0.1", "localhost", "", "fe80::1"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_connection_that_is_watched_over_ends_by_itself() -> None:
    with socket.socket() as connection:
        watch_over(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        idle, interval, count = (
            connection.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 15
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
