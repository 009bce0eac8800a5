"""Core against recorded decisions of the prototype: python -m tests.conformance FILES...

A file (SEMANTICS 16) is replayed under policy "reference" from the start up to its first deviation that
is a bug of the prototype, and again line by line, each from the state recorded before it. On lines
marked with such a bug the core is compared with the oracle of the corrected rules instead, and must
differ from the recording in the way that the mark says.

Exit code 0: all agree, 1: a mismatch, 2: a file that cannot be used.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from core.allocator import empty_state, free_cpus, hold, plan_deploy, plan_remove, progress, restore
from core.cpuset import format_cpu_list
from core.level import UNIT, format_level
from core.model import HostState, Plan, Refusal, Rules, Vm
from core.policy import POLICIES
from core.status import host_status
from tests.oracle import Oracle, OracleVm, host_of
from tests.traces import Deploy, Line, Trace, Unusable, read_trace

POLICY = POLICIES["reference"]
DEVIATIONS = frozenset({"restart", "over", "overref", "failchg"})
RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-11
"""For values near zero. Progress is a difference of quotients of some thousand MiB per CPU, and 1e-12 is
the last bit of such a quotient: where it should be zero, a few of these bits are left over."""
SHOWN = 10
WIDTH = 160

Figures = dict[str, Any]
"""Everything compared after one operation, by what it is called in a report."""


class Tally(NamedTuple):
    compared: int
    skipped: int
    mismatches: int


class Report:
    """Counts, and prints the first mismatches of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.compared = 0
        self.skipped = 0
        self.mismatches = 0

    def check(self, line: Line, way: str, differences: list[str]) -> None:
        if not differences:
            return
        self.mismatches += 1
        if self.mismatches > SHOWN:
            return
        print(f"{self.path}:{line.number}: {way}: {_cut('; '.join(differences[:4]), 4 * WIDTH)}")
        if self.mismatches == SHOWN:
            print(f"{self.path}: further mismatches are counted, not shown")


def check_file(path: Path) -> Tally:
    """Compare one file. Raises Unusable if it cannot be read."""
    trace = read_trace(path)
    report = Report(path)
    _from_the_start(trace, report)
    _line_by_line(trace, report)
    return Tally(report.compared, report.skipped, report.mismatches)


def _from_the_start(trace: Trace, report: Report) -> None:
    state = _empty(trace)
    for line in trace.lines[: trace.agreed]:
        state, outcome = _operate(state, line)
        report.compared += 1
        report.check(line, "from the start", _differences(_recorded(line), _of_core(trace, state, outcome), line))


def _line_by_line(trace: Trace, report: Report) -> None:
    members: dict[int, list[Vm]] = {}
    previous: Line | None = None
    for line in trace.lines:
        try:
            before = _load(trace, previous, members)
        except ValueError as error:
            report.compared += 1
            report.check(line, "from the line before", [f"its state cannot be loaded: {error}"])
        else:
            after, outcome = _operate(before, line)
            found = _of_core(trace, after, outcome)
            if DEVIATIONS.isdisjoint(line.marks):
                report.compared += 1
                report.check(line, "from the line before", _differences(_recorded(line), found, line))
                if "pover" in line.marks:
                    oracle = _oracle(trace, after)
                    report.check(line, "corrected progress", _unlike(_probes(trace, oracle), found["progress"]))
            else:
                report.skipped += 1
                differences = _corrected(trace, before, line, found) or _as_marked(previous, line, found)
                report.check(line, f"corrected ({', '.join(sorted(line.marks))})", differences)
        _follow(members, line)
        previous = line


def _follow(members: dict[int, list[Vm]], line: Line) -> None:
    """Which VMs each level has after a line, as recorded."""
    if line.ok and isinstance(line.op, Deploy):
        members.setdefault(line.op.vm.level, []).append(line.op.vm)
    elif line.ok:
        for level, vms in list(members.items()):
            members[level] = [vm for vm in vms if vm.name != line.op.name]
            if not members[level]:
                del members[level]


