"""Writes the manual pages and the shell completions into a directory: python -m tools.man_pages DIRECTORY.

Commands, options, settings and exit codes come from where the programs have them; what cannot be found there
stands here.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from globald.__main__ import command_line as globald_flags
from globald.settings import TABLE as GLOBALD
from vmstackctl.commands import SHELLS, cli, completion_script
from vmstackctl.defaults import FILE, KEYS, SYSTEM_FILE
from vmstackctl.options import ADDRESS_VARIABLE, CLUSTER_ADDRESS, DEFAULT_ADDRESS, EXIT_CODES, TLS_VARIABLES
from vmstackd.__main__ import command_line as vmstackd_flags
from vmstackd.daemon.table import Setting, Table
from vmstackd.settings import TABLE as VMSTACKD
from vmstackd.version import VERSION

_SIGNS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}

Lines = Iterable[str]


# roff


def escaped(text: str) -> str:
    """Text that man shows as it is, and that can be copied from there."""
    found = "".join(_SIGNS.get(sign, sign if sign.isascii() else rf"\[u{ord(sign):04X}]") for sign in text)
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in found.split("\n"))


def _bold(text: str) -> str:
    return rf"\fB{escaped(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{escaped(text)}\fR"


def _head(name: str, section: int, summary: str) -> Lines:
    yield f'.TH "{escaped(name.upper())}" "{section}" "" "vmstack {escaped(VERSION)}" "vmstack"'
    # Neither names of programs nor keys are to be hyphenated, and no blanks put between words to fill a line.
    yield from (".nh", ".ad l")
    yield ".SH NAME"
    yield f"{escaped(name)} \\- {escaped(summary)}"


def _section(title: str, *parts: Lines) -> Lines:
    yield f".SH {title}"
    for part in parts:
        yield from part


def _paragraphs(text: str) -> Lines:
    """Paragraphs are separated by empty lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield ".PP"
        yield escaped(" ".join(paragraph.split()))


def _items(items: Iterable[tuple[str, str]]) -> Lines:
    """Tags, in roff, with plain texts; each line of a text begins a line."""
    for tag, text in items:
        yield ".TP"
        yield tag
        for number, line in enumerate(text.split("\n")):
            if number:
                yield ".br"
            yield escaped(line)


def _example(lines: Sequence[str]) -> Lines:
    yield ".PP"
    yield ".EX"
    yield from (escaped(f"  {line}") for line in lines)
    yield ".EE"


def _references(*pages: str) -> Lines:
    found = []
    for page in pages:
        name, _, section = page.partition("(")
        found.append(rf"{_bold(name)}({section}")
    yield ",\n".join(found)


def _codes(codes: Mapping[int, str]) -> Lines:
    return _items((_bold(str(code)), meaning) for code, meaning in codes.items())


# vmstackctl.1

_DEFAULTS = (
    f"What to use where neither an option nor the environment says: {', '.join(KEYS)}, each a TOML text; "
    "paths may be relative to the file. Keys in the second file win."
)


