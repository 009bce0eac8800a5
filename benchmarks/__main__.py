"""Runs benchmarks and prints their tables: python -m benchmarks [NAME...]."""

from __future__ import annotations

import importlib
import os
import sys

BENCHMARKS = (
    "decisions",
    "choice",
    "capacity",
    "packing",
    "daemon",
    "sampling",
    "replay",
    "transports",
    "cluster",
    "overhead",
)
"""What can be measured, in the order it is run; a new benchmark is one module with a ``main``, and its name here."""


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, all of them without a name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    # libvirt reads it when it is loaded, and else warns of every VM in the middle of the tables. 4 = errors only.
    os.environ.setdefault("LIBVIRT_DEBUG", "4")
    for name in names or BENCHMARKS:
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
