from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.topology import NO_CACHE
from tests.topology_source.helpers import refusal, shape, table
from vmstackd.topology_source import load_topology

HOST: dict[str, Any] = {
    "vmstack_topology": 1,
    "name": "a small server",
    "memory_mib": 65536,
    "host_cpus": 9,
    "cpus": "0-7",
    "packages": {"0": "0-7"},
    "nodes": {"0": {"cpus": "0-1,4-5", "distances": [10, 12]}, "1": {"cpus": "2-3,6-7", "distances": [12, 10]}},
    "cores": ["0,4", "1,5", "2,6", "3,7"],
    "caches": {"L1d": "cores", "L2": ["0,4", "1,5"], "L3": "nodes"},
}


def write(path: Path, document: object) -> Path:
    """One field per line, as indent=1 writes it."""
    path.write_text(json.dumps(document, indent=1))
    return path


def with_fields(**fields: object) -> dict[str, Any]:
    return {**HOST, **fields}


def without(*fields: str) -> dict[str, Any]:
    return {key: value for key, value in HOST.items() if key not in fields}


def test_every_field(tmp_path: Path) -> None:
    host = load_topology(str(write(tmp_path / "host.json", HOST)))
    assert (host.name, host.memory_mib, host.host_cpus) == ("a small server", 65536, 9)
    assert host.cpu_ids == tuple(range(8))
    assert host.cache_names == ("L1d", "L2", "L3")
    assert [cpu.core for cpu in host.cpus] == [0, 1, 2, 3] * 2
    assert host.cpus[5].caches == (1, 1, 0)
    assert host.cpus[6].caches == (2, NO_CACHE, 2)
    assert [host.distance(0, cpu) for cpu in (4, 1, 2)] == [10, 30, 42]


def test_only_the_required_fields(tmp_path: Path) -> None:
    document = {"vmstack_topology": 1, "name": "n", "memory_mib": 1, "cpus": "3,0-1"}
    host = load_topology(f"file:{write(tmp_path / 'host.json', document)}")
    assert host.cpu_ids == (3, 0, 1)
    assert host.host_cpus == 3
    assert [cpu.core for cpu in host.cpus] == [3, 0, 1]
    assert (host.nodes, host.cache_names) == ((0,), ())
    assert host.distance(3, 0) == 10


def test_excluded_cpus_are_described_but_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "host.json", with_fields(excluded="0-1"))
    host = load_topology(str(path), exclude=[7])
    assert host.cpu_ids == (2, 3, 4, 5, 6)
    assert host.host_cpus == 9
    assert table(host) == table(load_topology(str(write(path, HOST)), exclude=[0, 1, 7]))


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "topologies/README.md").read_text()
    path = tmp_path / "host.json"
    path.write_text(readme.partition("```json\n")[2].partition("```")[0])
    assert shape(load_topology(str(path)))["host_cpus"] == 9


def field_error(tmp_path: Path, document: object) -> tuple[int | None, str]:
    path = write(tmp_path / "host.json", document)
    error = refusal(path)
    assert error.place == str(path)
    assert str(error).startswith(f"{path}:{error.line}: ")
    return error.line, str(error).removeprefix(f"{path}:{error.line}: ")


ALLOWED = "allowed: vmstack_topology, name, memory_mib, cpus, host_cpus, excluded, packages, nodes, cores, caches"
NODE = {"cpus": "0-7", "distances": [10]}


