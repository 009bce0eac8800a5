"""Every command: what it is called, what it asks the daemon, and how it shows the answer."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from functools import partial

import click
from click.shell_completion import get_completion_class

from vmstackctl import cluster_commands, lines, terminal
from vmstackctl.asking import (
    PROGRAM,
    answer,
    ask,
    chosen,
    complete_vm,
    connect,
    drawn,
    for_each,
    host_option,
    is_cluster,
    look,
    refuse_names,
)
from vmstackctl.defaults import server
from vmstackctl.options import ABSOLUTE_PATH, Choices, Root, Seconds, Typed, size_options
from vmstackctl.values import parse_name
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest
from vmstackd.client import Client

COMPLETION_VARIABLE = "_VMSTACKCTL_COMPLETE"

NAME = Typed("name", parse_name)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from vmstackd.version import VERSION  # noqa: PLC0415  slow to look up

        terminal.write(f"{PROGRAM} {VERSION}\n")
        ctx.exit()


@click.group(
    PROGRAM,
    cls=Root,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
    vmstackctl status                          the host at a glance
    vmstackctl watch                           the same, live
    vmstackctl deploy web1 --vcpus 4 --memory 8G --level 2:1 --image /srv/images/web1.qcow2
    vmstackctl list --output json              for programs
    vmstackctl remove web1 web2
    vmstackctl --cluster hosts                 the hosts of a cluster
    """,
    help="See and change which VMs run on a host or in a cluster, and on which CPUs. Asks vmstackd or globald.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, help="Show the version.", callback=_version)
def cli() -> None:
    """What all commands have in common."""


# The commands


@cli.command(
    short_help="Show the host or the cluster at a glance.",
    examples="""
    vmstackctl status
    vmstackctl --cluster status --host server1
    vmstackctl status --output json | jq .host.free_cpus
    """,
)
@host_option("Of a cluster: show this host.")
@chosen
def status(choices: Choices, host: str | None) -> None:
    """Show the host: its CPUs by socket, cache and core, in the colours of their levels; and what the levels hold.

    In the table, "needed" are the CPUs that the VMs of a level need, "fit now" the vCPUs that fit without another
    CPU, "fit on free CPUs" those that all free CPUs would add. Where it is measured, "busy" is how many of its CPUs
    a level has kept busy, and "waits" for how much of the time its vCPUs waited for a CPU, in percent: the median of
    its VMs, and the 99th percentile.

    Of a cluster, show its hosts, and the sums of their levels.
    """
    refuse_names(choices)
    request = requests.Status(host=host or "")
    if choices.output == "json":
        reply = ask(choices, lambda client: client.status(request, timeout=choices.timeout))
        terminal.write(f"{lines.json_line(reply)}\n")
        return

    async def picture(client: Client) -> str:
        if is_cluster(client) and not host:
            return await _cluster_picture(client)
        from vmstackctl.cpu_map import CpuMap  # noqa: PLC0415  imports rich

        topology, figures = await asyncio.gather(
            client.topology(requests.Topology(host=request.host), timeout=choices.timeout),
            client.status(request, timeout=choices.timeout),
        )
        how = look(choices)
        return terminal.drawn(CpuMap(topology, figures, host=host or client.hello.host, width=how.picture_width), how)

    async def _cluster_picture(client: Client) -> str:
        from vmstackctl.host_tables import ClusterStatus  # noqa: PLC0415  imports rich

        hosts, figures = await asyncio.gather(
            client.hosts(timeout=choices.timeout), client.status(request, timeout=choices.timeout)
        )
        return drawn(choices, ClusterStatus(hosts, figures))

    terminal.write(ask(choices, picture))


@cli.command(
    "list",
    short_help="List the VMs.",
    examples="""
    vmstackctl list
    vmstackctl list --output name              one name per line
    vmstackctl list --output json | jq '.vms[] | select(.level == 2000) | .name'
    vmstackctl --cluster list --host server1
    """,
)
@host_option("Of a cluster: list the VMs of this host only.")
@chosen
def list_(choices: Choices, host: str | None) -> None:
    """List the VMs, by level; of a cluster, by host."""

    async def show(client: Client) -> None:
        reply = await client.list(requests.List(host=host or ""), timeout=choices.timeout)

        def text() -> str:
            from vmstackctl.tables import VmTable  # noqa: PLC0415  imports rich

            return drawn(choices, VmTable(reply.vms, hosts=is_cluster(client)))

        answer(choices, reply, (vm.name for vm in reply.vms), text)

    ask(choices, show)


