"""The prototype's choice of CPUs, without its bugs (SEMANTICS 4.2 to 4.4).

A new level starts as far as possible from all others; a subset grows to the nearest CPU, one at a
time; it gives up its youngest CPUs. What a subset owes when it falls below the critical size is not
taken back before the next deployment at its level.
"""

from __future__ import annotations

from core.capacity import surplus
from core.distances import farthest, nearest, nearest_one_by_one
from core.model import HostState, Subset


class ReferencePolicy:
    """See the module."""

    name = "reference"

    def create(self, state: HostState, count: int) -> tuple[int, ...]:
        start = farthest(state.free, [subset.sums for subset in state.subsets])
        return (start, *nearest(state.free, start, count - 1))

    def grow(self, state: HostState, subset: Subset, count: int) -> tuple[int, ...]:
        return nearest_one_by_one(state.free, subset.sums, count)

    def after_removal(self, state: HostState, subset: Subset) -> tuple[tuple[int, ...], tuple[int, ...]]:
        count = surplus(state.rules, subset)
        return (), subset.cpus[len(subset.cpus) - count :]
