"""Writes workloads: ``python -m benchmarks.workloads DIR --seed 11``.

Without ``--variant``, the weeks of both datasets and all mixes; with it, that variant of these weeks, or of the
workloads that are given with ``--of``. ``pooled`` makes all of them one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.workloads.batches import DATASETS
from benchmarks.workloads.table import PACKED, PLAIN, file_stem, write_csv
from benchmarks.workloads.variants import VARIANTS, pooled, vary
from benchmarks.workloads.week import MIXES, generate, name_of
from core.workload import Workload
from vmstackctl.plan.source import WorkloadError, read_workload
from vmstackctl.values import count

POOLED = "pooled"


def weeks(seed: int) -> dict[str, Workload]:
    """All weeks of a seed by their names."""
    return {name_of(dataset, mix, seed): generate(dataset, mix, seed) for dataset in DATASETS for mix in MIXES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and say which seed they are of; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workloads", description="Writes workloads for vmstackctl plan.", allow_abbrev=False
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to write; made if it is not there")
    parser.add_argument("--seed", type=int, required=True, help="from which all chance follows")
    parser.add_argument("--variant", choices=[*VARIANTS, POOLED], help="what to make of the weeks")
    parser.add_argument(
        "--of", metavar="FILE", type=Path, nargs="+", help="make the variant of these workloads instead"
    )
    parser.add_argument("--plain", action="store_true", help="without gzip")
    given = parser.parse_args(arguments)
    if given.of and not given.variant:
        parser.error("--of needs --variant")
    directory, seed, variant = given.directory, given.seed, given.variant
    try:
        found = {file_stem(path): read_workload(path) for path in given.of} if given.of else weeks(seed)
        if variant == POOLED:
            found = {f"pooled_s{seed}": pooled(found)}
        elif variant:
            found = {f"{name}_{variant}-s{seed}": vary(variant, name, found[name], seed) for name in found}
        directory.mkdir(parents=True, exist_ok=True)
        for name, workload in found.items():
            write_csv(directory / (name + (PLAIN if given.plain else PACKED)), workload)
    except WorkloadError as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"{directory}: nothing written: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{directory}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    vms = sum(len(workload.vms) for workload in found.values())
    print(f"seed {seed}, {variant or 'weeks'}: {count(len(found), 'workload')} with {vms:,} VMs in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
