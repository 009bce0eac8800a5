from collections.abc import Iterable

from core.demand import Market

SHARPNESS: int
FRAGMENTATION: float
PACKING: float

class Worth:
    def __init__(self, market: Market | None) -> None: ...
    def of(self, free_cpus: float, free_mib: int, refused: Iterable[int] = ()) -> float: ...
