"""Every command: what it is called, what it asks the daemon, and how it shows the answer."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem, get_completion_class

from vmstackctl import lines, terminal
from vmstackctl.options import ABSOLUTE_PATH, DEFAULT_ADDRESS, Choices, Group, Seconds, Typed
from vmstackctl.problems import exit_code, explain
from vmstackctl.values import parse_memory, parse_name, parse_ratio, printable
from vmstackd.api import requests
from vmstackd.api.errors import NotFound, VmstackError
from vmstackd.client import Client

PROGRAM = "vmstackctl"
COMPLETION_VARIABLE = "_VMSTACKCTL_COMPLETE"
COMPLETION_TIMEOUT = 2.0
"""Seconds that somebody who presses Tab may have to wait."""
_PLAIN_SIGNS = frozenset("._+@-")

_T = TypeVar("_T")

NAME = Typed("name", parse_name)

chosen = click.make_pass_decorator(Choices, ensure=True)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from vmstackd.version import VERSION  # noqa: PLC0415  slow to look up

        terminal.write(f"{PROGRAM} {VERSION}\n")
        ctx.exit()


@click.group(
    PROGRAM,
    cls=Group,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
    vmstackctl status                          the host at a glance
    vmstackctl watch                           the same, live
    vmstackctl deploy web1 --vcpus 4 --memory 8G --level 2:1 --image /srv/images/web1.qcow2
    vmstackctl list --output json              for programs
    vmstackctl remove web1 web2
    """,
    help="See and change which VMs run on this host, and on which CPUs. Asks vmstackd.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, help="Show the version.", callback=_version)
def cli() -> None:
    """What all commands have in common."""


# Asking


async def _connect(choices: Choices) -> Client:
    return await Client.connect(choices.address or DEFAULT_ADDRESS, program=PROGRAM, timeout=choices.timeout)


def _ask(choices: Choices, question: Callable[[Client], Awaitable[_T]]) -> _T:
    """Connect, ask, hang up. Raises VmstackError."""

    async def conversation() -> _T:
        async with await _connect(choices) as client:
            return await question(client)

    return asyncio.run(conversation())


def _for_each(choices: Choices, names: Sequence[str], do: Callable[[Client, str], Awaitable[None]]) -> None:
    """Go on after a failure; end with the code of the first one."""

    async def one_after_the_other(client: Client) -> int:
        code = 0
        for name in names:
            try:
                await do(client, name)
            except VmstackError as error:
                known = await _known(client, choices) if isinstance(error, NotFound) else ()
                terminal.complain(explain(error, name, known))
                code = code or exit_code(error)
        return code

    if code := _ask(choices, one_after_the_other):
        raise click.exceptions.Exit(code)


async def _known(client: Client, choices: Choices) -> Iterable[str]:
    """Names for suggestions."""
    try:
        return [vm.name for vm in (await client.list(timeout=choices.timeout)).vms]
    except VmstackError:
        return ()


# Answering


def _refuse_names(choices: Choices) -> None:
    if choices.output == "name":
        raise click.UsageError(
            "--output name is for list, describe, deploy and remove; here it may be table or json",
            click.get_current_context(),
        )


def _look(choices: Choices) -> terminal.Look:
    return terminal.look(choices.colour, os.environ)


def _answer(choices: Choices, reply: msgspec.Struct, name: str, text: Callable[[], str]) -> None:
    """In the format that was asked for. name: of the VM that it is about."""
    match choices.output:
        case "json":
            terminal.write(f"{lines.json_line(reply)}\n")
        case "name":
            terminal.write(f"{printable(name)}\n")
        case _:
            terminal.write(text())


# Completing


