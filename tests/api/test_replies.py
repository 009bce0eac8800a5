"""Replies: they survive the wire, and readers ignore fields they do not know."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

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
    replies.Deployed(name="a", level=1500, cpus=(8, 0), dry_run=True),
    replies.Removed(name="a", released=(8,)),
    replies.ProgressReply(progress=-3006.28125),
    replies.StatusReply(
        host=_HOST,
        hypervisor="up",
        unplaced=(replies.UnplacedVm(name="x", reason="no room", cpus=(3,), memory_mib=512),),
        stopped=("y",),
        degraded=("level 1.5 has 4 CPUs and needs 5",),
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
)


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


@pytest.mark.parametrize("reply", SAMPLES, ids=lambda reply: type(reply).__name__)
def test_replies_cannot_be_changed(reply: Reply) -> None:
    assert type(reply).__struct_config__.frozen
    assert not type(reply).__struct_config__.forbid_unknown_fields
