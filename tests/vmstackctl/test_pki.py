"""vmstackctl pki: the authority, certificates of hosts and clients, and what is refused."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tests.running import PATIENCE, ROOT
from vmstackctl.options import Choices
from vmstackctl.pki import pki
from vmstackd.tls import ROLE_URI, Tls, TlsFiles

DAY = 86400.0


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(pki, arguments, obj=Choices())


def _do(*arguments: str) -> str:
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an authority."""
    folder = tmp_path / "pki"
    _do("init", "--dir", str(folder))
    return folder


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str], list[str]]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        found.get_values_for_type(x509.DNSName),
        [str(address) for address in found.get_values_for_type(x509.IPAddress)],
        found.get_values_for_type(x509.UniformResourceIdentifier),
    )


def _purposes(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def _verify_server(folder: Path, name: str, host: str) -> None:
    """As a verifier that is not OpenSSL would. Raises VerificationError."""
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    store = Store([_certificate(folder / "ca.crt")])
    PolicyBuilder().store(store).build_server_verifier(subject).verify(_certificate(folder / f"{name}.crt"), [])  # type: ignore[arg-type]  # one of the two kinds that it takes


def _verify_client(folder: Path, name: str) -> None:
    store = Store([_certificate(folder / "ca.crt")])
    PolicyBuilder().store(store).build_client_verifier().verify(_certificate(folder / f"{name}.crt"), [])


# What is made


def test_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pki"
    out = _do("init", "--dir", str(folder), "--name", "our cluster", "--days", "100")
    assert out.splitlines()[:2] == [f"wrote {folder}/ca.crt", f"wrote {folder}/ca.key"]
    assert "next: make the certificate of each host: vmstackctl pki host" in out
    assert (_mode(folder), _mode(folder / "ca.key"), _mode(folder / "ca.crt")) == (0o700, 0o600, 0o644)
    ca = _certificate(folder / "ca.crt")
    assert ca.subject == ca.issuer
    assert ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "our cluster"
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert key.public_key() == ca.public_key()
    now = datetime.datetime.now(datetime.UTC)
    assert ca.not_valid_before_utc < now - datetime.timedelta(minutes=30)
    assert abs((ca.not_valid_after_utc - now).total_seconds() - 100 * DAY) < 3600


def test_the_certificate_of_a_host(place: Path) -> None:
    out = _do("host", "server1", "--address", "10.0.0.5", "--address", "fd00::5", "--address", "S1.example.org",
              "--address", "10.0.0.5", "--dir", str(place))  # fmt: skip
    assert out.splitlines()[:2] == [f"wrote {place}/server1.crt", f"wrote {place}/server1.key"]
    assert "role host, for server1, 10.0.0.5, fd00::5, s1.example.org\n" in out
    assert "next: copy ca.crt, server1.crt and server1.key to /etc/vmstack/pki on server1" in out
    assert (_mode(place / "server1.key"), _mode(place / "server1.crt")) == (0o600, 0o644)
    made, ca = _certificate(place / "server1.crt"), _certificate(place / "ca.crt")
    assert _names(made) == (["server1", "s1.example.org"], ["10.0.0.5", "fd00::5"], [f"{ROLE_URI}host"])
    assert _purposes(made) == {ExtendedKeyUsageOID.SERVER_AUTH}
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign) == (True, False)
    issuer = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert issuer.key_identifier == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert made.serial_number.bit_length() > 64
    made.verify_directly_issued_by(ca)
    days = (made.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).total_seconds() / DAY
    assert 397 < days <= 398
    for host in ("server1", "10.0.0.5", "fd00::5", "s1.example.org"):
        _verify_server(place, "server1", host)
    with pytest.raises(VerificationError):
        _verify_server(place, "server1", "10.0.0.6")
    with pytest.raises(VerificationError):
        _verify_client(place, "server1")
    assert Tls(TlsFiles(place / "ca.crt", place / "server1.crt", place / "server1.key")).problem == ""


@pytest.mark.parametrize("role", ["globald", "operator", "reader"])
def test_the_certificate_of_a_client(role: str, place: Path) -> None:
    out = _do("client", "alice", "--role", role, "--dir", str(place), "--days", "3")
    made = _certificate(place / "alice.crt")
    assert _names(made) == ([], [], [f"{ROLE_URI}{role}"])
    assert _purposes(made) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert f"role {role}\n" in out
    assert ("globald.toml" if role == "globald" else "--tls-ca ca.crt --tls-cert alice.crt --tls-key alice.key") in out
    _verify_client(place, "alice")