@cli.command(
    short_help="Show all about VMs.",
    examples="""
    vmstackctl describe web1
    vmstackctl describe web1 web2 --output json
    """,
)
@click.argument("names", metavar="VM...", type=NAME, nargs=-1, required=True, shell_complete=complete_vm)
@host_option("Of a cluster: the VM on this host, where several have one of this name.")
@chosen
def describe(choices: Choices, names: tuple[str, ...], host: str | None) -> None:
    """Show all about one VM, or several."""

    async def show(client: Client, name: str) -> None:
        vm = await client.describe(requests.Describe(name=name, host=host or ""), timeout=choices.timeout)

        def text() -> str:
            from vmstackctl.tables import VmDetails  # noqa: PLC0415  imports rich

            return drawn(choices, VmDetails(vm))

        answer(choices, vm, (vm.name,), text)

    for_each(choices, names, show)


@cli.command(
    short_help="Place and start a VM.",
    examples="""
    vmstackctl deploy web1 --vcpus 4 --memory 8G --level 2:1 --image /srv/images/web1.qcow2
    vmstackctl deploy web1 --vcpus 4 --memory 512M --level 1 --image web1.qcow2 --dry-run
    vmstackctl deploy web1 --vcpus 4 --memory 8G --level 2 --image /srv/web1.qcow2 --host server1
    """,
)
@click.argument("name", type=NAME)
@size_options
@click.option("--image", metavar="PATH", type=ABSOLUTE_PATH, required=True, help="Disk image, as the host knows it.")
@host_option("Of a cluster: on this host, and on no other.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@chosen
def deploy(
    choices: Choices, name: str, vcpus: int, memory: int, level: int, image: str, host: str | None, *, dry_run: bool
) -> None:
    """Place and start a VM; in a cluster, on the host where it fits best.

    Without capacity the exit code is 4, and the numbers say what is missing.
    """
    request = requests.Deploy(
        name=name, vcpus=vcpus, memory_mib=memory, level=level, image=image, dry_run=dry_run, host=host or ""
    )
    requests.check(request)
    reply = ask(choices, lambda client: client.deploy(request, timeout=choices.timeout))
    answer(choices, reply, (reply.name,), lambda: f"{lines.deployed(reply)}\n")


@cli.command(
    short_help="Stop VMs and give their CPUs back.",
    examples="""
    vmstackctl remove web1
    vmstackctl remove web1 web2 --dry-run
    vmstackctl list --output name | xargs -d '\\n' vmstackctl remove
    """,
)
@click.argument("names", metavar="VM...", type=NAME, nargs=-1, required=True, shell_complete=complete_vm)
@host_option("Of a cluster: the VM on this host, where several have one of this name.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@chosen
def remove(choices: Choices, names: tuple[str, ...], host: str | None, *, dry_run: bool) -> None:
    """Stop VMs and give their CPUs back, without asking again. Their disk images stay.

    If one cannot be removed, the others are all the same; the exit code is that of the first failure.
    """

    async def stop(client: Client, name: str) -> None:
        request = requests.Remove(name=name, dry_run=dry_run, host=host or "")
        reply = await client.remove(request, timeout=choices.timeout)
        answer(choices, reply, (reply.name,), lambda: f"{lines.removed(reply)}\n")

    for_each(choices, names, stop)


@cli.command(
    short_help="Compare a host with what was decided, and repair it.",
    examples="""
    vmstackctl check
    vmstackctl check --dry-run                 only say what is wrong
    vmstackctl --cluster check                 every host of the cluster
    vmstackctl check --output json | jq -r '.findings[].text'
    """,
)
@host_option("Of a cluster: this host only.")
@click.option("--dry-run", is_flag=True, help="Only say what is not as it should be.")
@chosen
def check(choices: Choices, host: str | None, *, dry_run: bool) -> None:
    """Compare every VM with what was decided: pins, as libvirt and as the kernel has them, metadata and accounts.

    What can be put right is put right at once; the daemon does the same by itself every few seconds. The rest is told,
    with what to do about it. VMs that are being changed are left alone. The exit code is 0 if all is as it should be,
    or was repaired, and 1 if something remains.
    """
    refuse_names(choices)
    request = requests.Check(host=host or "", dry_run=dry_run)
    requests.check(request)
    reply = ask(choices, lambda client: client.check(request, timeout=choices.timeout))
    answer(choices, reply, (), lambda: f"{lines.checked(reply)}\n")
    if not all(finding.repaired for finding in reply.findings):  # those left out are no worse than the last one
        raise click.exceptions.Exit(1)


@cli.command(
    short_help="Tell how well a VM would fit.",
    examples="""
    vmstackctl progress --vcpus 4 --memory 8G --level 2:1
    """,
)
@size_options
@host_option("Of a cluster: on this host.")
@chosen
def progress(choices: Choices, vcpus: int, memory: int, level: int, host: str | None) -> None:
    """Tell how well a VM would fit: how much nearer it would bring memory per CPU to the hardware's.

    Of a cluster, tell it for each host, the best one first.
    """
    refuse_names(choices)
    request = requests.Progress(vcpus=vcpus, memory_mib=memory, level=level, host=host or "")
    requests.check(request)
    reply = ask(choices, lambda client: client.progress(request, timeout=choices.timeout))

    def text() -> str:
        if not reply.hosts:
            return f"{lines.progress(reply)}\n"
        from vmstackctl.host_tables import ProgressTable  # noqa: PLC0415  imports rich

        return drawn(choices, ProgressTable(reply))

    answer(choices, reply, (), text)


@cli.command(
    short_help="Show a host's CPUs and what they share.",
    examples="""
    vmstackctl topology
    vmstackctl --cluster topology --host server1
    vmstackctl topology --output json | jq '.cpus[] | select(.use == "free").id'
    """,
)
@host_option("Of a cluster: which host.")
@chosen
def topology(choices: Choices, host: str | None) -> None:
    """Show a host's CPUs by socket, NUMA node and cache, and the distances between the nodes."""
    refuse_names(choices)

    async def show(client: Client) -> None:
        if is_cluster(client) and not host:
            raise InvalidRequest(
                "topology is that of one host: add --host HOST; vmstackctl hosts shows their names", field="host"
            )
        reply = await client.topology(requests.Topology(host=host or ""), timeout=choices.timeout)

        def text() -> str:
            from vmstackctl.tables import TopologyTables  # noqa: PLC0415  imports rich

            return drawn(choices, TopologyTables(reply))

        answer(choices, reply, (), text)

    ask(choices, show)


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
    """Show the status live, and the newest events, until q or Ctrl-C. Goes on when the daemon is restarted.

    Without a terminal, print a line whenever something has changed; as JSON, also whenever CPUs and VMs have been
    measured.
    """
    refuse_names(choices)
    from vmstackctl.following import Following, status_lines  # noqa: PLC0415  only needed here and in events

    full_screen = choices.output == "table" and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    # Lines tell what has changed; one for every measurement would bury that.
    usage = full_screen or choices.output == "json"
    following = Following(partial(connect, choices, server(choices)), choices.timeout, usage=usage)
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
    """Print a line per event, from now on, until Ctrl-C. Goes on when the daemon is restarted, and says so."""
    refuse_names(choices)
    from vmstackctl.following import Following, event_lines  # noqa: PLC0415  only needed here and in watch

    following = Following(partial(connect, choices, server(choices)), choices.timeout)
    _follow(event_lines(following, as_json=choices.output == "json"))


def _follow(work: Coroutine[None, None, int]) -> None:
    """Until the user has seen enough, which is no failure."""
    try:
        code = asyncio.run(work)
    except KeyboardInterrupt:
        code = 0
    raise click.exceptions.Exit(code)


for _command in cluster_commands.COMMANDS:
    cli.add_command(_command)


def _pki() -> click.Command:
    from vmstackctl.pki import pki  # noqa: PLC0415  rarely needed

    return pki


def _report() -> click.Command:
    from vmstackctl.report.command import report  # noqa: PLC0415  rarely needed

    return report


def _plan() -> click.Command:
    from vmstackctl.plan.command import plan  # noqa: PLC0415  rarely needed

    return plan


def _capacity() -> click.Command:
    from vmstackctl.capacity_command import capacity_command  # noqa: PLC0415  decides by itself, with much of core

    return capacity_command


def _explain() -> click.Command:
    from vmstackctl.inventory_commands import explain_  # noqa: PLC0415  decides by itself, with much of core

    return explain_


def _inventory() -> click.Command:
    from vmstackctl.inventory_commands import inventory  # noqa: PLC0415  likewise

    return inventory


cli.late |= {
    "explain": _explain,
    "inventory": _inventory,
    "capacity": _capacity,
    "plan": _plan,
    "pki": _pki,
    "report": _report,
}

SHELLS = ("bash", "zsh", "fish")


@cli.command(
    short_help="Make a shell complete commands and names.",
    examples="""
    eval "$(vmstackctl completion bash)"       in ~/.bashrc
    vmstackctl completion fish > ~/.config/fish/completions/vmstackctl.fish
    """,
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of VMs and hosts."""
    terminal.write(completion_script(shell))


def completion_script(shell: str) -> str:
    """For one of SHELLS."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  click knows all of SHELLS
    return kind(cli, {}, PROGRAM, COMPLETION_VARIABLE).source()
