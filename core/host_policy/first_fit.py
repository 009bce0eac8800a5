"""The first host that takes the VM: fills hosts one after the other, and is what other policies are compared with."""

from __future__ import annotations

from core.status import HostStatus


class FirstFitPolicy:
    """See the module."""

    name = "first-fit"
    kernel: str | None = "constant"

    def score(self, status: HostStatus, level: int, vcpus: int, memory_mib: int) -> float:  # noqa: ARG002  all equal
        return 0.0
