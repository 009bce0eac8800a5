"""Workloads from files, whatever these are called and however they are packed; what is none is refused in one line."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.demand import Shape
from core.trace import HEADER, format_sample
from core.workload import ServerKind, Workload, WorkloadVm
from core.workload_parser import parse_workload
from tests.vmstackctl.inventories import saved, saved_host
from tests.vmstackctl.recorded import samples, write
from vmstackctl.inventory_file import save
from vmstackctl.plan import source
from vmstackctl.plan.recorded import recorded_workload
from vmstackctl.plan.source import (
    LARGEST_TEXT,
    NoWorkload,
    WorkloadError,
    capped,
    read_workload,
    without_too_large,
)

TABLE = "vm_id,vcpus,mem_gb,level,arrival_s,departure_s\na,2,3.5,1,0,60\nb,16,60,3,0,\n"
SHAPES = "vcpus,mem_gb,level,count\n1,2,1,3\n"
PROPERTIES = "vm7=vmid:7,vmcpu:2,vmoc:3.0,vmram:7168,vmsubmission:0,cloudletlifetime:60480\n"
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "workload"


def refusal(path: Path) -> str:
    with pytest.raises(WorkloadError) as caught:
        read_workload(path)
    return str(caught.value)


def read_or_refused(path: Path) -> Workload | str:
    try:
        return read_workload(path)
    except WorkloadError as error:
        return str(error)


@contextmanager
def piped(data: bytes) -> Iterator[Path]:
    """A pipe through which the data come, a few bytes first."""
    reading, writing = os.pipe()

    def send() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            try:
                pipe.write(data[:1])
                pipe.write(data[1:])
            except BrokenPipeError:
                pass  # the reader has seen enough

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield DESCRIPTORS / str(reading)
    finally:
        os.close(reading)
        sender.join(timeout=60)


@pytest.mark.parametrize("text", [TABLE, SHAPES, PROPERTIES])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["workload.csv", "workload.csv.gz", "vms.properties", "anything"])
def test_files_are_told_apart_by_what_they_hold(
    tmp_path: Path, text: str, mark: bytes, packed: bool, name: str
) -> None:
    data = mark + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    assert read_workload(tmp_path / name) == parse_workload(text)


def test_several_gzip_members_are_one_file(file: Path) -> None:
    data = TABLE.encode()
    file.write_bytes(gzip.compress(data[:70]) + gzip.compress(data[70:]))
    assert read_workload(file) == parse_workload(TABLE)


@pytest.mark.parametrize("packed", [False, True])
def test_a_workload_may_come_through_a_pipe(packed: bool) -> None:
    data = TABLE.encode()
    with piped(gzip.compress(data) if packed else data) as path:
        assert read_workload(path) == parse_workload(TABLE)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_recording_is_the_vms_that_come_and_go_in_it(file: Path, packed: bool, mark: bytes) -> None:
    recorded = [*samples(20)]
    data = mark + write(file, recorded).read_bytes()
    file.write_bytes(gzip.compress(data) if packed else data)
    found = read_workload(file)
    assert found == recorded_workload(recorded)
    assert {vm.level for vm in found.vms} == {1000, 2000, 3000}
    assert {vm.departure for vm in found.vms} > {inf}


def test_the_end_of_a_recording_may_be_missing(file: Path) -> None:
    recorded = [*samples(3)]
    write(file, recorded)
    file.write_bytes(gzip.compress(file.read_bytes())[:-20])
    found = read_workload(file)
    assert found.vms == recorded_workload(recorded[:2]).vms
    assert any("cut off" in note for note in found.notes)


def test_what_is_wrong_with_a_recording_is_said_with_its_line(file: Path) -> None:
    file.write_text(HEADER + "0\tglobal\tcpu\tmuch\n")
    assert refusal(file).startswith(f"{file}: line 2: found 4 columns, expected 12")


def test_a_recording_without_vms_is_refused(file: Path) -> None:
    file.write_text(HEADER)
    assert refusal(file) == f"{file}: is a recording without any VM whose size it tells, expected at least one"


def test_a_recording_in_a_pipe_is_refused_with_what_to_do() -> None:
    data = (HEADER + "".join(map(format_sample, samples(3)))).encode()
    with piped(data) as path:
        assert refusal(path) == (f"{path}: is a recording in a pipe, expected one in a file; write it to a file first")


@pytest.mark.parametrize("name", ["cluster.json", "cluster.json.gz"])
def test_the_vms_of_an_inventory_are_all_there_at_once(tmp_path: Path, name: str) -> None:
    hosts = (
        saved_host("a", None, "unknown", vms=(Shape(1000, 2, 4096, 2), Shape(3000, 1, 512, 1))),
        saved_host("b", None, "unknown"),
        saved_host("c", None, "unknown", vms=(Shape(1500, 4, 1024, 1),)),
    )
    save(tmp_path / name, saved(*hosts))
    found = read_workload(tmp_path / name)
    assert [(vm.name, vm.level, vm.vcpus, vm.memory_mib) for vm in found.vms] == [
        ("a-0", 1000, 2, 4096),
        ("a-1", 1000, 2, 4096),
        ("a-2", 3000, 1, 512),
        ("c-3", 1500, 4, 1024),
    ]
    assert {(vm.arrival, vm.departure) for vm in found.vms} == {(0.0, inf)}
    assert found.notes == ("1 host did not tell which VMs there are; these are not planned for",)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ((), "an inventory without VMs"),
        ((Shape(1000, 1, 1, 2), Shape(2000, 1, 1, 2)), "more than 3 VMs"),
    ],
)
def test_an_inventory_without_vms_or_with_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: tuple[Shape, ...], said: str
) -> None:
    monkeypatch.setattr(source, "MOST_VMS", 3)
    save(tmp_path / "cluster.json", saved(saved_host("a", None, "unknown", vms=shapes)))
    with pytest.raises(WorkloadError, match=said):
        read_workload(tmp_path / "cluster.json")


def test_other_json_is_no_workload(file: Path) -> None:
    file.write_text('{"a": 1}')
    with pytest.raises(NoWorkload, match="is JSON, but no inventory"):
        read_workload(file)


def test_what_is_wrong_with_a_table_is_said_with_path_line_and_column(file: Path) -> None:
    file.write_text(TABLE + "c,0,1,1,0,\n")
    assert refusal(file) == f"{file}: line 4, column vcpus: found '0', expected whole vCPUs from 1 to 4096"


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("file,dataset,lower_bound\na,b,30\n", True),
        ("# Workloads\n\nSee vcpus.\n", True),
        ('{"format": 1}', True),
        ("vm_id,vcpus\na,1\n", False),
        (TABLE + "c,0,1,1,0,\n", False),
        ("", False),
        ("\n" + TABLE, False),
        ("vm7=vmid:7\n", False),
    ],
)
def test_something_else_is_told_from_a_workload_that_is_wrong(file: Path, text: str, foreign: bool) -> None:
    file.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        read_workload(file)
    assert isinstance(caught.value, NoWorkload) == foreign


def test_an_empty_file_is_refused(file: Path) -> None:
    for data in (b"", gzip.compress(b""), b"\xef\xbb\xbf"):
        file.write_bytes(data)
        assert refusal(file).startswith(f"{file}: line 1: found nothing, expected the names of columns: vm_id,")


@pytest.mark.parametrize(
    ("data", "where", "byte"),
    [
        (TABLE.encode() + b"caf\xe9,1,1,1,0,\n", "line 4, byte 4", "0xe9"),
        (b"\xff\xfe" + TABLE.encode("utf-16-le"), "line 1, byte 1", "0xff"),
        (TABLE.encode() + b"\xc3", "line 4, byte 1", "0xc3"),
        (b"\x7fELF\x02\x01\x01\n\n\x80", "line 3, byte 1", "0x80"),
    ],
)
def test_another_encoding_is_refused_with_its_place(file: Path, data: bytes, where: str, byte: str) -> None:
    file.write_bytes(data)
    assert refusal(file) == f"{file}: {where}: found {byte}, expected text in UTF-8; save it so"


def test_gzip_data_that_are_cut_off_or_damaged_are_refused(file: Path) -> None:
    packed = gzip.compress((TABLE * 2).encode(), mtime=0)
    changed = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
    for data in (packed[:-9], packed[:15], packed[:3], changed, packed + b"more", packed[:10] + b"\xff" * 20):
        file.write_bytes(data)
        assert refusal(file).startswith(f"{file}: found damaged gzip data, expected them as gzip wrote them: ")


def test_a_small_file_that_unpacks_to_very_much_is_refused(file: Path) -> None:
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(TABLE.encode())
        blank = b"\n" * (1 << 20)
        for _ in range(LARGEST_TEXT >> 20):
            packed.write(blank)
    assert refusal(file) == f"{file}: holds more than 256 MiB of text, expected no more"


def test_a_text_may_be_as_long_as_is_allowed_and_no_longer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(TABLE)
    monkeypatch.setattr(source, "LARGEST_TEXT", len(TABLE))
    assert len(read_workload(file).vms) == 2
    monkeypatch.setattr(source, "LARGEST_TEXT", len(TABLE) - 1)
    assert "expected no more" in refusal(file)
    with piped(TABLE.encode()) as path:
        assert "expected no more" in refusal(path)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: is a directory, expected the file of a workload"
    missing = tmp_path / "missing"
    assert refusal(missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(missing / "below") == f"{missing / 'below'}: cannot be read: No such file or directory"
    assert refusal(Path("a\0b")) == r"'a\x00b': embedded null byte"


def test_a_file_whose_content_cannot_be_read_is_refused() -> None:
    memory = Path("/proc/self/mem")
    assert refusal(memory) == f"{memory}: cannot be read: Input/output error"


@given(st.binary(max_size=200), st.booleans())
def test_any_file_is_a_workload_or_is_refused(data: bytes, packed: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "workload"
        path.write_bytes(gzip.compress(data) if packed else data)
        found = read_or_refused(path)
    assert found.vms if isinstance(found, Workload) else str(path) in found and "\n" not in found


def test_memory_above_one_to_one_is_cut_only_if_asked_for(file: Path) -> None:
    file.write_text("vcpus,mem_gb,level,count\n16,60,1,1\n16,60,2,1\n4,8,3,1\n1,2,1.5,1\n8,8.5,1.5,1\n")
    assert [vm.memory_mib for vm in read_workload(file).vms] == [61440, 61440, 8192, 2048, 8704]
    found = capped(read_workload(file), 8192)
    assert [vm.memory_mib for vm in found.vms] == [61440, 8192, 8192, 2048, 8192]
    assert found.notes == ("the memory of 2 VMs above 1:1 was cut to 8 GiB",)


def vm(name: str, vcpus: int, mib: int) -> WorkloadVm:
    return WorkloadVm(name, 3000, vcpus, mib, 0.0, inf)


KINDS = (ServerKind(cpus=32, memory_mib=131072, count=2), ServerKind(cpus=64, memory_mib=65536))
FITTING = (vm("wide", 64, 65536), vm("rich", 32, 131072), vm("small", 1, 1))
TOO_LARGE = (vm("wider", 65, 1), vm("both\n", 33, 65537), vm("richer", 1, 131073), vm("huge", 4096, 1 << 30))


def test_a_vm_that_may_be_oversubscribed_with_itself_may_be_wider_than_a_server() -> None:
    workload = Workload((vm("wide", 64 * 3, 1),), ())
    assert without_too_large(workload, KINDS, leave_out=False, with_itself=True) is workload
    with pytest.raises(WorkloadError, match="wide"):
        without_too_large(workload, KINDS, leave_out=False)


def test_a_workload_whose_vms_all_have_a_server_is_left_as_it_is() -> None:
    workload = Workload(FITTING, ("a note",))
    for leave_out in (False, True):
        assert without_too_large(workload, KINDS, leave_out=leave_out) is workload


def test_vms_larger_than_any_server_are_named() -> None:
    with pytest.raises(WorkloadError) as caught:
        without_too_large(Workload((*FITTING, *TOO_LARGE)), KINDS, leave_out=False)
    assert str(caught.value) == (
        r"4 VMs larger than any server: 'wider' (65 vCPUs, 1 MiB), 'both\n' (33 vCPUs, 64 GiB), 'richer' "
        "(1 vCPU, 128 GiB) and 1 more; plan with larger servers, or leave such VMs out with --leave-out-too-large"
    )


def test_vms_larger_than_any_server_are_left_out_with_a_note() -> None:
    mixed = (FITTING[0], TOO_LARGE[0], *FITTING[1:])
    assert without_too_large(Workload(mixed, ("a note",)), KINDS, leave_out=True) == Workload(
        FITTING, ("a note", "left out 1 VM larger than any server: 'wider' (65 vCPUs, 1 MiB)")
    )


def test_a_workload_of_nothing_but_too_large_vms_is_refused_all_the_same() -> None:
    with pytest.raises(WorkloadError, match=r"4 VMs larger than any server: .* and 1 more; no other VM is left"):
        without_too_large(Workload(TOO_LARGE), KINDS, leave_out=True)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
)
def test_those_are_left_out_that_no_server_takes(sizes: list[tuple[int, int]], servers: list[tuple[int, int]]) -> None:
    workload = Workload(tuple(vm(str(place), *size) for place, size in enumerate(sizes)))
    kinds = [ServerKind(*server) for server in servers]
    expected = [
        one
        for one in workload.vms
        if any(one.vcpus <= kind.cpus and one.memory_mib <= kind.memory_mib for kind in kinds)
    ]
    if expected:
        assert list(without_too_large(workload, kinds, leave_out=True).vms) == expected
    else:
        with pytest.raises(WorkloadError):
            without_too_large(workload, kinds, leave_out=True)
