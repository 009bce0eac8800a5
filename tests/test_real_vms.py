"""The daemon with real QEMU, through libvirt's embedded driver and through a libvirtd: what it decides
is what the kernel enforces, and neither its death nor libvirtd's loses anything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from core.cpuset import format_cpu_list, parse_cpu_list
from tests import real
from tests.running import PATIENCE, Daemon

pytestmark = pytest.mark.real

USABLE = sorted(os.sched_getaffinity(0))
NO_PERIODIC_PASS = "86400"
NOTICED_S = 5.0
"""What others do to VMs is noticed within 1 s; more only because test machines are noisy."""


class Place:
    """Where VMs run: a hypervisor URI, its state directory, and disk images that it may use."""

    def __init__(self, uri: str, root: Path) -> None:
        self.uri = uri
        self.root = root
        self.images = root / "images"
        self.images.mkdir()
        self.images.chmod(0o755)

    def image(self, name: str) -> str:
        """A disk for one VM."""
        path = self.images / f"{name}.qcow2"
        return str(path if path.exists() else real.make_image(path))

    def daemon(self) -> Daemon:
        """One that notices only what events tell it."""
        return Daemon(
            *("--hypervisor", self.uri, "--image-roots", str(self.images), "--virt-type", "qemu"),
            *("--period", NO_PERIODIC_PASS, "--critical-size", "0"),
        )


class LibvirtdPlace(Place):
    """A libvirtd, with which others can work too; the embedded driver belongs to one process."""

    def __init__(self, libvirtd: real.PrivateLibvirtd) -> None:
        super().__init__(libvirtd.uri, libvirtd.root)
        self.libvirtd = libvirtd

    def virsh(self, *arguments: str) -> str:
        """Somebody else's command."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
        return done.stdout


@contextlib.contextmanager
def place_for(kind: str) -> Iterator[Place]:
    missing = real.missing_embedded() if kind == "embed" else real.missing_libvirtd()
    if not missing and len(USABLE) < 2:
        missing = "two levels need two CPUs"
    if missing:
        pytest.skip(f"real VMs ({kind}): {missing}")
    root = Path(tempfile.mkdtemp(prefix=f"vmstack-{kind}-", dir="/tmp"))  # short: it holds Unix sockets
    root.chmod(0o755)
    try:
        if kind == "embed":
            with real.embedded_root(root) as uri:
                yield Place(uri, root)
        else:
            with real.private_libvirtd(root) as libvirtd:
                yield LibvirtdPlace(libvirtd)
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def embed() -> Iterator[Place]:
    with place_for("embed") as place:
        yield place


@pytest.fixture(scope="module")
def system() -> Iterator[Place]:
    with place_for("libvirtd") as place:
        yield place


