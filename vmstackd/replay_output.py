"""What a replay prints: in words, as JSON lines, as CSV, or the summary alone. Values in, text out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from core.cpuset import format_cpu_list
from core.level import UNIT, format_level
from core.model import HostState, Subset
from core.replay import Decision, LevelSummary, Moment, Summary
from vmstackd.api.errors import refused
from vmstackd.daemon.log import one_line

WIDTH = 100
"""Columns; longer lines are broken where they can be."""
_MIB_PER_GIB = 1024


class Setup(msgspec.Struct, frozen=True):
    """What is replayed, and how. trace, topology: as the user named them. relevel: as in ``core.replay.Replay``."""

    trace: str
    topology: str
    policy: str
    critical_size: int
    critical_sizes: Mapping[int, int] = {}
    relevel: Mapping[int, int] = {}


class Form(Protocol):
    """One way to print a replay. Each text is whole lines, or empty."""

    def begin(self) -> str:
        """What stands before the first moment."""

    def moment(self, moment: Moment) -> str:
        """What one moment has to tell."""

    def end(self, summary: Summary) -> str:
        """What stands after the last moment of the whole file."""

    def aside(self, summary: Summary) -> str:
        """The same for people, where it would be in the way of a program: for stderr."""


class TextForm:
    """For people: each decision, and of the state what has changed."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._shown: dict[int, Subset] = {}

    def begin(self) -> str:
        return _text(_folded(_described(self._setup)))

    def moment(self, moment: Moment) -> str:
        if not moment.decisions and not moment.changed:
            return ""
        lines = [f"{_clock(moment.time)} ({moment.time} s)", *_decisions(moment.decisions)]
        if moment.changed:
            lines += self._changes(moment.state)
        return _text(line for long in lines for line in _folded(long))

    def end(self, summary: Summary) -> str:
        return "\n" + summary_text(summary)

    def aside(self, _: Summary) -> str:
        return ""

    def _changes(self, state: HostState) -> Iterator[str]:
        now = {subset.level: subset for subset in state.subsets}
        for level in sorted(self._shown.keys() | now.keys()):
            subset = now.get(level)
            if subset is None:
                yield f"  level {format_level(level)}: no VMs any more"
            elif subset is not self._shown.get(level):
                vms, vcpus = _count(len(subset.vms), "VM"), _count(subset.vcpus, "vCPU")
                cpus = f"{_count(len(subset.cpus), 'CPU')}: {_cpus(subset.cpus)}"
                yield f"  level {format_level(level)}: {vms}, {vcpus} on {cpus}"
        all_cpus = len(state.topology.cpu_ids)
        yield f"  free: {state.free.count} of {all_cpus} CPUs, {state.free_mib} of {state.memory_mib} MiB"
        self._shown = now


class JsonForm:
    """For programs: JSON lines, in the shape in which the prototype's decisions were recorded.

    The reason of a removal is "offline" there, too.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def begin(self) -> str:
        setup = self._setup
        header: dict[str, object] = {
            "replay": 1,
            "trace": setup.trace,
            "topology": setup.topology,
            "policy": setup.policy,
            "critical_size": setup.critical_size,
        }
        if setup.critical_sizes:
            header["critical_sizes"] = {format_level(level): size for level, size in setup.critical_sizes.items()}
        if setup.relevel:
            header["relevel"] = {format_level(level): placed / UNIT for level, placed in setup.relevel.items()}
        return _json(header)

    def moment(self, moment: Moment) -> str:
        ops = [
            [
                decision.operation,
                decision.vm.name,
                decision.refusal is None,
                "offline" if decision.operation == "remove" else _reason(decision) or None,
            ]
            for decision in moment.decisions
        ]
        return _json({"t": moment.time, "ops": ops, "state": _state(moment.state) if moment.changed else None})

    def end(self, summary: Summary) -> str:
        found = msgspec.to_builtins(summary)
        found["levels"] = [{**level, "level": level["level"] / UNIT} for level in found["levels"]]
        return _json({"summary": found})

    def aside(self, _: Summary) -> str:
        return ""


class CsvForm:
    """For tables: a row for each decision. cpus: of the level after it, in attribution order."""

    def __init__(self, _: Setup) -> None:
        pass

    def begin(self) -> str:
        return _csv([("time", "operation", "vm", "uuid", "level", "vcpus", "memory_mib", "accepted", "reason", "cpus")])

    def moment(self, moment: Moment) -> str:
        return _csv(
            (
                moment.time,
                decision.operation,
                decision.vm.name,
                decision.uuid,
                format_level(decision.vm.level),
                decision.vm.vcpus,
                decision.vm.memory_mib,
                "true" if decision.refusal is None else "false",
                _reason(decision),
                format_cpu_list(decision.cpus),
            )
            for decision in moment.decisions
        )

    def end(self, _: Summary) -> str:
        return ""

    def aside(self, summary: Summary) -> str:
        return summary_text(summary)


class SummaryForm:
    """Only the summary."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def begin(self) -> str:
        return _text(_folded(_described(self._setup)))

    def moment(self, _: Moment) -> str:
        return ""

    def end(self, summary: Summary) -> str:
        return summary_text(summary)

    def aside(self, _: Summary) -> str:
        return ""


FORMS: Mapping[str, Callable[[Setup], Form]] = {
    "text": TextForm,
    "json": JsonForm,
    "csv": CsvForm,
    "none": SummaryForm,
}
"""Every form by its name; the first one is the default."""

