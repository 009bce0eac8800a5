"""What mixing levels saves, by how the VMs are mixed: the figures of the heat map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from core.workload import Workload
from vmstackctl.plan.mix import Mix
from vmstackctl.plan.question import Question
from vmstackctl.plan.sized import Row, Tell, rows, size_of
from vmstackctl.values import printable, ratio

STEP = 25
"""Percent between two mixes."""
MOST_VMS = 20_000
"""Of a workload that is planned for in every mix: with more, it takes longer than anybody waits for a picture."""
USUAL = (1000, 2000, 3000)
"""Levels of a workload that has not three of its own."""


class Heat(msgspec.Struct, frozen=True):
    """levels: three. saved: percent of servers, by the shares in percent of VMs at the first and second level; the rest
    is at the third. of: what the VMs are, in words.
    """

    of: str
    levels: tuple[int, int, int]
    saved: Mapping[tuple[int, int], float]


def mixes(levels: Sequence[int]) -> Iterator[tuple[tuple[int, int], Mix]]:
    """Shares of the first two levels, and the mix of all three."""
    for first in range(0, 101, STEP):
        for second in range(0, 101 - first, STEP):
            shares = zip(levels, (first, second, 100 - first - second), strict=True)
            yield (first, second), tuple((level, share * 1000) for level, share in shares if share)


def heat_of(path: Path, given: Workload, levels: Sequence[int], question: Question, tell: Tell) -> Heat:
    """A workload whose VMs are sold in every mix. path: where it was read from. levels: its own.

    Raises WorkloadError.
    """
    chosen = tuple(levels) if len(levels) == len(USUAL) else USUAL
    saved: dict[tuple[int, int], float] = {}
    for shares, mix in mixes(chosen):
        asked = msgspec.structs.replace(question, mix=mix, policies=question.policies[:1], over_time=False)
        percent = rows(size_of(path, given, asked, tell), asked)[0].saved_percent
        if percent is not None:
            saved[shares] = percent
    name = printable(path.name)
    dealt = f"the VMs of {name}, dealt anew to {', '.join(map(ratio, chosen))} (seed {question.seed})"
    return Heat(dealt, (chosen[0], chosen[1], chosen[2]), saved)


def heats_of(found: Iterable[Row]) -> list[Heat]:
    """Many workloads as they are: one picture for each data set, which the name of a file begins with, up to "_".

    Where several have one mix, their mean. Those with more levels, or other ones than most, are left out.
    """
    sets: dict[str, list[Row]] = {}
    for row in found:
        if row.saved_percent is not None:
            sets.setdefault(row.workload.partition("_")[0], []).append(row)
    heats = []
    for name, of in sets.items():
        levels = sorted({level.level for row in of for level in row.levels})
        if len(levels) < len(USUAL) and set(levels) <= set(USUAL):
            levels = list(USUAL)
        if len(levels) != len(USUAL):
            continue
        cells: dict[tuple[int, int], list[float]] = {}
        for row in of:
            shares = [_share(row, level) for level in levels]
            cells.setdefault((shares[0], shares[1]), []).append(row.saved_percent or 0.0)
        means = {shares: sum(saved) / len(saved) for shares, saved in cells.items()}
        if len(means) > 1:
            text = f"{len(of)} workloads of {printable(name)}" if len(of) > 1 else printable(name)
            heats.append(Heat(text, (levels[0], levels[1], levels[2]), means))
    return heats


def _share(row: Row, level: int) -> int:
    """Percent of the VMs, to the next of STEP where it is no further off than rounding."""
    percent = 100 * sum(of.vms for of in row.levels if of.level == level) / row.vms
    near = round(percent / STEP) * STEP
    return near if abs(percent - near) <= 1 else round(percent)


def told(heat: Heat) -> str:
    """The best mix, in words."""
    if not heat.saved:
        return "There are too few servers for any mix."
    (first, second), best = max(heat.saved.items(), key=lambda item: item[1])
    shares = zip((first, second, 100 - first - second), heat.levels, strict=True)
    mix = ", ".join(f"{share} % at {ratio(level)}" for share, level in shares if share)
    return f"Most is saved with {mix}: {best:.1f} %."
