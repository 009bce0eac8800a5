"""Runs benchmarks and prints their tables: python -m benchmarks [NAME...]."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import daemon, decisions, overhead

BENCHMARKS: dict[str, Callable[[], None]] = {
    "decisions": decisions.main,
    "daemon": daemon.main,
    "overhead": overhead.main,
}
"""What can be measured, in the order it is run; a new benchmark is one module and one line."""


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, all of them without a name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
