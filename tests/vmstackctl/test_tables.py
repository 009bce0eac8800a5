from __future__ import annotations

import msgspec
import pytest

from core.cpuset import format_cpu_list
from core.usage import VmUsage
from tests.vmstackctl.hosts import PIPE, cpu, drawn, host, terminal, vm
from vmstackctl.tables import TopologyTables, VmDetails, VmTable, folded

SCATTERED = format_cpu_list(range(0, 256, 2))


def test_a_list_has_a_line_for_each_vm() -> None:
    lines = drawn(VmTable((vm(), vm("db"))), terminal(80)).splitlines()
    assert lines[0].split() == ["NAME", "LEVEL", "VCPUS", "MEMORY", "STATE", "CPUS"]
    assert lines[1].split() == ["web1", "2:1", "4", "8", "GiB", "running", "8-9,136-137"]
    assert lines[2].startswith("db ")


def test_the_list_of_a_cluster_has_hosts() -> None:
    there = msgspec.structs.replace(vm(), host="server1")
    silent = msgspec.structs.replace(
        vm("db", "", ""), host="server2", vcpus=0, memory_mib=0, level=0, state="unknown", image=""
    )
    lines = drawn(VmTable((there, silent), hosts=True), terminal(80)).splitlines()
    assert lines[0].split() == ["NAME", "HOST", "LEVEL", "VCPUS", "MEMORY", "STATE", "CPUS"]
    assert lines[1].split() == ["web1", "server1", "2:1", "4", "8", "GiB", "running", "8-9,136-137"]
    assert lines[2].split() == ["db", "server2", "-", "-", "-", "unknown"]
    details = drawn(VmDetails(there), terminal(80))
    assert details.startswith("web1\n  host    server1\n  level   2:1, 4 CPUs\n")
    assert (
        drawn(VmDetails(silent), terminal(80)) == "db\n  host   server2\n  state  unknown: its host does not answer\n"
    )


def test_a_wide_list_has_the_images() -> None:
    assert "/srv/web1" in drawn(VmTable((vm(),)), terminal(200))
    assert "/srv/web1" in drawn(VmTable((vm(),)), PIPE)


def test_an_empty_list_is_a_heading() -> None:
    assert drawn(VmTable(()), PIPE).startswith("NAME")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_long_names_and_many_cpus_take_a_line_all_the_same(width: int) -> None:
    text = drawn(VmTable((vm("n" * 255, SCATTERED, "0"), vm())), terminal(width))
    lines = text.splitlines()
    assert len(lines) == 3
    assert max(len(line) for line in lines) <= width
    if width >= 80:
        assert "2:1" in lines[1]
        assert "8 GiB" in lines[1]
        assert "running" in lines[1]
    assert "…" in lines[1]


def test_a_pipe_gets_everything() -> None:
    text = drawn(VmTable((vm("n" * 255, SCATTERED, "0", "/" + "p" * 4000),)), PIPE)
    assert "n" * 255 in text
    assert SCATTERED in text
    assert "p" * 4000 in text
    assert len(text.splitlines()) == 2


def test_a_vm_that_runs_elsewhere_says_so() -> None:
    assert "now on 8, to be on 8-9,136-137" in drawn(VmTable((vm(pinned="8"),)), terminal(100))
    assert "now on unknown, to be on" in drawn(VmTable((vm(pinned=""),)), terminal(100))


@pytest.mark.parametrize("width", [80, 200])
def test_details_have_all_fields(width: int) -> None:
    text = drawn(VmDetails(vm()), terminal(width))
    assert [line.split(maxsplit=1)[-1].rstrip() for line in text.splitlines()] == [
        "web1",
        "2:1, 4 CPUs",
        "4",
        "8 GiB",
        "running",
        "8-9,136-137",
        "as decided",
        "/srv/web1",
    ]


def test_details_have_what_was_measured() -> None:
    measured = msgspec.structs.replace(vm(), usage=VmUsage(busy_cpus=1.234, delay_ratio=0.031, resident_mib=4300))
    lines = drawn(VmDetails(measured), terminal(80)).splitlines()
    assert lines[3:7] == [
        "  memory  8 GiB, 4.2 GiB of it resident",
        "  state   running",
        "  busy    1.23 CPUs",
        "  waits   3.1 % of the time, for a CPU",
    ]
    # What is not known takes no line.
    nothing = msgspec.structs.replace(vm(), usage=VmUsage())
    assert drawn(VmDetails(nothing), terminal(80)) == drawn(VmDetails(vm()), terminal(80))


def test_a_list_is_the_same_with_measurements() -> None:
    measured = msgspec.structs.replace(vm(), usage=VmUsage(busy_cpus=1.0, delay_ratio=0.5, resident_mib=1))
    assert drawn(VmTable((measured,)), PIPE) == drawn(VmTable((vm(),)), PIPE)


def test_long_details_are_broken_where_they_can_be_read() -> None:
    text = drawn(VmDetails(vm(cpus=SCATTERED, pinned="0", image="/" + "p" * 300)), terminal(80))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "".join(text.split()).count("p" * 300) == 1
    assert SCATTERED in "".join(text.split())
    assert "  pinned  0\n" in text


def test_cpu_lists_are_broken_after_commas() -> None:
    assert folded("0-3,8,10-11", 6) == "0-3,8,\n10-11"
    assert folded("0-3", 2) == "0-3"


def test_nothing_that_somebody_named_moves_the_cursor() -> None:
    evil = msgspec.structs.replace(vm("\033[2J\r", image="/\x9b1m"), state="\a")
    for picture in (VmTable((evil,)), VmDetails(evil)):
        assert drawn(picture, PIPE).replace("\n", "").isprintable()


def test_a_topology_shows_what_cpus_share() -> None:
    cpus = (cpu(0, 0, "2.0"), cpu(1, 0), cpu(2, 1, "held", cache=1), cpu(3, 2, package=1))
    topology, _ = host(cpus)
    two = msgspec.structs.replace(topology, nodes=(0, 1), node_distances=((10, 32), (32, 10)), host_cpus=6)
    lines = [line.split() for line in drawn(TopologyTables(two), terminal(80)).splitlines()]
    assert "4 CPUs, 3 cores, 2 sockets, 2 NUMA nodes, 4 GiB" in " ".join(lines[0])
    assert ["2", "more", "CPUs", "not", "for", "VMs"] in lines
    assert ["SOCKET", "NODE", "L3", "CORES", "CPUS", "FREE", "LEVELS"] in lines
    assert ["0", "0", "0", "1", "0-1", "1", "2:1"] in lines
    assert ["0", "0", "1", "1", "2", "0", "held"] in lines
    assert ["1", "1", "0", "1", "3", "1"] in lines
    assert ["node", "distances", "0", "1"] in lines
    assert ["0", "10", "32"] in lines


@pytest.mark.parametrize("width", [80, 200])
def test_a_topology_of_many_nodes_does_not_wrap(width: int) -> None:
    cpus = tuple(cpu(number, number, package=number % 16) for number in range(256))
    topology, _ = host(cpus)
    many = msgspec.structs.replace(
        topology, nodes=tuple(range(16)), node_distances=tuple(tuple(range(10, 26)) for _ in range(16))
    )
    lines = drawn(TopologyTables(many), terminal(width)).splitlines()
    assert max(len(line) for line in lines) <= width
    assert len(lines) == 1 + 1 + 17 + 1 + 17
