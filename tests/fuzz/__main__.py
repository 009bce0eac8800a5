"""Fuzz every target, two at a time, and say what came of it: ``python -m tests.fuzz [--runs N] [TARGET ...]``."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import http_description
from tests.fuzz.http_description import EXAMPLES
from tests.fuzz.running import Outcome, fuzz, learn, repeat
from tests.fuzz.target import TARGETS

AT_ONCE = 2
HTTP = "http"
"""The target that needs daemons, see ``http_description``."""
FINDINGS = Path("results/fuzz")
"""Where inputs that found something are kept, below the folder that this is started in."""

_COLUMNS = ("target", "inputs", "seconds", "inputs/s", "coverage", "features", "corpus", "peak MiB", "found")
_ROW = "{:<17} {:>9} {:>8} {:>9} {:>9} {:>9} {:>7} {:>9} {:>6}"


def main() -> int:
    """The exit code: 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="fuzz what decodes")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all of them: {', '.join((*TARGETS, HTTP))}")
    parser.add_argument("--runs", type=int, help="inputs for each target; if not given, as many as the target says")
    parser.add_argument("--seed", type=int, default=0, help="of the first inputs; 0: another one each time")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="only decode this input, with the one target named")
    parser.add_argument("--learn", action="store_true", help="keep in the corpora what led somewhere new")
    arguments = parser.parse_args()
    chosen = arguments.targets or [*TARGETS, HTTP]
    if arguments.repeat:
        return repeat(chosen[0], arguments.repeat)
    print(_ROW.format(*_COLUMNS), flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [
            pool.submit(_run, name, arguments.runs, arguments.seed, arguments.learn) for name in chosen if name != HTTP
        ]
        outcomes = [_told(future.result()) for future in waiting]
    if HTTP in chosen:
        outcomes.append(_told(http_description.run(arguments.seed, _examples(arguments.runs))))
    total, found = sum(one.inputs for one in outcomes), [one for one in outcomes if one.found]
    print(f"{total:,} inputs, {len(found)} targets with findings", flush=True)
    for one in found:
        print(f"\n{one.name}: {one.found}\n{one.report}\nonce more: {one.command}", file=sys.stderr, flush=True)
    return 1 if found else 0


def _run(name: str, runs: int | None, seed: int, keep: bool) -> Outcome:
    outcome = fuzz(name, runs, seed, FINDINGS, keep=keep)
    if keep and not outcome.found:
        learn(name, FINDINGS)
    return outcome


def _examples(runs: int | None) -> int:
    """A request to a daemon takes a hundred times as long as an input."""
    return EXAMPLES if runs is None else max(1, min(EXAMPLES, runs // 100))


def _told(one: Outcome) -> Outcome:
    rate = one.inputs / one.seconds if one.seconds else 0
    figures = (
        f"{one.inputs:,}",
        f"{one.seconds:.0f}",
        f"{rate:,.0f}",
        one.coverage,
        one.features,
        one.corpus,
        one.peak,
    )
    print(_ROW.format(one.name, *figures, 1 if one.found else 0), flush=True)
    return one


if __name__ == "__main__":
    sys.exit(main())
