"""The commands that make the certificates of a cluster."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmstackctl import lines, terminal
from vmstackctl.options import ABSOLUTE_PATH, Choices, Group, LocalCommand, Typed
from vmstackctl.values import printable

if TYPE_CHECKING:
    from vmstackctl.certificates import Host, Made

DEFAULT_DIR = "vmstack-pki"
CA_DAYS = 3650
DAYS = 398
CLIENT_ROLES = ("globald", "operator", "reader")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")

_F = TypeVar("_F", bound=Callable[..., None])

chosen = click.make_pass_decorator(Choices, ensure=True)


def _read_name(text: str) -> str:
    if not _NAME.fullmatch(text) or text == "ca":
        raise ValueError(
            f"{printable(text[:80])!r} cannot name files; use letters, digits, '.', '_' and '-', at most 64, and not ca"
        )
    return text


def _read_address(text: str) -> Host:
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    if not _is_host_name(text):
        raise ValueError(f"{printable(text[:80])!r} is neither an IP address nor a host name; write it without a port")
    return text.lower()


def _is_host_name(text: str) -> bool:
    # What ends in a number is an address, or nothing.
    return bool(_HOST_NAME.fullmatch(text)) and not text.rpartition(".")[2].isdigit()


class _Command(LocalCommand):
    """--address means another thing here."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        formatter.write_paragraph()
        formatter.write_text("With --output json, one line for programs.")


class _Group(Group):
    """Its help says nothing that the help of vmstackctl says."""

    command_class = _Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:  # noqa: ANN401  click's
        super().__init__(*arguments, **attributes)
        self.params = []

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        formatter.write_paragraph()
        formatter.write_text("vmstackctl pki COMMAND --help says more.")


@click.group(
    "pki",
    cls=_Group,
    no_args_is_help=True,
    short_help="Make the certificates of a cluster.",
    examples="""
    vmstackctl pki init                                   the authority, once for each cluster
    vmstackctl pki host server1 --address 10.0.0.5        for vmstackd on server1
    vmstackctl pki client globald --role globald --address 10.0.0.2
    vmstackctl pki client alice --role operator           for her vmstackctl, from anywhere
    """,
)
def pki() -> None:
    """Make the certificates with which the programs of a cluster know each other over TCP. Asks no daemon.

    They are made in one folder, and copied from there to where they belong. Keep its ca.key where nobody else can
    read it, best on none of the servers: whoever has it can make certificates of every role.
    """


