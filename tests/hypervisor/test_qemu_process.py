from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.usage import VmCounters
from tests.real import WAIT_S
from vmstackd.hypervisor.qemu_process import QemuProcesses

UUID, OTHER = "5b50b29e-d211-4cbb-ad27-2d2316d3c55d", "fad6daf7-478a-4811-b236-2c0e8cadf12c"
TICKS = os.sysconf("SC_CLK_TCK")
STARTED = 1000


def make_process(
    proc: Path,
    pid: int,
    uuid: str,
    *,
    ticks: tuple[int, int] = (0, 0),
    started: int = STARTED,
    threads: Sequence[tuple[str, str | None]] = (("qemu-system-x86", "5 6 7"),),
    huge_kib: int = 0,
) -> Path:
    """As in proc(5). ticks: of user and of system. threads: name and schedstat of each."""
    folder = proc / str(pid)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "task").mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"\0".join([b"/usr/bin/qemu", b"-m", b"32", b"-uuid", uuid.encode(), b"-S", b""]))
    fields = ["S", *["0"] * 10, str(ticks[0]), str(ticks[1]), *["0"] * 6, str(started), *["0"] * 30]
    (folder / "stat").write_text(f"{pid} (a) name (x) {' '.join(fields)}\n")
    (folder / "status").write_text(f"Name:\tqemu\nVmRSS:\t 20480 kB\nHugetlbPages:\t {huge_kib} kB\nThreads:\t5\n")
    for number, (name, schedstat) in enumerate(threads):
        thread = folder / "task" / str(pid + number)
        thread.mkdir()
        (thread / "comm").write_text(f"{name}\n")
        if schedstat is not None:
            (thread / "schedstat").write_text(f"{schedstat}\n")
    return folder


def test_what_is_counted(tmp_path: Path) -> None:
    threads = [("qemu-system-x86", "9 9000000000 9"), ("CPU 0/KVM", "1 1500000000 1"), ("CPU 1/KVM", "1 250000000 1")]
    make_process(tmp_path, 100, UUID, ticks=(3 * TICKS, TICKS // 2), threads=threads)
    make_process(tmp_path, 200, OTHER, threads=[("qemu", "0 0 0"), ("ALL CPUs/TCG", "0 3 0")], huge_kib=1 << 20)
    (tmp_path / "self").mkdir()
    assert QemuProcesses(tmp_path).counters([OTHER, UUID, "absent"]) == {
        UUID: VmCounters(UUID, 3.5, 1.75, 20, STARTED),
        OTHER: VmCounters(OTHER, 0.0, 3e-9, 1044, STARTED),
        "absent": VmCounters("absent"),
    }


def test_what_is_not_counted_is_not_known(tmp_path: Path) -> None:
    folder = make_process(tmp_path, 100, UUID, threads=[("qemu", "0 0 0")])
    processes = QemuProcesses(tmp_path)
    assert processes.counters([UUID])[UUID].delay_s is None
    make_process(tmp_path, 100, UUID, threads=[("qemu", None), ("CPU 0/KVM", None)])
    (folder / "status").write_text("Name:\tqemu\n")  # it is about to end, and has given its memory back
    assert processes.counters([UUID]) == {UUID: VmCounters(UUID, 0.0, None, None, STARTED)}


def test_vcpus_come_and_go(tmp_path: Path) -> None:
    threads = [("qemu", "0 0 0"), ("CPU 0/KVM", "0 1000000000 0")]
    make_process(tmp_path, 100, UUID, threads=threads)
    processes = QemuProcesses(tmp_path)
    assert processes.counters([UUID])[UUID].delay_s == 1
    make_process(tmp_path, 100, UUID, threads=[*threads, ("worker", "0 9000000000 0"), ("CPU 1/KVM", "0 500000000 0")])
    assert processes.counters([UUID])[UUID].delay_s == 1.5
    make_process(tmp_path, 100, UUID, threads=threads)
    assert processes.counters([UUID])[UUID].delay_s == 1


def test_the_oldest_is_the_vm(tmp_path: Path) -> None:
    make_process(tmp_path, 300, UUID, ticks=(TICKS, 0), started=5)
    for pid in (100, 299, 301, 500):
        make_process(tmp_path, pid, UUID, ticks=(9 * TICKS, 0), started=6)
    assert QemuProcesses(tmp_path).counters([UUID])[UUID].cpu_s == 1


def test_a_number_that_another_process_got(tmp_path: Path) -> None:
    make_process(tmp_path, 100, UUID, ticks=(TICKS, 0))
    processes = QemuProcesses(tmp_path)
    assert processes.counters([UUID])[UUID].cpu_s == 1
    make_process(tmp_path, 100, OTHER, ticks=(7 * TICKS, 0), started=2000)
    assert processes.counters([UUID]) == {UUID: VmCounters(UUID)}
    make_process(tmp_path, 200, UUID, ticks=(2 * TICKS, 0), started=3000)
    found = processes.counters([UUID, OTHER])
    assert (found[UUID].cpu_s, found[OTHER].cpu_s) == (2, 7)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cmdline", b""),
        ("cmdline", b"qemu\0-uuid"),
        ("cmdline", b"qemu\0-uuid\0\xff\0"),
        ("stat", b""),
        ("stat", b"100 (qemu) S 1 2"),
        ("stat", b"100 (qemu) S " + b"x " * 50),
    ],
)
def test_odd_processes_hide_no_vm(tmp_path: Path, name: str, text: bytes) -> None:
    (make_process(tmp_path, 100, UUID) / name).write_bytes(text)
    make_process(tmp_path, 200, OTHER, ticks=(TICKS, 0))
    assert QemuProcesses(tmp_path).counters([UUID, OTHER]) == {
        UUID: VmCounters(UUID),
        OTHER: VmCounters(OTHER, 1.0, None, 20, STARTED),
    }


def test_a_real_process() -> None:
    """Whoever says on its command line that it is a VM is read, whatever it is."""
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code, "-uuid", UUID]
    processes = QemuProcesses()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = processes.counters([UUID])[UUID]
        assert found.cpu_s is not None
        assert 0.25 <= found.cpu_s < 5
        assert found.resident_mib is not None
        assert 1 <= found.resident_mib < 1000
        process.communicate(timeout=WAIT_S)
    assert processes.counters([UUID]) == {UUID: VmCounters(UUID)}
