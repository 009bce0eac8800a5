"""TLS as all programs of a cluster speak it: version 1.3, certificates of the cluster's own authority on both sides.

What a program may do stands in its certificate: the role, as a URI among its names.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

ROLE_URI = "urn:vmstack:role:"
"""Followed by one of ROLES."""
ROLES = ("globald", "operator", "reader", "host")

# Bytes of the buffer that asyncio keeps for each connection; it takes a quarter of a megabyte if not told otherwise.
SSLProtocol.max_size = 1 << 14

MOST_BYTES = 1 << 20
"""Read of a file."""

_HELP = "vmstackctl pki --help shows how to make certificates"


class TlsError(Exception):
    """Files that cannot be used: which one, what is wrong with it, what to do. One line."""


class TlsFiles(msgspec.Struct, frozen=True):
    """All in PEM. ca: of the cluster's authority; certificate: ours, signed by it; key: that of our certificate."""

    ca: Path
    certificate: Path
    key: Path


class _Contexts(msgspec.Struct, frozen=True):
    server: ssl.SSLContext
    client: ssl.SSLContext
    any_name: ssl.SSLContext
    certificate: bytes


class Tls:
    """One set of files. Those that change are read again, when they are whole and fit each other."""

    problem: str
    """Why the files of now are not used, but those before them; empty when all is well."""

    def __init__(self, files: TlsFiles, tell: Callable[[str], None] = lambda _: None) -> None:
        """tell: called with the problem whenever it has changed, and with "" for new files. Raises TlsError."""
        self.files = files
        self._tell = tell
        self.problem = ""
        self._seen = _look(files)
        self._contexts = _load(files)
        self._expires: float | None = None

    def server(self) -> ssl.SSLContext:
        """For the next connection that is accepted: its client must have a certificate."""
        self.refresh()
        return self._contexts.server

    def client(self, *, any_name: bool = False) -> ssl.SSLContext:
        """For the next connection that is made: its server must have a certificate for the name it is called by.

        any_name: that name is not looked at; only good for finding out for which names the certificate is.
        """
        self.refresh()
        return self._contexts.any_name if any_name else self._contexts.client

    @property
    def expires(self) -> float:
        """Until when the certificate that is in use is valid: seconds since 1970."""
        self.refresh()
        if self._expires is None:
            from cryptography import x509  # noqa: PLC0415  heavy, and clients never ask

            certificate = x509.load_pem_x509_certificate(self._contexts.certificate)
            self._expires = certificate.not_valid_after_utc.timestamp()
        return self._expires

    def refresh(self) -> None:
        """Take what is new. Files that are wrong are looked at anew each time, since they may be half written."""
        seen = _look(self.files)
        if seen == self._seen and not self.problem:
            return
        before, self._seen = self.problem, seen
        try:
            contexts = _load(self.files)
        except TlsError as error:
            self.problem = str(error)
            if self.problem != before:
                self._tell(self.problem)
        else:
            self.problem = ""
            self._contexts, self._expires = contexts, None
            self._tell("")


def role_of(peer_certificate: Mapping[str, Any] | None) -> str:
    """The role in a certificate, as ``getpeercert`` of the ssl module tells it; empty if there is not exactly one."""
    names = (peer_certificate or {}).get("subjectAltName", ())
    roles = [name.removeprefix(ROLE_URI) for kind, name in names if kind == "URI" and name.startswith(ROLE_URI)]
    return roles[0] if len(roles) == 1 and roles[0] in ROLES else ""


def name_of(peer_certificate: Mapping[str, Any] | None) -> str:
    """The common name in a certificate; "?" if it has none."""
    parts = [part for parts in (peer_certificate or {}).get("subject", ()) for part in parts]
    return next((value for kind, value in parts if kind == "commonName"), "?")


def hosts_in(peer_certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names and addresses for which a server's certificate is good."""
    names = (peer_certificate or {}).get("subjectAltName", ())
    return tuple(
        # An address of IPv6 is spelled out there.
        str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else name
        for kind, name in names
        if kind in ("DNS", "IP Address")
    )


def _look(files: TlsFiles) -> tuple[tuple[int, int, int, int] | None, ...]:
    """What tells whether the files have changed, without reading them."""

    def one(path: Path) -> tuple[int, int, int, int] | None:
        try:
            found = path.stat()
        except (OSError, ValueError):
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode

    return one(files.ca), one(files.certificate), one(files.key)


def _load(files: TlsFiles) -> _Contexts:
    ca = _read(files.ca)
    certificate = _read(files.certificate)
    _check_key(files.key)  # after all are known to be files: OpenSSL would wait for a FIFO
    server = _context(ssl.PROTOCOL_TLS_SERVER, files, ca)
    server.verify_mode = ssl.CERT_REQUIRED
    # A session that is resumed would be let in by a certificate that was checked long ago.
    server.num_tickets = 0
    server.options |= ssl.OP_NO_TICKET
    client = _context(ssl.PROTOCOL_TLS_CLIENT, files, ca)  # checks the server's certificate and name
    client.hostname_checks_common_name = False
    any_name = _context(ssl.PROTOCOL_TLS_CLIENT, files, ca)
    any_name.check_hostname = False
    return _Contexts(server, client, any_name, certificate)


def _context(protocol: int, files: TlsFiles, ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"{files.ca}: there is no certificate in it (PEM is needed); {_HELP}") from error
    if not context.get_ca_certs():
        raise TlsError(f"{files.ca}: not the certificate of an authority; use the ca.crt of the cluster")
    try:
        context.load_cert_chain(files.certificate, files.key, _refuse_password(files.key))
    except ssl.SSLError as error:
        raise TlsError(_wrong(files, error)) from error
    except OSError as error:
        raise TlsError(f"{files.certificate}, {files.key}: cannot be read: {error.strerror}; {_HELP}") from error
    return context


def _wrong(files: TlsFiles, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{files.key}: not the key of the certificate in {files.certificate}; copy both of them anew"
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return f"{files.certificate}: its key or signature is too weak; make a new one: {_HELP}"
    try:
        ssl.PEM_cert_to_DER_cert(_read(files.certificate).decode("ascii", "ignore").strip())
    except ValueError:
        return f"{files.certificate}: there is no certificate in it (PEM is needed); {_HELP}"
    return f"{files.key}: there is no private key in it, or it does not fit {files.certificate}; {_HELP}"


def _refuse_password(key: Path) -> Any:  # noqa: ANN401  what the ssl module calls
    # Without this, OpenSSL would ask for one on the terminal.
    def refuse() -> NoReturn:
        raise TlsError(f"{key}: it is encrypted; write it without a password, readable for its user only")

    return refuse


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        try:
            return file.read(MOST_BYTES)
        except OSError as error:
            raise TlsError(f"{path}: cannot be read: {error.strerror}; {_next_step(path, error)}") from error


def _opened(path: Path) -> BinaryIO:
    """A regular file, for reading: from anything else we could wait for bytes for ever, and all else for us."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TlsError(f"{path}: cannot be read: {error.strerror}; {_next_step(path, error)}") from error
    except ValueError as error:
        raise TlsError(f"{str(path)!r}: cannot be read: {error}; {_HELP}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TlsError(f"{path}: cannot be read: it is not a file; {_HELP}")
    return os.fdopen(descriptor, "rb")


def _check_key(path: Path) -> None:
    with _opened(path) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    if mode & 0o007:
        raise TlsError(f"{path}: a private key that every user may read (mode {mode:04o}); chmod 0600 {path}")


def _next_step(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"give it to the user that is to read it: chown USER {path}"
    return _HELP