@pytest.fixture(params=["embed", "system"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


def deploy(daemon: Daemon, place: Place, name: str, level: str = "1", cpu: int = 1) -> tuple[int, ...]:
    """Deploy over HTTP; returns the CPUs that the log says were decided."""
    image = quote(place.image(name))
    answer = daemon.get(f"/deploy?name={name}&cpu={cpu}&mem=0.0625&oc={level}&qcow2={image}")
    assert (answer.status, answer.json) == (200, {"success": True, "reason": None}), daemon.log
    return parse_cpu_list(daemon.wait_for(rf" deploy \S+ \S+ vm={name} .* outcome=ok cpus=(\S+)")[1])


def pinned(place: Place, name: str) -> set[str]:
    """What the kernel allows the vCPU threads of a VM."""
    return set(real.vcpu_affinities(real.qemu_pid(place.root, name)).values())


def eventually(what: Callable[[], bool], within: float = PATIENCE) -> float:
    """Wait until it is so; returns the seconds that it took."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() < begin + within, f"it did not happen within {within} s"
        time.sleep(0.01)
    return time.monotonic() - begin


def noticed(daemon: Daemon, vms: list[str], cause: str) -> None:
    """What has just been done by others is soon known, by events alone: the periodic pass is off."""
    seconds = eventually(lambda: daemon.get("/listvm").json == vms, NOTICED_S)
    print(f"{cause}: noticed {1000 * seconds:.0f} ms later")  # pytest -rP shows it


def test_vms_run_where_it_was_decided_survive_sigkill_and_leave_nothing(place: Place) -> None:
    with place.daemon() as daemon:
        first = deploy(daemon, place, "one", "1")
        second = deploy(daemon, place, "three", "3")
        third = deploy(daemon, place, "more", "3")
        assert set(first).isdisjoint(second)
        assert second == third
        decided = {"one": first, "three": third, "more": third}
        for name, cpus in decided.items():
            assert pinned(place, name) == {format_cpu_list(sorted(cpus))}
        status, pids = daemon.get("/status").json, set(real.qemus(place.root))
        assert len(pids) == 3
        daemon.stop(signal.SIGKILL)
    with place.daemon() as daemon:
        assert set(real.qemus(place.root)) == pids
        assert daemon.get("/status").json == status
        assert daemon.get("/listvm").json == ["one", "three", "more"]
        for name, cpus in decided.items():
            assert pinned(place, name) == {format_cpu_list(sorted(cpus))}
        # A removal narrows nobody here, and the level that loses its last VM gives its CPUs back.
        for name in ("three", "one", "more"):
            assert daemon.get(f"/remove?name={name}").json == {"success": True, "reason": None}, daemon.log
        assert daemon.get("/status").json["cpu"] == {"avail": len(USABLE), "subset": {}}
        assert "outcome=ok" in daemon.log
    eventually(lambda: real.qemus(place.root) == [])
    with place.daemon() as daemon:
        assert daemon.get("/listvm").json == []
        assert daemon.get("/metrics").text.count("vmstack_stopped_vms 0.0") == 1


def test_a_subset_grows_and_shrinks_under_running_vms(place: Place) -> None:
    with place.daemon() as daemon:
        small = deploy(daemon, place, "a")
        assert pinned(place, "a") == {format_cpu_list(sorted(small))}
        both = deploy(daemon, place, "b")
        assert len(both) == 2
        assert pinned(place, "a") == pinned(place, "b") == {format_cpu_list(sorted(both))}
        assert daemon.get("/remove?name=b").status == 200
        assert pinned(place, "a") == {format_cpu_list(sorted(small))}
        assert daemon.get("/remove?name=a").status == 200


def test_a_vm_that_dies_is_noticed_by_its_event(place: Place) -> None:
    with place.daemon() as daemon:
        deploy(daemon, place, "mortal", "2")
        os.kill(real.qemu_pid(place.root, "mortal"), signal.SIGKILL)
        noticed(daemon, [], "death of QEMU")
        daemon.wait_for(r" gone vm=mortal")
        assert daemon.get("/status").json["cpu"]["avail"] == len(USABLE)
        # Its definition is still there: the name is taken until it is removed.
        answer = daemon.get(f"/deploy?name=mortal&cpu=1&mem=0.0625&oc=1&qcow2={quote(place.image('mortal'))}")
        assert (answer.status, answer.json["error"]) == (409, "AlreadyExists")
        assert daemon.get("/remove?name=mortal").status == 200
        deploy(daemon, place, "mortal")
        assert daemon.get("/remove?name=mortal").status == 200


def test_a_start_that_qemu_refuses_leaves_nothing(place: Place) -> None:
    broken = place.images / "broken.qcow2"
    broken.write_bytes(b"this is no qcow2 image")
    with place.daemon() as daemon:
        deploy(daemon, place, "neighbour")
        before = daemon.get("/status").json
        answer = daemon.get(f"/deploy?name=bad&cpu=1&mem=0.0625&oc=1&qcow2={quote(str(broken))}")
        assert (answer.status, answer.json["error"]) == (502, "HypervisorError")
        assert "qcow2" in answer.json["reason"]
        assert daemon.get("/status").json == before
        assert daemon.get("/listvm").json == ["neighbour"]
        assert len(pinned(place, "neighbour")) == 1
        assert daemon.get("/remove?name=neighbour").status == 200


def test_what_is_no_image_is_refused_and_nothing_changes(place: Place) -> None:
    outside = place.root / "secret.qcow2"
    real.make_image(outside)
    folder, link, pipe = (place.images / name for name in ("folder", "link.qcow2", "pipe.qcow2"))
    folder.mkdir()
    link.symlink_to(outside)
    os.mkfifo(pipe)
    refused = {
        place.images / "missing.qcow2": "does not exist",
        folder: "is a directory",
        link: "is outside the allowed directories",
        pipe: "is not a regular file",
    }
    with place.daemon() as daemon:
        cpus = deploy(daemon, place, "neighbour")
        before, pids = daemon.get("/status").json, real.qemus(place.root)
        for image, why in refused.items():
            answer = daemon.get(f"/deploy?name=bad&cpu=1&mem=0.0625&oc=1&qcow2={quote(str(image))}")
            assert (answer.status, answer.json["error"], answer.json["field"]) == (400, "InvalidRequest", "qcow2")
            assert why in answer.json["reason"]
            assert daemon.get("/status").json == before
            assert daemon.get("/listvm").json == ["neighbour"]
            assert daemon.get("/remove?name=bad").status == 404
        assert real.qemus(place.root) == pids
        assert pinned(place, "neighbour") == {format_cpu_list(sorted(cpus))}
        assert daemon.get("/remove?name=neighbour").status == 200


def test_several_vms_start_at_the_same_time_and_all_end_up_on_the_whole_subset(place: Place) -> None:
    with place.daemon() as daemon:
        place.image("p0"), place.image("p1"), place.image("p2")
        answers: dict[str, int] = {}

        def start(name: str) -> None:
            image = quote(place.image(name))
            answers[name] = daemon.get(f"/deploy?name={name}&cpu=1&mem=0.0625&oc=1.5&qcow2={image}").status

        threads = [threading.Thread(target=start, args=(f"p{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert answers == {"p0": 200, "p1": 200, "p2": 200}
        whole = {format_cpu_list(USABLE[:2])} if len(USABLE) == 2 else pinned(place, "p0")
        assert pinned(place, "p0") == pinned(place, "p1") == pinned(place, "p2") == whole
        for name in answers:
            assert daemon.get(f"/remove?name={name}").status == 200


def test_virsh_destroy_and_start_are_noticed(system: LibvirtdPlace) -> None:
    with system.daemon() as daemon:
        deploy(daemon, system, "vm", "2.5")
        system.virsh("destroy", "vm")
        noticed(daemon, [], "virsh destroy")
        system.virsh("start", "vm")
        noticed(daemon, ["vm"], "virsh start")
        assert list(daemon.get("/status").json["cpu"]["subset"]) == ["2.5"]
        system.virsh("undefine", "vm")
        system.virsh("destroy", "vm")
        noticed(daemon, [], "virsh destroy of a transient VM")
        assert daemon.get("/remove?name=vm").status == 404


def test_a_vm_started_by_others_is_adopted_pinned_and_remembered(system: LibvirtdPlace, tmp_path: Path) -> None:
    definition = tmp_path / "foreign.xml"
    definition.write_text(
        "<domain type='qemu'><name>foreign</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        "<metadata><sched:ratio xmlns:sched='1.0.0' cpu='3.0' mem='1.0'/></metadata>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
    with system.daemon() as daemon:
        system.virsh("create", str(definition))
        eventually(lambda: daemon.get("/listvm").json == ["foreign"])
        assert list(daemon.get("/status").json["cpu"]["subset"]) == ["3.0"]
        eventually(lambda: pinned(system, "foreign") == {str(USABLE[0])})
        eventually(lambda: "https://vmstack.org/xmlns/vm/1" in system.virsh("dumpxml", "foreign"))
        daemon.stop(signal.SIGKILL)
    with system.daemon() as daemon:
        assert list(daemon.get("/status").json["cpu"]["subset"]) == ["3.0"]
        assert daemon.get("/remove?name=foreign").status == 200


def test_libvirtd_may_die_and_come_back(system: LibvirtdPlace) -> None:
    with system.daemon() as daemon:
        cpus = deploy(daemon, system, "survivor", "2")
        system.libvirtd.kill()
        eventually(lambda: daemon.get("/healthz").status == 503)
        image = quote(system.image("later"))
        refused = daemon.get(f"/deploy?name=later&cpu=1&mem=0.0625&oc=2&qcow2={image}")
        assert (refused.status, refused.json["error"]) == (503, "Unavailable")
        assert daemon.get("/remove?name=survivor").status == 503
        assert daemon.get("/listvm").json == ["survivor"]
        system.libvirtd.start()
        eventually(lambda: daemon.get("/healthz").status == 200)
        assert daemon.get("/listvm").json == ["survivor"]
        assert pinned(system, "survivor") == {format_cpu_list(sorted(cpus))}
        # Events come again over the new link.
        system.virsh("destroy", "survivor")
        eventually(lambda: daemon.get("/listvm").json == [])
        assert daemon.get("/remove?name=survivor").status == 200
