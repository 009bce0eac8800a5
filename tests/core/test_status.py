from core.allocator import hold
from core.status import HostStatus, LevelStatus, host_status
from tests.core.hosts import deploy, empty, epyc, filled, i7, remove


def test_an_empty_host() -> None:
    assert host_status(empty(i7())) == HostStatus(
        cpus=8,
        free_cpus=8,
        held_cpus=0,
        memory_mib=31776,
        allocated_mib=0,
        free_mib=31776,
        vms=0,
        generation=0,
        levels=(),
        critical_size=0,
    )


def test_every_figure() -> None:
    state = deploy(empty(epyc(), 3, {2800: 0, 1200: 5}), "a", 4, 1500, 1000)
    state = filled(state, "b", 2, 3, 2000)
    state = hold(state, (255,), 500)
    assert host_status(state) == HostStatus(
        cpus=256,
        free_cpus=245,
        held_cpus=1,
        memory_mib=1031752,
        allocated_mib=1002,
        free_mib=1030250,
        vms=3,
        generation=4,
        levels=(
            LevelStatus(
                level=1500,
                ratio=1000,
                cpus=4,
                vcpus=4,
                vms=1,
                needed=4,
                available_thousandths=0,
                potential_thousandths=245_000,
                widest=4,
            ),
            LevelStatus(
                level=2000,
                ratio=1000,
                cpus=6,
                vcpus=6,
                vms=2,
                needed=6,
                available_thousandths=6_000,  # the third VM brings the level
                potential_thousandths=490_000,
                widest=3,
            ),
        ),
        critical_size=3,
        critical_sizes=((1200, 5), (2800, 0)),
    )


def test_a_fraction_of_a_vcpu_is_kept() -> None:
    state = deploy(empty(i7()), "a", 3, 1500)
    assert [level.available_thousandths for level in host_status(state).levels] == [1500]


def test_a_debt_is_seen() -> None:
    state = filled(empty(epyc(), critical_size=6), "vm", 7, 4, 3000)
    assert not host_status(state).levels[0].degraded
    for name in ("vm0", "vm1", "vm2"):
        state = remove(state, name)
    level = host_status(state).levels[0]
    assert (level.degraded, level.needed, level.cpus, level.available_thousandths) == (True, 16, 8, -8000)