def vmstackctl() -> Lines:
    """The page of the command, from click's definitions."""
    context = click.Context(cli, info_name="vmstackctl")
    yield from _head("vmstackctl", 1, "see and change which VMs run on a host or in a cluster, and on which CPUs")
    yield from _section(
        "SYNOPSIS",
        [rf"{_bold('vmstackctl')} [{_italic('OPTION')}]... {_italic('COMMAND')} [{_italic('ARGUMENT')}]..."],
    )
    yield from _section(
        "DESCRIPTION",
        _paragraphs("""
            Asks vmstackd(8), the daemon that places VMs of several oversubscription levels into disjoint sets of a
            host's CPUs, or globald(8), the daemon that chooses hosts for VMs of a whole cluster. Within this machine
            it does so over their Unix sockets: root and the members of group vmstack-admin may change something,
            the members of group vmstack may read. Over TCP, what somebody may do stands in the certificate.

            Which of the two is asked is a matter of the address only. globald understands all commands; those about
            VMs are about those of the whole cluster then, unless --host names one host. hosts and host are for
            globald alone.

            A level is written as 2, 1.5 or 2:1: so many vCPUs share one CPU. Memory is written as 512M, 1.5G or 1T,
            in powers of 1024; a plain number is GiB.
        """),
    )
    yield from _section("OPTIONS", _paragraphs("These may stand before or after the command."), _click_options(context))
    yield ".SH COMMANDS"
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None:
            yield from _command((name,), command, context)
    yield from _section(
        "OUTPUT",
        _paragraphs("""
            On a terminal, tables fit its width, and what does not fit is shortened. In a pipe or a file there are no
            colours, and nothing is shortened.

            As JSON, each reply is an object on a line of its own, with the fields of vmstackd's protocol: memory in
            MiB, levels in thousandths (2000 is 2:1), and beside each field "level" a "level_text" such as "2.0".
            list prints {"vms": [...]}, with what describe prints for one VM. events prints objects with "event"
            and "time" (seconds since 1970); besides vmstackd's own deployed, removed, refused, adopted, gone,
            degraded, host and missed there are disconnected and connected, between which nothing is told. Where a
            cluster answers, "host" says which host each VM and each event belongs to.

            In names and paths, whatever is not printable is shown as a backslash sequence.
        """),
    )
    yield from _section(
        "ENVIRONMENT",
        _items(
            [
                (_bold(ADDRESS_VARIABLE), "Where the daemon is, unless --socket, --address or --cluster says so."),
                *((_bold(variable), f"As {_flag(name)}.") for name, variable in TLS_VARIABLES.items()),
                (_bold("NO_COLOR"), "If set, there are no colours unless --color always asks for them."),
            ]
        ),
    )
    yield from _section(
        "FILES",
        _items(
            [
                (_italic(DEFAULT_ADDRESS.removeprefix("unix:")), "The socket of vmstackd, as it comes."),
                (_italic(CLUSTER_ADDRESS.removeprefix("unix:")), "That of globald: --cluster."),
                (f"{_italic(str(SYSTEM_FILE))}, {_italic(f'~/.config/vmstack/{FILE}')}", _DEFAULTS),
            ]
        ),
    )
    yield from _section("EXIT STATUS", _codes(EXIT_CODES))
    yield from _section("EXAMPLES", _example(cli.examples))
    yield from _section("SEE ALSO", _references("vmstackd(8)", "vmstackd.toml(5)", "globald(8)"))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _command(path: tuple[str, ...], command: click.Command, parent: click.Context) -> Lines:
    """A command, and those within it after it. path: the words that call it."""
    context = click.Context(command, info_name=path[-1], parent=parent)
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != command.options_metavar]
    yield f".SS {escaped(' '.join((*path, *(['COMMAND'] if isinstance(command, click.Group) else pieces))))}"
    yield from _paragraphs(command.help or "")
    yield from _click_options(context)
    yield from _example(getattr(command, "examples", []))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _command((*path, name), inner, context)


def _click_options(context: click.Context) -> Lines:
    """The options that its help shows, but for those that every command has."""
    items = []
    for option in context.command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        names = ", ".join(_bold(name) for name in option.opts)
        value = "" if option.is_flag else f" {_italic(option.make_metavar(context))}"
        record = option.get_help_record(context)
        items.append((names + value, re.sub(r" {2,}", " ", record[1]) if record else ""))
    return _items(items)


# vmstackd.8, globald.8


