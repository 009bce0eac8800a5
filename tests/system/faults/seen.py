"""What really runs in a box, without asking any daemon of ours: the kernel's threads of QEMU, and libvirt's records."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import libvirt
import msgspec

from core.cpuset import parse_cpu_list
from tests.system.box import Box

LIBVIRT = "/run/libvirt/qemu"
"""Where libvirt keeps the record of each VM that runs, and the number of its process."""
SOCKET = "/run/libvirt/libvirt-sock"

_NAME = re.compile(r"guest=([^,]+)")
_PIN = re.compile(r"<vcpupin vcpu='\d+' cpuset='([^']*)'")
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*(\S*)$", re.MULTILINE)


class Qemu(msgspec.Struct, frozen=True):
    """One process: where threads of its vCPUs may run, its first one, and its helpers, which libvirt does not pin."""

    name: str
    pid: int
    vcpus: Mapping[str, frozenset[int]]
    first: frozenset[int]
    helpers: Mapping[str, frozenset[int]]


class Domain(msgspec.Struct, frozen=True):
    """One VM, as libvirt tells. pins: of its vCPUs, and of the emulator."""

    name: str
    running: bool
    pins: tuple[frozenset[int], ...]


class Moment(msgspec.Struct, frozen=True):
    """Where the vCPUs of each VM of a host may run: for the kernel, and by libvirt's records."""

    kernel: Mapping[str, frozenset[int]]
    recorded: Mapping[str, frozenset[int]]


def processes(box: Box) -> list[Qemu]:
    """All of QEMU's, whether libvirt knows of them or not."""
    found = []
    for folder in box.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "-uuid" in words and (name := _NAME.search("\0".join(words))):
                found.append(_process(name[1], folder))
    return found


def moment(box: Box) -> Moment:
    """Of the VMs that libvirt has started; quick enough to be asked many times a second."""
    kernel, recorded = {}, {}
    for record in box.path(LIBVIRT).glob("*.xml"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(record.with_suffix(".pid").read_text())
            process = _process(record.stem, box.path(f"/proc/{pid}"))
            kernel[process.name] = frozenset().union(*process.vcpus.values())
            recorded[process.name] = _cpus(_PIN.findall(record.read_text()))
    return Moment(kernel, recorded)


def domains(box: Box) -> list[Domain]:
    """Raises libvirtError."""
    with _connected(box) as connection:
        return [
            Domain(domain.name(), running := bool(domain.isActive()), _pins(domain) if running else ())
            for domain in connection.listAllDomains()
        ]


def shared(moment: Moment, levels: Mapping[str, int]) -> set[str]:
    """CPUs that are open to vCPUs of VMs of different levels, in words. levels: of each VM."""
    found = set()
    for whose, cpus in (("the kernel", moment.kernel), ("libvirt", moment.recorded)):
        names = sorted(cpus.keys() & levels.keys())
        found |= {
            f"{one} (level {levels[one]}) and {other} (level {levels[other]}) share CPU {cpu}, says {whose}"
            for number, one in enumerate(names)
            for other in names[:number]
            if levels[one] != levels[other]
            for cpu in cpus[one] & cpus[other]
        }
    return found


def _process(name: str, folder: Path) -> Qemu:
    vcpus: dict[str, frozenset[int]] = {}
    helpers: dict[str, frozenset[int]] = {}
    for task in (folder / "task").iterdir():
        with contextlib.suppress(OSError):  # some of the others come and go
            thread = f"{(task / 'comm').read_text().strip()} {task.name}"
            allowed = _cpus(_ALLOWED.findall((task / "status").read_text()))
            (vcpus if thread.startswith(("CPU ", "ALL CPUs/")) else helpers)[thread] = allowed
    first = next((thread for thread in helpers if thread.endswith(f" {folder.name}")), None)
    if first is None:
        raise ProcessLookupError("it has ended")
    return Qemu(name, int(folder.name), vcpus, helpers.pop(first), helpers)


def _cpus(lists: list[str]) -> frozenset[int]:
    return frozenset(cpu for text in lists for cpu in parse_cpu_list(text))


@contextlib.contextmanager
def _connected(box: Box) -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(f"qemu+unix:///system?socket={box.path(SOCKET)}")
    try:
        yield connection
    finally:
        connection.close()


def _pins(domain: libvirt.virDomain) -> tuple[frozenset[int], ...]:
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    maps = [*domain.vcpuPinInfo(live), domain.emulatorPinInfo(live)]
    return tuple(frozenset(cpu for cpu, allowed in enumerate(pins) if allowed) for pins in maps)
