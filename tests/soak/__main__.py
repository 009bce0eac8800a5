"""Runs a cluster for a long time and says whether it stayed flat: ``python -m tests.soak --minutes 30``."""

from __future__ import annotations

import argparse
import sys

from tests.soak.running import soak
from tests.soak.verdict import Limits, judge, table

MOST_SHOWN = 20


def main() -> int:
    """The exit code: 0 if all was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    seconds = parser.parse_args().minutes * 60
    soaked = soak(seconds, lambda text: print(text, file=sys.stderr, flush=True))
    rows = judge(soaked.run, Limits())
    print(f"\n{seconds / 60:g} minutes, {len(soaked.run.moments)} samples, {len(soaked.run.calls)} calls\n")
    for what, count in sorted(soaked.done.items()):
        print(f"  {count:10}  {what}")
    print(f"\n{table(rows)}\n")
    for text in soaked.wrong[:MOST_SHOWN]:
        print(f"WRONG: {text[:500]}")
    bad = len(soaked.wrong) + sum(not row.good for row in rows)
    print(f"{len(soaked.wrong)} wrong; " + ("flat" if not bad else "NOT as it should be"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
