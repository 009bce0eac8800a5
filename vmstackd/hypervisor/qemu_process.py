"""What the kernel has counted for the QEMU processes of VMs (proc_pid_stat(5), proc_pid_status(5)).

libvirt tells most of it too. But its statistics of CPUs and memory ask QEMU's monitor (seen in 9.0), where a QEMU that
hangs never answers; and as long as libvirt waits there, it refuses to pin that VM. The kernel always answers.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from core.usage import VmCounters

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_FLAGS, _UTIME, _STIME, _STARTTIME = 6, 11, 12, 19
"""Fields of ``stat`` behind the name of the process, which may hold anything."""
_PF_NO_SETAFFINITY = 0x04000000
_RESIDENT = re.compile(rb"^(?:VmRSS|HugetlbPages):\s+(\d+) kB$", re.MULTILINE)
_VCPU_THREADS = (b"CPU ", b"ALL CPUs/")
"""How QEMU calls them under libvirt: one for each vCPU, or, of an emulated machine, one for all."""


class QemuProcesses:
    """Remembers which process is whose, so that only a VM that is new has to be looked for."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[str, QemuProcess] = {}

    def counters(self, uuids: Iterable[str]) -> dict[str, VmCounters]:
        """By UUID. Without figures where the process cannot be seen: it has ended, or is hidden from us."""
        found = {uuid: VmCounters(uuid) for uuid in uuids}
        known = {uuid: process for uuid, process in self._known.items() if uuid in found}
        missing = found.keys() - self._read(known, found)
        if missing:
            new = find_processes(self._proc, missing)
            self._read(new, found)
            known |= new
        self._known = known
        return found

    def _read(self, processes: Mapping[str, QemuProcess], found: dict[str, VmCounters]) -> set[str]:
        """Of which VMs that was possible."""
        read = set()
        for uuid, process in processes.items():
            try:
                found[uuid] = process.counters(uuid)
            except (OSError, ValueError, IndexError):
                continue
            read.add(uuid)
        return read


def find_processes(proc: Path, uuids: Collection[str]) -> dict[str, QemuProcess]:
    """By UUID, the oldest process that says that it is this VM: a younger one may be anybody's."""
    found: dict[str, QemuProcess] = {}
    for folder in proc.glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            uuid = arguments[arguments.index(b"-uuid") + 1].decode("ascii")
            if uuid in uuids:
                process = QemuProcess(folder)
                if uuid not in found or process.started < found[uuid].started:
                    found[uuid] = process
        except (OSError, ValueError, IndexError):
            continue
    return found


class QemuProcess:
    """Raises OSError, ValueError or IndexError when it is gone. started: in ticks since the machine's start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started = int(self._stat()[_STARTTIME])
        self._threads: list[Path] = []
        self._vcpus: list[Path] = []

    def counters(self, uuid: str) -> VmCounters:
        """As they are now."""
        stat = self._own_stat()
        resident = _RESIDENT.findall((self._folder / "status").read_bytes())
        return VmCounters(
            uuid=uuid,
            cpu_s=(int(stat[_UTIME]) + int(stat[_STIME])) * _TICK_S,
            delay_s=self._delay_s(),
            resident_mib=sum([int(kib) for kib in resident]) // 1024 if resident else None,
            started=self.started,
        )

    def thread_cpus(self) -> dict[frozenset[int], tuple[int, ...]]:
        """Ids of the threads by the CPUs that the kernel lets them use; without those that are the kernel's own."""
        self._own_stat()
        found: dict[frozenset[int], list[int]] = {}
        for task in (self._folder / "task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                found.setdefault(frozenset(os.sched_getaffinity(int(task.name))), []).append(int(task.name))
        if len(found) > 1:
            found = {cpus: [thread for thread in ids if self._may_be_moved(thread)] for cpus, ids in found.items()}
        return {cpus: tuple(ids) for cpus, ids in found.items() if ids}

    def _may_be_moved(self, thread: int) -> bool:
        """Not so of a worker that the kernel has added to the process, for io_uring for one."""
        try:
            return not int(_fields(self._folder / "task" / str(thread))[_FLAGS]) & _PF_NO_SETAFFINITY
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _own_stat(self) -> list[bytes]:
        stat = self._stat()
        if int(stat[_STARTTIME]) != self.started:
            raise ValueError("another process has its number now")
        return stat

    def _stat(self) -> list[bytes]:
        return _fields(self._folder)

    def _delay_s(self) -> float | None:
        """None where the kernel does not count it, or no thread is a vCPU's."""
        threads = list((self._folder / "task").iterdir())
        if threads != self._threads:
            vcpus = [task for task in threads if (task / "comm").read_bytes().startswith(_VCPU_THREADS)]
            self._vcpus = [vcpu / "schedstat" for vcpu in vcpus]
            self._threads = threads
        try:
            waited = [int(vcpu.read_bytes().split()[1]) for vcpu in self._vcpus]
        except FileNotFoundError:
            return None
        return sum(waited) / 1e9 if waited else None


def _fields(folder: Path) -> list[bytes]:
    """Of the ``stat`` of a process or of a thread, those behind its name."""
    return (folder / "stat").read_bytes().rpartition(b")")[2].split()