@pytest.mark.parametrize(
    ("fields", "line", "message"),
    [
        ({"vmstack_topology": 2}, 2, "vmstack_topology: this program reads version 1, not 2"),
        ({"vmstack_topology": "1"}, 2, "vmstack_topology: expected `int`, got `str`"),
        ({"vmstack_topology": True}, 2, "vmstack_topology: expected `int`, got `bool`"),
        ({"name": ""}, 3, "name: a name is 1 to 100 printable characters"),
        ({"name": "a\tb"}, 3, "name: a name is 1 to 100 printable characters"),
        ({"name": None}, 3, "name: expected `str`, got `null`"),
        ({"memory_mib": 0}, 4, "memory_mib: expected `int` >= 1"),
        ({"memory_mib": -5}, 4, "memory_mib: expected `int` >= 1"),
        ({"memory_mib": 1.0}, 4, "memory_mib: expected `int`, got `float`"),
        ({"memory_mib": True}, 4, "memory_mib: expected `int`, got `bool`"),
        ({"memory_mib": "64 GB"}, 4, "memory_mib: expected `int`, got `str`"),
        ({"memory_mib": 10**30}, 4, "memory_mib: expected `int` <= 1099511627776"),
        ({"memory_mib": 10**4000}, 4, "memory_mib: expected `int` <= 1099511627776"),
        ({"host_cpus": 7}, 5, "host_cpus: 7 is less than the 8 CPUs of cpus"),
        ({"host_cpus": 0}, 5, "host_cpus: expected `int` >= 1"),
        ({"host_cpus": 8193}, 5, "host_cpus: expected `int` <= 8192"),
        ({"cpus": ""}, 8, "packages.0: CPU 0 is not one of cpus"),
        ({"cpus": "0-7,3"}, 6, "cpus: CPU 3 is named twice"),
        ({"cpus": "7-0"}, 6, "cpus: the range 7-0 falls"),
        ({"cpus": "0-8192"}, 6, "cpus: CPU 8192 is above the highest id, 8191"),
        ({"cpus": "0-999999999"}, 6, "cpus: CPU 999999999 is above the highest id, 8191"),
        ({"cpus": "-1"}, 6, "cpus: '-1' is not a CPU id or a range such as 0-3"),
        ({"cpus": "0-8"}, 7, "packages: CPU 8 is in no group"),
        ({"cpus": [0, 1]}, 6, "cpus: expected `str`, got `array`"),
        ({"excluded": "9"}, 40, "excluded: CPU 9 is not one of cpus"),
        ({"excluded": "0-7"}, 6, "cpus: there is no usable CPU"),
        ({"packages": {"0": "0-7", "1": "7"}}, 9, "packages.1: CPU 7 is in packages.0 too"),
        ({"packages": {"0": "0-6"}}, 7, "packages: CPU 7 is in no group"),
        ({"packages": {"00": "0-7"}}, 8, "packages.00: '00' is not a number from 0 to 999999999"),
        ({"packages": {"-1": "0-7"}}, 8, "packages.-1: '-1' is not a number from 0 to 999999999"),
        ({"packages": {"0": 7}}, 8, "packages.0: expected `str`, got `int`"),
        ({"packages": ["0-7"]}, 7, "packages: expected `object`, got `array`"),
        ({"nodes": {"0": NODE, "1": NODE}}, 13, "nodes.0.distances: must be 2 numbers, one per node, not 1"),
        ({"nodes": {"0": {"cpus": "0-7"}}}, 11, "nodes.0.distances: is missing"),
        ({"nodes": {"0": {**NODE, "slit": 1}}}, 16, "nodes.0.slit: is not a field; allowed: cpus, distances"),
        ({"nodes": {"0": {**NODE, "distances": [-1]}}}, 14, "nodes.0.distances[0]: expected `int` >= 0"),
        ({"nodes": {"0": {**NODE, "distances": [256]}}}, 14, "nodes.0.distances[0]: expected `int` <= 255"),
        ({"nodes": {"0": {**NODE, "distances": [10.5]}}}, 14, "nodes.0.distances[0]: expected `int`, got `float`"),
        ({"nodes": {"0": {**NODE, "distances": [False]}}}, 14, "nodes.0.distances[0]: expected `int`, got `bool`"),
        ({"nodes": {"0": {**NODE, "cpus": "0-3"}}}, 10, "nodes: CPU 4 is in no group"),
        ({"nodes": {"0": {**NODE, "cpus": "0-8"}}}, 12, "nodes.0.cpus: CPU 8 is not one of cpus"),
        ({"nodes": {"1024": NODE}}, 11, "nodes.1024: '1024' is not a number from 0 to 1023"),
        ({"nodes": {"0": "0-7"}}, 11, "nodes.0: expected `object`, got `str`"),
        ({"cores": ["0,4", "1,5", "2,6", "3"]}, 26, "cores: CPU 7 is in no group"),
        ({"cores": ["0,4", "1,5", "2,6", "3,7,0"]}, 30, "cores[3]: CPU 0 is in cores[0] too"),
        ({"cores": ["0-7", ""]}, 28, "cores[1]: names no CPU"),
        ({"cores": "0-7"}, 26, "cores: expected `array`, got `str`"),
        ({"caches": {"L1d": "threads"}}, 33, "caches.L1d: 'threads' is neither a list of CPU lists nor one of "),
        ({"caches": {"L0": "cores"}}, 33, "caches.L0: a cache is named like L1d, L1i or L2"),
        ({"caches": {"L2": ["0-3", "3-7"]}}, 35, "caches.L2[1]: CPU 3 is in caches.L2[0] too"),
        ({"caches": {"L2": ["0-3", ""]}}, 35, "caches.L2[1]: names no CPU"),
        ({"caches": {"L2": ["0-3", "4-8"]}}, 35, "caches.L2[1]: CPU 8 is not one of cpus"),
        ({"caches": {"L2": 3}}, 33, "caches.L2: expected `str | array`, got `int`"),
        ({"caches": {"L2": ["0", 1]}}, 35, "caches.L2[1]: expected `str`, got `int`"),
        ({"caches": {f"L{n}": "cores" for n in range(1, 18)}}, 32, "caches: more than 16 levels"),
        ({"dies": 1}, 40, f"dies: is not a field; {ALLOWED}"),
    ],
)
def test_malformed_field(tmp_path: Path, fields: Mapping[str, object], line: int, message: str) -> None:
    found_line, text = field_error(tmp_path, with_fields(**fields))
    assert text.startswith(message)
    assert found_line == line


