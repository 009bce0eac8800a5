"""make simulate: many seeds on all CPUs, then every planted mistake until it is found; or the story of one seed."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext

import click

from tests.simulation.mistakes import MISTAKES, planted
from tests.simulation.seeds import MOST_SEEDS, endings, simulated, workers
from tests.simulation.story import tell

TELL_S = 10.0
"""Seconds between two lines about how far it is."""


def again(seed: int, mistake: str = "") -> str:
    """The command that tells the story of a seed."""
    return f"make simulate SEED={seed}" + (f" MISTAKE={mistake}" if mistake else "")


def run(first: int, count: int) -> int:
    """Simulate, then plant; returns how much is not as it should be."""
    wrong = 0
    with workers() as pool:
        begin = said = time.monotonic()
        done = 0
        for found in simulated(pool, first, count):
            done += len(found)
            for ending in found:
                if ending.faults:
                    wrong += 1
                    click.echo(f"seed {ending.seed}: {ending.faults[0]}\n  {again(ending.seed)}")
            now = time.monotonic()
            if now - said > TELL_S and done < count:
                said = now
                click.echo(f"{done} of {count} seeds, {done / (now - begin):.1f} seeds/s, {wrong} failures")
        seconds = time.monotonic() - begin
        click.echo(f"{count} seeds in {seconds:.0f} s, {count / seconds:.1f} seeds/s, {wrong} failures")
        click.echo(f"\nplanted mistakes, each within {MOST_SEEDS} seeds:")
        asked = {name: pool.submit(endings, 0, MOST_SEEDS, name, until_found=True) for name in MISTAKES}
        for name, answer in asked.items():
            last = answer.result()[-1]
            if last.faults:
                click.echo(f"  {name}: seed {last.seed}: {last.faults[0]}")
            else:
                wrong += 1
                click.echo(f"  {name}: NOT FOUND")
    return wrong


def show(seed: int, mistake: str) -> int:
    """The whole story of a seed; returns how much is wrong in the end."""
    with planted(mistake) if mistake else nullcontext():
        ending = tell(seed)
    click.echo("\n".join(ending.story))
    click.echo(f"\nseed {seed}, story {ending.digest}")
    for fault in ending.faults:
        click.echo(f"wrong: {fault}")
    if not ending.faults:
        click.echo("nothing is wrong in the end")
    return len(ending.faults)


@click.command()
@click.option("--seeds", default=1000, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--first", default=0, show_default=True, help="The first of them.")
@click.option("--seed", type=int, help="Tell the story of this one only.")
@click.option("--mistake", default="", type=click.Choice(["", *MISTAKES]), help="With --seed: planted into the code.")
def main(seeds: int, first: int, seed: int | None, mistake: str) -> None:
    """Simulate hosts and globald under faults; exits with 1 if anything is wrong in the end."""
    if seed is None:
        if mistake:
            raise click.UsageError("a mistake is for one story: add its seed")
        sys.exit(min(1, run(first, seeds)))
    if os.environ.get("PYTHONHASHSEED") != "0":  # else it would be another story
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    sys.exit(min(1, show(seed, mistake)))


if __name__ == "__main__":
    main()