def test_a_globald_that_is_called_is_a_server_too(place: Path) -> None:
    _do("client", "g", "--role", "globald", "--address", "10.0.0.2", "--address", "g.example.org", "--dir", str(place))
    made = _certificate(place / "g.crt")
    assert _purposes(made) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert _names(made) == (["g.example.org"], ["10.0.0.2"], [f"{ROLE_URI}globald"])
    _verify_server(place, "g", "10.0.0.2")
    _verify_client(place, "g")


def test_a_name_that_is_no_host_name_is_only_a_name(place: Path) -> None:
    _do("host", "rack_1", "--address", "10.0.0.5", "--dir", str(place))
    assert _names(_certificate(place / "rack_1.crt")) == ([], ["10.0.0.5"], [f"{ROLE_URI}host"])


def test_for_programs(place: Path) -> None:
    made = json.loads(_do("client", "alice", "--role", "reader", "--dir", str(place), "--output", "json"))
    assert made == {
        "files": [f"{place}/alice.crt", f"{place}/alice.key"],
        "role": "reader",
        "hosts": [],
        "expires": _certificate(place / "alice.crt").not_valid_after_utc.date().isoformat(),
    }
    assert _run("init", "--output", "name").exit_code == 2


def test_serial_numbers_differ(place: Path) -> None:
    for number in range(5):
        _do("client", f"c{number}", "--role", "reader", "--dir", str(place))
    assert len({_certificate(path).serial_number for path in place.glob("*.crt")}) == 6


# Again


def test_nothing_is_replaced_without_being_told_so(place: Path) -> None:
    _do("client", "alice", "--role", "reader", "--dir", str(place))
    before = {path: path.read_bytes() for path in place.iterdir()}
    for again in (("init",), ("client", "alice", "--role", "operator"), ("host", "alice", "--address", "10.0.0.1")):
        result = _run(*again, "--dir", str(place))
        assert result.exit_code == 1
        assert "already there; give --force to replace it" in result.stderr
    assert {path: path.read_bytes() for path in place.iterdir()} == before
    (place / "bob.key").touch()
    assert "bob.key: already there" in _run("client", "bob", "--role", "reader", "--dir", str(place)).stderr


def test_renewed_it_keeps_its_key(place: Path) -> None:
    _do("host", "server1", "--address", "10.0.0.5", "--dir", str(place), "--days", "3")
    key, old = (place / "server1.key").read_bytes(), _certificate(place / "server1.crt")
    out = _do("host", "server1", "--address", "10.0.0.6", "--dir", str(place), "--force")
    assert f"wrote {place}/server1.crt" in out
    assert "wrote " + str(place / "server1.key") not in out
    assert out.endswith("next: copy server1.crt over the old one; it is used without a restart\n")
    new = _certificate(place / "server1.crt")
    assert (place / "server1.key").read_bytes() == key
    assert (new.public_key(), new.serial_number) != (old.public_key(), old.serial_number)
    assert new.public_key() == old.public_key()
    assert new.not_valid_after_utc > old.not_valid_after_utc
    assert _names(new)[1] == ["10.0.0.6"]


def test_a_new_authority_makes_old_certificates_worthless(place: Path) -> None:
    _do("client", "alice", "--role", "reader", "--dir", str(place))
    _do("init", "--dir", str(place), "--force")
    with pytest.raises(VerificationError):
        _verify_client(place, "alice")
    _do("client", "alice", "--role", "reader", "--dir", str(place), "--force")
    _verify_client(place, "alice")


