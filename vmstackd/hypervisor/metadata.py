"""The record that vmstack keeps in the metadata of each VM, as XML.

Anyone who may define a VM may write this metadata, so it is read as strictly as a request from a
stranger: whatever is not exactly right counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from xml.etree import ElementTree as ET

from core.cpuset import CpuListError, format_cpu_list, parse_cpu_list
from core.level import HIGHEST, LOWEST, LevelError, parse_level
from vmstackd.api.requests import MAX_MEMORY_MIB, MAX_PATH_BYTES, MAX_VCPUS
from vmstackd.hypervisor.base import Record

NAMESPACE = "https://vmstack.org/xmlns/vm/1"
PREFIX = "vmstack"
SCHEMA = "1"

PROTOTYPE_NAMESPACE = "1.0.0"
"""What the prototype binds its prefix ``sched`` to."""

_MAX_CPUS_TEXT = 65536
_HIGHEST_COUNTER = 1 << 53
"""No host gets that far. A higher number than this, which only a stranger writes, is read as this one:
were it believed, the host would count on above it; were it refused, so would what the host writes
after the highest one that is not. As it is, all of that is read, and below 2**63 for ever.
"""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_ATTRIBUTES = {"schema", "level", "vcpus", "memory_mib", "image", "cpus", "generation", "arrival"}

ET.register_namespace(PREFIX, NAMESPACE)


def record_element(record: Record) -> ET.Element:
    """The element to put into a new domain's ``<metadata>``."""
    return _element(f"{{{NAMESPACE}}}vm", record)


def record_text(record: Record) -> str:
    """The element as libvirt's setMetadata wants it: without a prefix, which libvirt adds itself."""
    return ET.tostring(_element("vm", record), encoding="unicode")


def parse_record(metadata: ET.Element) -> Record | None:
    """Our record among the children of ``<metadata>``; None if absent, malformed or of another schema."""
    elements = metadata.findall(f"{{{NAMESPACE}}}vm")
    if len(elements) != 1 or len(elements[0]):
        return None
    attributes = elements[0].attrib
    if set(attributes) != _ATTRIBUTES or attributes["schema"] != SCHEMA:
        return None
    image = attributes["image"]
    if image and not (image.startswith("/") and image.isprintable()):
        return None
    cpus_text = attributes["cpus"]
    try:
        if len(image.encode()) > MAX_PATH_BYTES or len(cpus_text) > _MAX_CPUS_TEXT:
            return None
        return Record(
            level=_number(attributes["level"], LOWEST, HIGHEST),
            vcpus=_number(attributes["vcpus"], 1, MAX_VCPUS),
            memory_mib=_number(attributes["memory_mib"], 1, MAX_MEMORY_MIB),
            image=image,
            cpus=parse_cpu_list(cpus_text),
            generation=_counter(attributes["generation"]),
            arrival=_counter(attributes["arrival"]),
        )
    except (CpuListError, ValueError):
        return None


def parse_prototype_level(metadata: ET.Element, sched: Collection[str] = ()) -> int | None:
    """The level, in thousandths, that the prototype wrote; None if absent or not a level.

    sched: further namespaces that the document binds to the prefix ``sched``.
    """
    namespaces = {PROTOTYPE_NAMESPACE, *sched}
    for element in metadata.iter():
        namespace, _, local = element.tag.rpartition("}")
        if local == "ratio" and namespace[1:] in namespaces:
            try:
                return parse_level(element.get("cpu", ""))
            except LevelError:
                return None
    return None


def _element(tag: str, record: Record) -> ET.Element:
    return ET.Element(
        tag,
        {
            "schema": SCHEMA,
            "level": str(record.level),
            "vcpus": str(record.vcpus),
            "memory_mib": str(record.memory_mib),
            "image": record.image,
            "cpus": format_cpu_list(record.cpus),
            "generation": str(record.generation),
            "arrival": str(record.arrival),
        },
    )


def _number(text: str, least: int, most: int) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(text)
    number = int(text)
    if not least <= number <= most:
        raise ValueError(text)
    return number


def _counter(text: str) -> int:
    return min(_number(text, 0, (1 << 63) - 1), _HIGHEST_COUNTER)
