from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.topology import NO_CACHE, TopologyError
from tests.topology_source.helpers import (
    PROTOTYPE_FILES,
    TOPOLOGIES,
    needs_prototype_files,
    plain_distance,
    refusal,
    table,
)
from vmstackd.topology_source import load_topology

HOSTS = ("EPYC-7662", "EPYC-7662-exp", "i7-1185G7")


def prototype_file(name: str) -> Path:
    return PROTOTYPE_FILES / f"topology_{name}.json"


def recomputed(document: dict[str, Any]) -> dict[tuple[int, int], int]:
    """Distances of SEMANTICS 3 from the raw file, sharing no code with the project."""
    cpus = document["cpuset"]["cpu_list"]
    numa = document["cpuset"]["numa_distances"]
    caches = {cpu["cpu_id"]: [cpu["cache_level"][key] for key in sorted(cpu["cache_level"], key=int)] for cpu in cpus}
    node_of = {cpu["cpu_id"]: cpu["numa_node"] for cpu in cpus}
    distance = plain_distance(caches, node_of, lambda first, second: numa[str(first)][second])
    return {(a, b): distance(a, b) for a in caches for b in caches if a != b}


@needs_prototype_files
@pytest.mark.parametrize("name", HOSTS)
def test_our_files_and_the_prototypes_are_the_same_hosts(name: str) -> None:
    document = json.loads(prototype_file(name).read_text())
    expected = recomputed(document)
    theirs = load_topology(str(prototype_file(name)))
    ours = load_topology(str(TOPOLOGIES / f"{name}.json"))
    for host in (theirs, ours):
        assert host.name == name
        assert list(host.cpu_ids) == [cpu["cpu_id"] for cpu in document["cpuset"]["cpu_list"]]
        assert host.host_cpus == document["cpuset"]["host_count"]
        assert host.memory_mib == document["memset"]["total"]
        assert table(host) == expected
    assert [(cpu.package, cpu.node) for cpu in ours.cpus] == [(cpu.package, cpu.node) for cpu in theirs.cpus]
    siblings = {cpu["cpu_id"]: {cpu["cpu_id"], *cpu["sib_smt"]} for cpu in document["cpuset"]["cpu_list"]}
    for host in (theirs, ours):
        for cpu in host.cpus:
            assert {other.id for other in host.cpus if other.core == cpu.core} == siblings[cpu.id]


@needs_prototype_files
@pytest.mark.parametrize(("name", "stale"), [("EPYC-7662", True), ("EPYC-7662-exp", False), ("i7-1185G7", False)])
def test_stored_distances_that_are_not_stale_agree(name: str, stale: bool) -> None:
    document = json.loads(prototype_file(name).read_text())
    stored = {
        (int(a), int(b)): distance
        for a, row in document["cpuset"]["distances"].items()
        for b, distance in row.items()
        if a != b
    }
    agrees = table(load_topology(str(TOPOLOGIES / f"{name}.json"))) == stored
    assert agrees is not stale


@needs_prototype_files
def test_excluding_makes_the_smaller_host() -> None:
    whole = load_topology(str(prototype_file("EPYC-7662")), exclude=[*range(12), *range(128, 140)])
    smaller = load_topology(str(prototype_file("EPYC-7662-exp")))
    assert whole.cpu_ids == smaller.cpu_ids
    assert table(whole) == table(smaller)
    assert whole.host_cpus == smaller.host_cpus


def cpu(number: int, node: int, sibling: int, socket: list[int], caches: dict[str, int]) -> dict[str, object]:
    return {
        "cpu_id": number,
        "numa_node": node,
        "sib_smt": [sibling],
        "sib_cpu": [other for other in socket if other != number],
        "cache_level": caches,
        "max_freq": 2000000,
    }


def host() -> dict[str, Any]:
    """Two sockets of one core of two CPUs; CPU 8 of the first socket is not used."""
    first, second = [0, 2, 8], [1, 3]
    return {
        "cpuset": {
            "host_count": 5,
            "cpu_list": [
                cpu(2, 0, 0, first, {"0": 7, "1": 7, "2": 7, "3": 1}),
                cpu(0, 0, 2, first, {"0": 7, "1": 7, "2": 7, "3": 1}),
                cpu(1, 1, 3, second, {"0": 9, "1": 9, "2": 8}),
                cpu(3, 1, 1, second, {"0": 9, "1": 9, "2": 8}),
            ],
            "numa_distances": {"1": [26, 10], "0": [10, 21]},
            "distances": {"stale": 5},
        },
        "memset": {"total": 2000, "allowed": 2000},
    }


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document, indent=1))
    return path


def test_what_is_read(tmp_path: Path) -> None:
    found = load_topology(f"file:{write(tmp_path / 'topology_small.json', host())}")
    assert found.name == "small"
    assert found.cpu_ids == (2, 0, 1, 3)
    assert found.host_cpus == 5
    assert found.cache_names == ("L1d", "L1i", "L2", "L3")
    assert [cpu.core for cpu in found.cpus] == [0, 0, 1, 1]
    assert [cpu.package for cpu in found.cpus] == [0, 0, 1, 1]
    assert found.cpus[3].caches == (9, 9, 8, NO_CACHE)
    assert (found.nodes, found.node_distances) == ((0, 1), ((10, 21), (26, 10)))
    assert (found.distance(0, 2), found.distance(0, 1)) == (10, 61)