_TITLES = (
    ("", "level"),
    ("", "VMs"),
    ("refused", "for cpu"),
    ("refused", "for mem"),
    ("most", "VMs"),
    ("most", "vCPUs"),
    ("most", "CPUs"),
    ("mean", "CPUs"),
    ("mean", "busy"),
    ("most", "busy"),
    ("busy", "share"),
    ("samples", "over"),
    ("waited", "s"),
)
_LEGEND = (
    "VMs: that arrived. most: at once. mean: over the whole time. busy: CPUs that the VMs of the level",
    "kept busy when recorded; share: of the CPUs that the level owns here; over: samples in which more",
    "were busy than owned, so that VMs would wait. waited: for CPUs, when recorded.",
)


def summary_text(summary: Summary) -> str:
    """The summary in words and as a table."""
    lines = [
        f"{_count(summary.samples, 'sample')} in {_clock(summary.seconds)}",
        f"  VMs:    {summary.vms} arrived, {_refused(summary)}",
        f"  CPUs:   {summary.cpus}, of these {summary.fewest_free_cpus} free at the least"
        + ("" if summary.most_busy is None else f", {_figure(summary.most_busy)} busy at the most"),
        f"  memory: {summary.memory_mib} MiB, of these {summary.most_memory_mib} MiB sold at the most",
    ]
    if summary.untold:
        lines.append(f"  not placed: {_count(summary.untold, 'VM')} whose memory the trace does not tell")
    if summary.levels:
        first, second = zip(*_TITLES, strict=True)
        lines += ["", *_aligned([first, second, *map(_row, summary.levels)]), "", *_LEGEND]
    return _text(lines)


def _described(setup: Setup) -> str:
    sizes = "".join([f", {size} at {format_level(level)}" for level, size in setup.critical_sizes.items()])
    moved = "".join([f"; VMs of {format_level(old)} at {format_level(new)}" for old, new in setup.relevel.items()])
    host = f"{setup.trace} on {setup.topology}"
    return f"{host}: policy {setup.policy}, critical size {setup.critical_size}{sizes}{moved}"


def _refused(summary: Summary) -> str:
    if not summary.refused_cpu and not summary.refused_memory:
        return "none refused"
    total = summary.refused_cpu + summary.refused_memory
    return f"{total} refused ({summary.refused_cpu} for cpu, {summary.refused_memory} for memory)"


def _row(level: LevelSummary) -> tuple[str, ...]:
    return (
        format_level(level.level),
        str(level.vms),
        str(level.refused_cpu),
        str(level.refused_memory),
        str(level.most_vms),
        str(level.most_vcpus),
        str(level.most_cpus),
        _figure(level.mean_cpus),
        _figure(level.mean_busy),
        _figure(level.most_busy),
        "-" if level.busy_share is None else f"{level.busy_share:.0%}",
        str(level.overloaded),
        _figure(level.delay_s),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width, numbers to the right, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]]
        yield "  ".join(cells).rstrip()


def _decisions(decisions: Sequence[Decision]) -> Iterator[str]:
    names = [one_line(decision.vm.name) for decision in decisions]
    width = max(map(len, names), default=0)
    for name, decision in zip(names, decisions, strict=True):
        vm = decision.vm
        vcpus = f"{vm.vcpus:>3} {'vCPU ' if vm.vcpus == 1 else 'vCPUs'}"
        size = f"{vcpus} {_memory(vm.memory_mib):>8} at {format_level(vm.level)}"
        yield f"  {decision.operation} {name.ljust(width)} {size}: {_outcome(decision)}"


def _outcome(decision: Decision) -> str:
    if decision.refusal is not None:
        return f"refused: {_reason(decision)}"
    if not decision.taken and not decision.released:
        return "no more CPUs needed" if decision.operation == "deploy" else "no CPUs given back"
    taken = f"took CPUs {_cpus(decision.taken)}" if decision.taken else ""
    released = f"gave back CPUs {_cpus(decision.released)}" if decision.released else ""
    return "; ".join(filter(None, (released, taken)))


def _reason(decision: Decision) -> str:
    """Why it was refused; empty if it was not."""
    return "" if decision.refusal is None else refused(decision.refusal).message


def _state(state: HostState) -> dict[str, object]:
    sold = state.allocated_mib
    return {
        "cpu": [
            {
                "l": subset.level / UNIT,
                "alloc": subset.vcpus,
                "cap": len(subset.cpus),
                "cpus": format_cpu_list(subset.cpus),
                "vms": list(subset.vms),
            }
            for subset in state.subsets
        ],
        "mem": {"alloc": sold, "cap": sold} if state.subsets else None,
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode() + "\n"


def _csv(rows: Iterable[tuple[object, ...]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _text(lines: Iterable[str]) -> str:
    return "".join([f"{line}\n" for line in lines])


def _folded(line: str) -> Iterator[str]:
    """A line that is too long goes on in the next ones, set in; broken behind a blank or a comma."""
    inset = " " * 6
    while len(line) > WIDTH:
        end = 1 + max(line.rfind(mark, len(inset), WIDTH) for mark in " ,")
        if not end:
            break
        yield line[:end].rstrip(" ")
        line = inset + line[end:]
    yield line


def _cpus(cpus: Iterable[int]) -> str:
    """In ascending order, which is shorter and easier to read."""
    return format_cpu_list(sorted(cpus))


def _clock(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _memory(mib: int) -> str:
    whole, rest = divmod(mib, _MIB_PER_GIB)
    return f"{mib} MiB" if rest else f"{whole} GiB"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
