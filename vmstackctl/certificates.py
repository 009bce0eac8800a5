"""The cluster's own authority and its certificates, as files in one folder.

Keys are of P-256, since every TLS library takes them. A renewed certificate keeps its key: whoever reads the files
while only one of them is new still has a pair that fits.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmstackd.tls import ROLE_URI

Host = ipaddress.IPv4Address | ipaddress.IPv6Address | str
"""A host name or an address, for which a server's certificate is good."""

_BACKDATED = datetime.timedelta(hours=1)
"""For machines whose clocks are behind."""
_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class PkiError(Exception):
    """What cannot be made, why, and what to do. One line."""


class Made(msgspec.Struct, frozen=True):
    """files: those that were written. hosts: names and addresses in the certificate. expires: as 2027-12-31."""

    files: tuple[str, ...]
    role: str
    hosts: tuple[str, ...]
    expires: str


def make_authority(folder: Path, name: str, days: int, *, force: bool) -> Made:
    """Write ca.key and ca.crt. force: in the place of those that are there. Raises PkiError."""
    key_file, certificate_file = folder / "ca.key", folder / "ca.crt"
    _refuse_existing(key_file, certificate_file, force=force)
    _make_folder(folder)
    _refuse_shared(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    certificate = _sign(
        _begin(subject, key.public_key(), subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True),
        key,
    )
    _write(key_file, _key_text(key), 0o600)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return _made((certificate_file, key_file), certificate, "", ())


def make_certificate(
    folder: Path,
    name: str,
    role: str,
    hosts: Sequence[Host],
    days: int,
    *,
    client: bool,
    force: bool,
) -> Made:
    """Write NAME.crt, signed by the authority in the folder, and NAME.key unless there is one.

    hosts: whoever is called by one of them is a server. client: whether it calls others. force: renew what is
    there. Raises PkiError.
    """
    authority, authority_key = _read_authority(folder)
    _refuse_shared(folder)
    key_file, certificate_file = folder / f"{name}.key", folder / f"{name}.crt"
    _refuse_existing(key_file, certificate_file, force=force)
    kept = key_file.exists()
    key = _read_key(key_file) if kept else ec.generate_private_key(ec.SECP256R1())
    hosts = list(dict.fromkeys(hosts))
    names: list[x509.GeneralName] = [
        x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host) for host in hosts
    ]
    names.append(x509.UniformResourceIdentifier(ROLE_URI + role))
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] if hosts else []
    if client:
        purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    certificate = _sign(
        _begin(_name(name), key.public_key(), authority.subject, authority_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False),
        authority_key,
    )
    if certificate.not_valid_after_utc > authority.not_valid_after_utc:
        raise PkiError(
            f"{folder / 'ca.crt'}: the authority itself is only valid until {_date(authority)}; give fewer --days, or "
            "make another one: vmstackctl pki init --force"
        )
    if not kept:
        _write(key_file, _key_text(key), 0o600)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    files = (certificate_file,) if kept else (certificate_file, key_file)
    return _made(files, certificate, role, tuple(str(host) for host in hosts))


def _made(files: Sequence[Path], certificate: x509.Certificate, role: str, hosts: tuple[str, ...]) -> Made:
    return Made(files=tuple(str(file) for file in files), role=role, hosts=hosts, expires=_date(certificate))


def _date(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.date().isoformat()


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in _USES})


def _begin(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _sign(certificate: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return certificate.sign(key, hashes.SHA256())


# Files


def _make_folder(folder: Path) -> None:
    # The folders above are for us to write in, too: who may rename ours may put another one in its place.
    before = os.umask(0o077)
    os.umask(before | 0o022)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PkiError(f"{folder}: cannot be made: {error.strerror}; choose another --dir") from error
    finally:
        os.umask(before)


def _refuse_shared(folder: Path) -> None:
    if folder.stat().st_mode & 0o002:
        raise PkiError(
            f"{folder}: every user may write there, and have us sign with other keys; chmod 0700 {folder}, or choose "
            "another --dir"
        )


def _refuse_existing(*files: Path, force: bool) -> None:
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        raise PkiError(
            f"{', '.join(there)}: already there; give --force to replace it, or choose another name or --dir"
        )


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    file = folder / "ca.crt"
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError as error:
        raise PkiError(
            f"{file}: there is no authority; make it with vmstackctl pki init, or say where it is with --dir"
        ) from error
    except OSError as error:
        raise PkiError(f"{file}: cannot be read: {error.strerror}; use the user that made it") from error
    except ValueError as error:
        raise PkiError(f"{file}: not a certificate (PEM); vmstackctl pki init --force makes a new one") from error
    key = _read_key(folder / "ca.key")
    try:
        certificate.verify_directly_issued_by(certificate)
        fits = certificate.public_key() == key.public_key()
    except (InvalidSignature, ValueError, TypeError):
        fits = False
    if not fits:
        raise PkiError(f"{folder / 'ca.key'}: not the key of {file}; bring back the pair that belongs together")
    return certificate, key


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise PkiError(f"{file}: cannot be read: {error.strerror}; use the user that made it") from error
    except (ValueError, TypeError) as error:
        raise PkiError(f"{file}: not a private key (PEM, without password); bring it back, or move it away") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{file}: not a key of an elliptic curve; move it away, so that a new one is made")
    return key


def _key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(file: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and never with more rights than mode."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise PkiError(f"{file}: cannot be written: {error.strerror}; choose another --dir") from error
