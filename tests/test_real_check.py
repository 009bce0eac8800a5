"""What others do to the threads, pins and metadata of real QEMUs is found and put right, in the kernel too."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import real
from tests.running import PATIENCE, Daemon
from tests.test_real_vms import NO_PERIODIC_PASS, USABLE, LibvirtdPlace, Place, deploy, eventually, place_for
from vmstackd.api import replies, requests
from vmstackd.client import Client
from vmstackd.hypervisor.metadata import NAMESPACE, PREFIX

pytestmark = pytest.mark.real

BOTH = frozenset(USABLE[:2])


@pytest.fixture(scope="module")
def embed() -> Iterator[Place]:
    with place_for("embed") as place:
        yield place


@pytest.fixture(scope="module")
def system() -> Iterator[LibvirtdPlace]:
    with place_for("libvirtd") as place:
        assert isinstance(place, LibvirtdPlace)
        yield place


@pytest.fixture(params=["embed", "system"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


def running(place: Place, period: str = NO_PERIODIC_PASS) -> Daemon:
    return Daemon(
        *("--hypervisor", place.uri, "--image-roots", str(place.images), "--virt-type", "qemu"),
        *("--period", period, "--critical-size", "0", "--socket", str(place.root / "door")),
    )


def check(place: Place, *, dry_run: bool = False) -> list[tuple[str, str, bool]]:
    """Kind, VM, and whether it is repaired."""

    async def ask() -> replies.CheckReply:
        async with await Client.connect(str(place.root / "door"), program="test", timeout=PATIENCE) as client:
            return await client.check(requests.Check(dry_run=dry_run), timeout=PATIENCE)

    reply = asyncio.run(ask())
    assert (reply.hidden, reply.busy) == (0, 0)
    return [(finding.kind, finding.vm, finding.repaired) for finding in reply.findings]


def threads(place: Place, name: str) -> dict[int, str]:
    """Names of the threads of a VM by their ids."""
    tasks = Path(f"/proc/{real.qemu_pid(place.root, name)}/task").iterdir()
    return {int(task.name): (task / "comm").read_text().strip() for task in tasks}


def helpers(place: Place, name: str) -> list[int]:
    """Threads of QEMU that libvirt does not pin."""
    first = real.qemu_pid(place.root, name)
    return [thread for thread, comm in threads(place, name).items() if thread != first and not comm.startswith("CPU ")]


def allowed(place: Place, name: str) -> set[frozenset[int]]:
    """What the kernel lets them do."""
    return {frozenset(os.sched_getaffinity(thread)) for thread in threads(place, name)}


def counted(daemon: Daemon) -> dict[str, int]:
    found = re.findall(r'^vmstack_drift_total\{kind="(\w+)"\} (\d+)', daemon.get("/metrics").text, re.MULTILINE)
    return {kind: int(count) for kind, count in found if int(count)}


def test_affinities_that_the_kernel_alone_knows_are_put_right(place: Place) -> None:
    """Nobody gets them onto CPUs outside the subset where libvirt has a cgroup for the VM, as here; onto fewer, yes."""
    with running(place) as daemon:
        assert set(deploy(daemon, place, "a", cpu=2)) == BOTH
        assert check(place) == []
        fewer = frozenset({min(BOTH)})
        for thread in threads(place, "a"):
            os.sched_setaffinity(thread, fewer)
        assert check(place, dry_run=True) == [("pinning", "a", False)]
        assert allowed(place, "a") == {fewer}
        assert check(place) == [("pinning", "a", True)]
        assert allowed(place, "a") == {BOTH}
        assert check(place) == []
        assert counted(daemon) == {"pinning": 1}
        assert re.search(r"^vmstack_check_remaining 0", daemon.get("/metrics").text, re.MULTILINE)
        assert daemon.get("/remove?name=a").status == 200


def test_helpers_on_fewer_cpus_harm_nobody(place: Place) -> None:
    """So they are when a subset has grown, where we may not move them."""
    with running(place) as daemon:
        deploy(daemon, place, "a", cpu=2)
        for thread in helpers(place, "a"):
            os.sched_setaffinity(thread, {min(BOTH)})
        assert check(place) == []
        assert daemon.get("/remove?name=a").status == 200


def test_the_periodic_pass_puts_them_right_too(place: Place) -> None:
    with running(place, period="1") as daemon:
        deploy(daemon, place, "a", cpu=2)
        vcpus = [thread for thread, comm in threads(place, "a").items() if comm.startswith("CPU ")]
        for thread in vcpus:
            os.sched_setaffinity(thread, {max(BOTH)})
        eventually(lambda: {frozenset(os.sched_getaffinity(thread)) for thread in vcpus} == {BOTH})
        eventually(lambda: bool(counted(daemon)))
        assert daemon.get("/remove?name=a").status == 200


def test_pins_that_were_changed_with_virsh_are_put_right(system: LibvirtdPlace) -> None:
    with running(system) as daemon:
        deploy(daemon, system, "a", cpu=2)
        assert check(system) == []
        one = str(max(BOTH))
        commands = (("vcpupin", "a", "0", one), ("vcpupin", "a", "1", one), ("emulatorpin", "a", one))
        for number, command in enumerate(commands, 1):
            system.virsh(*command, "--live")
            assert allowed(system, "a") == {BOTH, frozenset({max(BOTH)})}
            assert check(system) == [("pinning", "a", True)]
            assert allowed(system, "a") == {BOTH}
            assert check(system) == []
            assert counted(daemon) == {"pinning": number}
        assert daemon.get("/remove?name=a").status == 200


def test_metadata_that_are_gone_or_garbled_are_written_again(system: LibvirtdPlace) -> None:
    with running(system) as daemon:
        deploy(daemon, system, "a", "2")
        deploy(daemon, system, "b", "2")
        assert check(system) == []
        path = ("--uri", NAMESPACE, "--live", "--config")
        spoilt = (
            ("--remove",),
            ("--key", PREFIX, "--set", "<vm level='2000'/>"),
            ("--key", PREFIX, "--set", right_record(system, "a").replace('level="2000"', 'level="1000"')),
        )
        for number, command in enumerate(spoilt, 1):
            before = right_record(system, "a")
            system.virsh("metadata", "a", *path, *command)
            assert check(system, dry_run=True) == [("record", "a", False)]
            assert check(system) == [("record", "a", True)]
            after = right_record(system, "a")
            assert {"level", "vcpus", "memory_mib", "image", "arrival"} == {
                key for key, value in fields(after).items() if key not in ("schema", "generation", "cpus")
            }
            assert fields(after) | {"generation": "", "cpus": ""} == fields(before) | {"generation": "", "cpus": ""}
            assert check(system) == []
            assert counted(daemon) == {"record": number}
        status = daemon.get("/status").json
        daemon.stop(signal.SIGKILL)
    with running(system) as daemon:
        assert daemon.get("/status").json == status
        assert check(system) == []
        for name in ("a", "b"):
            assert daemon.get(f"/remove?name={name}").status == 200


def right_record(system: LibvirtdPlace, name: str) -> str:
    return system.virsh("metadata", name, "--uri", NAMESPACE, "--live").strip()


def fields(record: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', record))


def test_what_was_done_to_a_daemon_that_did_not_run_is_put_right_at_its_start(system: LibvirtdPlace) -> None:
    with running(system) as daemon:
        deploy(daemon, system, "a", cpu=2)
        daemon.stop(signal.SIGKILL)
    for thread in threads(system, "a"):
        os.sched_setaffinity(thread, {max(BOTH)})
    with running(system) as daemon:
        assert allowed(system, "a") == {BOTH}
        assert counted(daemon) == {}
        assert check(system) == []
        begin = time.time()
        check(system)
        moment = re.search(r"^vmstack_check_timestamp_seconds (\S+)", daemon.get("/metrics").text, re.MULTILINE)
        assert moment is not None
        assert float(moment[1]) >= begin
        assert daemon.get("/remove?name=a").status == 200
