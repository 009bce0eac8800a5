"""Addresses of daemons, as text and as sockets."""

from __future__ import annotations

import ipaddress
import re
import socket

import msgspec

from vmstackd.api.errors import InvalidRequest

MAX_PATH_BYTES = 107
"""Of the path of a Unix socket: what fits into sockaddr_un."""

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MS = 10_000
_MOST_UNSENT = 1 << 17
"""Bytes that the kernel takes beyond what is on its way; it would take megabytes, of which nobody keeps account."""

_TCP = re.compile(
    r"(?:([A-Za-z0-9][A-Za-z0-9._-]{0,252})|\[([0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,15})?)\]):([0-9]{1,5})"
)


class Address(msgspec.Struct, frozen=True):
    """kind: "unix", with a path, or "tcp", with host and port."""

    kind: str
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``/path``, ``unix:/path``, ``host:port`` or ``tcp:host:port``; IPv6 as ``[::1]:port``.

    Raises InvalidRequest.
    """
    path = text.removeprefix("unix:")
    if path.startswith("/"):
        if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES or "\0" in path:
            raise _invalid(f"the path of a socket may have {MAX_PATH_BYTES} bytes, none of them 0: {text[:200]!r}")
        return Address("unix", path=path)
    match = _TCP.fullmatch(text) or _TCP.fullmatch(text.removeprefix("tcp:"))  # a host may be called tcp
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise _invalid(
            f"{text[:200]!r} is no address; write it as /a/path, unix:/a/path, host:port (10.0.0.5:8097, "
            "server1:8097, [fd00::5]:8097) or tcp:host:port"
        )
    if match[2]:
        try:
            ipaddress.IPv6Address(match[2])
        except ValueError:
            raise _invalid(f"{match[2]!r} is no IPv6 address; write it as [fd00::5]:8097") from None
    return Address("tcp", host=match[1] or match[2], port=int(match[3]))


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, field="address")


def is_loopback(host: str) -> bool:
    """Whether a numeric address can only be reached within this machine; False for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def watch_over(connection: socket.socket) -> None:
    """Have a TCP connection send at once, keep little, and end when the other end is silent for ten seconds or so."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT)
