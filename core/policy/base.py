"""What a policy must be able to decide."""

from __future__ import annotations

from typing import Protocol

from core.model import HostState, Subset


class Policy(Protocol):
    """A choice of CPUs. All methods are pure: same arguments, same answer, in attribution order."""

    name: str

    def create(self, state: HostState, count: int) -> tuple[int, ...]:
        """``count`` free CPUs for a level that has none; at least count are free, count >= 1."""

    def grow(self, state: HostState, subset: Subset, count: int) -> tuple[int, ...]:
        """``count`` free CPUs to add to a subset; at least count are free, count >= 1."""

    def after_removal(self, state: HostState, subset: Subset) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(CPUs to take, CPUs to give up) for a subset that a VM has just left and others remain in.

        subset is as after the removal, state as before it. A policy that owes CPUs to the remaining
        VMs may take free ones here (DESIGN, critical size); it never gives up CPUs that are needed.
        """