def test_a_key_is_never_readable_for_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even under its other name, before it is whole."""
    seen: list[tuple[str, int]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((target.name, _mode(self)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    before = os.umask(0)
    try:
        _do("client", "alice", "--role", "reader", "--dir", str(place))
    finally:
        os.umask(before)
    assert seen == [("alice.key", 0o600), ("alice.crt", 0o644)]
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_nobody_else_may_write_in_the_folders_that_are_made(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        _do("init", "--dir", str(tmp_path / "a" / "b" / "pki"))
    finally:
        os.umask(before)
    assert _mode(tmp_path / "a" / "b" / "pki") == 0o700
    assert _mode(tmp_path / "a" / "b") == _mode(tmp_path / "a") == 0o755


# What is refused


@pytest.mark.parametrize("sticky", [True, False])
def test_a_folder_in_which_everybody_writes(place: Path, tmp_path: Path, *, sticky: bool) -> None:
    for folder in (place, tmp_path / "new"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777 if sticky else 0o777)
    for arguments in (
        ("init", "--dir", str(tmp_path / "new")),
        ("client", "alice", "--role", "reader", "--dir", str(place)),
    ):
        result = _run(*arguments)
        assert result.exit_code == 1
        assert f"{arguments[-1]}: every user may write there" in result.stderr
    assert not [*(tmp_path / "new").iterdir()]
    assert not (place / "alice.key").exists()


def _without_authority(place: Path) -> None:
    (place / "ca.crt").unlink()


def _without_its_key(place: Path) -> None:
    (place / "ca.key").unlink()


def _with_another_key(place: Path) -> None:
    _do("init", "--dir", str(place / "other"))
    (place / "ca.key").write_bytes((place / "other" / "ca.key").read_bytes())


def _with_garbage(place: Path) -> None:
    (place / "ca.crt").write_text("garbage")


def _with_garbage_for_a_key(place: Path) -> None:
    (place / "ca.key").write_text("garbage")


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (_without_authority, "ca.crt: there is no authority; make it with vmstackctl pki init"),
        (_without_its_key, "ca.key: cannot be read: No such file or directory"),
        (_with_another_key, "ca.key: not the key of "),
        (_with_garbage, "ca.crt: not a certificate"),
        (_with_garbage_for_a_key, "ca.key: not a private key"),
    ],
)
def test_without_an_authority_nothing_is_signed(harm: object, text: str, place: Path) -> None:
    assert callable(harm)
    harm(place)
    before = {path.name for path in place.iterdir()}
    result = _run("client", "alice", "--role", "reader", "--dir", str(place))
    assert result.exit_code == 1
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path.name for path in place.iterdir()} == before


def test_none_outlives_the_authority(tmp_path: Path) -> None:
    _do("init", "--dir", str(tmp_path), "--days", "10")
    result = _run("client", "alice", "--role", "reader", "--dir", str(tmp_path), "--days", "11")
    assert result.exit_code == 1
    assert "give fewer --days" in result.stderr
    assert not (tmp_path / "alice.key").exists()
    _do("client", "alice", "--role", "reader", "--dir", str(tmp_path), "--days", "9")


@pytest.mark.parametrize(
    "arguments",
    [
        ("host", "server1"),
        ("host", "ca", "--address", "10.0.0.1"),
        ("host", "../x", "--address", "10.0.0.1"),
        ("host", ".x", "--address", "10.0.0.1"),
        ("host", "x" * 65, "--address", "10.0.0.1"),
        ("host", "a", "--address", "10.0.0.1:8097"),
        ("host", "a", "--address", "10.0.0"),
        ("host", "a", "--address", "-a.example.org"),
        ("host", "a", "--address", "a..b"),
        ("host", "a", "--address", "a b"),
        ("host", "a", "--address", ""),
        ("client", "a"),
        ("client", "a", "--role", "host"),
        ("client", "a", "--role", "operator", "--address", "10.0.0.1"),
        ("client", "a", "--role", "reader", "--days", "0"),
        ("init", "--name", ""),
        ("init", "--name", "x" * 65),
        ("init", "--days", "-1"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = _run(*arguments, "--dir", str(tmp_path / "pki"))
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "pki").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _run("init", "--dir", str(tmp_path / "file" / "pki"))
    assert result.exit_code == 1
    assert "choose another --dir" in result.stderr


def test_without_the_library_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "vmstackctl.certificates")
    monkeypatch.delattr("vmstackctl.certificates")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    result = _run("init", "--dir", str(tmp_path / "pki"))
    assert result.exit_code == 1
    assert "pip install cryptography" in result.stderr


def test_the_library_is_only_loaded_when_it_is_needed() -> None:
    code = "import sys, vmstackctl.pki, vmstackd.tls; sys.exit('cryptography' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE)


@pytest.mark.parametrize("command", ["init", "host", "client"])
def test_help_begins_with_examples_that_work(command: str, tmp_path: Path) -> None:
    out = _do(command, "--help")
    assert out.startswith("Examples:\n")
    assert "--socket" not in out
    assert isinstance(pki.commands[command], click.Command)
    lines = [line.strip() for line in out.partition("\n\n")[0].splitlines()[1:]]
    _do("init", "--dir", str(tmp_path))
    for line in lines:
        words = line.split("      ")[0].removeprefix("vmstackctl pki ").replace('"our cluster"', "our").split()
        if "--dir" in words:
            del words[words.index("--dir") : words.index("--dir") + 2]
        _do(*words, "--dir", str(tmp_path), *([] if "--force" in words else ["--force"]))
