"""The command that says how many servers workloads need."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from core.host_policy import DEFAULT_HOST_POLICY, HOST_POLICIES
from core.packing import ACCOUNTINGS
from core.workload import Accounting, ServerKind
from vmstackctl import terminal
from vmstackctl.asking import chosen, drawn, refuse_names
from vmstackctl.lines import json_line
from vmstackctl.options import Choices, LocalCommand, Typed
from vmstackctl.plan.bar import bar
from vmstackctl.plan.mix import Mix, parse_mix
from vmstackctl.plan.mixes import MOST_VMS, heat_of, heats_of
from vmstackctl.plan.parallel import Failed, size_all
from vmstackctl.plan.question import ALL, Question, parse_kind, parse_policies
from vmstackctl.plan.sized import Row, Sized, rows, too_few
from vmstackctl.plan.source import WorkloadError
from vmstackctl.plan.sweep import files_of, means
from vmstackctl.problems import no_pictures
from vmstackctl.values import parse_memory, printable

FORMATS = ("table", "json", "html")
EXIT_FAILED = 1
EXIT_TOO_FEW = 4


@click.command(
    "plan",
    cls=LocalCommand,
    short_help="Tell how many servers a workload needs.",
    examples="""
    vmstackctl plan week.csv
    vmstackctl plan week.csv --server 64:512 --policy all
    vmstackctl plan week.csv --server 32:128x20 --server 64:256 --critical-size 6
    vmstackctl plan week.csv --mix 1=50,3=50 --seed 7
    vmstackctl plan --sweep workloads --output json
    vmstackctl plan week.csv --output html > plan.html
    """,
)
@click.argument("workloads", metavar="WORKLOAD...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--server", "kinds", metavar="CPUS:MEMORY[xN]", type=Typed("server", parse_kind), multiple=True,
              help="Servers, such as 32:128 (GiB). With a number, as 32:128x20, these are taken first, and the kind "
              "without one after them.  [default: 32:128]")  # fmt: skip
@click.option("--policy", "policies", metavar="NAME,...", type=Typed("policy", parse_policies),
              default=DEFAULT_HOST_POLICY, show_default=True,
              help=f"How a server is chosen: {', '.join(HOST_POLICIES)}; or {ALL}.")  # fmt: skip
@click.option("--critical-size", metavar="N", type=click.IntRange(0, 1_000_000), default=2, show_default=True,
              help="VMs from which on a level of a server is oversubscribed. Hosts as shipped have 6.")  # fmt: skip
@click.option("--accounting", type=click.Choice(ACCOUNTINGS), default=ACCOUNTINGS[0], show_default=True,
              help="host: a server takes what a host does; paper: what the simulator of the published experiment "
              "does.")  # fmt: skip
@click.option("--mix", metavar="LEVEL=PERCENT,...", type=Typed("mix", parse_mix),
              help="Sell the VMs at these levels instead, dealt at random.")  # fmt: skip
@click.option("--seed", metavar="N", type=int, help="Of --mix: deal the levels otherwise.  [default: 0]")
@click.option("--memory-cap", metavar="SIZE", type=Typed("size", parse_memory),
              help="The most memory of a VM above 1:1; the published experiment has 8G.")  # fmt: skip
@click.option("--leave-out-too-large", is_flag=True, help="Plan without VMs that no server could take.")
@click.option("--sweep", metavar="DIR", type=click.Path(path_type=Path), help="Plan for every workload of a folder.")
@click.option("-o", "--output", type=click.Choice(FORMATS),
              help="table: for people; json: one object per workload, policy and line; html: one page with pictures, "
              "for a file.  [default: table]")  # fmt: skip
@chosen
def plan(
    choices: Choices,
    workloads: tuple[Path, ...],
    kinds: tuple[ServerKind, ...],
    policies: tuple[str, ...],
    critical_size: int,
    accounting: Accounting,
    mix: Mix | None,
    seed: int | None,
    memory_cap: int | None,
    sweep: Path | None,
    output: str | None,
    *,
    leave_out_too_large: bool,
) -> None:
    """Tell how many servers a workload needs, so that no VM is ever refused: with a cluster for each level, each
    filled by first fit; with one cluster for all levels; and at least, whatever one does. Asks no daemon.

    A WORKLOAD is a CSV file with the columns vm_id, vcpus, mem_gb, level, arrival_s and departure_s; one with vcpus,
    mem_gb, level and count, of VMs that are all there at once; the vms.properties of CloudFactory; a recording of
    vmstackd; or a saved inventory, whose VMs are all there at once. It may be packed with gzip.

    The servers decide as vmstackd does, and are chosen as globald chooses hosts. Where there are too few, the exit
    code is 4.
    """
    if not workloads and sweep is None:
        raise click.UsageError("name a WORKLOAD, or a folder of them with --sweep DIR", click.get_current_context())
    if any(kind.count is None for kind in kinds[:-1]):
        raise click.UsageError(
            "only the last --server may be without a number; write the others as 32:128x20", click.get_current_context()
        )
    if seed is not None and mix is None:
        raise click.UsageError("--seed is for --mix: add --mix, or leave it out", click.get_current_context())
    if output is not None:
        choices.output = output
    refuse_names(choices)
    if choices.output == "html":
        _require_pictures()
    question = Question(
        kinds=kinds or (parse_kind("32:128"),),
        policies=policies,
        critical_size=critical_size,
        accounting=accounting,
        mix=mix,
        seed=seed or 0,
        memory_cap_mib=memory_cap,
        leave_out_too_large=leave_out_too_large,
        over_time=choices.output == "html",
    )
    files: list[Path] = []
    others: list[str] = []
    if sweep is not None:
        try:
            files, others = files_of(sweep)
        except WorkloadError as error:
            terminal.complain(printable(str(error)))
            raise click.exceptions.Exit(EXIT_FAILED) from error
    paths = [*workloads, *files]
    found = _found(paths, question)
    sized = [one for one in found if isinstance(one, Sized)]
    failed = [(place >= len(workloads), one) for place, one in enumerate(found) if isinstance(one, Failed)]
    alone = len(found) == 1
    if choices.output == "html" and sized:
        terminal.write(_page(paths, sized, question, alone=alone))
    else:
        _show(choices, sized, question, alone=alone)
    code = 0
    for missing in (missing for one in sized for missing in too_few(one, question)):
        terminal.complain(printable(missing))
        code = EXIT_TOO_FEW
    for of_folder, one in failed:
        if of_folder and one.foreign and sized:
            others.append(one.path.name)
        else:
            terminal.complain(printable(one.reason))
            code = EXIT_FAILED
    if others:
        terminal.complain(f"note: no workloads in {printable(str(sweep))}: {', '.join(map(printable, sorted(others)))}")
    raise click.exceptions.Exit(code)


def _found(paths: list[Path], question: Question) -> list[Sized | Failed]:
    """In the order of paths."""
    found: dict[int, Sized | Failed] = {}
    with bar(len(paths)) as progress:
        for place, one in size_all(paths, question, progress.tell):
            found[place] = one
            progress.advance()
    return [found[place] for place in range(len(paths))]


def _require_pictures() -> None:
    """Raises Exit, having said why, if a page cannot be drawn or written."""
    if sys.stdout.isatty():
        raise click.UsageError("a page is for a file: add > plan.html", click.get_current_context())
    try:
        import vmstackctl.plan.pictures  # noqa: F401, PLC0415  imports matplotlib, which may be missing
    except ImportError as error:
        terminal.complain(no_pictures("plan --output html", error, "the workload"))
        raise click.exceptions.Exit(EXIT_FAILED) from error


def _page(paths: list[Path], sized: list[Sized], question: Question, *, alone: bool) -> str:
    from vmstackctl.plan.page import page  # noqa: PLC0415  as below
    from vmstackctl.plan.pictures import fill, heat_map  # noqa: PLC0415  imports matplotlib

    told = [row for one in sized for row in rows(one, question)]
    if not alone:
        heats = [heat_map(heat) for heat in heats_of(row for row in told if row.policy == question.policies[0])]
        why = "The workloads have not several mixes of the same three levels."
        return page(told, question, heats or [heat_map(None, why)], alone=False)
    given = sized[0].given
    if given is None or sized[0].vms > MOST_VMS:
        why = f"There are more than {MOST_VMS} VMs, which takes long in every mix; plan for single ones with --mix."
        return page(told, question, [fill(sized[0]), heat_map(None, why)], alone=True)
    with bar(1) as progress:
        heat = heat_of(paths[0], given, [level.level for level in sized[0].levels], question, progress.tell)
    return page(told, question, [heat_map(heat), fill(sized[0])], alone=True)


def _show(choices: Choices, sized: list[Sized], question: Question, *, alone: bool) -> None:
    """alone: whether nothing else was planned for."""
    told: list[Row] = [row for one in sized for row in rows(one, question)]
    if not told:
        return
    if choices.output == "json":
        terminal.write("".join(f"{json_line(row)}\n" for row in told))
        return
    from vmstackctl.plan.tables import ManyPlans, OnePlan  # noqa: PLC0415  imports rich

    picture = OnePlan(told, question) if alone else ManyPlans(told, means(told))
    notes = "".join(
        f"note: {printable(note)}\n" if alone else f"note: {printable(one.workload)}: {printable(note)}\n"
        for one in sized
        for note in one.notes
    )
    terminal.write(drawn(choices, picture) + notes)
