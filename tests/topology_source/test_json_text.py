from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.topology import TopologyError
from vmstackd.topology_source import SourceError, load_topology
from vmstackd.topology_source.json_text import JsonText, shown

SAMPLES = Path(__file__).parents[2] / "topologies"


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    first: int
    second: list[str] = []


def text_of(text: str) -> JsonText:
    return JsonText(Path("x.json"), text.encode())


def test_decode() -> None:
    assert text_of('{"first": 1, "second": ["a"]}').decode(Pair) == Pair(1, ["a"])


def test_line_of_a_value_and_of_the_nearest_one_around_it() -> None:
    document = text_of('{"a": [\n1,\n{"b":\n2}, []],\n"c": "}\\"]"\n, "d": 3}')
    assert document.error(("a", 1, "b"), "no").line == 4
    assert document.error(("a", 1, "z"), "no").line == 3
    assert document.error(("a", 7), "no").line == 1
    assert document.error(("c",), "no").line == 5
    assert str(document.error(("d",), "no")) == "x.json:6: d: no"
    assert str(document.error((), "no")) == "x.json:1: no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"first": 1}', None),
        ('{"a": {"b": 1}, "b": [{"b": 1}, {"b": 2}]}', None),
        ('{"a": 1,\n"a": 2}', "x.json:2: a: is given twice"),
        ('{"a": [{"b": 1, "b": 2}]}', "x.json:1: a[0].b: is given twice"),
        ('{"a": {},\n"a": {}}', "x.json:2: a: is given twice"),
    ],
)
def test_key_twice(text: str, message: str | None) -> None:
    if message is None:
        text_of(text).check_no_key_twice()
        return
    with pytest.raises(SourceError) as caught:
        text_of(text).check_no_key_twice()
    assert str(caught.value) == message


def test_shown() -> None:
    assert shown(("nodes", "1", "distances", 0)) == "nodes.1.distances[0]"
    assert shown(()) == ""
    assert shown(("a\nb", "x" * 41)) == f"'a\\nb'.{'x' * 37}..."


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["0-3", "2", "cores"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def places(document: dict[str, Any] | list[Any]) -> list[tuple[Any, Any]]:
    """Every container of a document with every key or index in it."""
    found: list[tuple[Any, Any]] = []
    members: Iterable[tuple[Any, Any]] = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in members:
        found.append((document, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


PROTOTYPE = {
    "cpuset": {
        "host_count": 2,
        "cpu_list": [
            {"cpu_id": cpu, "numa_node": 0, "sib_smt": [1 - cpu], "sib_cpu": [1 - cpu], "cache_level": {"0": 0}}
            for cpu in (0, 1)
        ],
        "numa_distances": {"0": [10]},
    },
    "memset": {"total": 5, "allowed": 5},
}


@settings(deadline=None, max_examples=300)
@given(data=st.data(), prototype=st.booleans())
def test_any_value_anywhere_is_a_topology_or_a_topology_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, prototype: bool
) -> None:
    document = json.loads(json.dumps(PROTOTYPE) if prototype else (SAMPLES / "i7-1185G7.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(places(document)))
        container[key] = data.draw(values)
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        load_topology(str(path))
    except TopologyError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 (either way is fine, only another exception is not)  # not every document is malformed


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_byte_anywhere_is_a_topology_or_a_topology_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = bytearray((SAMPLES / "i7-1185G7.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(
            st.sampled_from(b'{}[]",:\\-.09e \n\xff\x00') | st.integers(0, 255)
        )
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(text)
    try:
        load_topology(str(path))
    except TopologyError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 (either way is fine, only another exception is not)
