"""Rounds of measurements on a host that lives: what they find, what disturbs them, and that they disturb nobody."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from core.trace import Sample
from core.usage import HostCounters, Usage, VmCounters, VmUsage
from tests.faulty import OPERATOR, FaultySim, failing, outsider
from tests.running import PATIENCE, SMALL_HOST
from tests.transports.endpoint import until
from vmstackd import sampling
from vmstackd.api import requests
from vmstackd.api.replies import VmReply
from vmstackd.engine import Engine
from vmstackd.hypervisor.base import HypervisorUnreachable, Measured
from vmstackd.hypervisor.options import HypervisorOptions
from vmstackd.kernel_counters import kernel_counters
from vmstackd.topology_source import load_topology

TOPOLOGY = load_topology(SMALL_HOST)


@asynccontextmanager
async def started(
    hypervisor: FaultySim,
    delay: float = 0,
    *,
    kernel: Callable[[], HostCounters] = kernel_counters,
    record: Callable[[Sample], None] = lambda _: None,
) -> AsyncIterator[Engine]:
    """An engine of 16 CPUs. Without a delay, rounds are those that the test makes."""
    state = empty_state(TOPOLOGY, Rules(critical_size=0))
    engine = Engine(state, POLICIES["reference"], hypervisor, period=3600, delay=delay, kernel=kernel, record=record)
    await engine.start()
    await asyncio.sleep(0)  # where there is no delay, the sampler finds that out
    try:
        async with asyncio.timeout(PATIENCE):
            yield engine
    finally:
        await engine.stop()


async def deploy(engine: Engine, name: str, level: int = 2000, vcpus: int = 2) -> None:
    request = requests.Deploy(name=name, vcpus=vcpus, memory_mib=1024, level=level, image="/images/a.qcow2")
    await engine.handle(request, OPERATOR, f"deploy-{name}")


async def remove(engine: Engine, name: str) -> None:
    await engine.handle(requests.Remove(name=name), OPERATOR, f"remove-{name}")


async def rounds(engine: Engine, count: int) -> None:
    """Make rounds, with a moment in between."""
    for _ in range(count):
        await asyncio.sleep(0.001)
        await engine.sampler.measure()


def usage_of(engine: Engine) -> Usage:
    assert engine.sampler.usage is not None
    return engine.sampler.usage


def vm_of(engine: Engine, name: str) -> VmReply:
    [vm] = [vm for vm in engine.vms().vms if vm.name == name]
    return vm


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged of measuring: the event, and of what."""
    records: list[dict[str, Any]] = [vars(record) for record in caplog.records]
    return [
        (record["message"], record["fields"]["what"])
        for record in records
        if record["message"] in {"not-measured", "measured-again"}
    ]


class Stuck:
    """A plan: measuring waits until it may go on. asked: how often it began."""

    def __init__(self) -> None:
        self.asked = 0
        self.going = asyncio.Event()

    async def __call__(self, operation: str, _name: str) -> None:
        if operation == "measure":
            self.asked += 1
            await self.going.wait()


# What is found


def test_rounds_follow_each_other_and_are_in_the_status() -> None:
    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY), 0.02) as engine:
            await deploy(engine, "a")
            await deploy(engine, "b", level=1000)
            await until(lambda: vm_of(engine, "a").usage is not None and vm_of(engine, "b").usage is not None)
            seen = engine.sampler.rounds
            await until(lambda: engine.sampler.rounds >= seen + 2)
            found = engine.status().usage
            assert found is not None
            assert 0 < found.seconds < PATIENCE
            assert abs(found.time - time.time()) < PATIENCE
            assert [level.level for level in found.levels] == [2000, 1000]
            assert found.busy_cpus == pytest.approx(sum(level.busy_cpus or 0 for level in found.levels))
            vms = [vm_of(engine, name).usage for name in "ab"]
            assert sum(vm.busy_cpus or 0 for vm in vms if vm is not None) == pytest.approx(found.busy_cpus)
            assert found.memory_mib == TOPOLOGY.memory_mib
            assert engine.sampler.failed_rounds == 0
            assert 0 < engine.sampler.seconds < PATIENCE
            assert engine.status(usage=False).usage is None

    asyncio.run(check())


