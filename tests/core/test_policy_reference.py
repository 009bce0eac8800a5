from core.cpuset import format_cpu_list
from core.model import HostState, Subset
from core.policy import DEFAULT_POLICY, POLICIES
from tests.core.hosts import REFERENCE, build, deploy, empty, epyc, filled, remove


def subset(state: HostState, level: int) -> Subset:
    found = state.subset(level)
    assert found is not None
    return found


def cpus(state: HostState, level: int) -> str:
    return format_cpu_list(subset(state, level).cpus)


def test_policies_are_registered_by_their_names() -> None:
    assert {name: policy.name for name, policy in POLICIES.items()} == {name: name for name in POLICIES}
    assert DEFAULT_POLICY in POLICIES
    assert REFERENCE.name == "reference"


def test_a_wide_vm_on_an_empty_host_takes_an_l3_and_then_half_cores() -> None:
    assert cpus(deploy(empty(epyc()), "wide", 16, 1000), 1000) == "0,128,1-3,129-131,4-11"


def test_a_growing_subset_keeps_whole_cores_together() -> None:
    state = filled(empty(epyc()), "vm", 16, 1, 1000)
    assert cpus(state, 1000) == "0,128,1,129,2,130,3,131,4,132,5,133,6,134,7,135"


def test_a_second_level_starts_far_away_and_again_after_it_was_empty() -> None:
    first = deploy(deploy(empty(epyc()), "a", 4, 1000), "b", 4, 2000)
    assert (cpus(first, 1000), cpus(first, 2000)) == ("0,128,1-2", "64,192,65-66")
    again = deploy(remove(first, "b"), "c", 4, 2000)  # "restart": the prototype chose 3,131,129-130
    assert cpus(again, 2000) == "64,192,65-66"


def test_the_youngest_cpus_are_given_up() -> None:
    state = filled(empty(epyc()), "vm", 6, 2, 1000)
    before = subset(state, 1000).cpus
    assert subset(remove(state, "vm0"), 1000).cpus == before[:-2]


def test_nothing_is_taken_back_for_a_debt() -> None:
    state = filled(empty(epyc(), critical_size=3), "vm", 4, 2, 2000)
    state = remove(state, "vm0")  # at three the level holds: 6 vCPUs on 3 CPUs
    assert len(subset(state, 2000).cpus) == 3
    assert REFERENCE.after_removal(state, subset(remove(state, "vm1"), 2000)) == ((), ())


def test_a_thousand_cpus_at_once() -> None:
    state = deploy(empty(build(l3=110, cores=5)), "small", 1, 1000)
    wide = deploy(state, "wide", 1099, 1000)
    assert sorted(subset(wide, 1000).cpus) == list(range(1100))
    assert remove(wide, "wide").free.count == 1099
