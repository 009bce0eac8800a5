"""Recordings by the real daemon: of QEMU VMs, whose figures are the kernel's, and on a disk that is really full."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest

from core.cpuset import format_cpu_list
from core.trace import Sample, TracedVm
from tests import real
from tests.cli.test_recording import SIM, load
from tests.cli.test_recording import deploy as deploy_simulated
from tests.hypervisor.test_real_measure import BUSY_BOOT_SECTOR
from tests.running import PATIENCE, ROOT, Daemon, clean_environment
from tests.test_real_vms import Place, deploy, eventually, place_for
from vmstackd.trace_file import TraceFile, TraceFileError

pytestmark = pytest.mark.real

MEASURED_S = 8
PLAIN = ("--config", os.devnull, "--critical-size", "0")


@pytest.fixture
def place() -> Iterator[Place]:
    with place_for("embed") as found:
        yield found


def recorded(path: Path) -> list[Sample]:
    """So far."""
    with contextlib.suppress(TraceFileError), TraceFile(path) as trace:
        return list(trace)
    return []


def last_has(path: Path, vms: int) -> bool:
    samples = recorded(path)
    return bool(samples) and len(samples[-1].vms) == vms


def of(sample: Sample, name: str) -> TracedVm:
    (found,) = [vm for vm in sample.vms if vm.name == name]
    return found


def wanted(vm: TracedVm) -> float:
    """CPUs that a VM had or waited for, in a sample of one second; much if that is not known."""
    return 99.0 if vm.cpu is None or vm.delay_s is None else vm.cpu + vm.delay_s


def cpu_seconds(pid: int) -> float:
    """What the kernel says that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def after_the_next_sample(path: Path, pid: int) -> tuple[int, float, float]:
    """How many samples there are, the time, and the CPU time of a process, as soon as there is another one."""
    count = len(recorded(path))
    eventually(lambda: len(recorded(path)) > count)
    return count + 1, time.monotonic(), cpu_seconds(pid)


def test_a_busy_vm_and_an_idle_one_are_recorded_as_they_were_and_replayed(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    real.make_image(place.images / "busy.qcow2", BUSY_BOOT_SECTOR)
    daemon = Daemon(
        *("--hypervisor", place.uri, "--image-roots", str(place.images), "--virt-type", "qemu"),
        *("--critical-size", "0", "--delay", "1", "--record", str(path)),
    )
    with daemon:
        decided = {1000: deploy(daemon, place, "busy", "1"), 2000: deploy(daemon, place, "idle", "2")}
        pid = real.qemu_pid(place.root, "busy")
        # The firmware of the idle one is busy, too.
        eventually(lambda: last_has(path, 2) and wanted(of(recorded(path)[-1], "idle")) < 0.1)
        first, began, before = after_the_next_sample(path, pid)
        time.sleep(MEASURED_S)
        last, ended, after = after_the_next_sample(path, pid)
        for name in ("busy", "idle"):
            assert daemon.get(f"/remove?name={name}").status == 200
        eventually(lambda: last_has(path, 0))
        assert daemon.stop() == 0
        assert not re.search(" (warning|error) ", daemon.log)
    measured = load(path)[first:last]
    busy = [of(sample, "busy").cpu or 0 for sample in measured]
    kernel = (after - before) / (ended - began)
    print(f"busy: {mean(busy):.3f} recorded, {kernel:.3f} counted")  # pytest -rP shows it
    assert len(measured) >= MEASURED_S - 1
    assert mean(busy) == pytest.approx(min(1.0, kernel), rel=0.1)
    # Others may keep this machine busy.
    assert mean(wanted(of(sample, "busy")) for sample in measured) > 0.7
    assert mean(wanted(of(sample, "idle")) for sample in measured) < 0.2
    assert all(0 < (of(sample, "busy").memory or 0) <= 1 for sample in measured)
    assert all(sample.cpu is not None and 0 < sample.cpu <= 1 for sample in measured)
    replayed = subprocess.run(
        [sys.executable, "-m", "vmstackd", *PLAIN, f"--load={path}", "--output", "json"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (replayed.returncode, replayed.stderr) == (0, "")
    _, *moments, _ = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert [operation[:3] for moment in moments for operation in moment["ops"]] == [
        ["deploy", "busy", True],
        ["deploy", "idle", True],
        ["remove", "busy", True],
        ["remove", "idle", True],
    ]
    states = [moment["state"]["cpu"] for moment in moments if moment["state"]]
    both = next(state for state in states if len(state) == 2)
    assert [level["cpus"] for level in both] == [format_cpu_list(cpus) for cpus in decided.values()]
    assert states[-1] == []


def missing_small_disk() -> str:
    """Why no file system of a given size can be mounted for one process; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("unshare") is None:
        return "not installed: unshare"
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return "" if done.returncode == 0 else "no mount namespaces, or no tmpfs in them"


def test_a_full_disk_ends_the_recording_with_one_warning_and_nothing_else(tmp_path: Path) -> None:
    if missing := missing_small_disk():
        pytest.skip(f"a full disk: {missing}")
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "trace.csv"
    daemon = Daemon(*SIM, "--record", str(path))
    script = 'mount -t tmpfs -o size=128k tmpfs "$1"; shift; exec "$@"'
    daemon.command = [
        *("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", str(folder)),
        *daemon.command,
    ]
    with daemon:
        there = Path(f"/proc/{daemon.process.pid}/root") / path.relative_to("/")
        deploy_simulated(daemon, "a", "b", "c")
        eventually(lambda: last_has(there, 3))
        filler = there.with_name("filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        warning = daemon.wait_for(" warning recording-stopped .*")[0]
        assert f'record={path} reason="No space left on device"' in warning
        assert "next_step=" in warning
        whole = load(there)
        assert whole
        deploy_simulated(daemon, "d")
        assert daemon.get("/listvm").json == ["a", "b", "c", "d"]
        time.sleep(2.5)  # in which more samples come
        assert load(there) == whole
        filler.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: last_has(there, 4))
        assert load(there.with_name("trace.csv.1")) == whole
        assert len(re.findall(" (warning|error) ", daemon.log)) == 1
        assert daemon.stop() == 0
