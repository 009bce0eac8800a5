"""Hosts and states for tests of core, by formula and at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product

from hypothesis import strategies as st

from core.allocator import empty_state, free_cpus, plan_deploy, plan_remove, restore
from core.level import UNIT
from core.model import HostState, Plan, Refusal, Rules, Vm
from core.policy import POLICIES
from core.topology import NO_CACHE, Cpu, Topology
from tests.oracle import Oracle, host_of

REFERENCE = POLICIES["reference"]
LEVELS = (1000, 1100, 1200, 1500, 2000, 2800, 3000, 3300)


def build(
    sockets: int = 1,
    nodes: int = 1,
    l3: int = 1,
    cores: int = 4,
    smt: int = 2,
    *,
    memory: int = 65536,
    distances: Sequence[Sequence[int]] | None = None,
    ids: Sequence[int] | None = None,
    without_l3: frozenset[int] = frozenset(),
) -> Topology:
    """A regular host: l3 caches per node, cores per L3; CPU n and n + all cores are siblings.

    distances: between all nodes, 10 and 32 if not given. ids: kernel ids in list order. without_l3:
    cores that have no L3, as some efficiency cores.
    """
    places = list(product(range(sockets), range(nodes), range(l3), range(cores)))
    count = sockets * nodes
    cpus = []
    for thread, (core, (socket, node, cache, _)) in product(range(smt), enumerate(places)):
        position = thread * len(places) + core
        home = socket * nodes + node
        outer = NO_CACHE if core in without_l3 else home * l3 + cache
        cpus.append(
            Cpu(
                id=position if ids is None else ids[position],
                package=socket,
                node=home,
                core=core,
                caches=(core, core, core, outer),
            )
        )
    return Topology(
        name="built",
        cpus=cpus,
        cache_names=["L1d", "L1i", "L2", "L3"],
        nodes=range(count),
        node_distances=distances or [[10 if a == b else 32 for b in range(count)] for a in range(count)],
        memory_mib=memory,
        host_cpus=max(cpu.id for cpu in cpus) + 1,
    )


def epyc() -> Topology:
    """An EPYC 7662 with two sockets: 256 CPUs, 8 per L3."""
    return build(sockets=2, l3=16, memory=1031752)


def i7() -> Topology:
    """An i7-1185G7: 4 cores, 8 CPUs, one L3."""
    return build(memory=31776)


def empty(topology: Topology, critical_size: int = 0, critical_sizes: Mapping[int, int] | None = None) -> HostState:
    return empty_state(topology, Rules(critical_size, critical_sizes or {}))


def deploy(state: HostState, name: str, vcpus: int, level: int, memory: int = 1) -> HostState:
    """The state after a deployment that must succeed."""
    plan = plan_deploy(state, Vm(name, vcpus, memory, level), REFERENCE)
    assert isinstance(plan, Plan), plan
    return plan.state


def filled(state: HostState, prefix: str, count: int, vcpus: int, level: int) -> HostState:
    for number in range(count):
        state = deploy(state, f"{prefix}{number}", vcpus, level)
    return state


def restored(state: HostState, level: int, cpus: int, widths: list[int]) -> HostState:
    """One level with so many CPUs, the first ones, and VMs of these widths."""
    vms = [Vm(f"vm{number}", width, 1, level) for number, width in enumerate(widths)]
    return restore(state, level, range(cpus), vms)


def refused(state: HostState, name: str, vcpus: int, level: int, memory: int = 1) -> Refusal:
    answer = plan_deploy(state, Vm(name, vcpus, memory, level), REFERENCE)
    assert isinstance(answer, Refusal)
    return answer


def remove(state: HostState, name: str) -> HostState:
    """The state after a removal whose CPUs are free at once."""
    plan = plan_remove(state, name, REFERENCE)
    return free_cpus(plan.state, plan.released)


def facts(state: HostState) -> object:
    """All that a state says, comparable; without the count of decisions."""
    return (
        [
            (subset.level, subset.cpus, list(subset.vms.items()), subset.vcpus, subset.widths, subset.sums)
            for subset in state.subsets
        ],
        state.free.ids(),
        state.held,
        state.memory_mib,
        state.allocated_mib,
        state.held_mib,
    )


def oracle_of(state: HostState) -> Oracle:
    """An oracle of an empty host with the same rules."""
    rules = state.rules
    exceptions = {Fraction(level, UNIT): size for level, size in rules.critical_sizes.items()}
    return Oracle(host_of(state.topology, state.memory_mib), rules.critical_size, exceptions)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Small hosts of every shape: id holes, odd list orders, lopsided NUMA distances, cores without L3."""
    sockets, nodes, l3, smt = (draw(st.integers(1, 2)) for _ in range(4))
    cores = draw(st.integers(1, 3))
    count = sockets * nodes
    total = count * l3 * cores * smt
    ids = list(range(total))
    if draw(st.booleans()):
        gaps = draw(st.lists(st.integers(1, 9), min_size=total, max_size=total))
        ids = [sum(gaps[: place + 1]) for place in range(total)]
    if draw(st.booleans()):
        ids = draw(st.permutations(ids))
    distance = st.integers(10, 40)
    rows = [[10 if a == b else draw(distance) for b in range(count)] for a in range(count)]
    without = draw(st.frozensets(st.integers(0, count * l3 * cores - 1), max_size=3))
    return build(
        sockets, nodes, l3, cores, smt, memory=draw(st.integers(1, 60)), distances=rows, ids=ids, without_l3=without
    )


def rules() -> st.SearchStrategy[Rules]:
    return st.builds(
        Rules,
        critical_size=st.integers(0, 4),
        critical_sizes=st.dictionaries(st.sampled_from(LEVELS), st.integers(0, 3), max_size=2),
    )


def states() -> st.SearchStrategy[HostState]:
    """Empty hosts."""
    return st.builds(empty_state, topologies(), rules())
