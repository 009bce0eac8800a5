"""All workloads of a folder, and what can be said of many together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from vmstackctl.plan.sized import Row
from vmstackctl.plan.source import WorkloadError

ENDINGS = (".csv", ".csv.gz", ".properties")


class Means(msgspec.Struct, frozen=True):
    """Of the workloads for which a policy has every figure; workloads: how many these are, of how many in all.

    saved_percent and gap_percent are means over workloads, the rest are sums.
    """

    policy: str
    workloads: int
    of: int
    servers: int
    dedicated: int
    lower_bound: int
    saved_percent: float
    gap_percent: float


def files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a folder that are called as workloads are, by name; and the names of the others, pipes and the like.

    Raises WorkloadError.
    """
    try:
        found = sorted(path for path in folder.iterdir() if not path.is_dir())
        regular = {path for path in found if path.is_file() or not path.exists()}  # a link to nothing is told as such
    except OSError as error:
        raise WorkloadError(f"{folder}: cannot be read: {error.strerror}; --sweep takes a folder") from error
    files = [path for path in found if path.name.endswith(ENDINGS) and path in regular]
    if not files:
        raise WorkloadError(f"{folder}: holds no workload; they are files called *{', *'.join(ENDINGS)}")
    return files, [path.name for path in found if path not in files]


def means(rows: Iterable[Row]) -> list[Means]:
    """One for each policy that has every figure for at least one workload."""
    policies: dict[str, list[Row]] = {}
    for row in rows:
        policies.setdefault(row.policy, []).append(row)
    return [found for policy, of in policies.items() if (found := _means(policy, of)) is not None]


def _means(policy: str, rows: list[Row]) -> Means | None:
    saved = [row.saved_percent for row in rows if row.saved_percent is not None]
    gaps = [row.gap_percent for row in rows if row.saved_percent is not None and row.gap_percent is not None]
    full = [row for row in rows if row.saved_percent is not None]
    if not full:
        return None
    return Means(
        policy=policy,
        workloads=len(full),
        of=len(rows),
        servers=sum(row.servers or 0 for row in full),
        dedicated=sum(row.dedicated or 0 for row in full),
        lower_bound=sum(row.lower_bound or 0 for row in full),
        saved_percent=sum(saved) / len(saved),
        gap_percent=sum(gaps) / len(gaps),
    )
