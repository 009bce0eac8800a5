"""Records as XML: what is written is read back, and nothing else is ever taken for a record."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmstackd.api.requests import MAX_MEMORY_MIB
from vmstackd.hypervisor.base import Record
from vmstackd.hypervisor.domain_read import read_domain
from vmstackd.hypervisor.metadata import (
    NAMESPACE,
    parse_prototype_level,
    parse_record,
    record_element,
    record_text,
)

RECORD = Record(level=3000, vcpus=4, memory_mib=2048, image="/a.qcow2", cpus=(0, 128, 1, 2, 3), generation=9, arrival=4)

HIGHEST = 1 << 53
counters = st.integers(0, HIGHEST)
paths = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=40).filter(str.isprintable).map("/".__add__)
records = st.builds(
    Record,
    level=st.integers(1000, 64000),
    vcpus=st.integers(1, 4096),
    memory_mib=st.integers(1, 1 << 30),
    image=st.just("") | paths,
    cpus=st.lists(st.integers(0, 8191), unique=True, max_size=300).map(tuple),
    generation=counters,
    arrival=counters,
)


def metadata(*children: ET.Element) -> ET.Element:
    """As it comes from libvirt: through text."""
    root = ET.Element("metadata")
    root.extend(children)
    return ET.fromstring(ET.tostring(root))


@given(records)
def test_what_is_written_is_read(record: Record) -> None:
    assert parse_record(metadata(record_element(record))) == record
    assert ET.fromstring(record_text(record)).attrib == record_element(record).attrib


def test_the_form() -> None:
    assert record_text(RECORD) == (
        '<vm schema="1" level="3000" vcpus="4" memory_mib="2048" image="/a.qcow2"'
        ' cpus="0,128,1-3" generation="9" arrival="4" />'
    )
    assert ET.tostring(record_element(RECORD), encoding="unicode").startswith(
        f'<vmstack:vm xmlns:vmstack="{NAMESPACE}"'
    )


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("schema", "2"),
        ("schema", ""),
        ("level", "999"),
        ("level", "64001"),
        ("level", "3.0"),
        ("level", "03000"),
        ("level", "٣000"),
        ("vcpus", "0"),
        ("vcpus", "-1"),
        ("vcpus", "4097"),
        ("vcpus", " 4"),
        ("memory_mib", "0"),
        ("memory_mib", "1e3"),
        ("memory_mib", str(MAX_MEMORY_MIB + 1)),
        ("memory_mib", "9" * 19),
        ("image", "relative"),
        ("image", "/a\nb"),
        ("image", "/" + "a" * 4095),
        ("cpus", "3-1"),
        ("cpus", "1,1"),
        ("cpus", "0-8192"),
        ("cpus", "0-4294967295"),
        ("cpus", "0," * 40000),
        ("generation", str(1 << 63)),
        ("generation", "9" * 5000),
        ("arrival", ""),
        ("more", "1"),
    ],
)
def test_anything_else_is_no_record(attribute: str, value: str) -> None:
    element = record_element(RECORD)
    element.set(attribute, value)
    assert parse_record(metadata(element)) is None


@given(st.integers(HIGHEST, (1 << 63) - 1))
def test_a_stranger_cannot_make_the_host_write_what_it_does_not_read(claimed: int) -> None:
    element = record_element(RECORD)
    element.set("generation", str(claimed))
    element.set("arrival", str(claimed))
    read = parse_record(metadata(element))
    assert read == msgspec.structs.replace(RECORD, generation=HIGHEST, arrival=HIGHEST)
    for later in (1, 2, 1 << 20, 1 << 40):
        written = msgspec.structs.replace(RECORD, generation=read.generation + later, arrival=read.arrival + later)
        assert parse_record(metadata(record_element(written))) == read


def test_incomplete_doubled_or_elsewhere() -> None:
    for attribute in record_element(RECORD).attrib:
        element = record_element(RECORD)
        del element.attrib[attribute]
        assert parse_record(metadata(element)) is None
    assert parse_record(metadata()) is None
    assert parse_record(metadata(record_element(RECORD), record_element(RECORD))) is None
    outer = ET.Element("other")
    outer.append(record_element(RECORD))
    assert parse_record(metadata(outer)) is None
    element = record_element(RECORD)
    ET.SubElement(element, "child")
    assert parse_record(metadata(element)) is None
    assert parse_record(metadata(ET.fromstring(record_text(RECORD)))) is None


def parent(name: str, values: dict[str, str], children: list[ET.Element]) -> ET.Element:
    element = ET.Element(name, values)
    element.extend(children)
    return element


names = st.sampled_from([f"{{{NAMESPACE}}}vm", "vm", "{1.0.0}ratio", "ratio", "{x}y"])
attributes = st.dictionaries(
    st.sampled_from([*record_element(RECORD).attrib, "cpu", "x"]),
    st.text(st.characters(exclude_categories=["C"]), max_size=30) | st.integers().map(str) | st.just("1"),
)
elements = st.recursive(
    st.builds(ET.Element, names, attributes),
    lambda inner: st.builds(parent, names, attributes, st.lists(inner, max_size=3)),
    max_leaves=8,
)


@given(st.lists(elements, max_size=4))
def test_no_metadata_raises(children: list[ET.Element]) -> None:
    tree = metadata(*children)
    record, level = parse_record(tree), parse_prototype_level(tree)
    assert record is None or 1000 <= record.level <= 64000
    assert level is None or 1000 <= level <= 64000


DOMAIN = "<domain><name>a</name><metadata>{}</metadata><memory unit='KiB'>{}</memory>{}</domain>"
VCPU = "<vcpu>2</vcpu>"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("<sched:ratio xmlns:sched='1.0.0' cpu='2.0'/>", 2000),
        ("<sched:ratio xmlns:sched='1.0.0' cpu='1.5'>more</sched:ratio>", 1500),
        ("<s:ratio xmlns:s='1.0.0' cpu='3'/>", 3000),
        ("<sched:ratio xmlns:sched='other' cpu='3'/>", 3000),
        ("<sched:all xmlns:sched='1.0.0'><sched:ratio cpu='2'/></sched:all>", 2000),
        ("<ratio xmlns='other' cpu='3'/>", None),
        ("<sched:ratio xmlns:sched='1.0.0' cpu='0.5'/>", None),
        ("<sched:ratio xmlns:sched='1.0.0' cpu='nan'/>", None),
        ("<sched:ratio xmlns:sched='1.0.0'/>", None),
        ("", None),
    ],
)
def test_the_prototype(text: str, level: int | None) -> None:
    facts = read_domain(DOMAIN.format(text, 1024, VCPU))
    assert (facts.foreign_level, facts.record) == (level, None)


def test_sizes_and_pins_of_a_domain() -> None:
    assert read_domain(DOMAIN.format("", 1025, VCPU)).memory_mib == 2
    facts = read_domain(DOMAIN.format("", 1024, "<vcpu current='3' cpuset='4-5'>8</vcpu>"))
    assert (facts.vcpus, facts.pinned, facts.others_pinned) == (3, frozenset({4, 5}), frozenset({4, 5}))
    pins = "<cputune><vcpupin vcpu='0' cpuset='0,2'/><vcpupin vcpu='1' cpuset='7'/></cputune><iothreads>2</iothreads>"
    facts = read_domain(DOMAIN.format("", 1024, VCPU + pins))
    assert (facts.pinned, facts.io_threads) == (frozenset({0, 2, 7}), True)
    one = "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"
    assert read_domain(DOMAIN.format("", 1024, VCPU + one)).pinned is None


@pytest.mark.parametrize(
    ("pins", "cpus"),
    [
        ("", None),
        ("<emulatorpin cpuset='1'/>", None),
        ("<iothreadpin iothread='1' cpuset='2'/><iothreadpin iothread='2' cpuset='3'/>", None),
        ("<emulatorpin cpuset='1'/><iothreadpin iothread='1' cpuset='2'/>", None),
        ("<emulatorpin cpuset='1'/><iothreadpin iothread='5' cpuset='2'/><iothreadpin iothread='6' cpuset='3'/>", 3),
        ("<emulatorpin cpuset='x'/><iothreadpin iothread='1' cpuset='2'/><iothreadpin iothread='2' cpuset='3'/>", None),
    ],
)
def test_pins_of_what_is_no_vcpu(pins: str, cpus: int | None) -> None:
    text = f"{VCPU}<iothreads>2</iothreads><cputune>{pins}</cputune>"
    wanted = None if cpus is None else frozenset(range(1, cpus + 1))
    assert read_domain(DOMAIN.format("", 1024, text)).others_pinned == wanted
    if "'x'" not in pins:
        text = text.replace("<vcpu>", "<vcpu cpuset='1-3'>")
        assert read_domain(DOMAIN.format("", 1024, text)).others_pinned == frozenset({1, 2, 3})


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "<domain/>",
        "\0",
        DOMAIN.format("", "many", VCPU),
        DOMAIN.format("", 1024, "<vcpu/>"),
        "<domain><vcpu>1</vcpu><memory unit='GiB'>1</memory></domain>",
    ],
)
def test_what_is_no_domain(xml: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        read_domain(xml)
