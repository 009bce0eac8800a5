"""The VMs of a recording: when they came, when they went, and what became of those that changed."""

from __future__ import annotations

from math import inf

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from core.trace import Sample, TracedVm
from core.workload import Workload, WorkloadVm
from vmstackctl.plan.recorded import recorded_workload


def sample(time: int, *vms: TracedVm) -> Sample:
    return Sample(time=time, cpus=8, memory_mib=16384, cpu=None, memory=None, levels=(), vms=vms)


def traced(name: str, vcpus: int = 2, memory_mib: int | None = 4096, level: int = 1000, uuid: str = "") -> TracedVm:
    return TracedVm(uuid=uuid, name=name, level=level, vcpus=vcpus, memory_mib=memory_mib)


def vm(name: str, arrival: float, departure: float, vcpus: int = 2, mib: int = 4096, level: int = 1000) -> WorkloadVm:
    return WorkloadVm(name, level, vcpus, mib, arrival, departure)


def test_a_vm_comes_with_its_first_sample_and_goes_with_the_first_without_it() -> None:
    a, b, c = traced("a"), traced("b", 4, 8192, 3000), traced("c")
    found = recorded_workload([sample(0, a), sample(60, b, a), sample(120, b), sample(180, c, b)])
    assert found == Workload((vm("a", 0, 120), vm("b", 60, inf, 4, 8192, 3000), vm("c", 180, inf)))


def test_vms_are_asked_for_in_the_order_of_the_file() -> None:
    found = recorded_workload([sample(0, traced("c"), traced("a"), traced("b"))])
    assert [one.name for one in found.vms] == ["c", "a", "b"]


def test_a_vm_that_comes_back_is_a_new_one() -> None:
    found = recorded_workload([sample(0, traced("a")), sample(60), sample(120, traced("a"))])
    assert found.vms == (vm("a", 0, 60), vm("a", 120, inf))


def test_vms_are_known_by_uuid_and_by_name_where_there_is_none() -> None:
    one, other, third = traced("a", uuid="1"), traced("a", uuid="2"), traced("1")
    found = recorded_workload([sample(0, one, other, third), sample(60, other, third), sample(120, other)])
    assert found.vms == (vm("a", 0, 60), vm("a", 0, inf), vm("1", 0, 120))


def test_a_vm_that_changes_never_counts_twice_at_once() -> None:
    other = traced("b")
    found = recorded_workload(
        [sample(0, traced("a")), sample(60, traced("a")), sample(120, other, traced("a", vcpus=8)), sample(180, other)]
    )
    assert found.vms == (vm("a", 0, 60), vm("b", 120, inf), vm("a", 120, 180, vcpus=8))


def test_another_level_or_memory_is_a_change_too() -> None:
    found = recorded_workload(
        [
            sample(0, traced("a")),
            sample(60, traced("a", level=2000)),
            sample(120, traced("a", level=2000, memory_mib=1)),
        ]
    )
    assert found.vms == (vm("a", 0, 0), vm("a", 60, 60, level=2000), vm("a", 120, inf, mib=1, level=2000))


def test_a_vm_whose_memory_is_told_late_comes_when_it_is() -> None:
    untold, told = traced("a", memory_mib=None), traced("a")
    found = recorded_workload([sample(0, untold), sample(60, told), sample(120, untold), sample(180)])
    assert found == Workload((vm("a", 60, 180),))


def test_a_change_keeps_the_memory_that_was_told() -> None:
    found = recorded_workload([sample(0, traced("a")), sample(60, traced("a", vcpus=4, memory_mib=None))])
    assert found.vms == (vm("a", 0, 0), vm("a", 60, inf, vcpus=4))


def test_vms_whose_memory_is_never_told_are_left_out_with_a_note() -> None:
    a, b = traced("a", memory_mib=None), traced("b", memory_mib=None)
    assert recorded_workload([sample(0, a), sample(60)]) == Workload(
        (), ("the memory of 1 VM is never told, so it was left out",)
    )
    widened = msgspec.structs.replace(b, vcpus=4)
    assert recorded_workload([sample(0, a, b), sample(60, traced("c"), widened)]) == Workload(
        (vm("c", 60, inf),), ("the memory of 2 VMs is never told, so they were left out",)
    )


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3)), min_size=1, max_size=8))
def test_every_sample_has_each_of_its_vms_once_and_no_other_but_those_that_leave(moments: list[dict[str, int]]) -> None:
    """moments: vCPUs by name."""
    found = recorded_workload(
        [sample(number, *[traced(*one) for one in sizes.items()]) for number, sizes in enumerate(moments)]
    )
    arrivals = [one.arrival for one in found.vms]
    assert arrivals == sorted(arrivals)
    for number, sizes in enumerate(moments):
        there = [one for one in found.vms if one.arrival <= number <= one.departure]
        staying = [(one.name, one.vcpus) for one in there if one.name in sizes]
        assert sorted(staying) == sorted(sizes.items())
        leaving = [one for one in there if one.name not in sizes]
        assert all(one.departure == number for one in leaving)
        assert {one.name for one in leaving} == (moments[number - 1].keys() - sizes.keys() if number else set())
