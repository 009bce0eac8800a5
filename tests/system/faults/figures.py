"""Figures of a run: operations, faults, what was wrong, and for how long nobody was served."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.table import aligned, median
from tests.system.faults.book import KINDS

DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"


class Figures:
    """clock: seconds. wrong: kind and words of what must not be.

    audits: seconds of each until all was as it must be, and what was waited for last.
    hit: what has not served anybody since a fault: kind of the fault, host, moment.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.operations: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.wrong: list[tuple[str, str]] = []
        self.overlaps: list[str] = []
        self.samples = 0
        self.audits: list[tuple[float, str]] = []
        self.killed_vms = 0
        self.hit: list[tuple[str, str, float]] = []
        self.longest_gap = 0.0
        self._waiting = 0
        self._since = 0.0
        self._again: defaultdict[str, list[float]] = defaultdict(list)

    @property
    def changes(self) -> int:
        """Operations that have changed something, or may have."""
        return self.operations[DONE] + self.operations[UNKNOWN]

    @property
    def tried(self) -> int:
        """Operations that have an end."""
        return sum(self.operations.values())

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """As long as somebody wants something, it counts until somebody is served."""
        if not self._waiting:
            self._since = self._clock()
        self._waiting += 1
        try:
            yield
        finally:
            self._look()
            self._waiting -= 1

    def served(self, hosts: set[str], begun: float) -> None:
        """Somebody has got what he asked for at this moment. hosts: that took part; "" is globald."""
        self._look()
        now = self._since = self._clock()
        for kind, host, since in [hit for hit in self.hit if hit[1] in hosts and hit[2] <= begun]:
            self.hit.remove((kind, host, since))
            self._again[kind].append(now - since)

    def injected(self, kind: str, host: str) -> None:
        """Now, into a host; "" is globald."""
        self.faults[kind] += 1
        self.hit.append((kind, host, self._clock()))

    def _look(self) -> None:
        self.longest_gap = max(self.longest_gap, self._clock() - self._since)

    def good(self) -> bool:
        """Nothing was wrong, and something was done."""
        return not self.wrong and not self.overlaps and self.operations[DONE] > 0 and self.samples > 0

    def text(self) -> str:
        """All of it."""
        lines = [f"operations: {self.tried} tried, " + ", ".join(f"{self.operations[e]} {e}" for e in _ENDS), ""]
        rows = [
            [kind, str(count), *_spread(self._again[kind]), str(sum(hit[0] == kind for hit in self.hit))]
            for kind, count in self.faults.items()
        ]
        rows.append(["all", str(self.faults.total()), "", "", ""])
        header = ["fault", "injected", "next success s", "longest s", "none came"]
        lines += [aligned(header, rows), ""]
        counted = Counter(kind for kind, _ in self.wrong)
        results = [[kind, str(counted[kind])] for kind in KINDS]
        results += [
            ["overlaps seen", str(len(self.overlaps))],
            ["of samples", str(self.samples)],
            ["audits", str(len(self.audits))],
            ["longest until all was as it must be, s", f"{max(self.audits, default=(0.0, ''))[0]:.1f}"],
            ["longest unavailability, s", f"{self.longest_gap:.1f}"],
            ["VMs that faults have killed", str(self.killed_vms)],
        ]
        lines.append(aligned(["result", ""], results))
        lines += [f"waited {seconds:.1f} s: {why}" for seconds, why in sorted(self.audits)[-3:] if why]
        lines += [f"wrong: {kind}: {text}" for kind, text in self.wrong]
        lines += [f"wrong: {text}" for text in self.overlaps[:20]]
        return "\n".join(lines)


_ENDS = (DONE, REFUSED, UNKNOWN)


def _spread(seconds: list[float]) -> tuple[str, str]:
    return (f"{median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("", "")