def test_a_real_host_is_measured_by_this_machines_kernel() -> None:
    async def check() -> None:
        async with started(FaultySim()) as engine:
            await deploy(engine, "a")
            await rounds(engine, 1)
            before = kernel_counters()
            while kernel_counters().cpus == before.cpus:  # noqa: ASYNC110  the kernel counts hundredths of a second
                await asyncio.sleep(0.01)
            await rounds(engine, 1)
            found = usage_of(engine)
            assert found.host.memory_mib == before.memory_mib
            assert found.host.busy_cpus is not None
            assert found.host.busy_cpus > 0
            assert found.vms["a"].delay_ratio is not None

    asyncio.run(check())


def test_the_first_round_knows_memory_only_and_a_vm_that_is_new_as_well() -> None:
    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY)) as engine:
            await deploy(engine, "a")
            await rounds(engine, 1)
            assert usage_of(engine).host.busy_cpus is None
            assert vm_of(engine, "a").usage is not None
            await rounds(engine, 1)
            await deploy(engine, "b")
            assert vm_of(engine, "b").usage is None
            await rounds(engine, 1)
            fresh, old = vm_of(engine, "b").usage, vm_of(engine, "a").usage
            assert fresh is not None
            assert old is not None
            assert (fresh.busy_cpus, fresh.delay_s, fresh.delay_ratio) == (None, None, None)
            assert fresh.resident_mib is not None
            assert usage_of(engine).host.levels[0].delay_s == old.delay_s

    asyncio.run(check())


def test_a_vm_of_the_same_name_has_nothing_of_the_one_before() -> None:
    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY)) as engine:
            await deploy(engine, "a")
            await rounds(engine, 2)
            assert vm_of(engine, "a").usage is not None
            await remove(engine, "a")
            await deploy(engine, "a", level=1000)
            assert vm_of(engine, "a").usage is None
            await rounds(engine, 1)
            fresh = vm_of(engine, "a").usage
            assert fresh is not None
            assert (fresh.busy_cpus, fresh.delay_ratio) == (None, None)

    asyncio.run(check())


def test_nor_if_it_comes_in_the_middle_of_a_round() -> None:
    read = asyncio.Event()
    going = asyncio.Event()

    class Slow(FaultySim):
        async def measure(self) -> Any:  # noqa: ANN401  passed on as it came
            measured = await super().measure()
            read.set()
            await going.wait()
            return measured

    async def check() -> None:
        async with started(Slow(topology=TOPOLOGY)) as engine:
            going.set()
            await deploy(engine, "a")
            await deploy(engine, "b")
            await rounds(engine, 2)
            going.clear()
            read.clear()
            measuring = asyncio.create_task(rounds(engine, 1))
            await read.wait()
            await remove(engine, "a")
            await deploy(engine, "a", level=1000)
            going.set()
            await measuring
            assert vm_of(engine, "a").usage is None
            assert vm_of(engine, "b").usage is not None
            assert set(usage_of(engine).vms) == {"b"}

    asyncio.run(check())


def test_a_round_counts_on_the_subsets_at_its_end() -> None:
    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY)) as engine:
            await deploy(engine, "a")
            await rounds(engine, 2)
            await remove(engine, "a")
            await deploy(engine, "b", level=1500)
            await rounds(engine, 1)
            assert [level.level for level in usage_of(engine).host.levels] == [1500]
            assert usage_of(engine).host.levels[0].busy_cpus is not None

    asyncio.run(check())


def test_vms_that_are_in_no_level_are_no_usage_of_ours() -> None:
    async def check() -> None:
        async with started(FaultySim({"giant": outsider("giant", 64, range(16))}, TOPOLOGY)) as engine:
            await rounds(engine, 2)
            assert [vm.name for vm in engine.status().unplaced] == ["giant"]
            assert usage_of(engine).vms == {}
            assert usage_of(engine).host.busy_cpus is not None

    asyncio.run(check())


