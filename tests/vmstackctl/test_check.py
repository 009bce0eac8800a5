"""vmstackctl check, asking a daemon and a cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import real
from tests.running import PATIENCE, Daemon
from tests.test_real_vms import LibvirtdPlace, deploy, place_for
from tests.vmstackctl.cluster import Served, usual
from tests.vmstackctl.command import Host, run
from tests.vmstackctl.test_commands import failed


def test_all_is_as_decided(host: Host) -> None:
    host.deploy("web1")
    for arguments in ((), ("--dry-run",)):
        done = host.ctl("check", *arguments)
        assert (done.code, done.out, done.err) == (0, "1 VM, all as decided\n", "")
    assert host.json("check") == {
        "findings": [],
        "vms": 1,
        "hidden": 0,
        "busy": 0,
        "left_out": 0,
        "dry_run": False,
    }
    failed(host.ctl("check", "--output", "name"), 2, "--output name is for commands about VMs")


def test_hosts_of_a_cluster_that_do_not_answer_remain() -> None:
    with Served(usual()) as cluster:
        done = cluster.ctl("check")
        assert (done.code, done.out.splitlines()) == (
            1,
            [
                "server3: unchecked: silent for 12 s",
                "server4: unchecked: not yet reached",
                "0 VMs on 2 hosts, 2 findings: 0 repaired, 2 not",
            ],
        )
        one = cluster.ctl("check", "--host", "server1")
        assert (one.code, one.out) == (0, "0 VMs on 1 host, all as decided\n")
        assert cluster.json("check", "--host", "server1")["hosts"] == 1
        failed(cluster.ctl("check", "--host", "nobody"), 3, "there is no host 'nobody'")


@pytest.fixture
def system() -> Iterator[LibvirtdPlace]:
    with place_for("libvirtd") as place:
        assert isinstance(place, LibvirtdPlace)
        yield place


@pytest.mark.real
def test_what_remains_and_what_was_repaired_tell_in_the_exit_code(system: LibvirtdPlace, tmp_path: Path) -> None:
    giant = tmp_path / "giant.xml"
    giant.write_text(
        "<domain type='qemu'><name>giant</name><memory unit='MiB'>64</memory><vcpu>64</vcpu>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
    door = str(system.root / "door")
    flags = ("--hypervisor", system.uri, "--image-roots", str(system.images), "--virt-type", "qemu")
    with Daemon(*flags, "--period", "86400", "--critical-size", "0", "--socket", door) as daemon:
        cpus = deploy(daemon, system, "web1", cpu=2)
        system.virsh("vcpupin", "web1", "0", str(cpus[0]), "--live")
        places = set(real.vcpu_affinities(real.qemu_pid(system.root, "web1")).values())
        assert len(places) == 2
        dry = run("--socket", door, "check", "--dry-run")
        assert (dry.code, dry.out.splitlines()[1]) == (1, "1 VM, 1 finding (dry run: nothing was changed)")
        done = run("--socket", door, "check")
        assert (done.code, done.out.splitlines()[1]) == (0, "1 VM, 1 finding: 1 repaired, 0 not")
        assert done.out.startswith("web1: pinning: some of its threads may run only on some of CPUs ")
        assert len(set(real.vcpu_affinities(real.qemu_pid(system.root, "web1")).values())) == 1
        subprocess.run(["virsh", "-q", "-c", system.uri, "define", str(giant)], check=True, timeout=PATIENCE)
        done = run("--socket", door, "check")
        assert done.code == 0
        for name in ("giant", "web1"):
            assert daemon.get(f"/remove?name={name}").status == 200
