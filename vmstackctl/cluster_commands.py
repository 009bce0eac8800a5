"""Commands about the hosts of a cluster: most of them only globald answers."""

from __future__ import annotations

import click

from vmstackctl import lines
from vmstackctl.asking import (
    answer,
    ask,
    chosen,
    complete_host,
    drawn,
    is_cluster,
    require_cluster,
)
from vmstackctl.options import HOST, Choices, Command, Group
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest
from vmstackd.api.replies import CordonReply, HostListed, HostsReply
from vmstackd.client import Client


def _ask_for_hosts(choices: Choices, command: str) -> HostsReply:
    async def question(client: Client) -> HostsReply:
        require_cluster(client, command)
        return await client.hosts(timeout=choices.timeout)

    return ask(choices, question)


@click.command(
    "hosts",
    cls=Command,
    short_help="Show the hosts of the cluster.",
    examples="""
    vmstackctl --cluster hosts
    vmstackctl hosts                           with its address in vmstackctl.toml
    vmstackctl hosts --output json | jq '.hosts[] | select(.state != "up").name'
    """,
)
@chosen
def hosts(choices: Choices) -> None:
    """Show the hosts of the cluster: what of their CPUs and memory is taken, and how many CPUs each level has.

    Age is the time since a host last told anything. A host that is cordoned gets no new VMs; what is shown of one
    that is unknown is what it told last, and nothing of it is counted on.
    """
    reply = _ask_for_hosts(choices, "hosts")

    def text() -> str:
        from vmstackctl.host_tables import HostTable  # noqa: PLC0415  imports rich

        return drawn(choices, HostTable(reply))

    answer(choices, reply, (host.name for host in reply.hosts), text)


@click.group(
    "host",
    cls=Group,
    no_args_is_help=False,
    short_help="Say which hosts the cluster has.",
    examples="""
    vmstackctl --cluster host add server4:8097
    vmstackctl --cluster host list
    vmstackctl --cluster host remove server4
    """,
)
def host() -> None:
    """Make hosts part of the cluster, or take them out of it, while it runs. VMs are not touched."""


@host.command(
    "add",
    short_help="Make a host part of the cluster.",
    examples="""
    vmstackctl --cluster host add server4:8097
    vmstackctl --cluster host add [fd00::4]:8097 --name server4
    """,
)
@click.argument("where", metavar="ADDRESS")
@click.option("--name", metavar="NAME", default="", help="Of the file that is to name it; else by the address.")
@chosen
def add(choices: Choices, where: str, name: str) -> None:
    """Make the host at HOST:PORT part of the cluster. What runs there is seen as soon as it answers."""
    request = requests.HostAdd(address=where, name=name)
    requests.check(request)

    async def question(client: Client) -> HostListed:
        require_cluster(client, "host add")
        return await client.host_add(request, timeout=choices.timeout)

    reply = ask(choices, question)
    answer(choices, reply, (reply.address,), lambda: f"{lines.listed(reply)}\n")


@host.command(
    "remove",
    short_help="Take a host out of the cluster.",
    examples="""
    vmstackctl --cluster host remove server4
    """,
)
@click.argument("name", metavar="HOST", type=HOST, shell_complete=complete_host)
@chosen
def remove(choices: Choices, name: str) -> None:
    """Take a host out of the cluster, by its name, UUID or address. Its VMs run on, and are no longer seen."""
    request = requests.HostRemove(host=name)
    requests.check(request)

    async def question(client: Client) -> HostListed:
        require_cluster(client, "host remove")
        return await client.host_remove(request, timeout=choices.timeout)

    reply = ask(choices, question)
    answer(choices, reply, (reply.name or reply.address,), lambda: f"{lines.listed(reply)}\n")


@host.command(
    "list",
    short_help="List the hosts and what names them.",
    examples="""
    vmstackctl --cluster host list
    vmstackctl --cluster host list --output name
    """,
)
@chosen
def list_(choices: Choices) -> None:
    """List the hosts of the cluster: name, address, and the setting (static) or file that names them."""
    reply = _ask_for_hosts(choices, "host list")

    def text() -> str:
        from vmstackctl.host_tables import HostList  # noqa: PLC0415  imports rich

        return drawn(choices, HostList(reply))

    answer(choices, reply, (one.name for one in reply.hosts), text)


_WHICH = click.argument("name", metavar="[HOST]", type=HOST, required=False, shell_complete=complete_host)


def _require_host(client: Client, command: str, name: str | None) -> None:
    if is_cluster(client) and not name:
        raise InvalidRequest(f"{command} is for one host: name it; vmstackctl hosts shows their names", field="host")


@click.command(
    "cordon",
    cls=Command,
    short_help="Let a host have no new VMs.",
    examples="""
    vmstackctl cordon --reason "new disks on Monday"
    vmstackctl --cluster cordon server1
    """,
)
@_WHICH
@click.option("--reason", metavar="TEXT", default="", help="Why, for others.")
@chosen
def cordon(choices: Choices, name: str | None, reason: str) -> None:
    """Let a host have no new VMs until it is uncordoned, also after restarts. Those that it has run on.

    Without HOST, the host that is asked; a cluster must be told which.
    """
    request = requests.Cordon(reason=reason, host=name or "")
    requests.check(request)

    async def question(client: Client) -> None:
        _require_host(client, "cordon", name)
        _cordon_answer(choices, await client.cordon(request, timeout=choices.timeout), client)

    ask(choices, question)


@click.command(
    "uncordon",
    cls=Command,
    short_help="Let a host have new VMs again.",
    examples="""
    vmstackctl uncordon
    vmstackctl --cluster uncordon server1
    """,
)
@_WHICH
@chosen
def uncordon(choices: Choices, name: str | None) -> None:
    """Let a host have new VMs again. Without HOST, the host that is asked; a cluster must be told which."""
    request = requests.Uncordon(host=name or "")
    requests.check(request)

    async def question(client: Client) -> None:
        _require_host(client, "uncordon", name)
        _cordon_answer(choices, await client.uncordon(request, timeout=choices.timeout), client)

    ask(choices, question)


def _cordon_answer(choices: Choices, reply: CordonReply, client: Client) -> None:
    name = reply.host or client.hello.host
    answer(choices, reply, (name,), lambda: f"{lines.cordoned(reply, name)}\n")


COMMANDS = (hosts, host, cordon, uncordon)
"""In the order of the help."""
