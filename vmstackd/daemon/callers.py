"""Who is at the other end of a connection, for each kind of socket on which msgpack-RPC is served."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

from vmstackd.address import Address, watch_over
from vmstackd.api.caller import Role
from vmstackd.daemon.peers import READERS, Peer, role_of, tcp_peer_uid, unix_peer, user_peer
from vmstackd.tls import Tls, name_of
from vmstackd.tls import role_of as role_in

_ROLES = {"globald": Role.OPERATOR, "operator": Role.OPERATOR, "reader": Role.READER}
"""What the roles of certificates may do."""


class Visitor(ABC):
    """key: with whom it shares the limits of one user. limited: whether such limits hold for it.

    Both may change when it is identified.
    """

    __slots__ = ("key", "limited")

    key: Hashable
    limited: bool

    @property
    @abstractmethod
    def name(self) -> str:
        """For the log."""

    @property
    @abstractmethod
    def role(self) -> Role:
        """What it may do; known once the connection is made."""

    @property
    @abstractmethod
    def refusal(self) -> str:
        """What to do for those whose role is NOBODY."""

    async def identify(self, accepted: socket.socket) -> None:  # noqa: B027  not all have to
        """Find out who it is, where that takes time. Before the connection is made."""

    def connected(self, transport: asyncio.Transport) -> None:  # noqa: B027  not all have to
        """The connection is made."""


class Listener(ABC):
    """name: of the transport. address: for people. slow: whether it takes time until a connection is made."""

    name: str
    address: str
    slow: bool

    @abstractmethod
    def visitor(self, accepted: socket.socket) -> Visitor:
        """Who comes, as far as that is known at once. Raises OSError if it has gone again."""

    def context(self) -> ssl.SSLContext | None:
        """For the next connection, if it is to be TLS."""
        return None


def listener_of(listening: socket.socket, tls: Tls | None) -> Listener:
    """For a listening socket."""
    if listening.family == socket.AF_UNIX:
        return _UnixListener(listening)
    return _TcpListener(listening, tls)


class _UnixListener(Listener):
    """The kernel tells who is there."""

    name = "unix"
    slow = False

    def __init__(self, listening: socket.socket) -> None:
        self.address = f"unix:{os.fsdecode(listening.getsockname())}"

    def visitor(self, accepted: socket.socket) -> Visitor:
        return _UserOfSocket(unix_peer(accepted))


class _UserOfSocket(Visitor):
    __slots__ = ("_peer",)

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.key, self.limited = peer.uid, bool(peer.uid)

    @property
    def name(self) -> str:
        return f"{self._peer.user}[{self._peer.pid}]"

    @property
    def role(self) -> Role:
        return role_of(self._peer)

    @property
    def refusal(self) -> str:
        return f"members of group {READERS} may read"


class _TcpListener(Listener):
    name = "tcp"
    slow = True

    def __init__(self, listening: socket.socket, tls: Tls | None) -> None:
        host, port = listening.getsockname()[:2]
        self.address = str(Address("tcp", host=host, port=port))
        self._tls = tls

    def visitor(self, accepted: socket.socket) -> Visitor:
        watch_over(accepted)
        address = str(accepted.getpeername()[0])
        return _Local(address) if self._tls is None else _Certified(address)

    def context(self) -> ssl.SSLContext | None:
        return None if self._tls is None else self._tls.server()


class _Remote(Visitor):
    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(parsed, "ipv4_mapped", None)
        self._address = str(mapped or address)
        # Whoever has one address of IPv6 has all that differ in their second half.
        self.key = parsed.packed[:8] if mapped is None and parsed.version == 6 else (mapped or parsed).packed
        self.limited = True


class _Local(_Remote):
    """Of this machine: the kernel's table of connections tells the user."""

    __slots__ = ("_peer",)

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._peer: Peer | None = None

    async def identify(self, accepted: socket.socket) -> None:
        self._peer = await asyncio.to_thread(_user_at, accepted)
        if self._peer is not None:
            self.key, self.limited = self._peer.uid, bool(self._peer.uid)

    @property
    def name(self) -> str:
        return f"{'?' if self._peer is None else self._peer.user}@{self._address}"

    @property
    def role(self) -> Role:
        return Role.NOBODY if self._peer is None else role_of(self._peer)

    @property
    def refusal(self) -> str:
        return f"members of group {READERS} may read"


def _user_at(connection: socket.socket) -> Peer | None:
    uid = tcp_peer_uid(connection)
    return None if uid is None else user_peer(uid)


class _Certified(_Remote):
    """From anywhere: its certificate tells what it may do."""

    __slots__ = ("_common_name", "_role")

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._common_name = self._role = ""

    def connected(self, transport: asyncio.Transport) -> None:
        certificate: dict[str, Any] | None = transport.get_extra_info("peercert")
        self._common_name, self._role = name_of(certificate), role_in(certificate)

    @property
    def name(self) -> str:
        return f"{self._common_name}@{self._address}" if self._common_name else self._address

    @property
    def role(self) -> Role:
        return _ROLES.get(self._role, Role.NOBODY)

    @property
    def refusal(self) -> str:
        has = f"has the role {self._role}" if self._role else "has no role"
        return (
            f"its certificate {has}, and {', '.join(_ROLES)} are let in; "
            "make another one: vmstackctl pki client NAME --role operator"
        )
