from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cpuset import parse_cpu_list
from core.topology import NO_CACHE, Cpu, Topology
from tests.topology_source.helpers import ROOT, TOPOLOGIES, shape, table
from vmstackd.topology_source import dump_topology, load_topology

GENERATED = [
    shlex.split(line)[1:] for line in (ROOT / "tools/topologies").read_text().splitlines() if line.startswith("write ")
]
"""Name, specification and CPUs to exclude of each file, from the script that makes them."""


def test_every_file_is_generated() -> None:
    assert {f"{name}.json" for name, _, _ in GENERATED} == {path.name for path in TOPOLOGIES.glob("*.json")}


@pytest.mark.parametrize(("name", "spec", "exclude"), GENERATED)
def test_file_is_current(name: str, spec: str, exclude: str) -> None:
    text = dump_topology(load_topology(f"{spec},name={name}", parse_cpu_list(exclude)))
    assert (TOPOLOGIES / f"{name}.json").read_text() == text, "run make topologies"


def test_the_script_writes_them(tmp_path: Path) -> None:
    script = ROOT / "tools/topologies"
    subprocess.run([script, tmp_path], env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=60)
    for name, _, _ in GENERATED:
        assert (tmp_path / f"{name}.json").read_bytes() == (TOPOLOGIES / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", [name for name, _, _ in GENERATED])
def test_file_reads_as_it_is_written(name: str) -> None:
    path = TOPOLOGIES / f"{name}.json"
    assert dump_topology(load_topology(str(path))) == path.read_text()


def test_lines_are_short() -> None:
    lines = dump_topology(load_topology("synthetic:sockets=2,l3=16,cores=4,smt=2")).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 50


def reread(topology: Topology, path: Path) -> Topology:
    path.write_text(dump_topology(topology))
    return load_topology(str(path))


@st.composite
def hosts(draw: st.DrawFn) -> Topology:
    keys = {key: draw(st.integers(1, 3)) for key in ("sockets", "numa", "l3", "cores", "smt")}
    keys |= {"near": draw(st.integers(10, 30)), "distance": draw(st.integers(10, 255))}
    spec = "synthetic:" + ",".join(f"{key}={value}" for key, value in keys.items())
    whole = load_topology(spec)
    excluded = draw(st.sets(st.sampled_from(whole.cpu_ids), max_size=len(whole.cpu_ids) - 1))
    return whole.without(excluded)


@settings(deadline=None)
@given(topology=hosts())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, topology: Topology) -> None:
    path = tmp_path_factory.getbasetemp() / "host.json"
    again = reread(topology, path)
    assert shape(again) == shape(topology)
    assert table(again) == table(topology)
    assert dump_topology(again) == dump_topology(topology)


@st.composite
def irregular(draw: st.DrawFn) -> Topology:
    """No rule at all: any ids and order, caches without relation to cores, nodes without CPUs."""
    ids = draw(st.lists(st.integers(0, 300), min_size=1, max_size=12, unique=True))
    nodes = sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4)))
    names = draw(st.sampled_from([(), ("L1",), ("L1d", "L1i", "L2"), ("L3", "L2")]))
    small = st.integers(0, 3)
    cpus = [
        Cpu(
            id=cpu,
            package=draw(small),
            node=draw(st.sampled_from(nodes)),
            core=draw(small),
            caches=tuple(draw(st.sampled_from([NO_CACHE, 0, 1, 2])) for _ in names),
        )
        for cpu in ids
    ]
    return Topology(
        name=draw(st.sampled_from(["host", 'a "quoted" \\ name', "h\u00f4te"])),
        cpus=cpus,
        cache_names=names,
        nodes=nodes,
        node_distances=[[draw(st.integers(0, 255)) for _ in nodes] for _ in nodes],
        memory_mib=draw(st.integers(1, 2**40)),
        host_cpus=draw(st.integers(len(ids), 8192)),
    )


@settings(deadline=None)
@given(topology=irregular())
def test_round_trip_of_irregular_hosts(tmp_path_factory: pytest.TempPathFactory, topology: Topology) -> None:
    again = reread(topology, tmp_path_factory.getbasetemp() / "irregular.json")
    assert shape(again) == shape(topology)
    assert table(again) == table(topology)


def test_this_machine(tmp_path: Path) -> None:
    here = load_topology("sysfs")
    assert shape(reread(here, tmp_path / "host.json")) == shape(here)


def test_is_plain_json() -> None:
    document = json.loads(dump_topology(load_topology("synthetic:cores=2,smt=2")))
    assert list(document)[:5] == ["vmstack_topology", "name", "memory_mib", "host_cpus", "cpus"]
    assert document["caches"] == {"L1d": "cores", "L1i": "cores", "L2": "cores", "L3": "packages"}
