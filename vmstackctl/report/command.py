"""The command that draws a recorded trace."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from vmstackctl import terminal
from vmstackctl.asking import answer
from vmstackctl.options import Choices, LocalCommand, Typed
from vmstackctl.problems import no_pictures
from vmstackctl.report.series import Series, series
from vmstackctl.report.target import Target, WriteError, make_folder, parse_target, write_whole
from vmstackctl.values import count, printable
from vmstackd.trace_file import TraceFile, TraceFileError


class Written(msgspec.Struct, frozen=True):
    """files: that were written. samples: of the trace. left_out: pictures that were not drawn, with the reason.
    notes: what was found odd in the trace.
    """

    files: tuple[str, ...]
    samples: int
    left_out: dict[str, str]
    notes: tuple[str, ...]


@click.command(
    "report",
    cls=LocalCommand,
    short_help="Draw a recorded trace.",
    examples="""
    vmstackctl report results/monitoring.csv -o report.html
    vmstackctl report monitoring.csv.gz -o 'pictures/*.png'
    """,
)
@click.argument("trace", metavar="TRACE", type=click.Path())
@click.option("-o", "--output", "target", metavar="FILE", type=Typed("target", parse_target), required=True,
              help="FILE.html for one page; 'DIR/*.png', in quotes, or DIR/ for pictures.")  # fmt: skip
@click.make_pass_decorator(Choices, ensure=True)
def report(choices: Choices, trace: str, target: Target) -> None:
    """Draw what a trace tells, recorded by vmstackd or by its prototype, as one page or as pictures. Asks no daemon.

    Of each level, the CPUs owned, vCPUs sold and CPUs busy over time; the same of the host, and its memory; which CPU
    belonged to which level when; how long vCPUs waited for a CPU; how many VMs there were. What is in the place of a
    file is replaced.
    """
    try:
        from vmstackctl.report.drawing import draw  # noqa: PLC0415  imports matplotlib, which may be missing
    except ImportError as error:
        terminal.complain(no_pictures("report", error, "the trace"))
        raise click.exceptions.Exit(1) from error
    try:
        found, notes = _read(trace)
        drawn = draw(printable(Path(trace).name), found, target, notes)
        if target.is_folder:
            make_folder(target.path)
        for path, content in drawn.files.items():
            write_whole(path, content)
    except TraceFileError as error:
        terminal.complain(f"{printable(str(error))}; TRACE is what vmstackd records, with --record FILE")
        raise click.exceptions.Exit(1) from error
    except WriteError as error:
        terminal.complain(printable(str(error)))
        raise click.exceptions.Exit(1) from error
    written = Written(tuple(map(str, drawn.files)), found.samples, drawn.left_out, notes)
    answer(choices, written, written.files, lambda: _text(written))


def _read(trace: str) -> tuple[Series, tuple[str, ...]]:
    """With the notes. Raises TraceFileError."""
    with TraceFile(trace) as file:
        found = series(file)
    if found is None:
        raise TraceFileError(f"{trace}: holds no sample")
    return found, tuple(printable(note) for note in file.notes)


def _text(written: Written) -> str:
    lines = [f"wrote {printable(file)}" for file in written.files]
    lines += [f"left out {name}: {why[:1].lower()}{why[1:].rstrip('.')}" for name, why in written.left_out.items()]
    lines += [f"note: {note}" for note in written.notes]
    lines.append(f"read {count(written.samples, 'sample')}")
    return "".join(f"{line}\n" for line in lines)