def vmstackd() -> Lines:
    """The page of the daemon of a host."""
    yield from _head("vmstackd", 8, "places VMs of several oversubscription levels into disjoint sets of CPUs")
    yield from _synopsis("vmstackd")
    yield from _section(
        "DESCRIPTION",
        _paragraphs("""
            The daemon of one host. Each oversubscription level has CPUs of its own, chosen so that they share caches
            and stay away from those of other levels; the VMs of a level are pinned to them through libvirt.

            There is no state file for VMs: what each VM was promised is in its libvirt metadata. VMs keep running when
            vmstackd stops, is killed or crashes, and are found again at the next start. While libvirt does not
            answer, nothing can be changed, and the CPUs of VMs that cannot be seen are kept for them.

            As a host of a cluster it is called by globald(8) over TCP, beyond loopback with TLS and certificates.
        """),
    )
    yield from _options(VMSTACKD, vmstackd_flags())
    yield from _signals("vmstackd")
    yield from _section(
        "FILES",
        _items(
            [
                (_italic(str(VMSTACKD.file)), "Settings."),
                (_italic("/var/lib/vmstack"), "The UUID of the host, and whether it is cordoned."),
                (_italic("/run/vmstack/vmstackd.sock"), "Where vmstackctl(1) and other clients ask."),
                (_italic("/usr/share/vmstack/topologies"), "Known hosts, for --topology with --hypervisor sim:."),
            ]
        ),
    )
    yield from _section(
        "EXIT STATUS",
        _codes(
            {
                0: "ended as asked",
                1: "failed, such as for a port, a socket or a bus name that is taken: another daemon runs",
                2: "wrong usage",
                6: "the hypervisor or the bus is unreachable at the start",
                78: "a setting or the topology is wrong; one line says where, and what is allowed",
            }
        ),
    )
    yield from _section(
        "EXAMPLES",
        _paragraphs("Check the settings:"),
        _example(["vmstackd --check-config"]),
        _paragraphs("Try another host with simulated VMs, as any user, beside the daemon of this host:"),
        _example(
            [
                "vmstackd --dbus none --socket /tmp/vmstackd.sock --http-port 8199 --tcp-port 0 --state-dir none \\",
                "    --hypervisor sim: --topology /usr/share/vmstack/topologies/EPYC-7662.json",
                "vmstackctl --socket /tmp/vmstackd.sock status",
            ]
        ),
        _paragraphs("Look what would be left for VMs if CPUs and memory were kept for the host itself:"),
        _example(["vmstackd --exclude-cpus 0-1,64-65 --reserved-memory 4096 --check-config"]),
        _paragraphs("Watch what it does:"),
        _example(["journalctl -u vmstackd -f"]),
    )
    yield from _section(
        "SEE ALSO", _references("vmstackctl(1)", "vmstackd.toml(5)", "globald(8)", "virsh(1)", "journalctl(1)")
    )


def globald() -> Lines:
    """The page of the daemon of a cluster."""
    yield from _head("globald", 8, "chooses the host of each new VM of a cluster")
    yield from _synopsis("globald")
    yield from _section(
        "DESCRIPTION",
        _paragraphs("""
            The daemon of one cluster. It keeps a connection to the vmstackd(8) of each host, which tell what they have
            and what happens, so that no host is asked to choose one: the best one by what they told is asked to deploy
            the VM, and if it refuses, the next one. Names of VMs are unique in the cluster.

            It keeps no state: after a restart, everything is learned from the hosts again, and until they have told,
            or have had their time to (patience), nothing new is deployed. Hosts and VMs do not notice whether it runs.
            A host that is silent is unknown within 10 seconds: its VMs stay known, and its CPUs are not counted on.

            Hosts are named by the setting hosts, and by the *.toml files of hosts_dir, which are looked at every two
            seconds. Such a file is address = "HOST:PORT", or addresses = ["HOST:PORT", ...].

            A host beyond loopback is called with TLS, and our certificate needs the role globald:
            vmstackctl pki --help shows how to make it. A host of this machine may be called without, if the user of
            globald is in group vmstack-admin, as that of the package is.
        """),
    )
    yield from _options(GLOBALD, globald_flags())
    yield from _signals("globald")
    yield from _section(
        "FILES",
        _items(
            [
                (_italic(str(GLOBALD.file)), "Settings."),
                (_italic("/etc/vmstack/hosts.d/*.toml"), "Hosts."),
                (_italic("/run/vmstack/globald.sock"), "Where vmstackctl(1) --cluster and other clients ask."),
            ]
        ),
    )
    yield from _section(
        "EXIT STATUS",
        _codes(
            {
                0: "ended as asked",
                1: "failed, such as for a port or a socket that is taken: another daemon runs",
                2: "wrong usage",
                78: "a setting is wrong; one line says where, and what is allowed",
            }
        ),
    )
    yield from _section(
        "EXAMPLES",
        _paragraphs("Check the settings:"),
        _example(["globald --check-config"]),
        _paragraphs("Make one host a cluster, as any user who may deploy there:"),
        _example(
            [
                "globald --hosts 127.0.0.1:8097 --hosts-dir none --socket /tmp/globald.sock",
                "vmstackctl --socket /tmp/globald.sock hosts",
            ]
        ),
        _paragraphs("Add a host to the cluster of the service, and watch what happens:"),
        _example(["vmstackctl --cluster host add 10.0.0.5:8097", "journalctl -u globald -f"]),
    )
    yield from _section("SEE ALSO", _references("vmstackctl(1)", "globald.toml(5)", "vmstackd(8)", "journalctl(1)"))


def _synopsis(program: str) -> Lines:
    return _section("SYNOPSIS", [rf"{_bold(program)} [{_italic('OPTION')}]..."])


