"""Who is there at which moment, and how much of what is sold then."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.course import Course, by_level, departures
from core.workload import WorkloadVm
from tests.core.workloads import vm, workloads


def there(vms: tuple[WorkloadVm, ...], time: float) -> list[WorkloadVm]:
    """At a moment when all of its VMs have arrived, and none of it has left."""
    return [one for one in vms if one.arrival <= time <= one.departure]


@given(workloads(levels=(1000, 1500, 3000, 3300)))
def test_moments_tell_what_is_sold(vms: tuple[WorkloadVm, ...]) -> None:
    course = Course(vms)
    assert [moment.time for moment in course.moments] == sorted({one.arrival for one in vms})
    for moment in course.moments:
        present = there(vms, moment.time)
        assert moment.arrived == sum(one.arrival <= moment.time for one in vms)
        assert moment.vms == len(present)
        assert moment.memory_mib == sum(one.memory_mib for one in present)
        cpus = sum((Fraction(one.vcpus * 1000, one.level) for one in present), Fraction())
        assert Fraction(moment.cpu_parts, course.parts) == cpus


@given(workloads(), st.integers(1, 50), st.integers(1, 50))
def test_the_peak_is_the_first_moment_of_the_largest_share(
    vms: tuple[WorkloadVm, ...], cpus: int, memory_mib: int
) -> None:
    course = Course(vms)
    shares = [
        max(Fraction(moment.cpu_parts, course.parts * cpus), Fraction(moment.memory_mib, memory_mib))
        for moment in course.moments
    ]
    assert course.peak(cpus, memory_mib) is course.moments[shares.index(max(shares))]


def test_without_vms_there_is_no_peak() -> None:
    course = Course([])
    assert (course.moments, course.leaving, course.peak(1, 1)) == ((), [], None)


def test_who_leaves_first_and_who_stays() -> None:
    vms = [vm(0, 0, 9), vm(1, 0), vm(2, 1, 4), vm(3, 2, 9), vm(4, 3, 4)]
    assert departures(vms) == [2, 4, 0, 3]


@given(workloads())
def test_levels_apart_are_the_workload(vms: tuple[WorkloadVm, ...]) -> None:
    apart = by_level(vms)
    assert list(apart) == sorted({one.level for one in vms})
    for level, course in apart.items():
        assert course.vms == tuple(one for one in vms if one.level == level)


@pytest.mark.parametrize("vms", [[vm(0, 5), vm(1, 4)], [vm(0, 5, 4)], [vm(0, math.nan)]])
def test_times_that_cannot_be_are_a_value_error(vms: list[WorkloadVm]) -> None:
    with pytest.raises(ValueError, match="arrives"):
        Course(vms)
