"""An authority with certificates for tests, made as vmstackctl makes them."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from unittest import mock

from cryptography import x509

from vmstackctl import certificates
from vmstackd.tls import Tls, TlsFiles


class Authority:
    """One in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        certificates.make_authority(folder, "test", 30, force=False)

    def files(self, name: str) -> TlsFiles:
        """Where those of a name are."""
        return TlsFiles(self.folder / "ca.crt", self.folder / f"{name}.crt", self.folder / f"{name}.key")

    def host(self, name: str = "server", *addresses: str, days: int = 10, renew: bool = False) -> Tls:
        """The certificate of a server; by default of 127.0.0.1, ::1 and localhost."""
        hosts = [_host(address) for address in addresses or ("127.0.0.1", "::1", "localhost")]
        return self._make(name, "host", hosts, days, client=False, renew=renew)

    def client(self, role: str, name: str = "", *, days: int = 10) -> Tls:
        """The certificate of a client, named as its role or otherwise."""
        return self._make(name or role, role, [], days, client=True)

    def garbled(self, role: str, *addresses: str) -> Tls:
        """That of a client, or of the server at the addresses, which holds a name of bytes that are no text."""
        kind = x509.SubjectAlternativeName

        def names(given: list[x509.GeneralName]) -> x509.UnrecognizedExtension:
            whole = kind([*given, x509.UniformResourceIdentifier("urn:x")])
            return x509.UnrecognizedExtension(whole.oid, whole.public_bytes().replace(b"urn:x", b"urn:\xff"))

        with mock.patch.object(x509, "SubjectAlternativeName", names):
            return self.host("garbled", *addresses) if addresses else self.client(role, "garbled")

    def _make(
        self, name: str, role: str, hosts: list[certificates.Host], days: int, *, client: bool, renew: bool = False
    ) -> Tls:
        # One that has expired was not always so.
        with mock.patch.object(certificates, "_BACKDATED", datetime.timedelta(days=1 + abs(days))):
            certificates.make_certificate(self.folder, name, role, hosts, days, client=client, force=renew)
        return Tls(self.files(name))


def _host(text: str) -> certificates.Host:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return text
