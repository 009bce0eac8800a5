"""The prototype's choice: the host whose memory per CPU comes nearer to its hardware's (SEMANTICS 8 and 11)."""

from __future__ import annotations

from core.admission import progress_on
from core.demand import Market
from core.status import HostStatus


class ProgressPolicy:
    """See the module."""

    name = "progress"
    kernel: str | None = "progress"

    def score(
        self,
        status: HostStatus,
        level: int,
        vcpus: int,
        memory_mib: int,
        market: Market | None,  # noqa: ARG002  it learns nothing
    ) -> float:
        return progress_on(status, level, vcpus, memory_mib)
