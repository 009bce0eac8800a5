"""What a trace tells of one moment: from a host to values, and from these to rows."""

from __future__ import annotations

import csv

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.trace import COLUMNS, Sample, TracedLevel, TracedVm, described_cpus, format_sample, sample_of
from core.usage import HostUsage, LevelUsage, Usage, VmUsage
from tests.core.hosts import deploy, empty, i7


def test_what_a_host_has_and_did() -> None:
    state = empty(i7())
    for name, vcpus, level in (("a", 2, 1000), ("b", 1, 2000), ("c", 4, 2000)):
        state = deploy(state, name, vcpus, level, memory=512)
    first, second = state.subsets
    memory_mib = state.memory_mib
    usage = Usage(
        host=HostUsage(
            time=1e9,
            seconds=15.0,
            busy_cpus=4.0,
            memory_mib=memory_mib,
            used_mib=memory_mib // 4,
            levels=(LevelUsage(1000, busy_cpus=1.5, delay_s=0.25),),
        ),
        vms={
            "a": VmUsage(busy_cpus=1.5, delay_s=0.25, delay_ratio=0.01, resident_mib=256),
            "b": VmUsage(busy_cpus=1.01, resident_mib=1 << 30),
        },
    )
    assert sample_of(45, state, usage, {"a": "u-a", "b": "u-b"}) == Sample(
        time=45,
        cpus=8,
        memory_mib=memory_mib,
        cpu=0.5,
        memory=0.25,
        levels=(
            TracedLevel(1000, 2, 1.5, 0, msgspec.json.encode({"res_list": first.cpus, "consumer_list": ["a"]}), 0.25),
            TracedLevel(2000, 4, None, 0, msgspec.json.encode({"res_list": second.cpus, "consumer_list": ["b", "c"]})),
        ),
        vms=(
            TracedVm("u-a", "a", 1000, 2, 512, 0.75, 0.5, 0.25),
            TracedVm("u-b", "b", 2000, 1, 512, 1.0, 1.0),  # never more than the whole
        ),
    )


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12))
def test_a_name_that_would_break_a_row_is_written_with_marks(name: str) -> None:
    vm = TracedVm("", name, 1000, 1, 1)
    text = format_sample(Sample(0, 1, 1, None, None, (TracedLevel(1000, 1),), (vm,)))
    rows = text.split("\n")[:-1]
    assert [len(row.split("\t")) for row in rows] == [len(COLUMNS)] * 6
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    assert rows[2].split("\t")[7] == ("?" + shown[1:] if shown[0] == '"' else shown)
    # Readers of tables that know quotes see the same cells.
    assert [len(row) for row in csv.reader(rows[:3], delimiter="\t")] == [len(COLUMNS)] * 3


@pytest.mark.parametrize(
    ("description", "cpus"),
    [
        (b'{"res_list":[12,140,13],"consumer_list":["a"]}', (12, 140, 13)),
        (
            b'{"consumer_list":[{"name":"a"}],"res_list":[{"numa_node":0,"cpu_id":12,"siblings":[12,140]},{"cpu_id":3}]}',
            (12, 3),
        ),
        (b'{"res_list":[]}', ()),
        (b'{"res_list":[[0,14336]],"consumer_list":["a"]}', ()),
        (b'{"res_list":[-1]}', ()),
        (b'{"res_list":[8192]}', ()),
        (b'{"res_list":[{"id":12}]}', ()),
        (b'{"res_list":["\xff"]}', ()),
        (b'{"other":[' + b"[" * 10_000, ()),
        (b"", ()),
        (b"None", ()),
        (b"[1,2]", ()),
    ],
)
def test_cpus_of_a_description(description: bytes, cpus: tuple[int, ...]) -> None:
    assert described_cpus(description) == cpus


@given(st.binary())
def test_any_description_tells_cpus_or_none(description: bytes) -> None:
    described_cpus(description)
    described_cpus(b'{"res_list":[' + description)