def test_delays_of_a_level_only_grow_and_are_forgotten_with_it() -> None:
    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY)) as engine:
            await deploy(engine, "a", level=1000)
            for number in range(30):
                await deploy(engine, f"busy{number}", level=64000)
            await rounds(engine, 1)
            assert engine.sampler.delays == {}
            before: dict[int, float] = {}
            waited = 0.0
            for _ in range(5):
                await rounds(engine, 1)
                now = dict(engine.sampler.delays)
                assert all(now[level] >= seconds for level, seconds in before.items())
                waited += usage_of(engine).host.levels[1].delay_s or 0
                before = now
            assert set(before) == {1000, 64000}
            assert before[64000] == pytest.approx(waited)
            assert waited > 0
            await remove(engine, "a")
            await rounds(engine, 1)
            assert set(engine.sampler.delays) == {64000}

    asyncio.run(check())


# What disturbs


def test_a_hypervisor_that_fails_is_told_once_and_the_host_is_measured_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vmstack")

    async def check() -> None:
        hypervisor = FaultySim()
        async with started(hypervisor) as engine:
            await deploy(engine, "a")
            await rounds(engine, 2)
            delays = dict(engine.sampler.delays)
            assert set(delays) == {2000}
            hypervisor.plan = failing("measure")
            await rounds(engine, 3)
            assert usage_of(engine).host.busy_cpus is not None
            assert usage_of(engine).host.levels[0].busy_cpus is not None
            assert usage_of(engine).host.levels[0].delay_s is None
            assert engine.sampler.delays == delays
            assert vm_of(engine, "a").usage is None
            assert told(caplog) == [("not-measured", "VMs")]
            assert "measure was told to fail" in str(vars(caplog.records[-1])["fields"])
            hypervisor.plan = hypervisor._nothing
            await rounds(engine, 3)
            assert told(caplog) == [("not-measured", "VMs"), ("measured-again", "VMs")]
            assert vm_of(engine, "a").usage is not None
            assert (engine.sampler.rounds, engine.sampler.failed_rounds) == (8, 3)

    asyncio.run(check())


def test_a_simulated_host_that_fails_is_not_taken_for_this_machine() -> None:
    async def check() -> None:
        hypervisor = FaultySim(topology=TOPOLOGY)
        async with started(hypervisor) as engine:
            await rounds(engine, 2)
            hypervisor.plan = failing("measure")
            await rounds(engine, 1)
            assert engine.status().usage is None

    asyncio.run(check())


def test_a_hypervisor_that_hangs_is_not_asked_again_and_holds_up_no_more_than_one_round(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "vmstack")
    monkeypatch.setattr(sampling, "PATIENCE_S", 0.05)

    async def check() -> None:
        stuck = Stuck()
        hypervisor = FaultySim()
        async with started(hypervisor, 0.02) as engine:
            await deploy(engine, "a")
            hypervisor.plan = stuck
            await until(lambda: engine.sampler.failed_rounds >= 3)
            assert stuck.asked == 1
            assert usage_of(engine).host.busy_cpus is not None
            assert told(caplog) == [("not-measured", "VMs")]
            assert engine.running
            await deploy(engine, "b")  # nobody else waits
            stuck.going.set()
            await until(lambda: vm_of(engine, "b").usage is not None)
            assert stuck.asked > 1
            assert told(caplog) == [("not-measured", "VMs"), ("measured-again", "VMs")]

    asyncio.run(check())


