"""Why a daemon cannot be reached, in words that say what to do next."""

from __future__ import annotations

import errno
import socket
import ssl

from vmstackd.address import Address
from vmstackd.api.errors import Denied, Unavailable, VmstackError

_LOG = "journalctl -u vmstackd there says why"
CERTIFICATES = "vmstackctl pki --help shows how to make certificates"
_RUNNING = "is vmstackd running? systemctl status vmstackd"
_ALERTS = {
    "UNKNOWN_CA": "it is not signed by the authority that is known there (tls_ca)",
    "CERTIFICATE_EXPIRED": "it has expired",
    "UNSUPPORTED_CERTIFICATE": "it is not for clients",
    "CERTIFICATE_REQUIRED": "there is none",
    "BAD_CERTIFICATE": "it is malformed",
}
"""What a server may say of our certificate, by the end of OpenSSL's name for it."""


def hung_up(address: str, error: Exception | None, *, refused: bool) -> VmstackError:
    """Why a connection has ended.

    refused: whether the server had agreed on TLS and answered nothing since, as one does that rejects us.
    """
    if isinstance(error, ssl.SSLError):
        for alert, why in _ALERTS.items():
            if (error.reason or "").endswith(alert):
                return Denied(f"{address} does not accept our certificate: {why}; {CERTIFICATES}")
    if refused:  # or it was stopped in just this moment
        return Unavailable(
            f"{address} hung up after the handshake, as one does that does not accept our certificate: signed by "
            f"another authority, expired, or not one for clients; {_LOG}"
        )
    why = f": {error.strerror or error}" if isinstance(error, OSError) else ""
    return Unavailable(f"{address} closed the connection{why}; its log may say why: journalctl -u vmstackd")


def unreachable(address: str, where: Address, error: OSError) -> VmstackError:
    """Why there is no connection."""
    if isinstance(error, ssl.SSLError):
        return _untrusted(address, error)
    return Unavailable(f"cannot reach {address}: {_why_not(where, error)}")


def _why_not(where: Address, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name {where.host} is not known: {error.strerror}; correct it, or use the address"
    tcp = where.kind == "tcp"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"there is no such socket; {_RUNNING}"
        case errno.ECONNREFUSED:
            return f"nobody listens there; {_RUNNING}" + (", and tcp_host and tcp_port in its settings" if tcp else "")
        case errno.EACCES | errno.EPERM if not tcp:
            return "not permitted; join group vmstack (sudo usermod -aG vmstack $USER) and log in anew, or use sudo"
        case errno.EAGAIN:
            return "it is overloaded; try again"
        case errno.ETIMEDOUT | errno.EHOSTUNREACH | errno.ENETUNREACH:
            return f"{error.strerror}; is the machine on, and does a firewall let port {where.port} through?"
        case errno.ECONNRESET | errno.EPIPE | None if tcp:
            return f"it hung up during the handshake; does it speak TLS (its settings tls_*), and is it ours? {_LOG}"
        case _:
            return error.strerror or str(error)


def _untrusted(address: str, error: ssl.SSLError) -> VmstackError:
    """Why there is no TLS with a server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        match error.verify_code:
            case 10:  # X509_V_ERR_CERT_HAS_EXPIRED
                why = "it has expired; renew it with vmstackctl pki host NAME --force"
            case 9:  # X509_V_ERR_CERT_NOT_YET_VALID
                why = "it is not valid yet; are the clocks of both machines right?"
            case 26:  # X509_V_ERR_INVALID_PURPOSE
                why = f"it is not for servers; {CERTIFICATES}"
            case 18 | 19 | 20 | 21:  # of the chain to the authority
                why = "it is not signed by our authority (tls_ca); use the ca.crt of its cluster"
            case _:
                why = f"{error.verify_message}; {CERTIFICATES}"
        return Denied(f"cannot trust the certificate of {address}: {why}")
    reason = error.reason or ""
    for alert, why in _ALERTS.items():
        if reason.endswith(alert):
            return Denied(f"{address} does not accept our certificate: {why}; {CERTIFICATES}")
    if reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return Unavailable(f"{address} does not speak TLS; set tls_ca, tls_certificate and tls_key there")
    if reason.endswith("PROTOCOL_VERSION") or reason == "UNSUPPORTED_PROTOCOL":
        return Unavailable(f"{address} does not speak TLS 1.3; is it vmstackd or globald?")
    return Unavailable(f"no TLS with {address}: {reason.replace('_', ' ').lower() or error}; {_LOG}")