def _complete_vm(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of VMs; none with signs that would mean something else to a shell."""
    choices = ctx.ensure_object(Choices)
    choices.timeout = min(choices.timeout, COMPLETION_TIMEOUT)
    try:
        vms = _ask(choices, lambda client: client.list(timeout=choices.timeout)).vms
    except VmstackError:
        return []
    given = ctx.params.get("names") or ()
    return [
        CompletionItem(vm.name)
        for vm in vms
        if vm.name.startswith(incomplete) and vm.name not in given and _harmless(vm.name)
    ]


def _harmless(name: str) -> bool:
    return name[0] != "-" and all(sign.isalnum() or sign in _PLAIN_SIGNS for sign in name)


# The commands


@cli.command(
    short_help="Show the host at a glance.",
    examples="""
    vmstackctl status
    vmstackctl status --output json | jq .host.free_cpus
    """,
)
@chosen
def status(choices: Choices) -> None:
    """Show the host: its CPUs by socket, cache and core, in the colours of their levels; and what the levels hold.

    In the table, "needed" are the CPUs that the VMs of a level need, "fit now" the vCPUs that fit without another
    CPU, "fit on free CPUs" those that all free CPUs would add.
    """
    _refuse_names(choices)
    if choices.output == "json":
        reply = _ask(choices, lambda client: client.status(timeout=choices.timeout))
        terminal.write(f"{lines.json_line(reply)}\n")
        return

    async def both(client: Client) -> str:
        from vmstackctl.cpu_map import CpuMap  # noqa: PLC0415  imports rich

        topology, figures = await asyncio.gather(
            client.topology(timeout=choices.timeout), client.status(timeout=choices.timeout)
        )
        look = _look(choices)
        picture = CpuMap(topology, figures, host=client.hello.host, width=look.picture_width)
        return terminal.drawn(picture, look)

    terminal.write(_ask(choices, both))


@cli.command(
    "list",
    short_help="List the VMs.",
    examples="""
    vmstackctl list
    vmstackctl list --output name              one name per line
    vmstackctl list --output json | jq '.vms[] | select(.level == 2000) | .name'
    """,
)
@chosen
def list_(choices: Choices) -> None:
    """List the VMs, by level."""
    reply = _ask(choices, lambda client: client.list(timeout=choices.timeout))
    match choices.output:
        case "json":
            terminal.write(f"{lines.json_line(reply)}\n")
        case "name":
            terminal.write("".join(f"{printable(vm.name)}\n" for vm in reply.vms))
        case _:
            from vmstackctl.tables import VmTable  # noqa: PLC0415  imports rich

            terminal.write(terminal.drawn(VmTable(reply.vms), _look(choices)))


@cli.command(
    short_help="Show all about VMs.",
    examples="""
    vmstackctl describe web1
    vmstackctl describe web1 web2 --output json
    """,
)
@click.argument("names", metavar="VM...", type=NAME, nargs=-1, required=True, shell_complete=_complete_vm)
@chosen
def describe(choices: Choices, names: tuple[str, ...]) -> None:
    """Show all about one VM, or several."""

    async def show(client: Client, name: str) -> None:
        vm = await client.describe(requests.Describe(name=name), timeout=choices.timeout)

        def text() -> str:
            from vmstackctl.tables import VmDetails  # noqa: PLC0415  imports rich

            return terminal.drawn(VmDetails(vm), _look(choices))

        _answer(choices, vm, vm.name, text)

    _for_each(choices, names, show)


def _size_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--level", metavar="LEVEL", type=Typed("level", parse_ratio), required=True,
                     help="vCPUs per CPU: 2, 1.5 or 2:1."),
        click.option("--memory", metavar="SIZE", type=Typed("size", parse_memory), required=True,
                     help="512M, 1.5G or 1T, in powers of 1024; a plain number is GiB."),
        click.option("--vcpus", metavar="N", type=int, required=True, help="Virtual CPUs."),
    ):  # fmt: skip
        command = option(command)
    return command


@cli.command(
    short_help="Place and start a VM.",
    examples="""
    vmstackctl deploy web1 --vcpus 4 --memory 8G --level 2:1 --image /srv/images/web1.qcow2
    vmstackctl deploy web1 --vcpus 4 --memory 512M --level 1 --image web1.qcow2 --dry-run
    """,
)
@click.argument("name", type=NAME)
@_size_options
@click.option("--image", metavar="PATH", type=ABSOLUTE_PATH, required=True, help="Disk image on the host.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@chosen
def deploy(choices: Choices, name: str, vcpus: int, memory: int, level: int, image: str, *, dry_run: bool) -> None:
    """Place and start a VM. Without capacity the exit code is 4, and the numbers say what is missing."""
    request = requests.Deploy(name=name, vcpus=vcpus, memory_mib=memory, level=level, image=image, dry_run=dry_run)
    requests.check(request)
    reply = _ask(choices, lambda client: client.deploy(request, timeout=choices.timeout))
    _answer(choices, reply, reply.name, lambda: f"{lines.deployed(reply)}\n")


@cli.command(
    short_help="Stop VMs and give their CPUs back.",
    examples="""
    vmstackctl remove web1
    vmstackctl remove web1 web2 --dry-run
    vmstackctl list --output name | xargs -d '\\n' vmstackctl remove
    """,
)
@click.argument("names", metavar="VM...", type=NAME, nargs=-1, required=True, shell_complete=_complete_vm)
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@chosen
def remove(choices: Choices, names: tuple[str, ...], *, dry_run: bool) -> None:
    """Stop VMs and give their CPUs back, without asking again. Their disk images stay.

    If one cannot be removed, the others are all the same; the exit code is that of the first failure.
    """

    async def stop(client: Client, name: str) -> None:
        reply = await client.remove(requests.Remove(name=name, dry_run=dry_run), timeout=choices.timeout)
        _answer(choices, reply, reply.name, lambda: f"{lines.removed(reply)}\n")

    _for_each(choices, names, stop)


@cli.command(
    short_help="Tell how well a VM would fit.",
    examples="""
    vmstackctl progress --vcpus 4 --memory 8G --level 2:1
    """,
)
@_size_options
@chosen
def progress(choices: Choices, vcpus: int, memory: int, level: int) -> None:
    """Tell how well a VM would fit: how much nearer it would bring memory per CPU to the hardware's."""
    _refuse_names(choices)
    request = requests.Progress(vcpus=vcpus, memory_mib=memory, level=level)
    requests.check(request)
    reply = _ask(choices, lambda client: client.progress(request, timeout=choices.timeout))
    _answer(choices, reply, "", lambda: f"{lines.progress(reply)}\n")


@cli.command(
    short_help="Show the host's CPUs and what they share.",
    examples="""
    vmstackctl topology
    vmstackctl topology --output json | jq '.cpus[] | select(.use == "free").id'
    """,
)
@chosen
def topology(choices: Choices) -> None:
    """Show the host's CPUs by socket, NUMA node and cache, and the distances between the nodes."""
    _refuse_names(choices)
    reply = _ask(choices, lambda client: client.topology(timeout=choices.timeout))

    def text() -> str:
        from vmstackctl.tables import TopologyTables  # noqa: PLC0415  imports rich

        return terminal.drawn(TopologyTables(reply), _look(choices))

    _answer(choices, reply, "", text)


@cli.command(
    short_help="Show the status live.",
    examples="""
    vmstackctl watch
    vmstackctl watch --interval 2
    vmstackctl watch --output json | jq .host.free_cpus
    """,
)
@click.option(
    "--interval",
    metavar="SECONDS",
    type=Seconds(0, 3600),
    default=0.5,
    show_default=True,
    help="Shortest time between two pictures.",
)
@chosen
def watch(choices: Choices, interval: float) -> None:
    """Show the status live, and the newest events, until q or Ctrl-C. Goes on when vmstackd is restarted.

    Without a terminal, print a line whenever something has changed.
    """
    _refuse_names(choices)
    from vmstackctl.following import Following, status_lines  # noqa: PLC0415  only needed here and in events

    following = Following(choices.address or DEFAULT_ADDRESS, PROGRAM, choices.timeout)
    full_screen = choices.output == "table" and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if full_screen:
        from vmstackctl.watch import watch as watch_screen  # noqa: PLC0415  imports rich

        _follow(watch_screen(following, colour=choices.colour, interval=interval))
    else:
        _follow(status_lines(following, interval, as_json=choices.output == "json"))


@cli.command(
    short_help="Print what happens, a line per event.",
    examples="""
    vmstackctl events
    vmstackctl events --output json | jq 'select(.event == "refused")'
    """,
)
@chosen
def events(choices: Choices) -> None:
    """Print a line per event, from now on, until Ctrl-C. Goes on when vmstackd is restarted, and says so."""
    _refuse_names(choices)
    from vmstackctl.following import Following, event_lines  # noqa: PLC0415  only needed here and in watch

    following = Following(choices.address or DEFAULT_ADDRESS, PROGRAM, choices.timeout)
    _follow(event_lines(following, as_json=choices.output == "json"))


def _follow(work: Coroutine[None, None, int]) -> None:
    """Until the user has seen enough, which is no failure."""
    try:
        code = asyncio.run(work)
    except KeyboardInterrupt:
        code = 0
    raise click.exceptions.Exit(code)


SHELLS = ("bash", "zsh", "fish")


@cli.command(
    short_help="Make a shell complete commands and VM names.",
    examples="""
    eval "$(vmstackctl completion bash)"       in ~/.bashrc
    vmstackctl completion fish > ~/.config/fish/completions/vmstackctl.fish
    """,
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of VMs."""
    terminal.write(completion_script(shell))


def completion_script(shell: str) -> str:
    """For one of SHELLS."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  click knows all of SHELLS
    return kind(cli, {}, PROGRAM, COMPLETION_VARIABLE).source()
