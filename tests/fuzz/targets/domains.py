"""Domain XML, and the metadata in it that anyone may have written."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from core.cpuset import HIGHEST_CPU
from core.level import HIGHEST, LOWEST
from tests.fuzz.target import Target, words
from vmstackd.api.requests import MAX_MEMORY_MIB, MAX_VCPUS
from vmstackd.hypervisor import metadata
from vmstackd.hypervisor.base import Record
from vmstackd.hypervisor.domain_read import read_domain


def take(data: bytes) -> None:
    """Text as libvirt gives it. Only ValueError is promised."""
    try:
        facts = read_domain(data.decode(errors="replace"))
    except ValueError:
        return
    assert 1 <= facts.vcpus <= MAX_VCPUS
    assert 1 <= facts.memory_mib <= MAX_MEMORY_MIB
    for cpus in (facts.pinned, facts.others_pinned):
        assert cpus is None or all(0 <= cpu <= HIGHEST_CPU for cpu in cpus)
    assert facts.foreign_level is None or LOWEST <= facts.foreign_level <= HIGHEST
    if facts.record is not None:
        _goes_round(facts.record)


def _goes_round(record: Record) -> None:
    within = ET.Element("metadata")
    within.append(metadata.record_element(record))
    text = ET.tostring(within, encoding="unicode")
    assert metadata.parse_record(ET.fromstring(text)) == record
    alone = ET.fromstring(metadata.record_text(record))
    assert alone.attrib == within[0].attrib


_WORDS = """
<domain>
</domain>
<vcpu>
<vcpu current='2' cpuset='0-3'>
</vcpu>
<memory unit='KiB'>
</memory>
<metadata>
</metadata>
<cputune>
</cputune>
<vcpupin vcpu='0' cpuset='1'/>
<emulatorpin cpuset='1'/>
<iothreads>1</iothreads>
<iothreadpin iothread='1' cpuset='2'/>
xmlns:sched='1.0.0'
<sched:ratio cpu='2.0'/>
xmlns:vmstack='https://vmstack.org/xmlns/vm/1'
<vmstack:vm
schema='1'
level='1500'
image=''
cpus='0-3'
generation='1'
arrival='2'
"""
TARGET = Target(
    take,
    words=words(_WORDS),
)
