"""The engine on a hypervisor that fails in every way it may, and on one that stops anywhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from core.invariants import broken
from core.model import Rules
from tests.faulty import FaultySim, outsider, slow
from tests.test_engine import ask, assert_pinned_as_decided, deploy, make, quiet, summary
from vmstackd.api import requests
from vmstackd.api.errors import HypervisorFailed, Unavailable, VmstackError
from vmstackd.engine import Engine
from vmstackd.hypervisor.base import HypervisorError, HypervisorUnreachable

Plan = Callable[[str, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstackd.watch.RETRY_S", 0.0)
    monkeypatch.setattr("vmstackd.engine.GRACE_S", 0.0)


def chaos(hv: FaultySim, rng: random.Random) -> tuple[Plan, Plan]:
    """What happens before and after each call: waiting, refusals, links that break."""
    wait = slow(rng)

    def cut() -> HypervisorUnreachable:
        if hv.linked:
            hv.cut()
            asyncio.get_running_loop().call_later(0, hv.heal)
        return HypervisorUnreachable("the link is cut")

    async def before(operation: str, name: str) -> None:
        await wait(operation, name)
        if rng.random() < 0.1:
            raise HypervisorError(f"{operation} of {name} was told to fail")
        if rng.random() < 0.02:
            raise cut()
        if operation == "observe" and hv.vms and rng.random() < 0.1:
            hidden = rng.choice(sorted(hv.vms))
            seen = hv.vms[hidden]
            hv.vms[hidden] = msgspec.structs.replace(seen, unknown="hidden")
            asyncio.get_running_loop().call_soon(reveal, hidden)

    def reveal(name: str) -> None:
        if name in hv.vms:
            hv.vms[name] = msgspec.structs.replace(hv.vms[name], unknown="")

    async def after(operation: str, name: str) -> None:
        await wait(operation, name)
        # A refused creation leaves no VM; the others may fail half-way.
        if operation in {"pin", "destroy", "write_record"} and rng.random() < 0.05:
            raise HypervisorError(f"{operation} of {name} failed after it had taken effect")
        if rng.random() < 0.02:
            raise cut()

    return before, after


def calm(hv: FaultySim) -> None:
    """From now on all works."""
    hv.plan = hv.aftermath = hv._nothing
    if not hv.linked:
        hv.heal()


@pytest.mark.parametrize("seed", [*range(80), 298, 541, 4010, 4094, 5680])
def test_whatever_happens_levels_never_share_a_cpu_and_all_settles(seed: int) -> None:
    """Random operations at once, failures, deaths, VMs from outside, cut links and killed daemons."""
    rng = random.Random(seed)
    hv = FaultySim()
    acknowledged: set[str] = set()

    async def operation(engine: Engine, number: int) -> None:
        name = f"vm{number}"
        try:
            if rng.random() < 0.6 or not acknowledged:
                level, vcpus = rng.choice([1000, 2000, 3000, 1500]), rng.choice([1, 1, 2, 4])
                await ask(engine, deploy(name, vcpus=vcpus, level=level))
                acknowledged.add(name)
            else:
                name = rng.choice(sorted(acknowledged))
                acknowledged.discard(name)
                await ask(engine, requests.Remove(name=name))
        except (HypervisorFailed, Unavailable):
            acknowledged.discard(name)  # for a removal: it may or may not be there
        except VmstackError:
            pass

    async def life(first: int) -> None:
        engine = make(hv, Rules(critical_size=rng.choice([0, 2, 6])))
        calm(hv)
        await engine.start()
        hv.plan, hv.aftermath = chaos(hv, rng)
        running: list[asyncio.Task[None]] = []
        for number in range(first, first + 40):
            running.append(asyncio.create_task(operation(engine, number)))
            if rng.random() < 0.5:
                await running[-1]
            if rng.random() < 0.05 and acknowledged & hv.vms.keys():
                victim = rng.choice(sorted(acknowledged & hv.vms.keys()))
                acknowledged.discard(victim)
                hv.drop(victim)
            if rng.random() < 0.03:
                hv.put(outsider(f"foreign{number}", rng.choice([1, 3]), rng.sample(range(16), 4)))
        if rng.random() < 0.5:  # killed: tasks just end where they are
            for task in [*running, *engine._operations, *engine._tasks]:
                if task is not None:
                    task.cancel()
            await asyncio.gather(*running, *engine._operations, return_exceptions=True)
            for name in [name for name in acknowledged if name not in hv.vms]:
                acknowledged.discard(name)
            return
        await asyncio.gather(*running)
        calm(hv)
        for _ in range(3):
            engine._watch._look_at_everything()
            await quiet(engine)
        assert acknowledged <= set(hv.vms), "an acknowledged VM is lost"
        assert engine.status().hypervisor == "up"
        assert [text for text in engine.status().degraded if "needs" not in text and "outside" not in text] == []
        assert broken(engine.state, may_owe=frozenset(s.level for s in engine.state.subsets)) == []
        assert_pinned_as_decided(engine, hv)
        placed = {name for subset in engine.state.subsets for name in subset.vms}
        assert placed | {vm.name for vm in engine.status().unplaced} == {n for n, vm in hv.vms.items() if vm.running}
        before = summary(engine.state)
        await engine.stop()
        # The next life finds the same subsets.
        engine = make(hv, Rules(critical_size=0))
        await engine.start()
        await quiet(engine)
        found = summary(engine.state)
        if not engine.status().unplaced:
            assert {level: (cpus, set(vms)) for level, (cpus, vms) in found.items()} == {
                level: (cpus, set(vms)) for level, (cpus, vms) in before.items()
            }
        await engine.stop()

    for generation in range(3):
        asyncio.run(life(generation * 100))
        assert hv.violations == []


@pytest.mark.parametrize("effect", ["before", "after"])
def test_a_daemon_killed_at_any_call_loses_nothing(effect: str) -> None:
    """A fixed story, killed before or after its n-th call took effect, for every n until it runs through."""
    for stop_at in range(200):
        if _killed_at(stop_at, effect):
            continue
        assert stop_at > 30, "the story makes more calls than that"
        return
    raise AssertionError("the story never ends")


def _killed_at(stop_at: int, effect: str) -> bool:
    """Whether the daemon was killed; checks that the next one finds everything."""
    hv = FaultySim()
    done: dict[str, bool] = {}
    """By name: whether it was acknowledged as there (True) or gone (False); not in between."""
    calls = 0
    dead = asyncio.Event()

    async def count(_operation: str, _name: str) -> None:
        nonlocal calls
        if calls == stop_at:
            dead.set()
        calls += 1
        if dead.is_set():
            await asyncio.Event().wait()  # nothing this daemon wants takes effect any more
        await asyncio.sleep(0)

    async def deployed(engine: Engine, name: str, vcpus: int, level: int) -> None:
        done.pop(name, None)
        await ask(engine, deploy(name, vcpus=vcpus, level=level))
        done[name] = True

    async def removed(engine: Engine, name: str) -> None:
        del done[name]
        await ask(engine, requests.Remove(name=name))
        done[name] = False

    async def story(engine: Engine) -> None:
        await engine.start()
        await deployed(engine, "a", 2, 1000)
        await asyncio.gather(deployed(engine, "b", 2, 1000), deployed(engine, "c", 4, 2000))
        await deployed(engine, "d", 2, 1000)
        await deployed(engine, "e", 5, 2000)
        await asyncio.gather(removed(engine, "d"), removed(engine, "e"))
        await deployed(engine, "f", 5, 3000)
        await removed(engine, "a")
        await deployed(engine, "g", 3, 1000)
        await quiet(engine)

    async def first_life() -> bool:
        told = asyncio.create_task(story(make(hv)))
        killed = asyncio.create_task(dead.wait())
        await asyncio.wait((told, killed), return_when=asyncio.FIRST_COMPLETED)
        if not dead.is_set():
            killed.cancel()
            await told
        return dead.is_set()

    async def second_life() -> None:
        engine = make(hv)
        await engine.start()
        await quiet(engine)
        for name, there in done.items():
            assert (engine.state.vm(name) is not None) is there, name
        assert broken(engine.state) == []
        assert_pinned_as_decided(engine, hv)
        assert engine.state.held == ()
        assert engine.status().degraded == ()
        assert {name for subset in engine.state.subsets for name in subset.vms} == set(hv.vms)
        await engine.stop()

    if effect == "before":
        hv.plan = count
    else:
        hv.aftermath = count
    killed = asyncio.run(first_life())
    calm(hv)
    asyncio.run(second_life())
    assert hv.violations == [], f"killed {effect} call {stop_at}"
    return killed


def test_a_link_lost_while_a_comparison_settles_is_down() -> None:
    async def run() -> None:
        hv = FaultySim()
        engine = make(hv)
        await engine.start()
        await ask(engine, deploy("a", vcpus=2))
        await quiet(engine)

        async def plan(operation: str, _name: str) -> None:
            if operation == "pin":
                hv.cut()

        hv.plan = plan
        hv.put(msgspec.structs.replace(hv.vms["a"], pinned=frozenset(range(16))))
        engine._watch._look_at_everything()
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.status().hypervisor == "down"
        with pytest.raises(Unavailable):
            await ask(engine, deploy("b"))
        calm(hv)
        await quiet(engine)
        assert engine.status().hypervisor == "up"
        assert engine.status().degraded == ()
        assert_pinned_as_decided(engine, hv)
        await engine.stop()

    asyncio.run(run())


def test_what_happens_to_a_vm_during_a_whole_comparison_is_not_forgotten() -> None:
    async def run() -> None:
        hv = FaultySim()
        engine = make(hv)
        await engine.start()
        await ask(engine, deploy("a", vcpus=2))
        await ask(engine, deploy("b", vcpus=2))
        await quiet(engine)

        async def aftermath(operation: str, _name: str) -> None:
            if operation == "observe":
                # Seen as running; then it is pinned anew (so the look is outdated), and then it shuts off.
                hv.aftermath = hv._nothing
                engine._host.touched.add("a")
                hv.put(msgspec.structs.replace(hv.vms["a"], running=False, pinned=frozenset()))
                engine._host.unclear.add("a")

        hv.aftermath = aftermath
        engine._watch._look_at_everything()
        await quiet(engine)
        assert engine.status().stopped == ("a",)
        assert engine.state.vm("a") is None
        await engine.stop()

    asyncio.run(run())


def test_a_look_that_fails_after_the_link_is_back_is_repeated_soon() -> None:
    async def run() -> None:
        hv = FaultySim()
        engine = make(hv)
        await engine.start()
        hv.cut()
        await quiet(engine)
        failures = 3

        async def plan(operation: str, _name: str) -> None:
            nonlocal failures
            if operation == "observe" and failures:
                failures -= 1
                raise HypervisorError("not yet")

        hv.plan = plan
        hv.heal()
        await quiet(engine)
        assert failures == 0
        assert engine.status().hypervisor == "up"
        await engine.stop()

    asyncio.run(run())


def test_a_pin_that_took_effect_although_its_call_failed_is_no_longer_reported() -> None:
    async def run() -> None:
        hv = FaultySim()
        engine = make(hv)
        await engine.start()
        await ask(engine, deploy("a", vcpus=2))
        await quiet(engine)

        async def aftermath(operation: str, _name: str) -> None:
            if operation == "pin":
                raise HypervisorError("nobody heard the answer")

        hv.aftermath = aftermath
        await ask(engine, deploy("b", vcpus=2))
        assert "VM 'a' is not pinned as decided: nobody heard the answer" in engine.status().degraded
        calm(hv)
        engine._watch._look_at_everything()
        await quiet(engine)
        assert engine.status().degraded == ()
        await engine.stop()

    asyncio.run(run())
