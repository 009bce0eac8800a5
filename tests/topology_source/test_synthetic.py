from __future__ import annotations

import pytest

from core.topology import TopologyError
from tests.topology_source.helpers import refusal
from vmstackd.topology_source import load_topology


def test_shape_of_a_host() -> None:
    host = load_topology("synthetic:sockets=2,numa=2,l3=3,cores=4,smt=2")
    assert host.name == "2x2x3x4x2"
    assert host.cpu_ids == tuple(range(96))
    assert host.host_cpus == 96
    assert host.memory_mib == 96 * 4096
    assert host.cache_names == ("L1d", "L1i", "L2", "L3")
    assert host.nodes == (0, 1, 2, 3)
    assert host.node_distances == ((10, 12, 32, 32), (12, 10, 32, 32), (32, 32, 10, 12), (32, 32, 12, 10))
    assert {cpu.package for cpu in host.cpus if cpu.node < 2} == {0}
    assert {cpu.package for cpu in host.cpus if cpu.node >= 2} == {1}


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        (0, 48, 10),  # the two CPUs of a core
        (0, 3, 40),  # the same L3
        (0, 51, 40),
        (0, 4, 50),  # the same node
        (0, 12, 52),  # the same socket
        (0, 24, 72),  # another socket
        (0, 95, 72),
    ],
)
def test_distances(first: int, second: int, distance: int) -> None:
    host = load_topology("synthetic:sockets=2,numa=2,l3=3,cores=4,smt=2")
    assert host.distance(first, second) == distance
    assert host.distance(second, first) == distance


def test_first_cpu_of_every_core_is_numbered_first() -> None:
    host = load_topology("synthetic:cores=3,smt=3")
    assert [cpu.core for cpu in host.cpus] == [0, 1, 2] * 3


def test_optional_keys() -> None:
    host = load_topology("synthetic:sockets=2,numa=2,memory=512,distance=40,near=15,name=small one")
    assert host.name == "small one"
    assert host.memory_mib == 512
    assert host.node_distances[0] == (10, 15, 40, 40)


def test_every_key_may_be_left_out() -> None:
    host = load_topology("synthetic:")
    assert host.cpu_ids == (0,)
    assert host.node_distances == ((10,),)


def test_excluded_cpus_still_count_as_the_hosts() -> None:
    host = load_topology("synthetic:cores=4", exclude=[0, 2, 4000])
    assert host.cpu_ids == (1, 3)
    assert host.host_cpus == 4


def test_excluding_every_cpu_is_refused() -> None:
    with pytest.raises(TopologyError, match="exclude: every CPU of the host is excluded"):
        load_topology("synthetic:cores=2", exclude=[0, 1])


def test_a_large_host() -> None:
    host = load_topology("synthetic:sockets=8,numa=2,l3=4,cores=8,smt=2")
    assert len(host.cpus) == 1024
    assert host.distance(0, 512) == 10


def test_the_largest_host_is_not_too_large() -> None:
    assert str(refusal("synthetic:cores=4097,smt=2")) == "synthetic: 8194 CPUs are more than 8192"
    assert str(refusal("synthetic:cores=8192,smt=8192")) == "synthetic: 67108864 CPUs are more than 8192"
    assert str(refusal("synthetic:sockets=1025")) == "synthetic: numa: 1025 NUMA nodes are more than 1024"


WHOLE = "is not a whole number from 1 to 8192"
ALLOWED = "allowed: sockets, numa, l3, cores, smt, memory, distance, near, name"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("sockets=0", f"sockets: '0' {WHOLE}"),
        ("cores=-4", f"cores: '-4' {WHOLE}"),
        ("cores=1.5", f"cores: '1.5' {WHOLE}"),
        ("cores=1e3", f"cores: '1e3' {WHOLE}"),
        ("cores=", f"cores: '' {WHOLE}"),
        ("cores", f"cores: '' {WHOLE}"),
        ("cores= 4", f"cores: ' 4' {WHOLE}"),
        ("cores=1_0", f"cores: '1_0' {WHOLE}"),
        ("cores=\u0664", f"cores: '\u0664' {WHOLE}"),
        ("cores=nan", f"cores: 'nan' {WHOLE}"),
        ("smt=9999999999999999999999", f"smt: '9999999999999999999999' {WHOLE}"),
        ("smt=" + "9" * 5000, f"smt: '{'9' * 40}' {WHOLE}"),
        ("memory=0", "memory: '0' is not a whole number from 1 to 1099511627776"),
        ("distance=9", "distance: '9' is not a whole number from 10 to 255"),
        ("near=256", "near: '256' is not a whole number from 10 to 255"),
        ("cores=2,cores=2", "cores: is given twice"),
        ("dies=2", f"'dies' is not a key; {ALLOWED}"),
        ("cores=2,", f"'' is not a key; {ALLOWED}"),
        ("name=", "name: a name is 1 to 100 printable characters"),
        ("name=a\nb", "name: a name is 1 to 100 printable characters"),
        ("name=" + "a" * 101, "name: a name is 1 to 100 printable characters"),
    ],
)
def test_malformed(keys: str, message: str) -> None:
    assert str(refusal(f"synthetic:{keys}")) == f"synthetic: {message}"
