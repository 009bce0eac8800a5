import pytest

from core.model import Rules
from tests.core.hosts import deploy, empty, i7


@pytest.mark.parametrize(
    ("rules", "level", "vms", "ratio"),
    [
        (Rules(), 3000, 5, 1000),
        (Rules(), 3000, 6, 3000),
        (Rules(0), 3000, 0, 3000),
        (Rules(6, {3000: 2}), 3000, 1, 1000),
        (Rules(6, {3000: 2}), 3000, 2, 3000),
        (Rules(6, {3000: 2}), 2000, 2, 1000),
    ],
)
def test_a_level_holds_from_its_critical_size_on(rules: Rules, level: int, vms: int, ratio: int) -> None:
    assert rules.ratio(level, vms) == ratio


def test_look_ups() -> None:
    state = deploy(deploy(empty(i7()), "a", 2, 1000, 5), "b", 1, 2000, 6)
    assert [state.subset(level) for level in (1000, 2000)] == list(state.subsets)
    assert state.subset(3000) is None
    assert [state.subset_of(name) for name in "ab"] == list(state.subsets)
    assert state.subset_of("c") is None
    vm = state.vm("b")
    assert vm is not None
    assert (vm.name, vm.vcpus, vm.memory_mib, vm.level) == ("b", 1, 6, 2000)
    assert state.vm("c") is None


def test_values_cannot_be_changed() -> None:
    state = deploy(empty(i7()), "a", 2, 1000)
    for value, field in ((state, "free"), (state.subsets[0], "cpus"), (state.rules, "critical_size")):
        with pytest.raises(AttributeError):
            setattr(value, field, None)
