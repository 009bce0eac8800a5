"""Asks the kernel about one TCP connection, instead of reading its table of all of them."""

from __future__ import annotations

import ipaddress
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _IS_REQUEST = 20, 1
_HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence, sender."""
_REQUEST = struct.Struct("=BBBxI")
"""Family, protocol, extensions, states; then an identity."""
_IDENTITY = struct.Struct("!HH16s16s4s8s")
"""Ports, addresses, interface, cookie."""
_ANSWER = struct.Struct("=BBxx48x12xII")
"""Family, state, then user and inode."""
_ANY_STATE, _ESTABLISHED = 0xFFFFFFFF, 1
_ANY_COOKIE = b"\xff" * 8

End = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]
"""Address, of IPv4 where it may be, and port."""


def uid_of(ours: End, theirs: End) -> int | None:
    """The user who has the established connection of which these are the ends, and who looks from the first one.

    None if the kernel does not tell, as where it was built without, or if there is none. Raises OSError if it
    may not be asked.
    """
    family = socket.AF_INET if ours[0].version == 4 else socket.AF_INET6
    identity = _IDENTITY.pack(
        ours[1], theirs[1], ours[0].packed.ljust(16, b"\0"), theirs[0].packed.ljust(16, b"\0"), b"", _ANY_COOKIE
    )
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ANY_STATE) + identity
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.sendto(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _IS_REQUEST, 0, 0) + body, (0, 0))
        answer = kernel.recv(4096)
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _BY_FAMILY or len(answer) < _HEADER.size + _ANSWER.size:
        return None
    _, state, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    # One that its process has closed belongs to root, whoever it was.
    return uid if state == _ESTABLISHED and inode else None
