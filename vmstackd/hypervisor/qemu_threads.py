"""Where the kernel lets the threads of VMs' processes run, and putting that right.

libvirt pins vCPUs, I/O threads and QEMU's first thread, and tells of the latter what it has been told to do, not what
is. QEMU's other threads follow through a cgroup, if there is one; but where somebody has set the affinity of one of
them, the kernel goes on to honour that within what the cgroup allows (seen in 6.18). Only setting it anew ends it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vmstackd.hypervisor.qemu_process import QemuProcess, find_processes


class QemuThreads:
    """Remembers which process is whose. Called from any thread; nothing waits for QEMU or libvirt."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._lock = threading.Lock()
        self._known: dict[str, QemuProcess] = {}

    def look(self, uuids: Collection[str], *, search: bool) -> dict[str, Mapping[frozenset[int], tuple[int, ...]]]:
        """By UUID, as in ObservedVm; those whose process is not known, or has ended, are left out.

        search: look for processes that are not known, and forget all others.
        """
        with self._lock:
            found = self._read(uuids)
            if search:
                self._known = {uuid: process for uuid, process in self._known.items() if uuid in found}
                if missing := set(uuids) - found.keys():
                    self._known |= find_processes(self._proc, missing)
                    found |= self._read(missing)
        return found

    def confine(self, uuid: str, cpus: frozenset[int]) -> None:
        """Have all threads of a known process run on these CPUs and on no others, as far as we may order that."""
        for allowed, threads in self.look([uuid], search=False).get(uuid, {}).items():
            if allowed != cpus:
                for thread in threads:
                    # Another user's, a thread that has ended, or a cgroup that has none of these CPUs.
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(thread, cpus)

    def _read(self, uuids: Iterable[str]) -> dict[str, Mapping[frozenset[int], tuple[int, ...]]]:
        found: dict[str, Mapping[frozenset[int], tuple[int, ...]]] = {}
        for uuid in uuids:
            if (process := self._known.get(uuid)) is not None:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    found[uuid] = process.thread_cpus()
        return found
