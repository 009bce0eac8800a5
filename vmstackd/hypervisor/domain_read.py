"""What is read from a domain's XML. It comes from libvirt, but its metadata from anyone."""

from __future__ import annotations

import io
from collections.abc import Iterable
from xml.etree import ElementTree as ET

import msgspec

from core.cpuset import CpuListError, parse_cpu_list
from vmstackd.api.requests import MAX_MEMORY_MIB, MAX_VCPUS
from vmstackd.hypervisor.base import Record
from vmstackd.hypervisor.metadata import parse_prototype_level, parse_record


class DomainFacts(msgspec.Struct, frozen=True):
    """vcpus: those in use now. memory_mib: the most that the guest may have, rounded up.

    pinned: CPUs that the definition allows the vCPUs, None if it allows one of them all.
    others_pinned: the same of the emulator and the I/O threads.
    """

    vcpus: int
    memory_mib: int
    pinned: frozenset[int] | None
    others_pinned: frozenset[int] | None
    io_threads: bool
    record: Record | None
    foreign_level: int | None


def read_domain(xml: str) -> DomainFacts:
    """Raises ValueError if this is not a domain as libvirt writes it."""
    try:
        domain = ET.fromstring(xml)  # noqa: S314 (libvirt parsed it and wrote it anew: no entities)
        vcpu, memory = domain.find("vcpu"), domain.find("memory")
        if vcpu is None or memory is None or memory.get("unit", "KiB") != "KiB":
            raise ValueError("no vCPUs or memory")
        vcpus = int(vcpu.get("current") or vcpu.text or "")
        memory_mib = -(-int(memory.text or "") // 1024)
        io_threads = int(domain.findtext("iothreads") or 0)
    except ET.ParseError as error:
        raise ValueError(str(error)) from None
    if not 1 <= vcpus <= MAX_VCPUS or not 1 <= memory_mib <= MAX_MEMORY_MIB:
        raise ValueError(f"{vcpus} vCPUs and {memory_mib} MiB of memory")
    metadata = domain.find("metadata")
    own = {pin.get("vcpu"): pin.get("cpuset") for pin in domain.iterfind("cputune/vcpupin")}
    default = vcpu.get("cpuset")
    return DomainFacts(
        vcpus=vcpus,
        memory_mib=memory_mib,
        pinned=_union([own.get(str(index)) or default for index in range(vcpus)]),
        others_pinned=_others_pinned(domain, default, io_threads),
        io_threads=io_threads > 0,
        record=None if metadata is None else parse_record(metadata),
        foreign_level=None if metadata is None else parse_prototype_level(metadata, _sched_namespaces(xml)),
    )


def _others_pinned(domain: ET.Element, default: str | None, io_threads: int) -> frozenset[int] | None:
    emulator = domain.find("cputune/emulatorpin")
    lists = [default if emulator is None else emulator.get("cpuset")]
    own = {pin.get("iothread"): pin.get("cpuset") for pin in domain.iterfind("cputune/iothreadpin")}
    lists += own.values()
    if len(own) < io_threads:
        lists.append(default)
    return _union(lists)


def _union(lists: Iterable[str | None]) -> frozenset[int] | None:
    """None if one of them is no list of CPUs."""
    cpus: set[int] = set()
    try:
        for text in lists:
            if text is None:
                return None
            cpus.update(parse_cpu_list(text))
    except CpuListError:
        return None
    return frozenset(cpus)


def _sched_namespaces(xml: str) -> frozenset[str]:
    """What the prefix ``sched`` stands for, since ElementTree drops prefixes."""
    if "xmlns:sched" not in xml:
        return frozenset()
    events = ET.iterparse(io.StringIO(xml), ("start-ns",))  # noqa: S314 (as above)
    return frozenset(uri for _, (prefix, uri) in events if prefix == "sched")
