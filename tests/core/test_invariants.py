"""Every rule can be seen broken: states that no decision makes, built by hand."""

import pytest
from msgspec.structs import replace

from core.invariants import broken
from core.model import HostState, Vm
from tests.core.hosts import deploy, empty, i7


def sound() -> HostState:
    """Level 1.0 with "a" on CPUs 0 and 4; level 2.0 with "b" on CPU 1."""
    state = deploy(deploy(empty(i7()), "a", 2, 1000, 100), "b", 1, 2000, 50)
    assert [subset.cpus for subset in state.subsets] == [(0, 4), (1,)]
    return state


def with_first(cpus: tuple[int, ...] = (0, 4), **changed: object) -> HostState:
    """The sound state with its first subset changed; its distances follow its CPUs."""
    state = sound()
    known = tuple(cpu for cpu in cpus if cpu in state.topology.cpu_ids)
    first = replace(state.subsets[0], cpus=cpus, sums=state.topology.distances.sums(known))
    return replace(state, subsets=(replace(first, **changed), state.subsets[1]))


def test_a_sound_state_breaks_nothing() -> None:
    assert broken(empty(i7())) == broken(sound()) == []


def a_vm(name: str = "a", vcpus: int = 2, memory: int = 100, level: int = 1000) -> Vm:
    return Vm(name, vcpus, memory, level)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (with_first(cpus=(0, 4, 1)), ["CPU 1 is level 1.0 and level 2.0"]),
        (with_first(cpus=(0, 4, 5)), ["CPU 5 is free and level 1.0"]),
        (with_first(cpus=(0, 4, 4)), ["CPU 4 is level 1.0 and level 1.0"]),
        (with_first(cpus=(0, 4, 77)), ["CPUs [77] are not usable CPUs of the host"]),
        (with_first(cpus=(0,)), ["CPUs [4] are nowhere", "level 1.0 has 1 CPUs and needs 2"]),
        (replace(sound(), held=(2,)), ["CPU 2 is free and held"]),
        (replace(sound(), free=sound().free.plus((0,))), ["CPU 0 is free and level 1.0"]),
        (replace(sound(), free=sound().free.minus((3,))), ["CPUs [3] are nowhere"]),
        (
            with_first(level=2000, vms={"a": a_vm(level=2000)}),
            ["a level has two subsets: [2000, 2000]"],
        ),
        (
            with_first(level=500, vms={"a": a_vm(level=500)}),
            ["level 0.5 is no level", "level 0.5 has 2 CPUs and needs 4"],
        ),
        (with_first(vms={}), ["level 1.0 has no VM", "150 MiB are counted as allocated, the VMs have 50 MiB"]),
        (
            with_first(vms={"b": a_vm("b")}),
            ["VM 'b' is in two subsets"],
        ),
        (with_first(vms={"z": a_vm("a")}), [f"level 1.0 has the wrong VM {a_vm('a')} as 'z'"]),
        (with_first(vms={"a": a_vm(level=3000)}), [f"level 1.0 has the wrong VM {a_vm(level=3000)} as 'a'"]),
        (
            with_first(vms={"a": a_vm(memory=0)}),
            [
                f"level 1.0 has the wrong VM {a_vm(memory=0)} as 'a'",
                "150 MiB are counted as allocated, the VMs have 50 MiB",
            ],
        ),
        (with_first(vcpus=1), ["level 1.0 counts 1 vCPUs, widths {2: 1}; its VMs have [2]"]),
        (with_first(widths={2: 2}), ["level 1.0 counts 2 vCPUs, widths {2: 2}; its VMs have [2]"]),
        (with_first(sums=sound().subsets[1].sums), ["level 1.0 has distances that are not those of its CPUs"]),
        (replace(sound(), allocated_mib=149), ["149 MiB are counted as allocated, the VMs have 150 MiB"]),
        (replace(sound(), memory_mib=149), ["150 MiB are allocated of 149 MiB"]),
    ],
)
def test_a_broken_rule_is_told(state: HostState, found: list[str]) -> None:
    assert broken(state) == found


def test_a_known_debt_is_no_surprise() -> None:
    state = with_first(cpus=(0,))
    state = replace(state, free=state.free.plus((4,)))
    assert broken(state) == ["level 1.0 has 1 CPUs and needs 2"]
    assert broken(state, frozenset({2000})) == ["level 1.0 has 1 CPUs and needs 2"]
    assert broken(state, frozenset({1000})) == []
