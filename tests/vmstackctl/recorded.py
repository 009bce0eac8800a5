"""Traces that were never recorded, as samples and as files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from core.trace import HEADER, Sample, TracedLevel, TracedVm, format_sample

USUAL = (1000, 2000, 3000)
MANY = (1000, 1125, 1250, 1500, 1750, 2000, 2500, 3000, 4000, 8000, 16000)


def level(level: int, cpus: Sequence[int], busy: float | None = None) -> TracedLevel:
    """A subset that tells its CPUs."""
    return TracedLevel(
        level=level, cpus=len(cpus), busy_cpus=busy, description=msgspec.json.encode({"res_list": list(cpus)})
    )


def samples(count: int, levels: Sequence[int] = USUAL, *, step: int = 60, delay: bool = True) -> Iterator[Sample]:
    """A host whose levels grow and shrink, each at another pace. delay: whether it was recorded."""
    for number in range(count):
        found: list[TracedLevel] = []
        vms: list[TracedVm] = []
        for place, value in enumerate(levels):
            size = 1 + (number // (place + 2)) % 7
            cpus = range(place * 10, place * 10 + -(-size * 2000 // value))
            found.append(level(value, cpus, len(cpus) * (0.3 + 0.5 * ((number * (place + 3)) % 11) / 11)))
            vms += [
                TracedVm(
                    uuid=f"{value}-{vm}",
                    name=f"vm-{value}-{vm}",
                    level=value,
                    vcpus=2,
                    memory_mib=4096,
                    cpu=0.4,
                    memory=0.5,
                    delay_s=step * 0.002 * value / 1000 * (1 + (number * vm) % 5) if delay and number else None,
                )
                for vm in range(size)
            ]
        busy = sum(one.busy_cpus or 0 for one in found)
        yield Sample(
            time=number * step,
            cpus=128,
            memory_mib=512 * 1024,
            cpu=busy / 128 if number else None,
            memory=0.1 + len(vms) / 400,
            levels=tuple(found),
            vms=tuple(vms),
        )


def write(path: Path, recorded: Iterable[Sample]) -> Path:
    path.write_text(HEADER + "".join(map(format_sample, recorded)))
    return path


@st.composite
def any_samples(draw: st.DrawFn, most: int = 12) -> list[Sample]:
    """At least one, of whatever a trace may tell: levels that come and go, VMs without a subset, things unknown."""
    part = st.none() | st.floats(0, 1)
    found: list[Sample] = []
    time = draw(st.integers(0, 100))
    for _ in range(draw(st.integers(1, most))):
        owned = draw(st.dictionaries(st.sampled_from(MANY), st.lists(st.integers(0, 40), unique=True), max_size=5))
        told = draw(st.booleans())
        levels = []
        for value, cpus in owned.items():
            busy = draw(st.none() | st.floats(0, len(cpus)))
            traced = level(value, cpus, busy)
            levels.append(traced if told else msgspec.structs.replace(traced, description=b""))
        vms = draw(
            st.lists(
                st.builds(
                    TracedVm,
                    uuid=st.just(""),
                    name=st.text(),
                    level=st.sampled_from(MANY),
                    vcpus=st.integers(1, 16),
                    memory_mib=st.none() | st.integers(1, 1 << 20),
                    delay_s=st.none() | st.floats(0, 200),
                ),
                max_size=6,
            )
        )
        found.append(
            Sample(
                time=time,
                cpus=draw(st.integers(0, 64)),
                memory_mib=draw(st.integers(0, 1 << 20)),
                cpu=draw(part),
                memory=draw(part),
                levels=tuple(levels),
                vms=tuple(vms),
            )
        )
        time += draw(st.integers(1, 120))
    return found
