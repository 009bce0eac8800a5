"""Files of inventories: what is written is read, and whatever else is there is told from it, with the place."""

from __future__ import annotations

import gzip
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.demand import Lesson, Market, Shape
from core.host_policy import HOST_POLICIES
from tests.vmstackctl.cluster import figures, level
from tests.vmstackctl.inventories import SIZES, inventories, saved, saved_host
from vmstackctl import inventory_file
from vmstackctl.inventory_file import InventoryError, load, save, to_inventory
from vmstackctl.report.target import WriteError
from vmstackctl.saved_inventory import SavedInventory
from vmstackd.api.replies import HOST_STATES

SIZE = (1500, 2, 512)
MARKET = Market((Shape(*SIZE, 3),), 16.0, 65536.0, 16, 65536, 1.0, 0.25)
USUAL = saved(
    saved_host("server1", figures(level()), vms=(Shape(2000, 3, 512, 2),), address="10.0.0.5:8097"),
    saved_host("server2", figures(), "cordoned", "new fans", vms=()),
    saved_host("server3", None, "connecting", "not yet reached"),
    lesson=Lesson((Shape(*SIZE, 3),), 70, 134, MARKET),
)


def written(folder: Path, content: bytes) -> Path:
    file = folder / "cluster.json"
    file.write_bytes(content)
    return file


def text_of(folder: Path) -> bytes:
    save(folder / "good.json", USUAL)
    return (folder / "good.json").read_bytes()


def loaded(file: Path) -> SavedInventory | str:
    """What is in a file, or what is wrong with it, without its name."""
    try:
        return load(file)
    except InventoryError as error:
        message = error.message
    begin = f"{file}: "
    assert message.startswith(begin)
    assert message.isprintable()
    assert len(message) < 600
    return message.removeprefix(begin)


def refusal(file: Path) -> str:
    """Of a file that must be refused."""
    found = loaded(file)
    assert isinstance(found, str)
    return found


