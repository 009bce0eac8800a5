"""Topologies on the command line: loaded, refused by line and field, dumped and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import call, one_line
from tests.running import ROOT, SMALL_HOST

REFERENCE = ROOT.parent / "shared" / "reference"
HOSTS = sorted((ROOT / "topologies").glob("*.json"))


def _dump(*flags: str) -> str:
    done = call("--dump-topology", *flags)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_a_dump_loads_again_as_the_same_topology(tmp_path: Path) -> None:
    text = _dump("--topology", "synthetic:sockets=2,numa=2,l3=2,cores=4,smt=2,name=a b")
    file = tmp_path / "host.json"
    file.write_text(text, encoding="utf-8")
    for spec in (str(file), f"file:{file}"):
        assert _dump("--topology", spec) == text
    assert _dump("--load", str(file)) == text
    assert json.loads(text)["name"] == "a b"


def test_a_dump_leaves_out_excluded_cpus(tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    file.write_text(_dump("--topology", SMALL_HOST, "--exclude-cpus", "0-3"), encoding="utf-8")
    assert "CPUs 4-15," in call("--hypervisor", "sim:", "--topology", str(file), "--check-config").out


def test_this_machine_can_be_dumped_and_needs_no_hypervisor() -> None:
    text = _dump("--hypervisor", "qemu+unix:///system?socket=/nonexistent")
    assert json.loads(text)["host_cpus"] >= 1


@pytest.mark.parametrize("flag", ["--topology", "--load"])
@pytest.mark.parametrize("file", HOSTS, ids=lambda path: path.stem)
def test_the_supplied_hosts_are_usable(file: Path, flag: str) -> None:
    done = call("--hypervisor", "sim:", "--check-config", flag, str(file))
    assert (done.code, done.err) == (0, "")


def test_there_are_supplied_hosts() -> None:
    assert {"EPYC-7662", "EPYC-7662-exp", "i7-1185G7"} <= {path.stem for path in HOSTS}


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the prototype's topology files are not here")
def test_topologies_of_the_prototype_are_accepted_by_load() -> None:
    files = sorted((REFERENCE / "topologies").glob("*.json"))
    assert files
    for file in files:
        assert call("--hypervisor", "sim:", "--check-config", "--load", str(file)).code == 0


@pytest.mark.parametrize(("path", "why"), [("/nonexistent", "No such file or directory"), ("/", "Is a directory")])
def test_a_file_to_load_that_cannot_be_read_is_wrong_usage(path: str, why: str) -> None:
    done = call("--load", path)
    assert done.code == 2
    assert f"--load {path}: cannot be read: {why}" in one_line(done.err)


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ('"memory_mib": 65536', '"memory_mib": "64 GB"', 4, "memory_mib"),
        ('"memory_mib": 65536', '"memory_mib": -1', 4, "memory_mib"),
        ('"host_cpus": 16', '"host_cpus": 4', 5, "host_cpus"),
        ('"cpus": "0-15"', '"cpus": "15-0"', 6, "cpus"),
        ('"cpus": "0-15"', '"cpu": "0-15"', 6, "cpu"),
        ('"host_cpus": 16,', '"host_cpus": 16', 6, ""),
        ('"vmstack_topology": 1', '"vmstack_topology": 99', 2, "vmstack_topology"),
    ],
)
@pytest.mark.parametrize("flag", ["--topology", "--load"])
def test_a_malformed_file_is_refused_by_line_and_field(
    flag: str, old: str, new: str, line: int, field: str, tmp_path: Path
) -> None:
    text = _dump("--topology", SMALL_HOST)
    assert old in text
    file = tmp_path / "host.json"
    file.write_text(text.replace(old, new), encoding="utf-8")
    done = call("--hypervisor", "sim:", "--check-config", flag, str(file))
    assert done.code == 78
    assert f"{file}:{line}: {field}" in one_line(done.err)
