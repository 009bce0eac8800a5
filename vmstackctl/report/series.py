"""What a trace tells over time, in no more steps than a picture can show, however long the trace is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from core.trace import Sample, TracedVm, described_cpus
from core.usage import quantile

MOST_STEPS = 1000
"""About as many as a picture has pixels from left to right."""
_RATIO_UNITS = 10_000
"""Delays are counted in hundredths of a percent."""


class Mean(msgspec.Struct, frozen=True, gc=False):
    """Of the values that are known; there may be none."""

    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


class LevelStep(msgspec.Struct, frozen=True, gc=False):
    """A level within one step. cpus, vcpus, vms: the most. busy_cpus: the mean. Of the part of the time that the
    vCPUs of each VM waited, 0 to 1: delay_median is the mean of the medians over VMs, delay_p99 the highest p99.
    """

    cpus: int = 0
    vcpus: int = 0
    vms: int = 0
    busy_cpus: Mean = Mean()
    delay_median: Mean = Mean()
    delay_p99: float | None = None

    def __add__(self, other: LevelStep) -> LevelStep:
        return LevelStep(
            cpus=max(self.cpus, other.cpus),
            vcpus=max(self.vcpus, other.vcpus),
            vms=max(self.vms, other.vms),
            busy_cpus=self.busy_cpus + other.busy_cpus,
            delay_median=self.delay_median + other.delay_median,
            delay_p99=highest((self.delay_p99, other.delay_p99)),
        )


class Step(msgspec.Struct, frozen=True):
    """One sample, or several that follow each other. time: of the first, seconds. cpus: usable. The most: cpus,
    memory_mib, owned_cpus, sold_mib, vms. The mean: busy_cpus, used_mib. owners: which CPUs each level had in the
    last sample; None if that was not recorded.
    """

    time: int
    cpus: int
    memory_mib: int
    owned_cpus: int
    sold_mib: int
    vms: int
    busy_cpus: Mean
    used_mib: Mean
    levels: Mapping[int, LevelStep]
    owners: Mapping[int, tuple[int, ...]] | None

    def __add__(self, later: Step) -> Step:
        levels = dict(self.levels)
        for level, step in later.levels.items():
            known = levels.get(level)
            levels[level] = step if known is None else known + step
        return Step(
            time=self.time,
            cpus=max(self.cpus, later.cpus),
            memory_mib=max(self.memory_mib, later.memory_mib),
            owned_cpus=max(self.owned_cpus, later.owned_cpus),
            sold_mib=max(self.sold_mib, later.sold_mib),
            vms=max(self.vms, later.vms),
            busy_cpus=self.busy_cpus + later.busy_cpus,
            used_mib=self.used_mib + later.used_mib,
            levels=levels,
            owners=later.owners,
        )


class LevelSummary(msgspec.Struct, frozen=True):
    """A level in the whole trace. most_...: at one time. busy_share: of its CPUs, the part that was busy, 0 to 1.
    delay_p99: over all its VMs and samples, the part of the time that 99 of 100 did not exceed. cpu_samples: CPUs that
    it owned, summed over the samples.
    """

    level: int
    most_vms: int
    most_vcpus: int
    most_cpus: int
    busy_cpus: float | None
    busy_share: float | None
    delay_p99: float | None
    cpu_samples: int


class Series(msgspec.Struct, frozen=True):
    """A whole trace. samples_per_step: 1 unless it is long. end: of the last step, seconds. summaries: by level,
    ascending. cpu_ids: all that were ever owned, ascending.
    """

    steps: tuple[Step, ...]
    samples: int
    samples_per_step: int
    end: int
    summaries: tuple[LevelSummary, ...]
    cpu_ids: tuple[int, ...]

    @property
    def edges(self) -> list[int]:
        """Where the steps begin, and where the last one ends; seconds."""
        return [*(step.time for step in self.steps), self.end]

    @property
    def has_delay(self) -> bool:
        return any(summary.delay_p99 is not None for summary in self.summaries)


def series(samples: Iterable[Sample], most_steps: int = MOST_STEPS) -> Series | None:
    """None if there are no samples. most_steps: even."""
    reader = _Reader(most_steps)
    for sample in samples:
        reader.take(sample)
    return reader.result()


def highest(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    return max((value for value in values if value is not None), default=None)


class _Total:
    """What is summed up of one level."""

    def __init__(self) -> None:
        self.most = LevelStep()
        self.busy_of_cpus = 0
        self.cpu_samples = 0
        self.delays: Counter[int] = Counter()

    def take(self, step: LevelStep, ratios: Iterable[float]) -> None:
        self.most += step
        self.cpu_samples += step.cpus
        self.busy_of_cpus += step.cpus * step.busy_cpus.count
        self.delays.update([round(ratio * _RATIO_UNITS) for ratio in ratios])

    def summary(self, level: int) -> LevelSummary:
        return LevelSummary(
            level=level,
            most_vms=self.most.vms,
            most_vcpus=self.most.vcpus,
            most_cpus=self.most.cpus,
            busy_cpus=self.most.busy_cpus.value,
            busy_share=self.most.busy_cpus.total / self.busy_of_cpus if self.busy_of_cpus else None,
            delay_p99=self._delay_p99(),
            cpu_samples=self.cpu_samples,
        )

    def _delay_p99(self) -> float | None:
        rank = -(-99 * self.delays.total() // 100)
        for units in sorted(self.delays):
            rank -= self.delays[units]
            if rank <= 0:
                return units / _RATIO_UNITS
        return None


class _Reader:
    """Takes samples in their order. When there are too many steps, two and two become one."""

    def __init__(self, most_steps: int) -> None:
        self._most = most_steps
        self._steps: list[Step] = []
        self._width = 1
        self._in_last = 0
        self._samples = 0
        self._totals: dict[int, _Total] = {}
        self._cpu_ids: set[int] = set()
        self._described: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self._begin: int | None = None
        self._before: int | None = None

    def take(self, sample: Sample) -> None:
        if self._begin is None:
            self._begin = sample.time
        step = self._step(sample)
        self._before = sample.time
        self._samples += 1
        if self._steps and self._in_last < self._width:
            self._steps[-1] += step
            self._in_last += 1
            return
        if len(self._steps) == self._most:
            self._steps = [first + second for first, second in zip(self._steps[::2], self._steps[1::2], strict=True)]
            self._width *= 2
        self._steps.append(step)
        self._in_last = 1

    def result(self) -> Series | None:
        if self._begin is None or self._before is None:
            return None
        # The last sample lasts as long as the others did.
        usual = (self._before - self._begin) // (self._samples - 1) if self._samples > 1 else 0
        return Series(
            steps=tuple(self._steps),
            samples=self._samples,
            samples_per_step=self._width,
            end=self._before + max(1, usual),
            summaries=tuple(total.summary(level) for level, total in sorted(self._totals.items())),
            cpu_ids=tuple(sorted(self._cpu_ids)),
        )

    def _step(self, sample: Sample) -> Step:
        seconds = 0 if self._before is None else sample.time - self._before
        vms: dict[int, list[TracedVm]] = {level.level: [] for level in sample.levels}
        for vm in sample.vms:
            vms.setdefault(vm.level, []).append(vm)
        traced = {level.level: level for level in sample.levels}
        levels: dict[int, LevelStep] = {}
        for level, found in vms.items():
            subset = traced.get(level)
            ratios = _delay_ratios(found, seconds)
            levels[level] = step = LevelStep(
                cpus=0 if subset is None else subset.cpus,
                vcpus=sum([vm.vcpus for vm in found]),
                vms=len(found),
                busy_cpus=_mean(None if subset is None else subset.busy_cpus),
                delay_median=_mean(quantile(ratios, 0.5) if ratios else None),
                delay_p99=quantile(ratios, 0.99) if ratios else None,
            )
            if level not in self._totals:
                self._totals[level] = _Total()
            self._totals[level].take(step, ratios)
        return Step(
            time=sample.time,
            cpus=sample.cpus,
            memory_mib=sample.memory_mib,
            owned_cpus=sum([level.cpus for level in sample.levels]),
            sold_mib=sum([vm.memory_mib or 0 for vm in sample.vms]),
            vms=len(sample.vms),
            busy_cpus=_mean(None if sample.cpu is None else sample.cpu * sample.cpus),
            used_mib=_mean(None if sample.memory is None else sample.memory * sample.memory_mib),
            levels=levels,
            owners=self._owners(sample),
        )

    def _owners(self, sample: Sample) -> dict[int, tuple[int, ...]] | None:
        owners: dict[int, tuple[int, ...]] = {}
        for level in sample.levels:
            # Most samples tell what the one before told, and it is long.
            known = self._described.get(level.level)
            if known is None or known[0] != level.description:
                known = (level.description, described_cpus(level.description))
                self._described[level.level] = known
                self._cpu_ids.update(known[1])
            if level.cpus and not known[1]:
                return None
            owners[level.level] = known[1]
        return owners


def _mean(value: float | None) -> Mean:
    return Mean() if value is None else Mean(value, 1)


def _delay_ratios(vms: Iterable[TracedVm], seconds: int) -> list[float]:
    """The part of the time that the vCPUs of each VM waited, as far as known, ascending."""
    if seconds <= 0:
        return []
    return sorted([min(1.0, vm.delay_s / seconds / vm.vcpus) for vm in vms if vm.delay_s is not None and vm.vcpus > 0])
