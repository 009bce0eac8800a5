"""Which levels a picture shows, in which colours and lines: the same in all pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from vmstackctl.report.series import LevelStep, Series, Step, highest
from vmstackctl.values import ratio

Dashes = Literal["solid"] | tuple[float, tuple[float, ...]]
Line = list[float | None]
"""A value for each step; None where it is not known."""

MOST_GROUPS = 8
FREE, UNKNOWN = "#ffffff", "#d4d4d4"
"""CPUs of no level, and those of which nobody has recorded whose they were."""
COLOURS = ("#0035b0", "#dc9306", "#2d9c65", "#937aa2", "#2598ff", "#9a2200", "#220d4e")
REST_COLOUR = "#3d3d3d"
"""Chosen so that any two, and the two above, are far from each other for every kind of eyes."""
_DASHES: tuple[Dashes, ...] = (
    "solid",
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (8, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (8, 2, 1.5, 2, 1.5, 2)),
    (0, (12, 3)),
    (0, (1, 3)),
)


class Group(msgspec.Struct, frozen=True):
    """One level, or the rest of them. dashes: how its lines are drawn."""

    label: str
    levels: frozenset[int]
    colour: str
    dashes: Dashes

    def known(self, step: Step) -> list[LevelStep]:
        """What the levels of this group did in a step; empty where there were none."""
        return [found for level, found in step.levels.items() if level in self.levels]


def groups(series: Series) -> list[Group]:
    """Ascending by level. Of many levels, the largest by their CPUs each, then one for all others."""
    shown = list(series.summaries)
    if len(shown) > MOST_GROUPS:
        largest = sorted(shown, key=lambda summary: (-summary.cpu_samples, summary.level))[: MOST_GROUPS - 1]
        shown = sorted(largest, key=lambda summary: summary.level)
    levels = [summary.level for summary in shown]
    found = [
        Group(label=ratio(level), levels=frozenset([level]), colour=colour, dashes=dashes)
        for level, colour, dashes in zip(levels, (*COLOURS, REST_COLOUR), _DASHES, strict=False)
    ]
    rest = frozenset(summary.level for summary in series.summaries) - set(levels)
    if rest:
        found.append(Group(label="other levels", levels=rest, colour=REST_COLOUR, dashes=_DASHES[-1]))
    return found


def total(series: Series, group: Group, value: Callable[[LevelStep], float | None]) -> Line:
    """The sum over the levels of a group, 0 where it has none."""
    return [_sum([value(level) for level in group.known(step)]) for step in series.steps]


def peak(series: Series, group: Group, value: Callable[[LevelStep], float | None]) -> Line:
    """The highest among the levels of a group."""
    return [highest(value(level) for level in group.known(step)) for step in series.steps]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def labels(found: Iterable[Group]) -> str:
    """As words for somebody who does not see a picture: "1:1, 2:1 and 3:1"."""
    *first, last = [group.label for group in found]
    return f"{', '.join(first)} and {last}" if first else last
