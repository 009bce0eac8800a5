"""Recordings, plain or packed."""

from __future__ import annotations

import msgspec

from core.trace import COLUMNS, HEADER, Sample, described_cpus, format_sample
from tests.fuzz.target import Target, check_told, scratch, words
from vmstackctl.plan.recorded import recorded_workload
from vmstackd.trace_file import TraceFile, TraceFileError

_FOLDER = scratch()


def take(data: bytes) -> None:
    """A whole file."""
    file = _FOLDER / "trace.csv"
    file.write_bytes(data)
    samples: list[Sample] = []
    try:
        with TraceFile(file) as trace:
            samples += trace
            assert trace.position <= len(data)
    except TraceFileError as error:
        check_told(error, file)
        return
    times = [sample.time for sample in samples]
    assert times == sorted(set(times))
    recorded_workload(samples)
    for sample in samples:
        for level in sample.levels:
            described_cpus(level.description)
    _goes_round(samples)


def _goes_round(samples: list[Sample]) -> None:
    """What we write of it is read as the same; but for what stood in descriptions, and digits beyond the fifth.

    We write no VM without its memory, nor one without the row of its level above it.
    """
    plain = [
        msgspec.structs.replace(
            sample, levels=tuple(msgspec.structs.replace(level, description=b"") for level in sample.levels)
        )
        for sample in samples
    ]
    for sample in plain:
        levels = {level.level for level in sample.levels}
        if any(vm.memory_mib is None or vm.level not in levels for vm in sample.vms):
            return
    file = _FOLDER / "again.csv"
    text = HEADER + "".join(map(format_sample, plain))
    file.write_text(text, encoding="utf-8")
    with TraceFile(file) as trace:
        again = list(trace)
    assert len(again) == len(samples)
    assert HEADER + "".join(map(format_sample, again)) == HEADER + "".join(
        format_sample(sample) for sample in _in_written_order(plain)
    )


def _in_written_order(samples: list[Sample]) -> list[Sample]:
    """VMs by level, as they are written."""
    return [
        msgspec.structs.replace(
            sample, vms=tuple(vm for level in sample.levels for vm in sample.vms if vm.level == level.level)
        )
        for sample in samples
    ]


_WORDS = """
→
global→cpu→
global→mem→
subset→cpu→
subset→mem→
vm→cpu→
vm→mem→
None
0.5
¶0→
¶15→
←¶
1e3
{"res_list":[0,1]}
1.5
4096.0
"""
TARGET = Target(
    take,
    words=(*COLUMNS, *words(_WORDS)),
)