def _empty(trace: Trace) -> HostState:
    state = empty_state(trace.topology, Rules(critical_size=trace.critical_size))
    return msgspec.structs.replace(state, memory_mib=trace.memory_mib)


def _load(trace: Trace, line: Line | None, members: dict[int, list[Vm]]) -> HostState:
    """The state recorded in a line. Raises ValueError if it contradicts itself."""
    state = _empty(trace)
    for entry in line.entries if line is not None else ():
        if entry.n == 0:
            state = hold(state, entry.cpus, 0)
        else:
            state = restore(state, entry.level, entry.cpus, members.get(entry.level, []))
    if sum(len(vms) for vms in members.values()) != sum(len(subset.vms) for subset in state.subsets):
        raise ValueError("a level with VMs is not listed")
    return state


def _operate(state: HostState, line: Line) -> tuple[HostState, str | None]:
    """The state after an operation of the core, released CPUs freed, and what was short (None: done)."""
    if isinstance(line.op, Deploy):
        decided = plan_deploy(state, line.op.vm, POLICY)
        if isinstance(decided, Refusal):
            return state, decided.resource
        return decided.state, None
    try:
        plan: Plan = plan_remove(state, line.op.name, POLICY)
    except KeyError:
        return state, "unknown"
    return free_cpus(plan.state, plan.released), None


def _recorded(line: Line) -> Figures:
    figures: Figures = {"outcome": "done" if line.ok else "refused", "reason": line.reason}
    for entry in sorted(line.entries, key=lambda entry: entry.level):
        if entry.n:
            figures[f"level {format_level(entry.level)}"] = {
                "cpus": entry.cpus,
                "cap": entry.cap,
                "alloc": entry.alloc,
                "n": entry.n,
                "vavail": entry.vavail,
                "vpotential": entry.vpot,
            }
    figures["free"] = line.free
    figures["memory"] = {
        "avail": line.memory.avail,
        "cap": line.memory.cap,
        "alloc": line.memory.alloc,
        "vavail": line.memory.vavail,
        "vpotential": line.memory.avail if line.memory.vpot is None else line.memory.vpot,
    }
    figures["progress"] = list(line.progress)
    return figures


def _of_core(trace: Trace, state: HostState, outcome: str | None) -> Figures:
    figures: Figures = {"outcome": "refused" if outcome else "done", "reason": outcome}
    status = host_status(state)
    for level in sorted(status.levels, key=lambda level: level.level):
        subset = state.subset(level.level)
        assert subset is not None
        figures[f"level {format_level(level.level)}"] = {
            "cpus": subset.cpus,
            "cap": level.cpus,
            "alloc": level.vcpus,
            "n": level.vms,
            "vavail": level.available_thousandths / UNIT,
            "vpotential": level.potential_thousandths / UNIT,
        }
    figures["free"] = status.free_cpus
    figures["memory"] = _memory(status.free_mib, status.allocated_mib)
    figures["progress"] = [progress(state, probe.level, probe.vcpus, probe.memory_mib) for probe in trace.probes]
    return figures


def _of_oracle(trace: Trace, oracle: Oracle, outcome: str | None) -> Figures:
    figures: Figures = {"outcome": "refused" if outcome else "done", "reason": outcome}
    for level, found in sorted(oracle.figures().items()):
        figures[f"level {format_level(int(level * UNIT))}"] = {
            "cpus": found.cpus,
            "cap": len(found.cpus),
            "alloc": found.alloc,
            "n": found.vms,
            "vavail": float(found.available),
            "vpotential": float(found.potential),
        }
    figures["free"] = len(oracle.free)
    figures["memory"] = _memory(oracle.free_memory, oracle.sold_memory)
    figures["progress"] = _probes(trace, oracle)
    return figures


def _memory(avail: int, allocated: int) -> Figures:
    return {"avail": avail, "cap": allocated, "alloc": allocated, "vavail": 0, "vpotential": avail}


def _probes(trace: Trace, oracle: Oracle) -> list[float]:
    return [oracle.progress(Fraction(probe.level, UNIT), probe.vcpus, probe.memory_mib) for probe in trace.probes]


