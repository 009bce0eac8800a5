"""make faults: a run with so many operations, and its figures."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import click

from tests.system.faults.clients import images_for
from tests.system.faults.farm import farm
from tests.system.faults.kinds import KINDS
from tests.system.faults.run import run
from tests.system.lab import Lab, missing
from tests.system.package import package
from tests.system.test_box import missing_libvirt

JOURNALS = f"{tempfile.gettempdir()}/vmstack-faults-"
"""Kept of a run in which anything was wrong."""


@click.command()
@click.option("--seed", type=int, help="Of what is ordered and which faults come when; any if not given.")
@click.option(
    "--operations", default=200, show_default=True, type=click.IntRange(12), help="How many have a result at least."
)
def main(seed: int | None, operations: int) -> None:
    """Order and remove real VMs while everything fails; exits with 1 if anything is lost, doubled or pinned wrong."""
    if why := missing() or missing_libvirt:
        raise click.ClickException(f"this machine cannot: {why}")
    seed = random.randrange(1_000_000) if seed is None else seed
    again = f"make faults SEED={seed} OPERATIONS={operations}"
    click.echo(f"{again}\nthe package is built if it is not given ...")
    package()
    with (
        tempfile.TemporaryDirectory() as folder,
        Lab() as lab,
        farm(lab, Path(folder), images_for(operations), packaged=True) as cluster,
    ):
        figures = run(cluster, Path(folder), seed, operations, tuple(KINDS), click.echo)
        if not figures.good():
            for name, box in lab.boxes.items():
                Path(f"{JOURNALS}{seed}-{name}.log").write_text(box.journal("--output=short-precise"))
                click.echo(f"the journal of box {name}: {JOURNALS}{seed}-{name}.log")
    click.echo(f"\n{figures.text()}\n\n{again}")
    sys.exit(not figures.good())


if __name__ == "__main__":
    main()
