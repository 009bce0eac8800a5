"""Inventories and explanations of real daemons, and of a cluster that tests describe."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from core.demand import Lesson, Shape
from core.host_policy import HOST_POLICIES
from tests.vmstackctl.cluster import RealCluster, Served, figures, level, member, real_cluster, usual
from tests.vmstackctl.command import Host, run
from tests.vmstackctl.inventories import saved
from tests.vmstackctl.test_commands import failed
from vmstackctl.inventory_file import load, save
from vmstackd.api.replies import DemandReply

SIZE = ("--vcpus", "2", "--memory", "4G", "--level", "2")
SHAPES = (("2", "2G", "1"), ("3", "4G", "2"), ("5", "2G", "3"), ("4", "12G", "1.5"))


@pytest.fixture(params=sorted(HOST_POLICIES))
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster() -> Iterator[RealCluster]:
    with real_cluster(("server1", "server2", "server3"), "--policy", "worth") as running:
        yield running


def test_a_vm_goes_where_it_was_said_to_go_until_all_is_full(policy: str, tmp_path: Path) -> None:
    chance = random.Random(policy)
    full = 0
    with real_cluster(("server1", "server2"), "--policy", policy) as running:
        for number in range(14):
            vcpus, memory, ratio = chance.choice(SHAPES)
            size = ("--vcpus", vcpus, "--memory", memory, "--level", ratio)
            told = running.ctl("explain", *size, "--output", "json")
            found = json.loads(told.out)
            assert found["policy"] == policy
            done = running.deploy(f"vm{number}", int(vcpus), memory, ratio, "--output", "json")
            assert done.code == told.code == (4 if found["chosen"] is None else 0)
            if found["chosen"] is None:
                full += 1
                assert all("needs" in host["why"] for host in found["hosts"])
                continue
            reply = json.loads(done.out)
            assert (reply["host"], reply["score"]) == (found["chosen"], found["hosts"][0]["score"])
        assert full >= 1
        file = str(tmp_path / "cluster.json.gz")
        assert running.ctl("inventory", "save", file).code == 0
        live = running.ctl("explain", *SIZE)
    # Nobody is there to be asked any more.
    offline = run("explain", *SIZE, "--inventory", file)
    assert (offline.code, offline.out, offline.err) == (live.code, live.out, live.err)


def test_an_inventory_has_the_hosts_with_their_vms_and_what_was_learnt(cluster: RealCluster, tmp_path: Path) -> None:
    for number in range(3):
        assert cluster.deploy(f"vm{number}", 2, "4G", "2").code == 0
    assert cluster.deploy("dry", 1, "1G", "1", "--dry-run").code == 0
    assert cluster.deploy("wide", 64, "1G", "1").code == 4
    assert cluster.ctl("cordon", "server3", "--reason", "new fans").code == 0
    cluster.ctl("explain", *SIZE)
    cluster.ctl("progress", *SIZE)
    file = tmp_path / "cluster.json"
    done = cluster.ctl("inventory", "save", str(file))
    assert done.out == f"{file}: saved 3 hosts with 3 VMs\n"
    found = load(file)
    assert found.policy == "worth"
    assert found.lesson.shapes == (Shape(2000, 2, 4096, 3), Shape(1000, 64, 1024, 1))
    assert found.lesson.seen == 4
    assert [(host.name, host.state, host.closed, host.reason) for host in found.hosts] == [
        ("server1", "up", "", ""),
        ("server2", "up", "", ""),
        ("server3", "cordoned", "cordoned", "new fans"),
    ]
    told = cluster.json("hosts")["hosts"]
    for host, shown in zip(found.hosts, told, strict=True):
        assert (host.address, host.vms is None) == (shown["address"], False)
        assert host.status is not None
        assert (host.status.cpus, host.status.vms, host.status.generation) == tuple(
            shown["status"][key] for key in ("cpus", "vms", "generation")
        )
    assert sorted(msgspec.structs.astuple(shape) for host in found.hosts for shape in host.vms or ()) == [
        (2000, 2, 4096, 3)
    ]
    again = cluster.json("inventory", "save", str(file))
    assert again == {"file": str(file), "hosts": 3, "vms": 3, "silent": 0}
    assert cluster.ctl("inventory", "save", str(file), "--output", "name").out == f"{file}\n"
    shown_file = run("inventory", "load", str(file))
    assert shown_file.out.splitlines()[1].startswith("server1 ")
    assert "\npolicy worth, 4 VMs asked for\n" in shown_file.out
    assert run("inventory", "load", str(file), "--output", "name").out == "server1\nserver2\nserver3\n"
    whole = json.loads(run("inventory", "load", str(file), "--output", "json").out)
    assert whole["format"] == "vmstack inventory 1"
    assert len(whole["hosts"]) == 3


def test_one_host_has_an_inventory_too(host: Host, tmp_path: Path) -> None:
    host.deploy("web1", 2)
    file = tmp_path / "host.json"
    assert host.ctl("inventory", "save", str(file)).out == f"{file}: saved 1 host with 1 VM\n"
    (one,) = load(file).hosts
    assert (one.name, one.state) == (host.json("explain", *SIZE)["chosen"], "up")
    host.ctl("cordon", "--reason", "new fans")
    try:
        told = host.ctl("explain", *SIZE)
    finally:
        host.ctl("uncordon")
    assert told.out.splitlines()[-1].endswith("cordoned: new fans")
    failed(told, 4, "no host for it: 1 host: 1 cordoned; vmstackctl capacity shows what fits")
    assert run("explain", *SIZE, "--inventory", str(file), "--output", "name").out == f"{one.name}\n"


def test_hosts_that_do_not_answer_have_no_vms_that_are_known(tmp_path: Path) -> None:
    silenced = member("server5", "up", "", level())
    with Served((*usual(), silenced)) as cluster:
        cluster.do(lambda: cluster.cluster.add("web1", "server1", vcpus=3))
        cluster.do(lambda: cluster.cluster.add("web2", "server5", vcpus=0, level=0, cpus=(), state="unknown"))
        file = tmp_path / "cluster.json"
        done = cluster.ctl("inventory", "save", str(file))
    assert done.out == f"{file}: saved 5 hosts with 1 VM; 3 hosts did not tell which VMs there are\n"
    found = load(file)
    assert [host.vms is None for host in found.hosts] == [False, False, True, True, True]
    assert found.hosts[2].status == figures(level(1000, 8, 8, 2))


def test_a_cluster_that_tells_what_cannot_be_true_is_not_believed(tmp_path: Path) -> None:
    with Served(usual()) as cluster:
        lie = DemandReply("worth", Lesson((Shape(1000, 1, 1, -3),), 1, 1, None))
        cluster.do(lambda: setattr(cluster.cluster, "demand", lie))
        for command in (("explain", *SIZE), ("inventory", "save", str(tmp_path / "cluster.json"))):
            failed(cluster.ctl(*command), 6, "told what cannot be true: lesson.shapes[0].count: -3, expected 1 to")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_can_be_chosen_and_one_that_is_not_known_must_be(tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    save(file, saved(policy="newer\x9b"))
    why = "the policy 'newer\\x9b' of this inventory is not known here; --policy may be worth, "
    failed(run("explain", *SIZE, "--inventory", str(file)), 2, why)
    failed(run("explain", *SIZE, "--inventory", str(file), "--policy", "worth"), 4, "no host for it: 0 hosts")
    failed(run("explain", *SIZE, "--inventory", str(file), "--policy", "nope"), 2, "'nope' is not one of 'worth'")


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (("--vcpus", "0", "--memory", "1", "--level", "1"), "--vcpus: must be a whole number from 1 to 4096"),
        (("--vcpus", "1", "--memory", "9999999T", "--level", "1"), "--memory: must be a whole number from 1 to"),
        (("--vcpus", "1", "--memory", "1", "--level", "0.5"), "level"),
    ],
)
def test_sizes_that_no_request_may_have_are_refused_without_asking(size: tuple[str, ...], why: str) -> None:
    failed(run("explain", *size, "--socket", "/nowhere"), 2, why)


def test_files_that_are_none_and_places_that_cannot_be_written_are_named(host: Host, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for command in (("inventory", "load", missing), ("explain", *SIZE, "--inventory", missing)):
        failed(run(*command), 1, f"{missing}: cannot be read: No such file or directory; name a file that can")
    (tmp_path / "bad.json").write_text('{"format": "vmstack inventory 1",\n "time": }')
    why = f"{tmp_path}/bad.json: line 2, column 10: JSON is malformed: "
    failed(run("inventory", "load", str(tmp_path / "bad.json")), 1, why)
    nowhere = str(tmp_path / "no" / "file.json")
    failed(host.ctl("inventory", "save", nowhere), 1, f"{nowhere}: cannot be written: No such file or directory; ")
