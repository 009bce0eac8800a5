"""What of a cluster is used while VMs come and go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cluster_use import POINTS, Use, cluster_use
from core.course import Course
from core.host_policy import HOST_POLICIES
from core.packing import ACCOUNTINGS
from core.sizing import servers_of, smallest
from core.workload import Accounting, ServerKind, WorkloadVm
from tests.core.workloads import PlainServer, vm, workloads

FIRST_FIT = HOST_POLICIES["first-fit"]
SERVER = ServerKind(8, 16)


def plain(vms: tuple[WorkloadVm, ...], servers: int, critical_size: int, accounting: Accounting) -> list[Use]:
    """First fit, moment by moment."""
    cluster = [PlainServer(8, 16, critical_size, accounting) for _ in range(servers)]
    homes: dict[int, PlainServer] = {}
    found: list[Use] = []
    for number, one in enumerate(vms):
        for other in [other for other in homes if vms[other].departure < one.arrival]:
            gone = vms[other]
            homes.pop(other).release(gone.level, gone.vcpus, gone.memory_mib)
        homes[number] = next(server for server in cluster if server.admit(one.level, one.vcpus, one.memory_mib))
        sold: dict[int, int] = {}
        for other in homes:
            sold[vms[other].level] = sold.get(vms[other].level, 0) + vms[other].vcpus
        use = Use(
            one.arrival,
            len(homes),
            sum(server.used() for server in cluster),
            sum(server.sold_mib() for server in cluster),
            tuple(sorted(sold.items())),
        )
        found = [*(before for before in found if before.time < one.arrival), use]
    return found


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@given(vms=workloads(), critical_size=st.integers(0, 4))
@settings(max_examples=60)
def test_the_use_is_that_of_plain_servers(
    accounting: Accounting, vms: tuple[WorkloadVm, ...], critical_size: int
) -> None:
    course = Course(vms)
    number = smallest(course, [SERVER], FIRST_FIT, critical_size=critical_size, accounting=accounting)
    assert number is not None
    servers = servers_of([SERVER], number)
    use = cluster_use(course, servers, FIRST_FIT, critical_size=critical_size, accounting=accounting, over_time=True)
    assert list(use.course) == plain(vms, number, critical_size, accounting)
    assert (use.servers, use.cpus, use.memory_mib) == (number, 8 * number, 16 * number)
    peak = course.peak(use.cpus, use.memory_mib)
    assert peak is not None
    assert use.peak == use.course[course.moments.index(peak)]
    assert (use.unused_cpus, use.unused_mib) == (use.cpus - use.peak.cpus, use.memory_mib - use.peak.memory_mib)
    at_peak = cluster_use(course, servers, FIRST_FIT, critical_size=critical_size, accounting=accounting)
    assert (at_peak.peak, at_peak.course) == (use.peak, ())


@pytest.mark.parametrize(
    ("vcpus", "memory", "saturated"), [(8, 4, "cpu"), (2, 15, "memory"), (4, 8, "cpu")], ids=["cpu", "memory", "equal"]
)
def test_what_is_short(vcpus: int, memory: int, saturated: str) -> None:
    course = Course([vm(0, vcpus=vcpus, memory=memory)])
    assert cluster_use(course, [(8, 16)], FIRST_FIT).saturated == saturated


@pytest.mark.parametrize("moments", [1, POINTS, POINTS + 1, 3 * POINTS])
def test_a_long_course_is_told_in_few_points(moments: int) -> None:
    """With one VM at a time but for the moment before the last, which is the peak."""
    lives = [vm(time, time, time + 0.5) for time in range(moments)]
    lives.append(vm("late", moments - 1.5, moments - 1, vcpus=4))
    lives.sort(key=lambda one: one.arrival)
    use = cluster_use(Course(lives), [(8, 16)], FIRST_FIT, over_time=True)
    times = [point.time for point in use.course]
    assert times == sorted({*times})
    assert times[0] == min(one.arrival for one in lives)
    assert times[-1] == moments - 1
    assert use.peak in use.course
    assert use.peak.cpus == max(point.cpus for point in use.course) >= 4
    assert min(moments, POINTS) <= len(times) <= POINTS + 1


def test_servers_that_are_not_enough_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="none takes VM 1"):
        cluster_use(Course([vm(0, vcpus=8), vm(1)]), [(8, 16)], FIRST_FIT)
    with pytest.raises(ValueError, match="no VM"):
        cluster_use(Course([]), [(8, 16)], FIRST_FIT)
