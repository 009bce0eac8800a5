"""Commands that keep what is known of a cluster, and say how a host would be chosen, now or from what was kept."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from core.host_policy import HOST_POLICIES, HostPolicy
from vmstackctl import terminal
from vmstackctl.asking import answer, ask, chosen, drawn
from vmstackctl.explaining import explain
from vmstackctl.inventory_file import gather, load, save
from vmstackctl.options import ABSOLUTE_PATH, Choices, Command, Group, LocalCommand, size_options
from vmstackctl.report.target import WriteError
from vmstackctl.values import count, printable
from vmstackd.api import requests


class Saved(msgspec.Struct, frozen=True):
    """file: that was written. vms: of the hosts that told theirs; silent: how many hosts did not."""

    file: str
    hosts: int
    vms: int
    silent: int


@click.group(
    "inventory",
    cls=Group,
    no_args_is_help=False,
    short_help="Keep what is known of a cluster in a file.",
    examples="""
    vmstackctl --cluster inventory save cluster.json.gz
    vmstackctl inventory load cluster.json.gz
    """,
)
def inventory() -> None:
    """Keep what is known of a cluster or a host in a file, so that any decision can be repeated elsewhere and later.

    The file has the hosts with their figures and VMs, without names of VMs, and what the choice of a host has learnt.
    """


@inventory.command(
    "save",
    short_help="Write the inventory into a file.",
    examples="""
    vmstackctl --cluster inventory save cluster.json.gz
    vmstackctl inventory save host.json
    """,
)
@click.argument("file", metavar="FILE", type=ABSOLUTE_PATH)
@chosen
def save_(choices: Choices, file: str) -> None:
    """Write the inventory into FILE, whole or not at all; packed if the name ends in .gz. What is there is replaced."""
    found = ask(choices, lambda client: gather(client, timeout=choices.timeout))
    try:
        save(Path(file), found)
    except WriteError as error:
        terminal.complain(printable(str(error)))
        raise click.exceptions.Exit(1) from error
    told = [host.vms for host in found.hosts if host.vms is not None]
    vms = sum(shape.count for shapes in told for shape in shapes)
    saved = Saved(file=file, hosts=len(found.hosts), vms=vms, silent=len(found.hosts) - len(told))
    answer(choices, saved, (file,), lambda: f"{_saved(saved)}\n")


def _saved(saved: Saved) -> str:
    silent = f"; {count(saved.silent, 'host')} did not tell which VMs there are" if saved.silent else ""
    return f"{printable(saved.file)}: saved {count(saved.hosts, 'host')} with {count(saved.vms, 'VM')}{silent}"


@inventory.command(
    "load",
    cls=LocalCommand,
    short_help="Check a file and show what is in it.",
    examples="""
    vmstackctl inventory load cluster.json.gz
    vmstackctl inventory load cluster.json --output json | jq .lesson.seen
    """,
)
@click.argument("file", metavar="FILE", type=ABSOLUTE_PATH)
@chosen
def load_(choices: Choices, file: str) -> None:
    """Check FILE, and show its hosts as the command hosts does, and what had been learnt of requests. Asks nobody."""
    path = Path(file)
    found = load(path)

    def text() -> str:
        from vmstackctl.inventory_tables import InventoryPicture  # noqa: PLC0415  imports rich

        return drawn(choices, InventoryPicture(found, path))

    answer(choices, found, (host.name for host in found.hosts), text)


@click.command(
    "explain",
    cls=Command,
    short_help="Tell why a VM would go where it would.",
    examples="""
    vmstackctl --cluster explain --vcpus 4 --memory 8G --level 2:1
    vmstackctl explain --vcpus 4 --memory 8G --level 2 --inventory cluster.json.gz
    vmstackctl explain --vcpus 4 --memory 8G --level 2 --policy first-fit
    """,
)
@size_options
@click.option("--policy", type=click.Choice([*HOST_POLICIES]),
              help="How the host is chosen.  [default: as the cluster does]")  # fmt: skip
@click.option("--inventory", "file", metavar="FILE", type=ABSOLUTE_PATH,
              help="Ask nobody, but look into this file of vmstackctl inventory save.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Show all hosts, however many there are.")
@chosen
def explain_(
    choices: Choices, vcpus: int, memory: int, level: int, policy: str | None, file: str | None, *, every: bool
) -> None:
    """Tell on which host a VM would be deployed: the score of each host that would take it, the best one first, then
    what the others lack, or why they are closed.

    It is decided here, from what the hosts have told, as globald decides: nothing is asked of a host or counted as a
    request. What a score means depends on the policy; larger is better. Of many hosts, the table has the first of each
    sort, json has all. If no host takes the VM, the exit code is 4.
    """
    requests.check(requests.Progress(vcpus=vcpus, memory_mib=memory, level=level))
    found = (
        load(Path(file))
        if file
        else ask(choices, lambda client: gather(client, with_vms=False, timeout=choices.timeout))
    )
    explanation = explain(found, _policy(policy or found.policy), level, vcpus, memory)

    def text() -> str:
        from vmstackctl.inventory_tables import ExplanationTable  # noqa: PLC0415  imports rich

        return drawn(choices, ExplanationTable(explanation, every=every))

    answer(choices, explanation, () if explanation.chosen is None else (explanation.chosen,), text)
    explanation.require_chosen()


def _policy(name: str) -> HostPolicy:
    found = HOST_POLICIES.get(name)
    if found is None:
        raise click.UsageError(
            f"the policy {name[:40]!r} of this inventory is not known here; --policy may be {', '.join(HOST_POLICIES)}",
            click.get_current_context(),
        )
    return found
