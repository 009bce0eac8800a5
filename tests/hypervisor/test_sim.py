from __future__ import annotations

import asyncio

import pytest

from tests.faulty import outsider
from vmstackd.api.errors import InvalidRequest
from vmstackd.hypervisor.base import HypervisorError
from vmstackd.hypervisor.sim import SimHypervisor


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