@given(inventories())
def test_what_is_saved_is_loaded(inventory: SavedInventory) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain.json", "packed.json.gz", "PACKED.GZ"):
            file = Path(folder, name)
            save(file, inventory)
            assert load(file) == inventory
            assert (file.read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")


def test_a_packed_file_is_known_by_what_it_holds(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert load(written(tmp_path, gzip.compress(text))) == USUAL
    save(tmp_path / "cluster.json.gz", USUAL)
    assert gzip.decompress((tmp_path / "cluster.json.gz").read_bytes()) == text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = written(tmp_path, b"before")
    save(file, USUAL)
    assert load(file) == USUAL
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(WriteError, match="cannot be written: Is a directory; choose another FILE"):
        save(tmp_path, USUAL)
    assert list(tmp_path.iterdir()) == [file]


def test_hosts_have_their_places_as_numbers_and_are_closed_as_a_cluster_closes_them() -> None:
    inventory = to_inventory(USUAL)
    assert inventory.numbers() == [0, 1, 2]
    progress = HOST_POLICIES["progress"]
    found = [(number, reason) for number, _, reason in inventory.scores(progress, *SIZE)]
    assert found == [(0, ""), (1, "cordoned"), (2, "unknown")]
    assert inventory.status(1) == figures()
    assert inventory.status(2) is None
    assert inventory.demand.lesson() == USUAL.lesson


@given(inventories(), st.lists(SIZES, min_size=1, max_size=10), st.sampled_from(sorted(HOST_POLICIES)))
def test_whoever_loads_goes_on_as_the_one_who_saved(
    inventory: SavedInventory, sizes: list[tuple[int, int, int]], policy: str
) -> None:
    ours = to_inventory(inventory)
    again = msgspec.json.decode(msgspec.json.encode(inventory), type=SavedInventory)
    theirs = to_inventory(again)
    for size in sizes:
        ours.arrived(*size)
        theirs.arrived(*size)
        assert ours.choose(HOST_POLICIES[policy], *size) == theirs.choose(HOST_POLICIES[policy], *size)


# What is no inventory


def test_a_file_that_is_not_there_or_none_is_said_to_be_so(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing") == "cannot be read: No such file or directory; name a file that can"
    assert refusal(tmp_path).startswith("is a directory, expected what vmstackctl inventory save has written")
    assert refusal(written(tmp_path, b"")).startswith("is empty; expected what")
    assert refusal(written(tmp_path, b"\n \n")).startswith("is empty; ")
    assert refusal(written(tmp_path, gzip.compress(b""))).startswith("is empty; ")
    with pytest.raises(InventoryError, match="embedded null byte"):
        load(Path("a\0b"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"host\tstate\n", "line 1, column 1: JSON is malformed: "),
        (b"{}", "is JSON, but no inventory; "),
        (b'{"format": "vmstack trace 1"}', "is JSON, but no inventory; "),
        (b"[]", "expected object, got array; "),
        (b'{"format": 1}', "format: expected str, got int; "),
        (b'{"format": "vmstack inventory 2", "time": []}', "is an inventory of version 2, expected version 1; read it"),
        (b'{"format": "vmstack inventory \\u009b"}', "is an inventory of version \\x9b, "),
        (b'{"format": "vmstack inventory 1"}', "object missing required field time; "),
        (b"{" + b'"a": {' * 100_000, "has too many arrays or objects within each other; "),
        (b'{"format": "vmstack inventory 1",\n "time": \xff}', "line 2, column 10: not UTF-8; "),
        (b'\xff\xfe{\x00"\x00', "line 1, column 1: not UTF-8; "),
        ('{"format": "x"}'.encode("utf-16-le"), "line 1, column 2: JSON is malformed: "),
        (
            b'{"format": "vmstack inventory 1",\n "time": NaN}',
            "line 2, column 10: JSON is malformed: invalid character",
        ),
        (b"\x1f\x8b" + bytes(40), "its compressed data are damaged; "),
        (b"\x1f\x8b", "its compressed data end too early, it was cut off; "),
        (gzip.compress(b"{}", mtime=0) + b"more", "something follows its compressed data; "),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_no_inventory_is_told_from_one(tmp_path: Path, content: bytes, why: str) -> None:
    assert refusal(written(tmp_path, content)).startswith(why)


def test_a_file_that_is_too_large_is_not_unpacked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_file, "MOST_BYTES", 1 << 20)
    for content in (b" " * ((1 << 20) + 1), gzip.compress(b" " * (1 << 24))):
        assert refusal(written(tmp_path, content)).startswith("is larger than 1 MiB; ")
    assert load(written(tmp_path, text_of(tmp_path).ljust(1 << 20))) == USUAL


def test_a_file_that_was_cut_off_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    text = text_of(tmp_path).rstrip()
    for length in range(1, len(text)):
        assert "it was cut off; expected what" in refusal(written(tmp_path, text[:length]))
    lines = text.count(b"\n") + 1
    assert refusal(written(tmp_path, text[:-1])).startswith(f"line {lines}, column 1: it ends too early")
    packed = gzip.compress(text)
    for length in range(2, len(packed)):
        assert refusal(written(tmp_path, packed[:length])).startswith("its compressed data end too early")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text["hosts"][0]["status"].update(cpus="16"), "hosts[0].status.cpus: expected int, got str; "),
        (lambda text: text["hosts"][0].update(Name=""), "hosts[0]: object contains unknown field Name; "),
        (lambda text: text["hosts"][0].pop("vms"), "hosts[0]: object missing required field vms; "),
        (lambda text: text.update(time=-1), "time: -1.0, expected seconds since 1970; "),
        (lambda text: text["hosts"][0]["status"].update(cpus=-4), "hosts[0].status: host: cpus is -4; "),
        (lambda text: text["hosts"][1]["status"].update(free_cpus=3), "hosts[1].status: 3 free, 0 held and 0 owned"),
        (lambda text: text["hosts"][0].update(status=None), "hosts[0].status: none, expected the figures of a host"),
        (lambda text: text["hosts"][2].update(state="gone\x9b"), "hosts[2].state: 'gone\\x9b', expected one of up, "),
        (lambda text: text["hosts"][1].update(closed=""), "hosts[1].closed: '', expected 'cordoned' of a host that is"),
        (lambda text: text["hosts"][0]["vms"][0].update(count=0), "hosts[0].vms[0].count: 0, expected 1 to "),
        (lambda text: text["hosts"][0]["vms"][0].update(level=999), "hosts[0].vms[0].level: 999, expected 1000 to "),
        (lambda text: text["lesson"]["shapes"][0].update(vcpus=0), "lesson.shapes[0].vcpus: 0, expected 1 to "),
        (lambda text: text["lesson"].update(seen=-1), "lesson.seen: -1, expected 0 to "),
        (
            lambda text: text["lesson"]["market"].update(shapes=[]),
            "lesson.market.shapes: 0 of them, expected 1 to ",
        ),
        (lambda text: text["lesson"]["market"].update(most_cpus=1 << 40), "lesson.market.most_cpus: "),
        (lambda text: text["lesson"]["market"].update(cpus=0), "lesson.market.cpus: 0.0, expected 1 to 16; "),
        (lambda text: text["lesson"]["market"].update(memory_mib=1e-300), "lesson.market.memory_mib: 1e-300, expected"),
        (
            lambda text: text["lesson"]["market"].update(cpu_use=0.0),
            "lesson.market.cpu_use: 0.0, with a memory_use ",
        ),
        (
            lambda text: text["lesson"]["market"].update(memory_use=7),
            "lesson.market.memory_use: 7.0, expected 0 to ",
        ),
    ],
)
def test_figures_that_cannot_be_true_are_named(tmp_path: Path, change: Callable[[Any], object], why: str) -> None:
    whole = msgspec.json.decode(text_of(tmp_path))
    change(whole)
    assert refusal(written(tmp_path, msgspec.json.encode(whole))).startswith(why)


