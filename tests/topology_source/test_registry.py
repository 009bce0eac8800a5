from __future__ import annotations

from pathlib import Path

import pytest

from core.topology import TopologyError
from tests.topology_source.helpers import TOPOLOGIES, refusal
from vmstackd.topology_source import ALLOWED, SOURCES, SourceError, load_topology


def test_schemes() -> None:
    assert sorted(SOURCES) == ["file", "synthetic", "sysfs"]
    assert all(f"{scheme}:" in ALLOWED for scheme in SOURCES)


def test_path_with_and_without_scheme() -> None:
    path = TOPOLOGIES / "i7-1185G7.json"
    assert load_topology(str(path)).cpus == load_topology(f"file:{path}").cpus


def test_a_path_may_contain_a_colon_or_be_called_like_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (TOPOLOGIES / "i7-1185G7.json").read_text()
    for name in ("host:1.json", "sysfs"):
        Path(name).write_text(text)
    assert load_topology("host:1.json").name == "i7-1185G7"
    assert load_topology("./sysfs").name == "i7-1185G7"
    assert load_topology("sysfs").name != "i7-1185G7"


def test_nothing_named() -> None:
    assert str(refusal("")) == f"topology: nothing is named; allowed: {ALLOWED}"


def test_scheme_that_does_not_exist() -> None:
    assert str(refusal("synthtic:cores=4")) == "synthtic:cores=4: cannot be read: No such file or directory"


def test_an_error_of_a_source_is_a_topology_error() -> None:
    error = SourceError("a.json", "is wrong", field="name", line=3)
    assert isinstance(error, TopologyError)
    assert str(error) == "a.json:3: name: is wrong"
    assert (error.place, error.field, error.line) == ("a.json", "name", 3)