def test_an_error_that_comes_too_late_is_nobodys(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PATIENCE_S", 0.01)

    async def check() -> None:
        going = asyncio.Event()

        async def plan(operation: str, _name: str) -> None:
            if operation == "measure":
                await going.wait()
                raise HypervisorUnreachable("after all")

        hypervisor = FaultySim()
        async with started(hypervisor) as engine:
            hypervisor.plan = plan
            await rounds(engine, 1)
            going.set()
            await asyncio.sleep(0.01)
            hypervisor.plan = hypervisor._nothing
            await rounds(engine, 1)
            assert engine.sampler.failed_rounds == 1

    asyncio.run(check())
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_end_does_not_wait_for_a_round_that_hangs() -> None:
    async def check() -> None:
        hypervisor = FaultySim()
        stuck = Stuck()
        async with started(hypervisor, 0.01) as engine:
            hypervisor.plan = stuck
            await until(lambda: stuck.asked == 1)
            begin = time.monotonic()
            await engine.stop()
            assert time.monotonic() - begin < sampling.PATIENCE_S / 2
            await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) == 1, "the question is dropped, too"

    asyncio.run(check())


def test_a_mistake_of_ours_is_logged_whole_and_the_next_round_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        hypervisor = FaultySim(topology=TOPOLOGY)
        mistakes = 0

        async def plan(operation: str, _name: str) -> None:
            nonlocal mistakes
            if operation == "measure":
                mistakes += 1
                raise ZeroDivisionError("a mistake of ours")

        async with started(hypervisor, 0.01) as engine:
            await until(lambda: engine.status().usage is not None)
            hypervisor.plan = plan
            await until(lambda: mistakes >= 3)
            assert engine.running
            assert engine.status().usage is None
            assert engine.sampler.failed_rounds >= 2
            hypervisor.plan = hypervisor._nothing
            await until(lambda: engine.status().usage is not None)

    asyncio.run(check())
    [first, *_] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert first.message == "unexpected error in measuring"
    assert first.exc_info is not None
    assert isinstance(first.exc_info[1], ZeroDivisionError)


def test_a_mistake_in_recording_does_not_take_the_figures_away() -> None:
    def record(_: Sample) -> None:
        raise ZeroDivisionError("a mistake of ours")

    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY), record=record) as engine:
            await rounds(engine, 1)
            assert engine.status().usage is not None
            assert engine.sampler.failed_rounds == 1

    asyncio.run(check())


def test_files_of_the_kernel_that_cannot_be_read_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vmstack")
    places = [tmp_path]

    async def check() -> None:
        async with started(FaultySim(), kernel=lambda: kernel_counters(places[0])) as engine:
            await rounds(engine, 2)
            assert engine.status().usage is None
            assert told(caplog) == [("not-measured", "host")]
            places[0] = Path("/proc")
            await rounds(engine, 1)
            assert usage_of(engine).host.memory_mib > 0
            places[0] = tmp_path
            await rounds(engine, 2)
            assert engine.status().usage is None
            expected = [("not-measured", "host"), ("measured-again", "host"), ("not-measured", "host")]
            assert told(caplog) == expected
            assert engine.sampler.failed_rounds == 4

    asyncio.run(check())


def test_while_the_link_is_lost_the_host_is_measured_and_nothing_more_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "vmstack")

    async def check() -> None:
        hypervisor = FaultySim()
        async with started(hypervisor) as engine:
            await deploy(engine, "a")
            await rounds(engine, 2)
            hypervisor.cut()
            await rounds(engine, 2)
            assert usage_of(engine).host.busy_cpus is not None
            assert usage_of(engine).vms == {}
            hypervisor.heal()
            await until(lambda: engine.status().hypervisor == "up")
            await rounds(engine, 2)
            assert usage_of(engine).vms["a"].delay_ratio is not None
            assert (engine.sampler.failed_rounds, told(caplog)) == (2, [])

    asyncio.run(check())


