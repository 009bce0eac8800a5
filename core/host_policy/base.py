"""What a host policy must be able to decide."""

from __future__ import annotations

from typing import Protocol

from core.demand import Market
from core.status import HostStatus


class HostPolicy(Protocol):
    """How good a host is for a VM that fits on it. Pure: same arguments, same score.

    kernel: a key of ``core.inventory.KERNELS``, the compiled evaluation that gives the very same score; None if
    there is none, then ``score`` itself is asked for every host, which is slow and right. A plan needs one.
    """

    name: str
    kernel: str | None

    def score(self, status: HostStatus, level: int, vcpus: int, memory_mib: int, market: Market | None) -> float:
        """A finite number; the host with the highest gets the VM, of equals the first in the order of hosts.

        market: what arrivals have taught so far; None before the first.
        """
