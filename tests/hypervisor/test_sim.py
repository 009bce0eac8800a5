from __future__ import annotations

import asyncio

import pytest

from tests.faulty import outsider
from vmstackd.api.errors import InvalidRequest
from vmstackd.hypervisor.base import HypervisorError, HypervisorUnreachable
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.hypervisor.sim_load import wanted_cpus
from vmstackd.topology_source import load_topology


def test_any_absolute_path_is_an_image() -> None:
    sim = SimHypervisor()
    assert asyncio.run(sim.check_image("/anywhere/a.qcow2")) == "/anywhere/a.qcow2"
    for image in ("", "a.qcow2", "/a\n"):
        with pytest.raises(InvalidRequest):
            asyncio.run(sim.check_image(image))


def test_pins_need_cpus_and_a_running_vm() -> None:
    async def scenario() -> None:
        sim = SimHypervisor()
        await sim.open(lambda _: None)
        sim.put(outsider("a", 1, (1, 2)))
        with pytest.raises(HypervisorError, match="no CPUs"):
            await sim.pin("a", [])
        assert sim.vms["a"].pinned == {1, 2}
        assert await sim.pin("a", [3]) == {3}
        sim.put(outsider("a", 1, (), running=False))
        with pytest.raises(HypervisorError, match="not running"):
            await sim.pin("a", [3])

    asyncio.run(scenario())


def test_the_clock_and_the_host_that_it_is_told_are_measured() -> None:
    async def scenario() -> None:
        now = 100.0
        topology = load_topology("synthetic:cores=2,memory=2048")
        sim = SimHypervisor(clock=lambda: now, topology=topology)
        with pytest.raises(HypervisorUnreachable):
            await sim.measure()
        await sim.open(lambda _: None)
        sim.put(outsider("a", 2, (0, 1)))
        sim.put(outsider("off", 2, (), running=False))
        await sim.measure()
        now = 160.0
        measured = await sim.measure()
        assert (measured.at, list(measured.vms)) == (160.0, ["a"])
        assert measured.vms["a"].cpu_s == pytest.approx(60 * wanted_cpus("a", 2, 130))
        assert measured.host is not None
        assert measured.host.memory_mib == 2048
        assert sum(measured.host.cpus.values()) == pytest.approx(measured.vms["a"].cpu_s)

    asyncio.run(scenario())