@pytest.mark.parametrize("field", ["name", "memory_mib", "cpus"])
def test_missing_field(tmp_path: Path, field: str) -> None:
    assert field_error(tmp_path, without(field)) == (1, f"{field}: is missing")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "Input data was truncated"),
        ("[]", 1, "expected `object`, got `array`"),
        ("null", 1, "expected `object`, got `null`"),
        ('{\n"vmstack_topology": 1,\n}', 3, "JSON is malformed: trailing comma in object"),
        ('{\n"vmstack_topology": 1\n"name": 2}', 3, "JSON is malformed: expected ',' or '}'"),
        ('{"vmstack_topology": 1,\n\n"memory_mib": NaN}', 3, "JSON is malformed: invalid character"),
        ('{"vmstack_topology": 1,\n"memory_mib": Infinity}', 2, "JSON is malformed: invalid character"),
        ('{"vmstack_topology": 1}\n\n{}', 3, "JSON is malformed: trailing characters"),
        ('{"vmstack_topology": 1,\n"name": "x', 2, "Input data was truncated"),
        ('{\n"vmstack_topology": 1,\n"name": "x",\n"name": "y"}', 4, "name: is given twice"),
        ('{"vmstack_topology": 1,\n"caches": {"L2": [],\n"L2": []}}', 3, "caches.L2: is given twice"),
        ('\ufeff{"vmstack_topology": 1}', 1, "JSON is malformed: invalid character"),
        (
            '{"vmstack_topology": 1,\n"packages": {"0": "\\q"}}',
            2,
            "JSON is malformed: invalid escaped character",
        ),
    ],
)
def test_malformed_text(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "host.json"
    path.write_text(text, encoding="utf-8")
    assert str(refusal(path)) == f"{path}:{line}: {message}"


def test_neither_format(tmp_path: Path) -> None:
    path = write(tmp_path / "host.json", {"name": "x"})
    message = 'is not a topology file: it has neither "vmstack_topology" (ours) nor "cpuset" (the prototype\'s)'
    assert str(refusal(path)) == f"{path}: {message}"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("before", ["", '{"vmstack_topology": 1, "nodes": {"0": ', '{"cpuset": '])
def test_deep_nesting(tmp_path: Path, before: str, opening: str) -> None:
    path = tmp_path / "host.json"
    path.write_text(before + opening * 200_000)
    assert str(path) in str(refusal(path))


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_bytes(b'{\n"name": "\xff"}')
    assert str(refusal(path)) == f"{path}:2: is not UTF-8"


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    assert str(refusal(path)) == f"{path}: is larger than 16777216 bytes"
    path.write_text(json.dumps(with_fields(name="x" * 2**20)))
    assert str(refusal(path)) == f"{path}: is larger than 1048576 bytes"


def test_what_is_no_file(tmp_path: Path) -> None:
    assert str(refusal(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"
    absent = tmp_path / "absent.json"
    assert str(refusal(absent)) == f"{absent}: cannot be read: No such file or directory"
    assert str(refusal("file:")) == ".: cannot be read: Is a directory"
    assert "cannot be read: embedded null byte" in str(refusal("a\0b"))
    assert str(refusal("/dev/zero")) == "/dev/zero: is larger than 16777216 bytes"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert str(refusal(pipe)) == f"{pipe}:1: Input data was truncated"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    text = json.dumps(HOST)
    for position in range(len(text)):
        path.write_text(text[:position])
        refusal(path)
