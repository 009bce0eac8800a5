from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from tests.vmstackctl.command import Host, run
from tests.vmstackctl.test_commands import failed
from vmstackctl.defaults import DefaultsError, files, read, server
from vmstackctl.options import CLUSTER_ADDRESS, DEFAULT_ADDRESS, Choices


def chosen(
    *, address: str = "", environment: str = "", cluster: bool = False, tls: Mapping[str, str] | None = None
) -> Choices:
    choices = Choices()
    choices.address, choices.address_in_environment, choices.cluster = address, environment, cluster
    choices.tls = dict(tls or {})
    return choices


def written(folder: Path, text: str, name: str = "a.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_what_is_typed_wins_over_the_environment_that_over_files(tmp_path: Path) -> None:
    paths = [written(tmp_path, 'address = "/system"'), written(tmp_path, 'address = "/user"', "b.toml")]
    assert server(chosen(), paths).address == "/user"
    assert server(chosen(), paths[:1]).address == "/system"
    assert server(chosen(), ()).address == DEFAULT_ADDRESS
    assert server(chosen(environment="/e"), paths).address == "/e"
    assert server(chosen(environment="/e", address="/t"), paths).address == "/t"
    assert server(chosen(environment="/e", cluster=True), paths).address == CLUSTER_ADDRESS


def test_each_key_may_stand_in_another_file(tmp_path: Path) -> None:
    first = written(tmp_path, 'address = "/a"\ntls_ca = "/ca"\ntls_cert = "c.crt"\n')
    second = written(tmp_path, 'tls_ca = "~/ca"\n', "b.toml")
    assert read((first, tmp_path / "missing.toml", second)) == {
        "address": "/a",
        "tls_ca": str(Path.home() / "ca"),
        "tls_cert": str(tmp_path / "c.crt"),
    }


def test_cluster_and_an_address_contradict_each_other() -> None:
    with pytest.raises(click.UsageError, match="--cluster means unix:/run/vmstack/globald"):
        server(chosen(address="/a", cluster=True), ())


def test_who_needs_nothing_of_a_file_is_not_hindered_by_it(tmp_path: Path) -> None:
    wrong = [written(tmp_path, "nonsense")]
    assert server(chosen(address="/a"), wrong).address == "/a"
    assert server(chosen(cluster=True), wrong).address == CLUSTER_ADDRESS
    for choices in (chosen(), chosen(address="10.0.0.1:8098")):
        with pytest.raises(DefaultsError):
            server(choices, wrong)


def test_the_address_tells_which_daemon_to_expect() -> None:
    found = [
        server(chosen(address=address), ()).program
        for address in ("/run/vmstack/vmstackd.sock", "unix:/x/globald.sock", "a:8097", "tcp:a:8098")
    ]
    assert found == ["vmstackd", "globald", "vmstackd", "globald"]


def test_files_for_tls_are_for_tcp_and_are_all_needed(tmp_path: Path) -> None:
    files_of_tls = {"tls_ca": "/no/ca", "tls_cert": "/no/crt", "tls_key": "/no/key"}
    assert server(chosen(address="/a", tls=files_of_tls), ()).tls is None
    assert server(chosen(address="127.0.0.1:8098"), ()).tls is None
    for missing in files_of_tls:
        some = {name: path for name, path in files_of_tls.items() if name != missing}
        with pytest.raises(click.UsageError, match=f"--{missing.replace('_', '-')} is missing .*, or {missing} in"):
            server(chosen(address="a:8098", tls=some), ())
    rest = [written(tmp_path, 'tls_key = "/no/key"')]
    two = {"tls_ca": "/no/ca", "tls_cert": "/no/crt"}
    for choices in (chosen(address="a:8098", tls=files_of_tls), chosen(address="a:8098", tls=two)):
        with pytest.raises(DefaultsError, match=r"^/no/ca: cannot be read"):
            server(choices, rest)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", 'not TOML: .*; a line is KEY = "VALUE"'),
        ('addres = "/a"', "addres: there is no such key; keys are address, tls_ca, tls_cert, tls_key"),
        ('"a\\u001b" = 1', r"a\\x1b: there is no such key; "),
        ("address = 1", 'address: it is no text; write it as address = "..."'),
        ('tls_ca = ""', "tls_ca: it is no text; "),
        ('address = "nowhere"', "address: 'nowhere' is no address; write it as"),
        ('address = "\\u001b[2J"', r"address: '\\x1b\[2J' is no address"),
        ("address = " + "[" * 5000, "not TOML: "),
        ("address = " + "9" * 5000, "not TOML: "),
        ('tls_ca = "~nobody-of-this-name/ca"', "tls_ca: there is no such home: .*; write the whole path"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DefaultsError, match=f"^{re.escape(str(path))}: {said}") as caught:
        read([path])
    assert caught.value.message.isprintable()


def test_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    with pytest.raises(DefaultsError, match="cannot be read: Is a directory; "):
        read([tmp_path])
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(DefaultsError, match="not UTF-8; "):
        read([tmp_path / "x"])


def test_files_are_looked_for_where_programs_have_theirs() -> None:
    system = Path("/etc/vmstack/vmstackctl.toml")
    assert files({"XDG_CONFIG_HOME": "/x"}) == (system, Path("/x/vmstack/vmstackctl.toml"))
    for nothing in ({}, {"XDG_CONFIG_HOME": "relative"}):
        assert files(nothing) == (system, Path.home() / ".config/vmstack/vmstackctl.toml")


def test_a_file_of_defaults_is_used_by_the_command(host: Host, tmp_path: Path) -> None:
    (tmp_path / "vmstack").mkdir()
    path = written(tmp_path / "vmstack", f'address = "{host.socket}"', "vmstackctl.toml")
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert run("list", **home).code == 0
    failed(run("list", VMSTACKCTL_ADDRESS="/nowhere", **home), 6, "/nowhere")
    path.write_text("address = 1\n")
    failed(run("list", **home), 2, f'{path}: address: it is no text; write it as address = "..."')
    assert run("--socket", str(host.socket), "list", **home).code == 0


def test_files_for_tls_come_from_the_environment_unless_they_are_typed() -> None:
    known = {"VMSTACKCTL_TLS_CA": "/no/ca", "VMSTACKCTL_TLS_CERT": "/no/crt", "VMSTACKCTL_TLS_KEY": "/no/key"}
    failed(run("list", "--address", "127.0.0.1:1", **known), 2, "/no/ca: cannot be read")
    failed(run("--tls-ca", "/typed/ca", "list", "--address", "127.0.0.1:1", **known), 2, "/typed/ca: cannot be read")
    failed(run("list", "--address", "127.0.0.1:1", "--tls-ca", "/typed/ca", **known), 2, "/typed/ca: cannot be read")