@pytest.mark.parametrize(("total", "allowed"), [(2000, 1000), (1000, 2000)])
def test_memory_that_is_not_allowed_is_not_usable(tmp_path: Path, total: int, allowed: int) -> None:
    document = host()
    document["memset"] = {"total": total, "allowed": allowed}
    assert load_topology(str(write(tmp_path / "host.json", document))).memory_mib == 1000


def test_further_fields_and_levels(tmp_path: Path) -> None:
    document = host()
    document["version"] = 2
    document["cpuset"]["cpu_list"][0]["cache_level"]["4"] = 0
    found = load_topology(str(write(tmp_path / "host.json", document)))
    assert found.cache_names == ("L1d", "L1i", "L2", "L3", "L4")


def test_name_of_a_file_that_is_no_name(tmp_path: Path) -> None:
    assert load_topology(str(write(tmp_path / "topology_\x07.json", host()))).name == "host"


Spoil = Callable[[Any], object]
FIRST = "cpuset.cpu_list[0]"


@pytest.mark.parametrize(
    ("spoil", "line", "message"),
    [
        (lambda d: d.pop("memset"), 1, "memset: is missing"),
        (lambda d: d["memset"].pop("allowed"), 88, "memset.allowed: is missing"),
        (lambda d: d["memset"].update(total=0), 89, "memset.total: expected `int` >= 1"),
        (lambda d: d["memset"].update(total=1.5), 89, "memset.total: expected `int`, got `float`"),
        (lambda d: d.update(cpuset=[]), 2, "cpuset: expected `object`, got `array`"),
        (lambda d: d["cpuset"].pop("host_count"), 2, "cpuset.host_count: is missing"),
        (lambda d: d["cpuset"].update(host_count=3), 3, "cpuset.host_count: 3 is less than the 4 CPUs listed"),
        (lambda d: d["cpuset"].update(host_count=True), 3, "cpuset.host_count: expected `int`, got `bool`"),
        (lambda d: d["cpuset"].update(cpu_list=[]), 4, "cpuset.cpu_list: there is no usable CPU"),
        (lambda d: d["cpuset"].update(cpu_list={}), 4, "cpuset.cpu_list: expected `array`, got `object`"),
        (
            lambda d: d["cpuset"]["cpu_list"].append(d["cpuset"]["cpu_list"][0]),
            4,
            "cpuset.cpu_list: CPU 2 is listed twice",
        ),
        (lambda d: d["cpuset"]["cpu_list"][0].pop("cpu_id"), 5, f"{FIRST}.cpu_id: is missing"),
        (lambda d: d["cpuset"]["cpu_list"][0].update(cpu_id=-1), 6, f"{FIRST}.cpu_id: expected `int` >= 0"),
        (lambda d: d["cpuset"]["cpu_list"][0].update(cpu_id=8192), 6, f"{FIRST}.cpu_id: expected `int` <= 8191"),
        (
            lambda d: d["cpuset"]["cpu_list"][0].update(numa_node=2),
            7,
            f"{FIRST}.numa_node: node 2 is not in numa_distances",
        ),
        (
            lambda d: d["cpuset"]["cpu_list"][0].update(sib_smt=["a"]),
            9,
            f"{FIRST}.sib_smt[0]: expected `int`, got `str`",
        ),
        (
            lambda d: d["cpuset"]["cpu_list"][1].update(sib_smt=[]),
            26,
            "cpuset.cpu_list[1].sib_smt: names other CPUs than the field of CPU 0 or of one beside it",
        ),
        (
            lambda d: d["cpuset"]["cpu_list"][2].update(sib_cpu=[3, 2]),
            47,
            "cpuset.cpu_list[2].sib_cpu: names other CPUs than the field of CPU 2 or of one beside it",
        ),
        (
            lambda d: d["cpuset"]["cpu_list"][0].update(cache_level={"0": -1}),
            15,
            f"{FIRST}.cache_level: expected `int` >= 0",
        ),
        (
            lambda d: d["cpuset"]["cpu_list"][0].update(cache_level={"16": 1}),
            16,
            f"{FIRST}.cache_level.16: a cache level is a number from 0 to 15",
        ),
        (
            lambda d: d["cpuset"]["numa_distances"].update({"1": [10]}),
            75,
            "cpuset.numa_distances.1: must be 2 distances, one per node, not 1",
        ),
        (
            lambda d: d["cpuset"].update(numa_distances={"01": [10]}),
            75,
            "cpuset.numa_distances.01: a NUMA node is a number from 0 to 1023",
        ),
        (
            lambda d: d["cpuset"].update(numa_distances={"9" * 5000: [10]}),
            75,
            f"cpuset.numa_distances.{'9' * 37}...: a NUMA node is a number from 0 to 1023",
        ),
        (lambda d: d["cpuset"].update(numa_distances={"0": [300]}), 74, "cpuset.numa_distances: expected `int` <= 255"),
    ],
)
def test_malformed(tmp_path: Path, spoil: Spoil, line: int, message: str) -> None:
    document = copy.deepcopy(host())
    spoil(document)
    path = write(tmp_path / "host.json", document)
    error = refusal(path)
    assert str(error) == f"{path}:{error.line}: {message}"
    assert error.line == line


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    text = json.dumps(host())
    for position in range(len(text)):
        path.write_text(text[:position])
        with pytest.raises(TopologyError):
            load_topology(str(path))
