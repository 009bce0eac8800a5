"""Real faults, a few of each kind that takes little time; and that what looks for overlaps would see one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster import Cluster, refusal, vm
from tests.system.faults.audit import Host, pins
from tests.system.faults.clients import images_for
from tests.system.faults.farm import farm
from tests.system.faults.kinds import QUICK, fill
from tests.system.faults.run import run
from tests.system.faults.sampler import Sampler
from tests.system.faults.seen import domains, moment, processes
from tests.system.lab import Lab, missing
from tests.system.test_box import missing_libvirt
from vmstackd.api.errors import HypervisorFailed

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}"),
    pytest.mark.skipif(bool(missing_libvirt), reason=f"libvirt: {missing_libvirt}"),
]

OPERATIONS = 24
SEED = 7


@pytest.fixture(scope="module")
def cluster(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with farm(lab, tmp_path_factory.mktemp("farm"), images_for(OPERATIONS), packaged=False) as cluster:
        yield cluster


def test_pins_that_are_moved_behind_everybody_s_back_are_seen(cluster: Cluster) -> None:
    box = cluster.hosts["one"].box

    async def deploy() -> None:
        await cluster.all_up()
        async with cluster.asked(cluster.hosts["one"]) as client:
            for number, level in enumerate((1000, 2000)):
                await client.deploy(vm(f"moved{number}", level=level, image=f"image{number}"))

    async def host() -> Host:
        async with cluster.asked(cluster.hosts["one"]) as client:
            vms = {listed.name: listed for listed in (await client.list()).vms}
            return Host("one", tuple(processes(box)), tuple(domains(box)), vms, await client.status())

    cluster.run(deploy)
    try:
        levels = {"moved0": 1000, "moved1": 2000}
        sampler = Sampler([box], levels)
        sampler.look(box)
        assert sampler.overlaps == []
        assert moment(box).kernel == moment(box).recorded
        assert len(moment(box).kernel) == 2
        assert list(pins(cluster.run(host))) == []
        cluster.hosts["one"].kill("STOP")
        try:
            box.enter("virsh", "vcpupin", "moved1", "0", "0-1", "--live")
            sampler.look(box)
            assert {text.partition("says ")[2] for text in sampler.overlaps} == {"the kernel", "libvirt"}
        finally:
            cluster.hosts["one"].kill("CONT")
    finally:
        cluster.run(cluster.clear)


def test_a_deployment_on_a_full_disk_leaves_nothing_that_runs(cluster: Cluster) -> None:
    """libvirt forgets a running VM whose definition it cannot write."""
    one = cluster.hosts["one"]
    order = vm("full", image="image2")

    async def deploy() -> None:
        async with cluster.asked(one) as client:
            await client.deploy(order)

    async def fail() -> None:
        async with cluster.asked(one) as client:
            error = await refusal(client.deploy(order))
            assert isinstance(error, HypervisorFailed)
            assert "No space left" in error.message

    fill(one.box.path("/var/fill"))
    try:
        cluster.run(fail)
    finally:
        one.box.path("/var/fill").unlink()
    assert processes(one.box) == []
    assert domains(one.box) == []
    cluster.run(deploy)
    assert [process.name for process in processes(one.box)] == ["full"]
    cluster.run(cluster.clear)


def test_nothing_is_lost_doubled_or_pinned_wrong_while_everything_fails(cluster: Cluster, tmp_path: Path) -> None:
    figures = run(cluster, tmp_path, SEED, OPERATIONS, QUICK, print)
    print(figures.text())
    assert figures.good()
    assert figures.faults.keys() == set(QUICK)
    assert figures.changes >= OPERATIONS
