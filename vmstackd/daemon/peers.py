"""Which user of this machine is at the other end of a connection, and what that user may do.

Everybody in group ``vmstack`` may read. Root, the user that runs us and everybody in group ``vmstack-admin``
may change things too.
"""

from __future__ import annotations

import errno
import grp
import ipaddress
import os
import pwd
import socket
import struct
from collections.abc import Collection
from pathlib import Path

import msgspec

from vmstackd.api.caller import Role
from vmstackd.daemon import sock_diag

READERS, OPERATORS = "vmstack", "vmstack-admin"
"""Groups."""

_SO_PEERGROUPS = 59
"""Of asm-generic/socket.h; the socket module does not have it."""
_MOST_BYTES = 1024
"""That the socket module takes of an option."""
_CREDENTIALS = struct.Struct("3i")
_ESTABLISHED = "01"
"""A state in the kernel's tables of TCP connections."""
_ANY_PORT = 9
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)
"""To an address elsewhere; the last one, to an address of one link of which it is not said which."""


class Peer(msgspec.Struct, frozen=True):
    """A process of this machine. pid: 0 if it cannot be seen from here. gids: all of its groups."""

    pid: int
    uid: int
    gids: frozenset[int]

    @property
    def user(self) -> str:
        """The name of its user, or the number if there is no name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


def unix_peer(connection: socket.socket) -> Peer:
    """Who has connected to a Unix socket: as the kernel noted at that moment. Raises OSError."""
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:  # not just a process of very many groups
            raise
        return msgspec.structs.replace(user_peer(uid), pid=pid)
    return Peer(pid=pid, uid=uid, gids=frozenset((gid, *memoryview(groups).cast("I"))))


def user_peer(uid: int) -> Peer:
    """A process of which only the user is known: it has the groups that the user database tells."""
    try:
        entry = pwd.getpwuid(uid)
        gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except KeyError:
        gids = []
    return Peer(pid=0, uid=uid, gids=frozenset(gids))


def tcp_peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end of a TCP connection within this machine (and network namespace).

    None if the other end is elsewhere or has closed already, also while it was looked for: then its port may
    be somebody else's. The kernel knows this connection twice, once for each end, with the user of that end.
    """
    try:
        theirs, ours = connection.getpeername(), connection.getsockname()
        uid = _asked_uid(theirs, ours)
        if uid is None:
            uid = _uid_between(set(zip(_spellings(theirs), _spellings(ours), strict=False)))
        connection.getpeername()
    except OSError:
        return None
    return uid


def _asked_uid(theirs: tuple[str, int], ours: tuple[str, int]) -> int | None:
    """As ``_uid_between``, in microseconds however many connections there are; None also if it may not be asked."""
    try:
        return sock_diag.uid_of((_plain(theirs[0]), theirs[1]), (_plain(ours[0]), ours[1]))
    except OSError:
        return None


def _uid_between(wanted: Collection[tuple[str, str]]) -> int | None:
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            # One that its process has closed belongs to root in the table, whoever it was.
            if (fields[1], fields[2]) in wanted and fields[3] == _ESTABLISHED and fields[9] != "0":
                return int(fields[7])
    return None


def is_local(connection: socket.socket) -> bool:
    """Whether the other end of a TCP connection is in this machine: True also where that cannot be seen any more."""
    try:
        end = connection.getpeername()
        theirs, ours = _plain(end[0]), _plain(connection.getsockname()[0])
    except OSError:
        return True
    return theirs == ours or theirs.is_loopback or ours.is_loopback or _is_ours(theirs, *end[3:])


def _is_ours(address: ipaddress.IPv4Address | ipaddress.IPv6Address, link: int = 0) -> bool:
    """Whether this machine has the address: from nowhere else would it send to it from the very same one."""
    ipv4 = address.version == 4
    to = (str(address), _ANY_PORT) if ipv4 else (str(address), _ANY_PORT, 0, link)
    try:
        with socket.socket(socket.AF_INET if ipv4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(to)  # sends nothing
            return _plain(probe.getsockname()[0]) == address
    except OSError as error:
        return error.errno not in _NO_WAY


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _spellings(end: tuple[str, int]) -> list[str]:
    """How the kernel's tables spell an address with its port: for IPv4, in either of them."""
    address = _plain(end[0])
    forms = [address.packed]
    if isinstance(address, ipaddress.IPv4Address):
        forms.append(ipaddress.IPv6Address(f"::ffff:{address}").packed)
    return ["".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", form)) + f":{end[1]:04X}" for form in forms]


def role_of(peer: Peer) -> Role:
    """What this peer may do."""
    if peer.uid in (0, os.geteuid()) or _gid(OPERATORS) in peer.gids:
        return Role.OPERATOR
    return Role.READER if _gid(READERS) in peer.gids else Role.NOBODY


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
