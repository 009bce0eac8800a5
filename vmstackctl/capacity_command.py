"""The command that says how many more VMs a cluster takes, also when hosts are lost."""

from __future__ import annotations

from pathlib import Path

import click

from vmstackctl.asking import answer, ask, chosen, drawn, refuse_names
from vmstackctl.capacity import Shape, capacity, parse_shape
from vmstackctl.inventory_file import gather, load
from vmstackctl.options import ABSOLUTE_PATH, Choices, Command, Typed
from vmstackctl.values import parse_ratio


@click.command(
    "capacity",
    cls=Command,
    short_help="Tell how many more VMs fit, also with a host lost.",
    examples="""
    vmstackctl --cluster capacity
    vmstackctl --cluster capacity --shape 2:8G --shape 4:16G --level 1 --level 3
    vmstackctl --cluster capacity --shape 2:8G@3 --reserve 2
    vmstackctl capacity --inventory cluster.json
    """,
)
@click.option("--shape", "shapes", metavar="N:SIZE[@LEVEL]", type=Typed("shape", parse_shape), multiple=True,
              help="vCPUs and memory, perhaps at one level only.  [default: those asked for most often]")  # fmt: skip
@click.option("--level", "levels", metavar="LEVEL", type=Typed("level", parse_ratio), multiple=True,
              help="vCPUs per CPU: 2, 1.5 or 2:1.  [default: the levels that hosts have]")  # fmt: skip
@click.option("--reserve", metavar="HOSTS", type=click.IntRange(min=0),
              help="How many hosts may be lost at once.  [default: 1; 0 where there is one host]")  # fmt: skip
@click.option("--inventory", metavar="FILE", type=ABSOLUTE_PATH,
              help="Ask nobody, but look into this file of vmstackctl inventory save.")  # fmt: skip
@chosen
def capacity_command(
    choices: Choices, shapes: tuple[Shape, ...], levels: tuple[int, ...], reserve: int | None, inventory: str | None
) -> None:
    """Tell how many more VMs fit of each size, at each level, if no others come.

    The first figure is for the hosts as they are. The second is for the worst case of loss: with any one host lost
    (of more than 128, each of the heaviest by size and load is tried), its VMs have been placed on the others, the
    largest first, each on the fullest host that takes it, and then so many more fit. Both can be reached, by placing
    one VM after the other; with more skill more may fit.

    With --reserve 2 or more, so many of the heaviest hosts are lost together.
    """
    refuse_names(choices)
    found = load(Path(inventory)) if inventory else ask(choices, lambda on: gather(on, timeout=choices.timeout))
    reply = capacity(found, shapes, levels, reserve)

    def text() -> str:
        from vmstackctl.capacity_table import CapacityTable  # noqa: PLC0415  imports rich

        return drawn(choices, CapacityTable(reply))

    answer(choices, reply, (), text)
