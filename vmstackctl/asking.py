"""What all commands do: ask a daemon, and show its answer in the form that was asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from vmstackctl import lines, terminal
from vmstackctl.defaults import GLOBALD, Server, server
from vmstackctl.options import HOST, Choices
from vmstackctl.problems import exit_code, explain
from vmstackctl.values import printable
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest, NotFound, VmstackError
from vmstackd.client import Client

if TYPE_CHECKING:
    from rich.console import RenderableType

PROGRAM = "vmstackctl"
COMPLETION_TIMEOUT = 2.0
"""Seconds that somebody who presses Tab may have to wait."""
_PLAIN_SIGNS = frozenset("._+@-")

_T = TypeVar("_T")

chosen = click.make_pass_decorator(Choices, ensure=True)


# Asking


async def connect(choices: Choices, where: Server | None = None) -> Client:
    """where: if it has been looked up already. Raises VmstackError, click.ClickException."""
    where = where or server(choices)
    choices.program, choices.certified = where.program, where.tls is not None
    client = await Client.connect(where.address, program=PROGRAM, timeout=choices.timeout, tls=where.tls)
    choices.program = client.hello.program
    return client


def ask(choices: Choices, question: Callable[[Client], Awaitable[_T]]) -> _T:
    """Connect, ask, hang up. Raises VmstackError, click.ClickException."""

    async def conversation() -> _T:
        async with await connect(choices) as client:
            return await question(client)

    return asyncio.run(conversation())


def is_cluster(client: Client) -> bool:
    """Whether globald answers, rather than a host."""
    return client.hello.program == GLOBALD


def require_cluster(client: Client, command: str) -> None:
    """Raises InvalidRequest where a host answers."""
    if not is_cluster(client):
        raise InvalidRequest(
            f"{client.address} is host {client.hello.host!r}; {command} is answered by globald: "
            "add --cluster, or --address with the address of globald",
            field="method",
        )


def for_each(choices: Choices, names: Sequence[str], do: Callable[[Client, str], Awaitable[None]]) -> None:
    """Go on after a failure; end with the code of the first one."""

    async def one_after_the_other(client: Client) -> int:
        code = 0
        for name in names:
            try:
                await do(client, name)
            except VmstackError as error:
                known = await _known(client, choices) if isinstance(error, NotFound) else ()
                terminal.complain(explain(error, name, known, program=choices.program, certified=choices.certified))
                code = code or exit_code(error)
        return code

    if code := ask(choices, one_after_the_other):
        raise click.exceptions.Exit(code)


async def _known(client: Client, choices: Choices) -> Iterable[str]:
    """Names for suggestions."""
    try:
        return [vm.name for vm in (await client.list(timeout=choices.timeout)).vms]
    except VmstackError:
        return ()


# Answering


def refuse_names(choices: Choices) -> None:
    """Raises UsageError where there is no name to print."""
    if choices.output == "name":
        raise click.UsageError(
            "--output name is for commands about VMs or hosts, such as list and hosts; here it may be table or json",
            click.get_current_context(),
        )


def look(choices: Choices) -> terminal.Look:
    """What stdout can show."""
    return terminal.look(choices.colour, os.environ)


def drawn(choices: Choices, picture: RenderableType) -> str:
    """As text for stdout."""
    return terminal.drawn(picture, look(choices))


def answer(choices: Choices, reply: msgspec.Struct, names: Iterable[str], text: Callable[[], str]) -> None:
    """In the format that was asked for. names: of what it is about."""
    match choices.output:
        case "json":
            terminal.write(f"{lines.json_line(reply)}\n")
        case "name":
            terminal.write("".join(f"{printable(name)}\n" for name in names))
        case _:
            terminal.write(text())


# Completing


def complete_vm(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of VMs; none with signs that would mean something else to a shell."""
    choices = _in_a_hurry(ctx)
    request = requests.List(host=ctx.params.get("host") or "")

    async def names(client: Client) -> list[str]:
        return [vm.name for vm in (await client.list(request, timeout=choices.timeout)).vms]

    return _complete(choices, names, incomplete, ctx.params.get("names") or ())


def complete_host(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of hosts, likewise."""
    choices = _in_a_hurry(ctx)

    async def names(client: Client) -> list[str]:
        if not is_cluster(client):
            return [client.hello.host]
        return [host.name for host in (await client.hosts(timeout=choices.timeout)).hosts]

    return _complete(choices, names, incomplete)


def _in_a_hurry(ctx: click.Context) -> Choices:
    choices = ctx.ensure_object(Choices)
    choices.timeout = min(choices.timeout, COMPLETION_TIMEOUT)
    return choices


def _complete(
    choices: Choices, names: Callable[[Client], Awaitable[list[str]]], incomplete: str, given: Iterable[str] = ()
) -> list[CompletionItem]:
    try:
        found = ask(choices, names)
    except (VmstackError, click.ClickException):
        return []
    # A name that is on two hosts is offered once.
    return [
        CompletionItem(name)
        for name in dict.fromkeys(found)
        if name.startswith(incomplete) and name not in given and _harmless(name)
    ]


def _harmless(name: str) -> bool:
    return name[:1] not in ("", "-") and all(sign.isalnum() or sign in _PLAIN_SIGNS for sign in name)


def host_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--host, for commands that a cluster answers for one host too. text: its help."""
    return click.option("--host", metavar="HOST", type=HOST, shell_complete=complete_host, help=text)
