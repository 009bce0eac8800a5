"""The libvirt domain of a new VM."""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree as ET

import msgspec

from core.cpuset import format_cpu_list
from vmstackd.hypervisor.base import VmDefinition
from vmstackd.hypervisor.metadata import record_element
from vmstackd.hypervisor.options import parse_network


class DomainOptions(msgspec.Struct, frozen=True):
    """machine, emulator, network: as in HypervisorOptions. virt_type: ``test`` is libvirt's mock driver.

    shares_per_vcpu: CPU weight under contention, 0 = leave it out. max_shares: what the host's
    cgroups take. direct_io: the file system of the image can bypass the page cache.
    """

    virt_type: Literal["kvm", "qemu", "test"]
    machine: str = "q35"
    emulator: str = ""
    network: str = ""
    shares_per_vcpu: int = 1024
    max_shares: int = 262144
    direct_io: bool = True


def domain_xml(definition: VmDefinition, options: DomainOptions) -> str:
    """A domain pinned to record.cpus from its first instant.

    Nothing that costs memory or CPU without being asked for: no USB, graphics or sound.
    """
    vm, cpus = definition.vm, format_cpu_list(definition.record.cpus)
    domain = ET.Element("domain", {"type": options.virt_type})
    _add(domain, "name", text=vm.name)
    _add(domain, "metadata").append(record_element(definition.record))
    _add(domain, "memory", {"unit": "MiB"}, str(vm.memory_mib))
    _add(domain, "vcpu", {"placement": "static"}, str(vm.vcpus))
    tune = _add(domain, "cputune")
    if options.shares_per_vcpu:
        _add(tune, "shares", text=str(min(options.shares_per_vcpu * vm.vcpus, options.max_shares)))
    for index in range(vm.vcpus):
        _add(tune, "vcpupin", {"vcpu": str(index), "cpuset": cpus})
    _add(tune, "emulatorpin", {"cpuset": cpus})
    system = _add(domain, "os")
    _add(system, "type", {} if options.virt_type == "test" else {"machine": options.machine}, "hvm")
    _add(system, "boot", {"dev": "hd"})
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    _add_cpu(domain, options)
    _add(domain, "clock", {"offset": "utc"})
    # A guest that powers itself off or crashes is gone, and its CPUs are given back.
    _add(domain, "on_poweroff", text="destroy")
    _add(domain, "on_reboot", text="restart")
    _add(domain, "on_crash", text="destroy")
    _add_devices(domain, definition.record.image, options)
    return ET.tostring(domain, encoding="unicode")


def _add_cpu(domain: ET.Element, options: DomainOptions) -> None:
    match options.virt_type:
        case "kvm":
            # The guest gets what the host has; features that would forbid live migration stay out.
            _add(domain, "cpu", {"mode": "host-passthrough", "check": "none", "migratable": "on"})
        case "qemu":
            # All that TCG can emulate: current distributions refuse QEMU's default model.
            _add(domain, "cpu", {"mode": "maximum", "check": "none"})
        case "test":
            pass


def _add_devices(domain: ET.Element, image: str, options: DomainOptions) -> None:
    devices = _add(domain, "devices")
    if options.emulator:
        _add(devices, "emulator", text=options.emulator)
    disk = _add(devices, "disk", {"type": "file", "device": "disk"})
    # Guests have their own page cache. A second one in the host would double the memory for the same
    # blocks and blur what is sold, so it is bypassed wherever the file system can do that.
    cache = "none" if options.direct_io else "writeback"
    _add(disk, "driver", {"name": "qemu", "type": "qcow2", "cache": cache, "discard": "unmap"})
    _add(disk, "source", {"file": image})
    _add(disk, "target", {"dev": "vda", "bus": "virtio"})
    network = parse_network(options.network)
    if network is not None:
        kind, name = network
        interface = _add(devices, "interface", {"type": kind})
        _add(interface, "source", {kind: name})
        _add(interface, "model", {"type": "virtio"})
    if options.virt_type == "test":
        return
    _add(devices, "controller", {"type": "usb", "model": "none"})
    serial = _add(devices, "serial", {"type": "pty"})
    _add(serial, "target", {"port": "0"})
    console = _add(devices, "console", {"type": "pty"})
    _add(console, "target", {"type": "serial", "port": "0"})
    # The balloon is there for its statistics only; the source of randomness makes guests boot faster.
    _add(_add(devices, "memballoon", {"model": "virtio"}), "stats", {"period": "10"})
    _add(_add(devices, "rng", {"model": "virtio"}), "backend", {"model": "random"}, "/dev/urandom")


def _add(parent: ET.Element, tag: str, attributes: dict[str, str] | None = None, text: str = "") -> ET.Element:
    element = ET.SubElement(parent, tag, attributes or {})
    element.text = text or None
    return element
