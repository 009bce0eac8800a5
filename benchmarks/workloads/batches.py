"""The sizes of VMs that two clouds sell, as the published experiment draws them: vCPUs, MiB, and how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

Size = tuple[int, int]
"""vCPUs and MiB."""


class Batches(msgspec.Struct, frozen=True):
    """Sizes of a dataset with how many VMs have them, smallest first, which is the order in which VMs are numbered.

    first: the VMs of the beginning; daily: those of each of the following days.
    """

    first: tuple[tuple[Size, int], ...]
    daily: tuple[tuple[Size, int], ...]


DATASETS: Mapping[str, Batches] = {
    "azure2017": Batches(
        first=(
            ((1, 768), 20),
            ((1, 1792), 235),
            ((2, 3584), 125),
            ((4, 7168), 80),
            ((4, 14336), 5),
            ((8, 14336), 25),
            ((8, 57344), 10),
        ),
        daily=(
            ((1, 768), 8),
            ((1, 1792), 94),
            ((1, 3584), 1),
            ((2, 3584), 49),
            ((2, 7168), 1),
            ((4, 7168), 31),
            ((4, 14336), 3),
            ((8, 14336), 9),
            ((8, 57344), 5),
        ),
    ),
    "ovhcloud2023": Batches(
        first=(
            ((1, 2048), 50),
            ((2, 4096), 105),
            ((2, 7168), 135),
            ((4, 8192), 70),
            ((4, 15360), 100),
            ((8, 30720), 25),
            ((16, 61440), 15),
        ),
        daily=(
            ((1, 2048), 20),
            ((2, 4096), 42),
            ((2, 7168), 55),
            ((4, 8192), 28),
            ((4, 15360), 40),
            ((4, 30720), 1),
            ((8, 30720), 9),
            ((8, 61440), 1),
            ((16, 61440), 6),
        ),
    ),
}


def sizes_of(batch: Sequence[tuple[Size, int]]) -> list[Size]:
    """One for each VM, smallest first."""
    return [size for size, count in batch for _ in range(count)]
