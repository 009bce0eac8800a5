"""How long one decision takes on an EPYC-7662 (256 CPUs) while it fills up and empties.

Per call, through the Python API, by quarter of filling; the plain Python oracle of the tests does the
same work once in the same run. A first repeat warms up and is not counted; then as many follow as give
SAMPLES figures per quarter, so that a p99 is not just the worst one. The garbage collector
stays on, as in the daemon; it is not run by hand between repeats, because that empties the processor's
caches and more than doubles the time of the next decision. The clock's own cost (about
0.05 us) is included. Deploy and remove are whole decisions: remove is plan_remove and free_cpus.
"""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from time import perf_counter_ns

from benchmarks.table import aligned, median, percentile
from core.allocator import empty_state, free_cpus, plan_deploy, plan_remove, progress
from core.level import UNIT, format_level
from core.model import Plan, Rules, Vm
from core.policy import POLICIES
from core.status import host_status
from core.topology import Topology
from tests.oracle import Oracle, host_of
from vmstackd.topology_source import load_topology

SAMPLES = 600
LOADS = 50
SEED = 7
CASES = [(vcpus, level) for vcpus in (1, 8) for level in (1000, 3000)]
MEMORY_MIB = 1024
RULES = Rules()
POLICY = POLICIES["reference"]
TOPOLOGY = Path(__file__).resolve().parent.parent / "topologies" / "EPYC-7662.json"
LIMITS = {"deploy": (10.0, 50.0), "remove": (10.0, 50.0), "progress": (2.0, None), "status": (20.0, None)}
"""Targets: median and p99 in microseconds."""
LOAD_LIMIT = 10_000.0

Samples = defaultdict[tuple[str, int], list[float]]
"""Microseconds by operation and quarter of filling (0 to 3)."""


def _fill(topology: Topology, vcpus: int, level: int) -> int:
    """How many such VMs an empty host takes."""
    state = empty_state(topology, RULES)
    count = 0
    while isinstance(plan := plan_deploy(state, Vm(f"vm{count}", vcpus, MEMORY_MIB, level), POLICY), Plan):
        state = plan.state
        count += 1
    return count


def _order(count: int) -> list[int]:
    order = list(range(count))
    random.Random(SEED).shuffle(order)
    return order


def _measure(topology: Topology, vcpus: int, level: int, count: int, samples: Samples) -> None:
    """Fill and empty a host once."""
    state = empty_state(topology, RULES)
    clock = perf_counter_ns
    for number in range(count):
        quarter = 4 * number // count
        vm = Vm(f"vm{number}", vcpus, MEMORY_MIB, level)
        start = clock()
        progress(state, level, vcpus, MEMORY_MIB)
        after_progress = clock()
        plan = plan_deploy(state, vm, POLICY)
        after_deploy = clock()
        assert isinstance(plan, Plan)
        state = plan.state
        before_status = clock()
        host_status(state)
        end = clock()
        samples["progress", quarter].append((after_progress - start) / 1000)
        samples["deploy", quarter].append((after_deploy - after_progress) / 1000)
        samples["status", quarter].append((end - before_status) / 1000)
    for done, number in enumerate(_order(count)):
        name = f"vm{number}"
        start = clock()
        plan = plan_remove(state, name, POLICY)
        state = free_cpus(plan.state, plan.released)
        end = clock()
        samples["remove", 4 * (count - 1 - done) // count].append((end - start) / 1000)


def _measure_oracle(topology: Topology, vcpus: int, level: int, count: int, samples: Samples) -> None:
    """The same with the oracle."""
    oracle = Oracle(host_of(topology), RULES.critical_size)
    exact = Fraction(level, UNIT)
    clock = perf_counter_ns
    for number in range(count):
        quarter = 4 * number // count
        start = clock()
        oracle.progress(exact, vcpus, MEMORY_MIB)
        after_progress = clock()
        refused = oracle.deploy(f"vm{number}", vcpus, MEMORY_MIB, exact)
        after_deploy = clock()
        oracle.figures()
        end = clock()
        assert refused is None
        samples["progress", quarter].append((after_progress - start) / 1000)
        samples["deploy", quarter].append((after_deploy - after_progress) / 1000)
        samples["status", quarter].append((end - after_deploy) / 1000)
    for done, number in enumerate(_order(count)):
        start = clock()
        oracle.remove(f"vm{number}")
        samples["remove", 4 * (count - 1 - done) // count].append((clock() - start) / 1000)


def _shown(figure: float, limit: float | None) -> str:
    """A figure, marked if it is above its target."""
    return f"{'!' if limit is not None and figure > limit else ''}{figure:.2f}"


def _rows(case: str, core: Samples, oracle: Samples) -> list[list[str]]:
    rows = []
    for quarter in range(4):
        row = [case, f"{25 * quarter}-{25 * quarter + 25} %"]
        for operation, (median_limit, p99_limit) in LIMITS.items():
            found = core[operation, quarter]
            middle = median(found)
            row.append(_shown(middle, median_limit))
            row.append(_shown(percentile(found, 99), p99_limit))
            row.append(f"{median(oracle[operation, quarter]) / middle:.0f}x")
        rows.append(row)
    return rows


def _load_row() -> str:
    """Reading the topology file and computing all distances."""
    taken = []
    for _ in range(LOADS + 1):
        start = perf_counter_ns()
        load_topology(f"file:{TOPOLOGY}")
        taken.append((perf_counter_ns() - start) / 1000)
    del taken[0]
    return (
        f"topology load with distances: median {_shown(median(taken), LOAD_LIMIT)}, "
        f"p99 {percentile(taken, 99):.2f} ({LOADS} times; target median <= {LOAD_LIMIT:.0f})"
    )


def main() -> None:
    """Measure and print."""
    topology = load_topology(f"file:{TOPOLOGY}")
    print(f"Decisions on {topology.name}, {len(topology.cpu_ids)} CPUs, policy {POLICY.name}: microseconds per call")
    print(f"At least {SAMPLES} calls per figure; '!' marks one above its target; critical size {RULES.critical_size};")
    print("oracle: how many times as long the plain Python oracle takes (medians)\n")
    rows = [["target", ""]]
    for median_limit, p99_limit in LIMITS.values():
        rows[0] += [f"<= {median_limit:.0f}", "" if p99_limit is None else f"<= {p99_limit:.0f}", ""]
    for vcpus, level in CASES:
        count = _fill(topology, vcpus, level)
        core, oracle = Samples(list), Samples(list)
        _measure(topology, vcpus, level, count, Samples(list))
        for _ in range(-(-4 * SAMPLES // count)):
            _measure(topology, vcpus, level, count, core)
        _measure_oracle(topology, vcpus, level, count, oracle)
        rows += _rows(f"{vcpus} vCPU, {format_level(level)}:1, {count} VMs", core, oracle)
    header = ["", "filled"]
    for operation in LIMITS:
        header += [operation, "p99", "oracle"]
    print(aligned(header, rows))
    print(f"\n{_load_row()}")