def _oracle(trace: Trace, state: HostState) -> Oracle:
    """An oracle that knows the same VMs on the same CPUs as a state."""
    oracle = Oracle(host_of(state.topology, state.memory_mib), state.rules.critical_size)
    for subset in state.subsets:
        vms = [OracleVm(vm.name, vm.vcpus, vm.memory_mib) for vm in subset.vms.values()]
        oracle.load(Fraction(subset.level, UNIT), list(subset.cpus), vms)
    oracle.free = [cpu for cpu in oracle.free if cpu not in state.held]
    return oracle


def _corrected(trace: Trace, before: HostState, line: Line, found: Figures) -> list[str]:
    """Where the core does not do what the corrected rules say."""
    oracle = _oracle(trace, before)
    outcome: str | None = None
    if isinstance(line.op, Deploy):
        vm = line.op.vm
        refused = oracle.deploy(vm.name, vm.vcpus, vm.memory_mib, Fraction(vm.level, UNIT))
        outcome = refused.resource if refused else None
    else:
        try:
            oracle.remove(line.op.name)
        except KeyError:
            outcome = "unknown"
    return _unlike(_of_oracle(trace, oracle, outcome), found)


def _as_marked(previous: Line | None, line: Line, found: Figures) -> list[str]:
    """Where the recording does not differ from the core in the way that its marks say."""
    recorded = _recorded(line)
    both = recorded["outcome"] == found["outcome"] == "done"
    wrong: list[str] = []
    if isinstance(line.op, Deploy) and both:
        level = f"level {format_level(line.op.vm.level)}"
        theirs, ours = recorded.get(level, {}), found[level]
        if "restart" in line.marks and theirs.get("cpus") == ours["cpus"]:
            wrong.append("marked restart, yet the CPUs are those of a new subset")
        if "over" in line.marks and theirs.get("cap", 0) <= ours["cap"]:
            wrong.append("marked over, yet no more CPUs than needed")
    if "overref" in line.marks and (recorded["reason"] != "cpu" or found["reason"] == "cpu"):
        wrong.append("marked overref, yet not refused for CPUs that would do")
    if "failchg" in line.marks:
        earlier = previous.entries if previous is not None else ()
        if line.ok or line.entries == earlier:
            wrong.append("marked failchg, yet nothing was changed by a refusal")
    return wrong


def _differences(expected: Figures, got: Figures, line: Line) -> list[str]:
    if "pover" in line.marks:
        expected = {**expected, "progress": got["progress"]}
    return _unlike(expected, got)


def _unlike(expected: object, got: object) -> list[str]:
    return list(_walk(expected, got, ""))


def _walk(expected: object, got: object, where: str) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in {**expected, **got}:
            yield from _walk(expected.get(key), got.get(key), f"{where} {key}" if where else key)
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for index, pair in enumerate(zip(expected, got, strict=True)):
            yield from _walk(*pair, f"{where}[{index}]")
    elif not same(expected, got):
        yield f"{where}: expected {_text(expected)}, got {_text(got)}"


def same(expected: object, got: object) -> bool:
    """Equal; numbers up to the tolerances."""
    if isinstance(expected, int | float) and isinstance(got, int | float):
        return math.isclose(expected, got, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return expected == got


def _text(value: object) -> str:
    return _cut(format_cpu_list(value) if isinstance(value, tuple) else repr(value), WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def main(arguments: list[str]) -> int:
    """Check files and print what was found."""
    if not arguments:
        print("usage: python -m tests.conformance FILES...", file=sys.stderr)
        return 2
    tallies: list[Tally] = []
    unusable = False
    for argument in arguments:
        try:
            tallies.append(check_file(Path(argument)))
        except Unusable as error:
            print(error, file=sys.stderr)
            unusable = True
    mismatches = sum(tally.mismatches for tally in tallies)
    print(
        f"{len(tallies)} files, {sum(tally.compared for tally in tallies)} operations compared, "
        f"{sum(tally.skipped for tally in tallies)} skipped, {mismatches} mismatches"
    )
    if unusable:
        return 2
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
