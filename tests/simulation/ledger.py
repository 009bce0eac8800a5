"""What users know of their VMs from what they were told: there, gone, or neither."""

from __future__ import annotations

from enum import Enum


class Known(Enum):
    """THERE: acknowledged, so it must exist. GONE: it must not. UNCLEAR: nobody was told, so it may be either."""

    THERE = "there"
    GONE = "gone"
    UNCLEAR = "unclear"


class Entry:
    """One name. asked: orders about it that are not answered. ended: its process has died, by itself or with its host.

    size: vCPUs and MiB as acknowledged, and level, where that is certain.
    """

    def __init__(self) -> None:
        self.known = Known.GONE
        self.asked = 0
        self.overlapped = False
        self.ended = False
        self.died_since = False
        """Since the order that is being answered was given."""
        self.size: tuple[int, int] | None = None
        self.level: int | None = None
        self.erased = False
        """Whether its metadata were lost since the last order."""


class Ledger:
    """By name. What is known of one is certain only if nobody else asked something about it meanwhile."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def begin(self, name: str) -> Known:
        """Somebody orders something; returns what was known before."""
        entry = self.entries.setdefault(name, Entry())
        before = entry.known
        entry.asked += 1
        entry.died_since = entry.erased = False
        entry.overlapped |= entry.asked > 1
        entry.known = Known.UNCLEAR
        return before

    def end(self, name: str, told: Known, *, new: bool = False) -> None:
        """The order was answered, or never will be. new: the VM is another one than before."""
        entry = self.entries[name]
        entry.asked -= 1
        if not entry.overlapped:
            entry.known = told
            if new:
                entry.ended = entry.died_since
        if not entry.asked:
            entry.overlapped = False

    def sized(self, name: str, vcpus: int, memory_mib: int, level: int) -> None:
        """What was acknowledged, if nobody else has asked something about it meanwhile."""
        entry = self.entries[name]
        certain = not entry.overlapped
        entry.size = (vcpus, memory_mib) if certain else None
        entry.level = level if certain and not entry.erased else None

    def erased(self, name: str) -> None:
        """Its metadata are lost, and with them its level, should its daemon die now."""
        entry = self.entries[name]
        entry.level, entry.erased = None, True

    def appeared(self, name: str) -> None:
        """Somebody else has started a VM."""
        entry = self.entries[name] = Entry()
        entry.known = Known.THERE

    def died(self, name: str) -> None:
        """Its process has ended, and nobody of ours has ended it."""
        self.entries[name].ended = self.entries[name].died_since = True

    def settled(self, known: Known) -> list[str]:
        """Names of which this is known for certain, in the order in which they came."""
        return [name for name, entry in self.entries.items() if entry.known is known and not entry.asked]
