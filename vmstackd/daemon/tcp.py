"""A listening TCP socket, which beyond this machine speaks TLS only."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import Any

from vmstackd.address import is_loopback
from vmstackd.daemon import log
from vmstackd.daemon.table import TLS, SettingsError
from vmstackd.tls import Tls, TlsError, TlsFiles

BACKLOG = 4096


def tls_from(ca: str, certificate: str, key: str) -> Tls | None:
    """From the settings ``tls_ca``, ``tls_certificate``, ``tls_key``; None if none is set. Raises SettingsError."""
    given = dict(zip((row.key for row in TLS), (ca, certificate, key), strict=True))
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise SettingsError(f"{', '.join(missing)}: missing; TLS needs {', '.join(given)}, or none of them")
    files = TlsFiles(Path(ca), Path(certificate), Path(key))
    try:
        return Tls(files, _tell)
    except TlsError as error:
        wrong = next((name for name, value in given.items() if str(error).startswith(f"{value}")), "tls_certificate")
        raise SettingsError(f"{wrong}: {error}") from error


def _tell(problem: str) -> None:
    """Log that the files have changed."""
    if problem:
        log.warning("certificate-unusable", reason=problem, next_step="correct it; what was there before stays in use")
    else:
        log.info("certificate-read", note="for new connections")


def listen(host: str, port: int, tls: Tls | None) -> socket.socket:
    """A listening socket. host: a name or an address; ``::`` is every address, also of IPv4.

    Raises SettingsError if whoever may reach it could read along, OSError if the address cannot be had.
    """
    family, end = _first(host, port, tls)
    address = str(end[0])
    both = family == socket.AF_INET6 and (address == "::" or address.startswith("::ffff:"))
    # To the address that was looked at: the name may mean another one by now.
    return socket.create_server(end, family=family, backlog=BACKLOG, dualstack_ipv6=both)


def check(host: str, port: int, ca: str, certificate: str, key: str) -> None:
    """Raises SettingsError as ``tls_from`` and ``listen`` do, without listening."""
    tls = tls_from(ca, certificate, key)
    if host != "none":
        with contextlib.suppress(OSError):  # it may be another machine, or another day, on which it can be had
            _first(host, port, tls)


def _first(host: str, port: int, tls: Tls | None) -> tuple[int, Any]:
    """Family and address, as ``listen`` is to have them."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"not a host name: {error}") from error
    addresses = [str(end[0]) for *_, end in found]
    if tls is None and not all(map(is_loopback, addresses)):
        raise SettingsError(
            f"tcp_host = {host}: plain TCP is refused beyond loopback: "
            "set tls_ca, tls_certificate and tls_key, or tcp_host = 127.0.0.1"
        )
    family, *_, end = found[0]
    return family, end
