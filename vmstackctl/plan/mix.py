"""What share of the VMs is sold at which level, and workloads that are sold so."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from core.workload import Workload, WorkloadVm
from vmstackctl.values import number, parse_ratio, printable, ratio

CHUNK = 100
"""VMs within which the shares hold."""

Mix = tuple[tuple[int, int], ...]
"""Levels, each with its share in thousandths of a percent, above 0; the shares are 100 % in all."""

_WHOLE = 100_000
_SHARE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3})?")
_EXAMPLE = "write levels with their shares in percent, as 1=50,3=50"


def parse_mix(text: str) -> Mix:
    """Read "1=50,3=50"; a level without any share is forgotten. Raises ValueError with what is allowed."""
    shares: dict[int, int] = {}
    for part in text.split(","):
        level_text, equals, share_text = part.partition("=")
        if not equals:
            raise ValueError(f"{printable(part[:40])!r} is no level with a share; {_EXAMPLE}")
        level = parse_ratio(level_text)
        if level in shares:
            raise ValueError(f"level {ratio(level)} is there twice; {_EXAMPLE}")
        if _SHARE.fullmatch(share_text.strip()) is None:
            found = printable(share_text[:40])
            raise ValueError(f"{found!r} is no share from 0 to 100 with at most 3 decimals; {_EXAMPLE}")
        shares[level] = int(Fraction(share_text.strip()) * 1000)
    total = sum(shares.values())
    if total != _WHOLE:
        raise ValueError(f"the shares are {number(total)} % in all, not 100; {_EXAMPLE}")
    return tuple((level, share) for level, share in shares.items() if share)


def relevel(workload: Workload, mix: Mix, seed: int) -> Workload:
    """The workload with other levels, shuffled so that they do not depend on sizes; the same for the same seed.

    The shares hold for every CHUNK of VMs in the order in which they are asked for, as far as they can; what is left
    over is made good by the next one.
    """
    shuffle = random.Random(seed).shuffle  # noqa: S311  nothing is secret here
    vms: list[WorkloadVm] = []
    owed = [0] * len(mix)
    for start in range(0, len(workload.vms), CHUNK):
        chunk = workload.vms[start : start + CHUNK]
        levels = _shared_out(mix, len(chunk), owed)
        shuffle(levels)
        vms += [
            WorkloadVm(vm.name, level, vm.vcpus, vm.memory_mib, vm.arrival, vm.departure)
            for vm, level in zip(chunk, levels, strict=True)
        ]
    return Workload(tuple(vms), workload.notes)


def _shared_out(mix: Mix, vms: int, owed: list[int]) -> list[int]:
    """Levels for so many VMs, by largest remainder. owed: of each level before and after, in VMs times _WHOLE."""
    levels: list[int] = []
    for place, (_, share) in enumerate(mix):
        owed[place] += share * vms
    for _ in range(vms):
        place = max(range(len(mix)), key=owed.__getitem__)  # of equals, the first
        owed[place] -= _WHOLE
        levels.append(mix[place][0])
    return levels
