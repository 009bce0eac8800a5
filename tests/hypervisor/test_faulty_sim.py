"""The simulated hypervisor's own ways, and the faults that other tests inject into it."""

from __future__ import annotations

import asyncio

import pytest

from tests.hypervisor.backends import Events
from tests.hypervisor.faulty_sim import FaultySim
from vmstackd.api.errors import InvalidRequest
from vmstackd.hypervisor.base import HypervisorError, HypervisorUnreachable


def test_images() -> None:
    sim = FaultySim()
    assert asyncio.run(sim.check_image("/anywhere/a.qcow2")) == "/anywhere/a.qcow2"
    for image in ("", "a.qcow2", "/a\n"):
        with pytest.raises(InvalidRequest):
            asyncio.run(sim.check_image(image))


def test_faults() -> None:
    async def scenario() -> None:
        sim, events = FaultySim(), Events()
        await sim.open(events)
        sim.appear("a", pinned=[1, 2])
        sim.fail("pin", HypervisorError("not now"))
        with pytest.raises(HypervisorError, match="not now"):
            await sim.pin("a", [3])
        assert sim.vms["a"].pinned == {1, 2}
        assert await sim.pin("a", [3]) == {3}
        sim.repin("a", [4])
        with pytest.raises(HypervisorError, match="no CPUs"):
            await sim.pin("a", [])
        sim.lose("gone")
        with pytest.raises(HypervisorUnreachable, match="gone"):
            await sim.observe()
        sim.vanish("a")
        sim.restore()
        assert await sim.observe() == []
        assert [event.kind for event in events.seen] == ["changed", "lost", "restored"]
        assert sim.calls == [("pin", "a"), ("pin", "a"), ("pin", "a"), ("observe", ""), ("observe", "")]

    asyncio.run(scenario())
