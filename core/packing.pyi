from collections.abc import Sequence

from core.demand import Demand
from core.host_policy.base import HostPolicy
from core.status import HostStatus
from core.workload import Accounting, WorkloadVm

ACCOUNTINGS: tuple[Accounting, ...]
PAPER_LEVELS: tuple[int, ...]

class Events:
    def __init__(self, vms: Sequence[WorkloadVm]) -> None: ...
    def __len__(self) -> int: ...

class Packing:
    demand: Demand
    def __init__(
        self,
        servers: Sequence[tuple[int, int]],
        policy: HostPolicy,
        *,
        critical_size: int = 2,
        accounting: Accounting = "host",
    ) -> None: ...
    def __len__(self) -> int: ...
    def run(self, events: Events) -> int: ...
    def place(self, level: int, vcpus: int, memory_mib: int) -> int: ...
    def remove(self, server: int, level: int, vcpus: int, memory_mib: int) -> None: ...
    def status(self, server: int) -> HostStatus: ...
    def used(self) -> tuple[int, int, dict[int, tuple[int, int]]]: ...
