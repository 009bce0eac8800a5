"""Why a host is chosen: what is said is what the core decides, and what is missing adds up."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.admission import growth_on, refusal_on, with_vm
from core.demand import Lesson, Shape
from core.host_policy import HOST_POLICIES
from core.status import HostStatus, host_status
from tests.core.hosts import build, empty
from tests.core.test_admission import lived
from tests.vmstackctl.inventories import SIZES, saved, saved_host, taught
from vmstackctl.explaining import Explanation, explain
from vmstackctl.inventory_file import to_inventory
from vmstackctl.saved_inventory import SavedHost, SavedInventory
from vmstackd.api.errors import NoCapacity
from vmstackd.api.replies import HOST_STATES, UP

WORTH, FIRST_FIT = HOST_POLICIES["worth"], HOST_POLICIES["first-fit"]
FEW = st.tuples(st.sampled_from([1000, 1500, 3000]), st.integers(1, 6), st.integers(1, 12))


def status(cpus: int = 8, memory_mib: int = 8192, *vms: tuple[int, int, int]) -> HostStatus:
    """Of a host that has got these VMs."""
    found = host_status(empty(build(cores=cpus, smt=1, memory=memory_mib), critical_size=0))
    for level, vcpus, memory in vms:
        assert refusal_on(found, level, vcpus, memory) is None
        found = with_vm(found, level, vcpus, memory)
    return found


@st.composite
def clusters(draw: st.DrawFn) -> SavedInventory:
    """Hosts after all that may happen to them, in any state, and what they were asked for before."""
    hosts = [
        saved_host(f"h{number}", host_status(state), draw(st.sampled_from((UP, UP, UP, *HOST_STATES))), "why")
        for number, state in enumerate(draw(st.lists(lived(), min_size=1, max_size=5)))
    ]
    if draw(st.booleans()):
        hosts.insert(draw(st.integers(0, len(hosts))), saved_host("silent", None, "connecting"))
    return saved(*hosts, lesson=taught(hosts, draw(st.lists(FEW, max_size=6))))


@given(clusters(), FEW | SIZES, st.sampled_from(sorted(HOST_POLICIES)))
def test_the_host_that_is_said_to_be_chosen_is_the_one_that_a_deployment_chooses(
    cluster: SavedInventory, size: tuple[int, int, int], name: str
) -> None:
    policy = HOST_POLICIES[name]
    found = explain(cluster, policy, *size)
    inventory = to_inventory(cluster)
    inventory.arrived(*size)
    choice = inventory.choose(policy, *size)
    assert found.chosen == (None if choice is None else cluster.hosts[choice.host].name)
    if choice is not None:
        assert (found.hosts[0].name, found.hosts[0].score) == (found.chosen, choice.score)
    taking = [host for host in found.hosts if host.score is not None]
    assert found.hosts[: len(taking)] == tuple(taking)
    places = {host.name: place for place, host in enumerate(cluster.hosts)}
    order = [(-(host.score or 0.0), places[host.name]) for host in taking]
    assert order == sorted(order)
    refusing = [places[host.name] for host in found.hosts[len(taking) :]]
    assert refusing == sorted(refusing)
    assert {host.name for host in found.hosts} == places.keys()


@given(clusters(), FEW)
def test_every_refusal_names_what_is_short_and_by_how_much(cluster: SavedInventory, size: tuple[int, int, int]) -> None:
    by_name = {host.name: host for host in cluster.hosts}
    for host in explain(cluster, FIRST_FIT, *size).hosts:
        one = by_name[host.name]
        if host.score is not None:
            assert one.status is not None
            assert (host.why, host.reason) == ("", "")
            assert refusal_on(one.status, *size) is None
        elif one.closed:
            assert host.reason == one.closed
            assert host.why == (f"{one.state}: {one.reason}" if one.reason else one.state)
        else:
            _adds_up(one, host.why, size)
            assert one.status is not None
            assert host.reason == refusal_on(one.status, *size)


def _adds_up(host: SavedHost, why: str, size: tuple[int, int, int]) -> None:
    assert host.status is not None
    parts = {part.partition(": ")[0]: [int(number) for number in re.findall(r"\d+", part)] for part in why.split("; ")}
    assert parts
    if "CPU" in parts:
        needed, free, short = parts["CPU"]
        assert (needed, free) == (growth_on(host.status, size[0], size[1]), host.status.free_cpus)
        assert needed - free == short > 0
    if "memory" in parts:
        needed, free, short = parts["memory"]  # all so small that they are MiB
        assert (needed, free) == (size[2], host.status.free_mib)
        assert needed - free == short > 0


def explained(*hosts: SavedHost, size: tuple[int, int, int] = (2000, 5, 4096), policy: str = "progress") -> Explanation:
    return explain(saved(*hosts), HOST_POLICIES[policy], *size)


def test_what_is_short_is_said_in_words() -> None:
    found = explained(
        saved_host("a", status(8, 8192, (1000, 6, 512))),
        saved_host("b", status(8, 2048)),
        saved_host("c", status(2, 512)),
        saved_host("d", status(), "cordoned", "new fans"),
        saved_host("e", None, "connecting"),
        saved_host("f", status()),
    )
    assert [(host.name, host.why) for host in found.hosts] == [
        ("f", ""),
        ("a", "CPU: needs 5, 2 free, 3 short"),
        ("b", "memory: needs 4 GiB, 2 GiB free, 2 GiB short"),
        ("c", "CPU: needs 5, 2 free, 3 short; memory: needs 4 GiB, 512 MiB free, 3.5 GiB short"),
        ("d", "cordoned: new fans"),
        ("e", "connecting"),
    ]
    assert [host.reason for host in found.hosts] == ["", "cpu", "memory", "cpu", "cordoned", "unknown"]
    assert found.hosts[1].needed_cpus == 5
    assert (found.hosts[-1].needed_cpus, found.hosts[-1].free_cpus, found.hosts[-1].free_mib) == (None, None, None)
    found.require_chosen()


def test_where_no_host_takes_it_the_reasons_are_counted() -> None:
    found = explained(
        saved_host("a", status(2)),
        saved_host("b", status(4)),
        saved_host("c", status(8, 512)),
        saved_host("d", None, "connecting"),
    )
    assert found.chosen is None
    with pytest.raises(NoCapacity, match=r"^no host for it: 4 hosts: 2 no cpu, 1 no memory, 1 unknown; "):
        found.require_chosen()
    with pytest.raises(NoCapacity, match=r"^no host for it: 0 hosts; "):
        explained().require_chosen()


def test_of_equals_the_first_host_is_chosen_and_first() -> None:
    hosts = [saved_host(name, status()) for name in ("z", "y", "x")]
    for policy in HOST_POLICIES:
        found = explained(*hosts, policy=policy)
        assert [host.name for host in found.hosts] == ["z", "y", "x"]
        assert found.chosen == "z"


def test_what_is_learnt_decides() -> None:
    """A gap that is too narrow for what is asked for most is filled, one that it fits into is kept."""
    hosts = [
        saved_host("fits", status(8, 8192, (1000, 4, 4096))),
        saved_host("narrow", status(8, 8192, (1000, 5, 4096))),
    ]
    size = (1000, 3, 1024)
    wide = msgspec.structs.replace(saved(*hosts), lesson=taught(hosts, [(1000, 4, 1024)] * 40))
    assert explain(wide, WORTH, *size).chosen == "narrow"
    assert explain(wide, FIRST_FIT, *size).chosen == "fits"


def test_explaining_counts_nothing() -> None:
    host = saved_host("a", status())
    inventory = saved(host, lesson=Lesson((Shape(1000, 1, 1, 5),), 5, 0, None))
    first = explain(inventory, WORTH, 1000, 2, 512)
    assert explain(inventory, WORTH, 1000, 2, 512) == first
    assert inventory.lesson.seen == 5