def _numbers(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where in a document the numbers are."""
    if isinstance(value, dict):
        return [place for key, inner in value.items() for place in _numbers(inner, (*path, key))]
    if isinstance(value, list):
        return [place for key, inner in enumerate(value) for place in _numbers(inner, (*path, key))]
    return [path] if isinstance(value, int | float) else []


WHOLE: Any = msgspec.to_builtins(USUAL)
ODD = (
    st.integers(-2, 70) | st.integers() | st.floats(allow_nan=False) | st.sampled_from([1000, 64000, 1 << 20, 1 << 62])
)


@given(st.lists(st.tuples(st.sampled_from(_numbers(WHOLE)), ODD), min_size=1, max_size=4), SIZES)
def test_whatever_the_figures_are_they_are_refused_or_can_be_decided_with(
    changes: list[tuple[tuple[str | int, ...], float]], size: tuple[int, int, int]
) -> None:
    changed = msgspec.json.decode(msgspec.json.encode(WHOLE))
    for path, number in changes:
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = number
    with tempfile.TemporaryDirectory() as folder:
        found = loaded(written(Path(folder), msgspec.json.encode(changed)))
    if isinstance(found, str):
        return
    inventory = to_inventory(found)
    inventory.arrived(*size)
    for policy in HOST_POLICIES.values():
        for number, score, _ in inventory.scores(policy, *size):
            assert score is None or abs(score) < float("inf"), number


@given(st.randoms(use_true_random=False), st.booleans())
def test_a_damaged_file_is_refused_or_still_an_inventory(chance: random.Random, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = bytearray(text_of(Path(folder)))
        if packed:
            data = bytearray(gzip.compress(data))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randint(1, 30)]
                case _:
                    data[place:place] = bytes(chance.choices(b'0123456789",:[]{}-e\\u\0', k=chance.randint(1, 9)))
            if not data:
                return
        found = loaded(written(Path(folder), bytes(data)))
    if isinstance(found, SavedInventory):
        to_inventory(found).arrived(*SIZE)


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as end:
        end.write(text)
    try:
        assert load(Path(f"/dev/fd/{reader}")) == USUAL
    finally:
        os.close(reader)


def test_every_state_of_a_host_can_be_saved() -> None:
    hosts = [saved_host(state, figures(), state) for state in HOST_STATES]
    closed = [reason for _, _, reason in to_inventory(saved(*hosts)).scores(HOST_POLICIES["first-fit"], *SIZE)]
    assert closed == ["", "cordoned", "hypervisor-down", "unknown", "unknown", "quarantined"]


def test_a_link_stays_one_and_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(target)
    save(link, saved())
    assert link.is_symlink()
    assert load(target) == saved()
    os.mkfifo(pipe)
    with pytest.raises(WriteError, match="is no file that could be replaced; choose another FILE"):
        save(pipe, saved())
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [link, pipe, target]
