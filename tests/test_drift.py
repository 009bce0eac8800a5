"""What the comparison with the hypervisor finds different from what was decided, counted by kind; and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import msgspec

from tests.faulty import FaultySim, outsider, slow
from tests.test_engine import ask, deploy, make, quiet, with_engine
from vmstackd.api import requests
from vmstackd.api.errors import VmstackError
from vmstackd.engine import Engine


def _found(engine: Engine) -> dict[str, int]:
    return {kind: count for kind, count in engine.drift.items() if count}


def test_every_kind_of_change_from_outside_is_counted_once() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        for name in ("a", "b", "c"):
            await ask(engine, deploy(name, vcpus=2, level=2000))
        await quiet(engine)
        assert _found(engine) == {}

        hv.put(outsider("stranger", 1, {7}))
        await quiet(engine)
        assert _found(engine) == {"adopted": 1}

        hv.drop("c")
        await quiet(engine)
        assert _found(engine) == {"adopted": 1, "gone": 1}

        hv.put(msgspec.structs.replace(hv.vms["a"], pinned=frozenset({7})))
        await quiet(engine)
        assert _found(engine) == {"adopted": 1, "gone": 1, "pinning": 1}

        hv.put(msgspec.structs.replace(hv.vms["b"], vcpus=1))
        await quiet(engine)
        assert _found(engine) == {"adopted": 1, "gone": 1, "pinning": 1, "resized": 1}

        hv.put(outsider("giant", 64, {6}))
        await quiet(engine)
        await engine._watch.compare(None)
        await quiet(engine)
        assert _found(engine) == {"adopted": 1, "gone": 1, "pinning": 1, "resized": 1, "unplaced": 1}

    with_engine(test)


def test_what_is_learned_at_the_start_is_no_drift() -> None:
    hv = FaultySim()

    async def live_twice() -> None:
        for _ in range(2):
            engine = make(hv)
            await engine.start()
            await quiet(engine)
            if not hv.vms:
                await ask(engine, deploy("a", vcpus=2))
                hv.put(outsider("stranger", 1, {7}))
                await quiet(engine)
                assert _found(engine) == {"adopted": 1}
            else:
                assert engine.status().host.vms == 2
                assert _found(engine) == {}
            await engine.stop()

    asyncio.run(live_twice())


def test_a_vm_that_was_pinned_otherwise_than_told_is_drift_once() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2, level=1000))
        stubborn = hv.pin

        async def pin(name: str, cpus: Sequence[int]) -> frozenset[int]:
            return await stubborn(name, sorted(cpus)[:-1])

        hv.pin = pin  # type: ignore[method-assign]
        await ask(engine, deploy("b", vcpus=2, level=1000))
        once = engine.drift["pinning"]
        assert once >= 1
        await engine._watch.compare(None)
        assert engine.drift["pinning"] == once
        hv.pin = stubborn  # type: ignore[method-assign]
        await engine._watch.compare(None)
        assert [kind for kind, count in engine.drift.items() if count] == ["pinning"]

    with_engine(test)


def test_our_own_operations_are_never_taken_for_drift() -> None:
    """Many at once, on a hypervisor that is slow, while everything is compared over and over."""

    async def test(engine: Engine, hv: FaultySim) -> None:
        rng = random.Random(4)
        hv.plan = hv.aftermath = slow(rng)

        async def live(name: str) -> None:
            for _ in range(4):
                try:
                    await ask(engine, deploy(name, vcpus=rng.randrange(1, 4), level=rng.choice((1000, 1500, 2000))))
                    await ask(engine, requests.Remove(name=name))
                except VmstackError as error:
                    assert error.code in {"NoCapacity", "Unavailable"}, error  # noqa: PT017  any other is a mistake

        async def compare() -> None:
            while True:
                await engine._watch.compare(None)
                await asyncio.sleep(0)

        comparing = asyncio.create_task(compare())
        await asyncio.gather(*(live(f"vm{number}") for number in range(12)))
        comparing.cancel()
        await asyncio.gather(comparing, return_exceptions=True)
        hv.plan = hv.aftermath = hv._nothing
        assert _found(engine) == {}

    with_engine(test)


def test_a_record_that_is_lost_is_written_again() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        before = hv.vms["a"].record
        hv.put(msgspec.structs.replace(hv.vms["a"], record=None))
        await quiet(engine)
        assert before is not None
        assert hv.vms["a"].record == before
        assert _found(engine) == {"record": 1}

    with_engine(test)
