"""Replies: they survive the wire, and readers ignore fields they do not know."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from core.demand import Lesson, Market, Shape
from core.inventory import UNKNOWN
from core.status import HostStatus, LevelStatus
from vmstackd.api import replies
from vmstackd.api.replies import Reply

_LEVEL = LevelStatus(
    level=1500,
    ratio=1000,
    cpus=4,
    vcpus=5,
    vms=2,
    needed=5,
    available_thousandths=-1000,
    potential_thousandths=12000,
)
_HOST = HostStatus(
    cpus=16,
    free_cpus=12,
    held_cpus=0,
    memory_mib=65536,
    allocated_mib=2048,
    free_mib=63488,
    vms=2,
    generation=7,
    levels=(_LEVEL,),
)
_VM = replies.VmReply(
    name="ü",
    vcpus=2,
    memory_mib=1024,
    level=1500,
    cpus=(8, 0, 1),
    pinned=(0, 1, 8),
    state="running",
    image="/images/a.qcow2",
)
_CPU = replies.CpuReply(id=8, package=0, node=1, core=3, caches=(1, 1, 2, 0), use="1.5")
SAMPLES: tuple[Reply, ...] = (
    replies.Deployed(name="a", level=1500, cpus=(8, 0), dry_run=True, generation=7, host="h1", score=-0.5),
    replies.Removed(name="a", released=(8,), generation=8, host="h1"),
    replies.CordonReply(cordoned=True, reason="new fans", host="h1"),
    replies.ProgressReply(
        progress=-3006.28125,
        host="h1",
        hosts=(
            replies.HostProgress(host="h1", progress=-3006.28125),
            replies.HostProgress(host="h2", progress=None, reason="no memory"),
        ),
    ),
    replies.StatusReply(
        host=_HOST,
        hypervisor="up",
        unplaced=(replies.UnplacedVm(name="x", reason="no room", cpus=(3,), memory_mib=512),),
        stopped=("y",),
        degraded=("level 1.5 has 4 CPUs and needs 5",),
        cordoned=True,
        cordon_reason="new fans",
        starting=("z",),
    ),
    replies.ListReply(vms=(_VM,)),
    _VM,
    replies.TopologyReply(
        name="t",
        host_cpus=16,
        cache_names=("L1d", "L1i", "L2", "L3"),
        nodes=(0, 1),
        node_distances=((10, 32), (32, 10)),
        memory_mib=65536,
        cpus=(_CPU,),
    ),
    replies.HostsReply(
        hosts=(
            replies.HostReply(
                name="h1",
                address="10.0.0.5:8097",
                uuid="7d2c5c1e-94a1-4d3a-9d5f-0c5a8a7f8a11",
                state="up",
                reason="",
                since=1.5,
                age=0.25,
                source="static",
                version="0.1.0",
                status=_HOST,
            ),
            replies.HostReply(
                name="h2:8097",
                address="h2:8097",
                uuid="",
                state="connecting",
                reason="no route",
                since=2.5,
                age=None,
                source="/etc/vmstack/hosts.d/h2.toml",
            ),
        ),
        duplicates=(replies.DuplicateVm(name="a", hosts=("h1", "h2")),),
    ),
    replies.DemandReply(
        policy="worth",
        lesson=Lesson(
            shapes=(Shape(level=1500, vcpus=2, memory_mib=512, count=3),),
            seen=70,
            due=134,
            market=Market(
                shapes=(Shape(level=1000, vcpus=4, memory_mib=2048, count=5),),
                cpus=16.5,
                memory_mib=65536.25,
                most_cpus=32,
                most_mib=131072,
                cpu_use=0.1,
                memory_use=1.0,
            ),
        ),
    ),
    replies.HostListed(address="h2:8097", name="h2", listed=False, vms=3),
    replies.CheckReply(
        findings=(replies.Finding(kind="pinning", vm="ü", text="it may run anywhere", repaired=True, host="h1"),),
        vms=3,
        hidden=1,
        busy=2,
        left_out=4,
        dry_run=True,
        hosts=2,
    ),
)
"""Nothing in them is a default that could hide a field that got lost, but for the second host."""


NEWER = {
    "Deployed": {"generation", "host", "score"},
    "Removed": {"generation", "host"},
    "ProgressReply": {"host", "hosts"},
    "StatusReply": {"cordoned", "cordon_reason", "starting"},
    "VmReply": {"host"},
}
"""Fields that hosts of the first version do not know."""


def test_there_is_a_sample_of_every_reply() -> None:
    assert {type(sample) for sample in SAMPLES} == set(get_args(Reply))


@pytest.mark.parametrize("reply", SAMPLES, ids=lambda reply: type(reply).__name__)
def test_every_reply_survives_both_encodings(reply: Reply) -> None:
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(reply), type=type(reply)) == reply


@pytest.mark.parametrize("reply", SAMPLES, ids=lambda reply: type(reply).__name__)
def test_unknown_fields_of_a_reply_are_ignored(reply: Reply) -> None:
    newer: dict[str, Any] = msgspec.to_builtins(reply) | {"added_later": [1, {"a": None}]}
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(newer), type=type(reply)) == reply


@pytest.mark.parametrize("name", NEWER)
def test_a_host_of_the_first_version_is_understood(name: str) -> None:
    kind = getattr(replies, name)
    (whole,) = (msgspec.to_builtins(sample) for sample in SAMPLES if type(sample) is kind)
    assert whole.keys() >= NEWER[name]
    older = msgspec.convert({key: value for key, value in whole.items() if key not in NEWER[name]}, kind)
    absent = {key: getattr(older, key) for key in NEWER[name]}
    assert all(value in (0, "", (), None, False) for value in absent.values())


@pytest.mark.parametrize("reply", SAMPLES, ids=lambda reply: type(reply).__name__)
def test_replies_cannot_be_changed(reply: Reply) -> None:
    assert type(reply).__struct_config__.frozen
    assert not type(reply).__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("state", replies.HOST_STATES)
def test_a_host_that_is_not_up_gets_no_vm_and_one_that_was_never_reached_is_as_one_that_is_silent(state: str) -> None:
    assert replies.closed(state) == {"up": "", "connecting": UNKNOWN}.get(state, state)


def test_a_host_that_answers_says_its_state_and_why() -> None:
    (status,) = (sample for sample in SAMPLES if isinstance(sample, replies.StatusReply))
    assert status.state == ("cordoned", "new fans")
    assert msgspec.structs.replace(status, cordoned=False).state == ("up", "")
    down = msgspec.structs.replace(status, hypervisor="down", degraded=tuple(map(str, range(20))))
    assert down.state == ("hypervisor-down", "0; 1; 2; 3; 4; 5; 6; 7; 8; 9")