def test_another_delay_holds_at_once_and_none_makes_the_figures_go() -> None:
    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY), 3600) as engine:
            await deploy(engine, "a")
            await until(lambda: engine.sampler.rounds == 1)

            def reconfigure(delay: float) -> None:
                engine.reconfigure(Rules(), POLICIES["reference"], 3600, delay, HypervisorOptions())

            reconfigure(0.01)
            await until(lambda: engine.sampler.rounds >= 4)
            assert engine.sampler.delays
            reconfigure(0)
            await until(lambda: engine.status().usage is None)
            seen = engine.sampler.rounds
            await asyncio.sleep(0.05)
            assert engine.sampler.rounds == seen
            assert engine.sampler.delays == {}
            assert vm_of(engine, "a").usage is None
            reconfigure(3600)
            await until(lambda: engine.sampler.rounds == seen + 1)
            assert usage_of(engine).host.seconds == 0, "it does not reach back over the pause"

    asyncio.run(check())


# What is recorded


def test_what_is_found_is_recorded_once_for_each_second() -> None:
    samples: list[Sample] = []

    async def check() -> None:
        async with started(FaultySim(topology=TOPOLOGY), 0.1, record=samples.append) as engine:
            await deploy(engine, "a")
            await until(lambda: len(samples) == 3)
            assert engine.sampler.rounds >= 15

    asyncio.run(check())
    assert [sample.time for sample in samples] == [0, 1, 2]
    assert samples[0].cpu is None
    last = samples[-1]
    assert last.cpu is not None
    [vm] = last.vms
    assert (vm.name, len(vm.uuid), vm.level, vm.vcpus) == ("a", 36, 2000, 2)
    assert vm.cpu is not None


def test_a_vm_is_recorded_with_its_uuid_or_not_yet() -> None:
    """Without it, a replay would take the VM for another one."""
    samples: list[Sample] = []
    seconds = itertools.count()

    def kernel() -> HostCounters:
        return HostCounters(at=float(next(seconds)), cpus={}, memory_mib=1, used_mib=1)

    async def check() -> None:
        hypervisor = FaultySim()
        async with started(hypervisor, kernel=kernel, record=samples.append) as engine:
            await deploy(engine, "a")
            await rounds(engine, 1)
            hypervisor.plan = failing("measure")
            await deploy(engine, "b")
            await rounds(engine, 1)
            hypervisor.plan = hypervisor._nothing
            await rounds(engine, 1)
            await remove(engine, "a")
            await deploy(engine, "a")
            hypervisor.plan = failing("measure")
            await rounds(engine, 1)

    asyncio.run(check())
    assert [[vm.name for vm in sample.vms] for sample in samples] == [["a"], ["a"], ["a", "b"], ["b"]]
    assert all(len(vm.uuid) == 36 for sample in samples for vm in sample.vms)
    assert samples[0].vms[0].uuid == samples[1].vms[0].uuid == samples[2].vms[0].uuid


# What could not be measured in between


class Counting(FaultySim):
    """Its one VM keeps one CPU busy, and waits half of the time."""

    seconds = 0.0

    async def measure(self) -> Measured:
        await self._before("measure", "")
        return Measured(at=self.seconds, vms={"a": VmCounters("u", cpu_s=self.seconds, delay_s=self.seconds / 2)})


def test_rounds_without_vms_lose_nothing_of_what_these_did() -> None:
    async def check() -> None:
        hypervisor = Counting()

        def kernel() -> HostCounters:
            return HostCounters(at=hypervisor.seconds, cpus={}, memory_mib=1, used_mib=1)

        async with started(hypervisor, kernel=kernel) as engine:
            await deploy(engine, "a")

            async def measure(seconds: float) -> VmUsage | None:
                hypervisor.seconds = seconds
                await engine.sampler.measure()
                return engine.sampler.of("a")

            await measure(0)
            assert await measure(10) == VmUsage(busy_cpus=1.0, delay_s=5.0, delay_ratio=0.25)
            hypervisor.plan = failing("measure")
            assert await measure(20) is None
            assert await measure(30) is None
            hypervisor.plan = hypervisor._nothing
            assert await measure(40) == VmUsage(busy_cpus=1.0, delay_s=15.0, delay_ratio=0.25)
            assert await measure(50) == VmUsage(busy_cpus=1.0, delay_s=5.0, delay_ratio=0.25)
            assert engine.sampler.delays == {2000: 25.0}

    asyncio.run(check())