def _options(table: Table, parser: argparse.ArgumentParser) -> Lines:
    """Those that are settings after those that are none."""
    settings = {row.key for row in table.rows}
    actions = list(_actions(parser))
    yield from _section("OPTIONS", _items(_argument(action) for action in actions if action.dest not in settings))
    yield from _section(
        "SETTINGS",
        _paragraphs(f"""
            Each of these can also stand in the configuration file and in the environment; see {table.program}.toml(5).
            A flag wins over the environment ({table.prefix}KEY), that over --env-file, that over the file.
        """),
        _items(_argument(action) for action in actions if action.dest in settings),
    )


def _signals(program: str) -> Lines:
    again = f"Read the settings again. {program}.toml(5) says which can change without a restart."
    return _section(
        "SIGNALS",
        _items(
            [
                (_bold("SIGTERM, SIGINT"), "End; operations in progress are carried out, VMs keep running."),
                (_bold("SIGHUP"), again),
            ]
        ),
    )


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001  argparse shows them to nobody else
        if action.help != argparse.SUPPRESS:
            yield action


def _argument(action: argparse.Action) -> tuple[str, str]:
    names = ", ".join(_bold(name) for name in action.option_strings)
    value = f" {_italic(str(action.metavar))}" if action.metavar else ""
    return names + value, (action.help or "").replace("%%", "%")


# vmstackd.toml.5, globald.toml.5


def vmstackd_toml() -> Lines:
    """The page of the configuration file of a host."""
    return _toml(
        VMSTACKD,
        'hypervisor = "qemu:///system"',
        'exclude_cpus = "0-1,64-65"',
        "reserved_memory = 4096",
        "critical_size = 6",
        'critical_sizes = { "1.5" = 4, "3.0" = 8 }',
        'image_roots = ["/var/lib/libvirt/images", "/srv/images"]',
        'network = "bridge:br0"',
    )


def globald_toml() -> Lines:
    """The page of the configuration file of a cluster."""
    return _toml(
        GLOBALD,
        'hosts = ["10.0.0.5:8097", "10.0.0.6:8097"]',
        "attempts = 5",
        'tls_ca = "/etc/vmstack/pki/ca.crt"',
        'tls_certificate = "/etc/vmstack/pki/globald.crt"',
        'tls_key = "/etc/vmstack/pki/globald.key"',
    )


def _toml(table: Table, *example: str) -> Lines:
    program = table.program
    yield from _head(f"{program}.toml", 5, f"settings of {program}")
    yield from _section("SYNOPSIS", [_italic(str(table.file))])
    yield from _section(
        "DESCRIPTION",
        _paragraphs(f"""
            A TOML file with one key per setting, all of them optional. Each can also be given in the environment
            ({table.prefix} and the key in capitals) and as a flag of {program}(8). A flag wins over the
            environment, that over --env-file, that over this file. Lists may be TOML arrays or, as everywhere else,
            texts with commas; true and false are written yes and no elsewhere.

            A key that does not exist, or a value that is not allowed, is an error that says what is. {program}
            --check-config reads everything and starts nothing.
        """),
    )
    yield from _section("SETTINGS", _items((_bold(row.key), _setting(table, row)) for row in table.rows))
    yield from _section("EXAMPLES", _example(example))
    yield from _section("SEE ALSO", _references(f"{program}(8)", "vmstackctl(1)"))


def _setting(table: Table, row: Setting) -> str:
    lines = [row.help[0].upper() + row.help[1:] + "."]
    if row.shown_default:
        lines.append(f"Default: {row.shown_default}")
    lines.append(f"Flag: {row.flag} {row.metavar}")
    lines.append(f"Environment: {table.variable(row)}")
    if row.legacy:
        lines.append(f"In an --env-file of the prototype: {row.legacy}")
    lines.append(f"Can change while {table.program} runs (systemctl reload)." if row.reload else "Needs a restart.")
    return "\n".join(lines)


PAGES = {
    "vmstackctl.1": vmstackctl,
    "vmstackd.8": vmstackd,
    "vmstackd.toml.5": vmstackd_toml,
    "globald.8": globald,
    "globald.toml.5": globald_toml,
}


def write(directory: Path) -> None:
    """All pages, and vmstackctl.bash, .zsh and .fish."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text("".join(f"{line}\n" for line in page()), encoding="ascii")
    for shell in SHELLS:
        (directory / f"vmstackctl.{shell}").write_text(completion_script(shell), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.man_pages DIRECTORY")
    write(Path(sys.argv[1]))
