from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.allocator import empty_state
from core.model import Rules
from core.topology import Topology
from core.usage import Counters, VmCounters, usage
from tests.faulty import outsider
from vmstackd.hypervisor.base import Measured, ObservedVm
from vmstackd.hypervisor.sim_load import SimLoad, wanted_cpus
from vmstackd.topology_source import load_topology

NAMES = [f"vm{number}" for number in range(200)]
HOUR_S = 3600


def topology(text: str = "sockets=2,cores=4,smt=2,memory=65536") -> Topology:
    return load_topology(f"synthetic:{text}")


def counted(measured: Measured) -> Counters:
    assert measured.host is not None
    return Counters(at=measured.at, host=measured.host, vms=measured.vms)


@given(st.text(max_size=40), st.integers(1, 512), st.floats(0, 1e7))
def test_a_vm_wants_no_more_than_it_has(name: str, vcpus: int, seconds: float) -> None:
    assert 0 <= wanted_cpus(name, vcpus, seconds) <= vcpus


def test_every_process_makes_up_the_same() -> None:
    code = (
        "from vmstackd.hypervisor.sim_load import wanted_cpus\n"
        "print([wanted_cpus(f'vm{number}', 4, 77.5) for number in range(9)])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{[wanted_cpus(f'vm{number}', 4, 77.5) for number in range(9)]}\n"}


def test_some_are_lazy_some_busy_and_some_change() -> None:
    loads = {name: [wanted_cpus(name, 1, minute * 60) for minute in range(120)] for name in NAMES}
    lazy = [name for name, load in loads.items() if max(load) < 0.2]
    busy = [name for name, load in loads.items() if min(load) > 0.7]
    changing = [name for name, load in loads.items() if max(load) - min(load) > 0.7]
    assert min(len(lazy), len(busy), len(changing)) >= len(NAMES) / 20
    # They do not all swing together.
    mean = [sum(load[minute] for load in loads.values()) / len(NAMES) for minute in range(120)]
    assert 0.1 < min(mean) < max(mean) < 0.6


@st.composite
def groups(draw: st.DrawFn) -> list[ObservedVm]:
    """VMs of some sets that have no CPU in common."""
    count = draw(st.integers(1, 12))
    sets = [frozenset({0}), frozenset({1, 2, 3}), frozenset(range(4, 16))]
    return [
        outsider(f"vm{draw(st.integers(0, 60))}-{number}", draw(st.integers(1, 8)), draw(st.sampled_from(sets)))
        for number in range(count)
    ]


@given(groups(), st.lists(st.floats(0.5, 600), min_size=1, max_size=4))
def test_no_cpu_time_comes_from_nowhere(vms: list[ObservedVm], pauses: list[float]) -> None:
    load, now = SimLoad(topology()), 1000.0
    before = load.measure(now, vms)
    for pause in pauses:
        now += pause
        after = load.measure(now, vms)
        assert before.host is not None
        assert after.host is not None
        assert after.host.at == after.at == now
        for pinned in {vm.pinned for vm in vms}:
            busy = sum(after.host.cpus[cpu] - before.host.cpus[cpu] for cpu in pinned)
            of_vms = [vm for vm in vms if vm.pinned == pinned]
            used = {vm.name: _since(before, after, vm.name) for vm in of_vms}
            assert busy == pytest.approx(sum(cpu_s for cpu_s, _ in used.values()))
            assert busy <= len(pinned) * pause * (1 + 1e-9)
            waited = sum(delay_s for _, delay_s in used.values())
            # Whoever waits waits because no CPU of the set is idle.
            assert waited == pytest.approx(0, abs=1e-6) or busy == pytest.approx(len(pinned) * pause)
            for vm in of_vms:
                cpu_s, delay_s = used[vm.name]
                wanted = wanted_cpus(vm.name, vm.vcpus, now - pause / 2) * pause
                assert cpu_s + delay_s == pytest.approx(wanted, abs=1e-6)
                assert delay_s >= -1e-9
        before = after


def _since(before: Measured, after: Measured, name: str) -> tuple[float, float]:
    old, new = before.vms[name], after.vms[name]
    assert None not in {old.cpu_s, new.cpu_s, old.delay_s, new.delay_s}
    return (new.cpu_s or 0) - (old.cpu_s or 0), (new.delay_s or 0) - (old.delay_s or 0)


