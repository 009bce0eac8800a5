"""The domain of a new VM. That libvirt and QEMU take it is shown by the contract suite."""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree as ET

import libvirt
import msgspec
import pytest

from core.model import Vm
from vmstackd.hypervisor.base import Record, VmDefinition
from vmstackd.hypervisor.domain_read import read_domain
from vmstackd.hypervisor.domain_xml import DomainOptions, domain_xml

RECORD = Record(
    level=3000, vcpus=3, memory_mib=2048, image="/i/a&b<'\">.qcow2", cpus=(1, 0, 64, 65), generation=2, arrival=1
)
DEFINITION = VmDefinition(vm=Vm("n & <m> \"'", 3, 2048, 3000), record=RECORD)
OPTIONS = DomainOptions(virt_type="kvm")


def built(options: DomainOptions, definition: VmDefinition = DEFINITION) -> ET.Element:
    return ET.fromstring(domain_xml(definition, options))


def attributes(domain: ET.Element, path: str) -> list[dict[str, str]]:
    return [element.attrib for element in domain.iterfind(path)]


def test_what_was_asked_for() -> None:
    domain = built(OPTIONS)
    assert domain.get("type") == "kvm"
    assert domain.findtext("name") == DEFINITION.vm.name
    assert domain.findtext("memory") == "2048"
    assert domain.findtext("vcpu") == "3"
    assert attributes(domain, "os/type") == [{"machine": "q35"}]
    assert attributes(domain, "devices/disk/source") == [{"file": RECORD.image}]
    assert domain.findtext("devices/emulator") is None
    facts = read_domain(domain_xml(DEFINITION, OPTIONS).replace('unit="MiB">2048', 'unit="KiB">2097152'))
    assert (facts.record, facts.vcpus, facts.memory_mib, facts.pinned) == (RECORD, 3, 2048, frozenset(RECORD.cpus))


def test_pins_and_shares() -> None:
    domain = built(OPTIONS)
    pins = [{"vcpu": str(index), "cpuset": "1,0,64-65"} for index in range(3)]
    assert attributes(domain, "cputune/vcpupin") == pins
    assert attributes(domain, "cputune/emulatorpin") == [{"cpuset": "1,0,64-65"}]
    assert domain.findtext("cputune/shares") == "3072"
    assert built(msgspec.structs.replace(OPTIONS, shares_per_vcpu=0)).find("cputune/shares") is None
    capped = msgspec.structs.replace(OPTIONS, shares_per_vcpu=100, max_shares=250)
    assert built(capped).findtext("cputune/shares") == "250"


def test_what_a_guest_may_end() -> None:
    domain = built(OPTIONS)
    assert [domain.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")] == [
        "destroy",
        "restart",
        "destroy",
    ]


def test_nothing_that_was_not_asked_for() -> None:
    domain = built(OPTIONS)
    found = {device.tag for device in domain.find("devices") or ()}
    assert found == {"disk", "controller", "serial", "console", "memballoon", "rng"}
    assert attributes(domain, "devices/controller") == [{"type": "usb", "model": "none"}]


def test_options() -> None:
    domain = built(
        DomainOptions(
            virt_type="qemu", machine="pc-q35-6.2", emulator="/opt/qemu", network="bridge:br0", direct_io=False
        )
    )
    assert attributes(domain, "os/type") == [{"machine": "pc-q35-6.2"}]
    assert domain.findtext("devices/emulator") == "/opt/qemu"
    assert attributes(domain, "devices/interface") == [{"type": "bridge"}]
    assert attributes(domain, "devices/interface/source") == [{"bridge": "br0"}]
    assert [driver["cache"] for driver in attributes(domain, "devices/disk/driver")] == ["writeback"]
    network = built(msgspec.structs.replace(OPTIONS, network="network:default"))
    assert attributes(network, "devices/interface/source") == [{"network": "default"}]


def schema_error(xml: str) -> str:
    """What libvirt's schema has against this; its mock driver may then refuse it for other reasons."""
    connection = libvirt.open("test:///default")
    try:
        connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
    except libvirt.libvirtError as error:
        return str(error) if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA else ""
    finally:
        connection.close()
    return ""


@pytest.mark.parametrize("virt_type", ["kvm", "qemu", "test"])
@pytest.mark.parametrize("network", ["", "bridge:br0", "network:default"])
def test_the_schema_of_libvirt(virt_type: Literal["kvm", "qemu", "test"], network: str) -> None:
    xml = domain_xml(DEFINITION, DomainOptions(virt_type=virt_type, network=network, emulator="/usr/bin/q"))
    assert schema_error(xml) == ""
    assert schema_error(xml.replace("<cputune>", "<cputune><pin/>"))