def _options(days: int) -> Callable[[_F], _F]:
    """Those of all three commands."""

    def add(command: _F) -> _F:
        for option in (
            click.option("--force", is_flag=True, help="Take the place of what is there."),
            click.option("--days", metavar="N", type=click.IntRange(1, 36500), default=days, show_default=True,
                         help="How long it is valid."),
            click.option("--dir", "folder", metavar="DIR", type=ABSOLUTE_PATH, default=DEFAULT_DIR,
                         show_default=True, help="The folder of the authority."),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def _addresses(*, required: bool) -> Callable[[_F], _F]:
    return click.option(
        "--address",
        "addresses",
        metavar="ADDRESS",
        type=Typed("address", _read_address),
        multiple=True,
        required=required,
        help="IP address or host name by which it is called. Give it once for each.",
    )


@pki.command(
    short_help="Make the authority of a cluster.",
    examples="""
    vmstackctl pki init
    vmstackctl pki init --dir /root/cluster-pki --name "our cluster"
    """,
)
@click.option("--name", metavar="NAME", default="vmstack", show_default=True, help="How it is called.")
@_options(CA_DAYS)
@chosen
def init(choices: Choices, folder: str, name: str, days: int, *, force: bool) -> None:
    """Make the authority of a cluster: ca.crt, which every machine gets, and ca.key, which none gets.

    With --force it is another authority: all certificates of the old one must be made anew.
    """
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise click.UsageError("--name must be 1 to 64 printable characters", click.get_current_context())
    _make(
        choices,
        lambda made_by: made_by.make_authority(Path(folder), name, days, force=force),
        "make the certificate of each host: vmstackctl pki host NAME --address ADDRESS",
    )


@pki.command(
    short_help="Make the certificate of a host.",
    examples="""
    vmstackctl pki host server1 --address 10.0.0.5
    vmstackctl pki host server1 --address 10.0.0.5 --address server1.example.org
    vmstackctl pki host server1 --address 10.0.0.5 --force      renew it
    """,
)
@click.argument("name", type=Typed("name", _read_name))
@_addresses(required=True)
@_options(DAYS)
@chosen
def host(choices: Choices, name: str, addresses: tuple[Host, ...], folder: str, days: int, *, force: bool) -> None:
    """Make the certificate and the key with which the vmstackd of a host proves who it is.

    With --force the certificate is made anew, for the key that is there: only NAME.crt needs to be copied again.
    """
    hosts = (name.lower(), *addresses) if _is_host_name(name) else addresses
    _make(
        choices,
        lambda made_by: made_by.make_certificate(Path(folder), name, "host", hosts, days, client=False, force=force),
        f"copy ca.crt, {name}.crt and {name}.key to /etc/vmstack/pki on {name}, the key for user vmstack only "
        "(chown vmstack, chmod 0600), and name them in its vmstackd.toml: tls_ca, tls_certificate, tls_key",
    )


@pki.command(
    short_help="Make the certificate of a globald or an operator.",
    examples="""
    vmstackctl pki client globald --role globald --address 10.0.0.2
    vmstackctl pki client alice --role operator
    vmstackctl pki client prober --role reader --days 30
    """,
)
@click.argument("name", type=Typed("name", _read_name))
@click.option("--role", type=click.Choice(CLIENT_ROLES), required=True,
              help="reader: may look; operator and globald: may change things.")  # fmt: skip
@_addresses(required=False)
@_options(DAYS)
@chosen
def client(
    choices: Choices, name: str, role: str, addresses: tuple[Host, ...], folder: str, days: int, *, force: bool
) -> None:
    """Make the certificate and the key of a program that calls others: of globald, or of somebody's vmstackctl.

    A globald that is called over TCP itself needs --address. With --force the certificate is made anew, for the key
    that is there: only NAME.crt needs to be copied again.
    """
    if addresses and role != "globald":
        raise click.UsageError("--address is for --role globald; nobody calls the others", click.get_current_context())
    if role == "globald":
        step = (
            f"copy ca.crt, {name}.crt and {name}.key to /etc/vmstack/pki on its machine, the key for user "
            "vmstack-globald only (chown vmstack-globald, chmod 0600), and name them in globald.toml: tls_ca, "
            "tls_certificate, tls_key"
        )
    else:
        step = f"vmstackctl --address HOST:8097 --tls-ca ca.crt --tls-cert {name}.crt --tls-key {name}.key status"
    _make(
        choices,
        lambda made_by: made_by.make_certificate(Path(folder), name, role, addresses, days, client=True, force=force),
        step,
    )


def _make(choices: Choices, make: Callable[[Any], Made], next_step: str) -> None:
    """Make it and say so. make: is given the module that can."""
    if choices.output == "name":
        raise click.UsageError("--output may be table or json here", click.get_current_context())
    certificates = _certificates()
    try:
        made: Made = make(certificates)
    except certificates.PkiError as error:
        terminal.complain(printable(str(error)))
        raise click.exceptions.Exit(1) from error
    if choices.output == "json":
        terminal.write(f"{lines.json_line(made)}\n")
        return
    if not any(file.endswith(".key") for file in made.files):
        next_step = f"copy {Path(made.files[0]).name} over the old one; it is used without a restart"
    terminal.write("".join(f"wrote {printable(file)}\n" for file in made.files))
    of = f", role {made.role}" if made.role else ""
    names = f", for {', '.join(made.hosts)}" if made.hosts else ""
    terminal.write(f"valid until {made.expires}{of}{names}\nnext: {next_step}\n")


def _certificates() -> ModuleType:
    try:
        from vmstackctl import certificates  # noqa: PLC0415  imports cryptography, which is large
    except ImportError as error:
        terminal.complain(f"the Python package cryptography cannot be imported ({error}); pip install cryptography")
        raise click.exceptions.Exit(1) from error
    return certificates