def test_equals_get_equal_parts_and_the_modest_all_they_want() -> None:
    busy = [name for name in NAMES if min(wanted_cpus(name, 1, minute * 60) for minute in range(60)) > 0.7][:2]
    lazy = next(name for name in NAMES if max(wanted_cpus(name, 1, minute * 60) for minute in range(60)) < 0.2)
    vms = [outsider(name, 1, (0,)) for name in (*busy, lazy)]
    load = SimLoad(None)
    before, after = load.measure(0, vms), load.measure(60, vms)
    used = {vm.name: _since(before, after, vm.name) for vm in vms}
    assert used[lazy][1] == 0
    assert used[busy[0]][0] == pytest.approx(used[busy[1]][0]) == pytest.approx((60 - used[lazy][0]) / 2)
    assert used[busy[0]][1] > 10


def test_the_host_that_it_was_told_of() -> None:
    state = empty_state(topology(), Rules(), 0)
    load = SimLoad(state.topology)
    first, second = load.measure(5, []), load.measure(20, [])
    found = usage(counted(first), counted(second), state, 0).host
    assert (found.busy_cpus, found.seconds) == (0, 15)
    assert (found.memory_mib, found.used_mib) == (65536, 0)
    assert [(node.node, node.memory_mib, node.used_mib) for node in found.nodes] == [(0, 32768, 0), (1, 32768, 0)]


def test_without_a_host_the_kernel_tells_of_it() -> None:
    measured = SimLoad(None).measure(5, [outsider("a", 1, (0,))])
    assert measured.host is None
    assert measured.vms == {"a": VmCounters("uuid-a", 0.0, 0.0, measured.vms["a"].resident_mib)}


def test_memory_fills_up_where_the_vm_may_run() -> None:
    told = topology()
    first_node = frozenset(cpu.id for cpu in told.cpus if cpu.node == 0)
    vms = [outsider("low", 1, first_node), outsider("wide", 1, range(16), memory_mib=4096)]
    load = SimLoad(told)
    seen = [load.measure(now, vms) for now in (0, 60, 3600)]
    resident = [[measured.vms[name].resident_mib or 0 for measured in seen] for name in ("low", "wide")]
    for growing, memory_mib in zip(resident, (1024, 4096), strict=True):
        assert 0 < growing[0] < growing[1] < growing[2] < memory_mib
    host = seen[2].host
    assert host is not None
    assert host.used_mib == resident[0][2] + resident[1][2]
    assert [node.used_mib for node in host.nodes] == [resident[0][2] + resident[1][2] // 2, resident[1][2] // 2]


def test_memory_that_is_sold_twice_is_not_used_twice() -> None:
    load = SimLoad(topology("cores=2,memory=1024"))
    vms = [outsider(name, 1, (0,)) for name in NAMES]
    load.measure(0, vms)
    host = load.measure(HOUR_S, vms).host
    assert host is not None
    assert (host.used_mib, host.nodes[0].used_mib) == (1024, 1024)


def test_a_new_life_of_a_vm_counts_from_the_start() -> None:
    load, vm = SimLoad(None), outsider("vm7", 2, (0, 1))
    load.measure(0, [vm])
    grown = load.measure(HOUR_S, [vm]).vms["vm7"]
    again = load.measure(HOUR_S, [msgspec.structs.replace(vm, uuid="other")]).vms["vm7"]
    assert (grown.cpu_s or 0) > 0
    assert (again.uuid, again.cpu_s) == ("other", 0)
    assert load.measure(HOUR_S + 9, []).vms == {}
    assert load.measure(HOUR_S + 9, [msgspec.structs.replace(vm, running=False)]).vms == {}
    assert load.measure(HOUR_S + 9, [vm]).vms["vm7"].cpu_s == 0


def test_a_vm_without_cpus_waits() -> None:
    load, vm = SimLoad(topology()), outsider("vm7", 2, ())
    load.measure(0, [vm])
    after = load.measure(60, [vm])
    assert after.host is not None
    assert after.vms["vm7"].cpu_s == 0
    assert after.vms["vm7"].delay_s == pytest.approx(60 * wanted_cpus("vm7", 2, 30))
    assert set(after.host.cpus.values()) == {0}
