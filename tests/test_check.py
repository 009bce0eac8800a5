"""Operation check, and the periodic pass, which is the same: each kind of drift is found, repaired where it can be, and
told; nothing else is touched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import pytest

from core.allocator import hold
from core.model import Rules
from tests.faulty import FaultySim, failing, outsider
from tests.running import PATIENCE
from tests.test_engine import ask, assert_pinned_as_decided, deploy, make, quiet, with_engine
from vmstackd.api import replies, requests
from vmstackd.api.errors import HypervisorFailed, Unavailable
from vmstackd.engine import Engine
from vmstackd.host import DRIFT
from vmstackd.hypervisor.base import HypervisorError, ObservedVm, Record

Disturbing = Callable[[Engine, FaultySim], None]
"""Changes something behind the back of the daemon, without any event that would tell."""


async def check(engine: Engine, *, dry_run: bool = False) -> replies.CheckReply:
    reply = await ask(engine, requests.Check(dry_run=dry_run))
    assert isinstance(reply, replies.CheckReply)
    assert reply.dry_run == dry_run
    return reply


def kinds(reply: replies.CheckReply) -> list[tuple[str, str, bool]]:
    return [(finding.kind, finding.vm, finding.repaired) for finding in reply.findings]


def change(hv: FaultySim, name: str, **fields: object) -> None:
    hv.vms[name] = msgspec.structs.replace(hv.vms[name], **fields)


def change_record(hv: FaultySim, name: str, **fields: object) -> None:
    record = hv.vms[name].record
    assert record is not None
    change(hv, name, record=msgspec.structs.replace(record, **fields))


def has_right_records(engine: Engine, hv: FaultySim) -> bool:
    """Every VM has one of its own level and size, and the newest of each level tells its subset."""
    for subset in engine.state.subsets:
        records: dict[str, Record | None] = {name: hv.vms[name].record for name in subset.vms}
        for name, vm in subset.vms.items():
            record = records[name]
            if record is None or (record.level, record.vcpus, record.memory_mib) != (vm.level, vm.vcpus, vm.memory_mib):
                return False
        if max((r for r in records.values() if r), key=lambda r: r.generation).cpus != subset.cpus:
            return False
    return True


DISTURBANCES: Mapping[str, tuple[Disturbing, list[tuple[str, str, bool]]]] = {
    "pinned elsewhere": (
        lambda _, hv: change(hv, "a", pinned=frozenset({7})),
        [("pinning", "a", True)],
    ),
    "pinned wider": (
        lambda _, hv: change(hv, "a", pinned=hv.vms["a"].pinned | {7}),
        [("pinning", "a", True)],
    ),
    "one vCPU pinned narrower": (
        lambda _, hv: change(hv, "a", uneven=True),
        [("pinning", "a", True)],
    ),
    "the kernel has another affinity": (
        lambda _, hv: hv.strayed.update(a={hv.vms["a"].pinned: (10, 11), frozenset({7}): (12,)}),
        [("affinity", "a", True)],
    ),
    "no record": (
        lambda _, hv: change(hv, "b", record=None),
        [("record", "b", True)],
    ),
    "a record of another level": (
        lambda _, hv: change_record(hv, "b", level=3000),
        [("record", "b", True)],
    ),
    "a record of another size": (
        lambda _, hv: change_record(hv, "a", vcpus=7),
        [("record", "a", True)],
    ),
    "a record that is too new": (
        lambda _, hv: change_record(hv, "a", generation=1 << 40, cpus=(5,)),
        [("record", "a", True)],
    ),
    "a newest record that tells another subset": (
        lambda _, hv: change_record(hv, "b", cpus=(6, 7)),
        [("record", "", True)],
    ),
    "a record that tells another subset than was decided then": (
        lambda engine, hv: change_record(hv, "b", cpus=(6, 7), generation=engine.state.generation),
        [("record", "b", True)],
    ),
    "no newest record": (
        lambda _, hv: change(hv, "b", record=hv.vms["a"].record),
        [("record", "", True)],
    ),
    "gone": (
        lambda _, hv: hv.vms.__delitem__("b"),
        [("gone", "b", True)],
    ),
    "shut off": (
        lambda _, hv: change(hv, "b", running=False, pinned=frozenset()),
        [("gone", "b", True)],
    ),
    "a stranger": (
        lambda _, hv: hv.vms.update(new=outsider("new", 1, {7})),
        [("adopted", "new", True)],
    ),
    "a stranger that is shut off": (
        lambda _, hv: hv.vms.update(new=outsider("new", 1, (), running=False)),
        [("stopped", "new", True)],
    ),
    "another size": (
        lambda _, hv: change(hv, "b", vcpus=1),
        [("resized", "b", True)],
    ),
    "CPUs held for nobody": (
        lambda engine, _: keep(engine, (5,), 0),
        [("held", "", True)],
    ),
    "memory held for nobody": (
        lambda engine, _: keep(engine, (), 512),
        [("held", "", True)],
    ),
}


def keep(engine: Engine, cpus: tuple[int, ...], memory_mib: int) -> None:
    engine._host.state = hold(engine.state, cpus, memory_mib)


async def _two(engine: Engine) -> None:
    """Of one size, so that the second one makes the level grow."""
    for name in ("a", "b"):
        await ask(engine, deploy(name, vcpus=2, level=1500))
    await ask(engine, deploy("other", vcpus=1))
    await quiet(engine)


@pytest.mark.parametrize("name", DISTURBANCES)
def test_each_kind_is_found_repaired_and_counted_once(name: str) -> None:
    disturb, expected = DISTURBANCES[name]

    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        assert (await check(engine)).findings == ()
        vms, state = dict(hv.vms), engine.state
        disturb(engine, hv)
        disturbed, held, strayed = dict(hv.vms), engine.state, dict(hv.strayed)
        assert kinds(await check(engine, dry_run=True)) == [(kind, vm, False) for kind, vm, _ in expected]
        assert (hv.vms, hv.strayed, engine.state) == (disturbed, strayed, held)
        assert not any(engine.drift.values())
        found = await check(engine)
        assert kinds(found) == expected
        assert {kind: count for kind, count in engine.drift.items() if count} == {expected[0][0]: 1}
        assert engine.state.held == ()
        assert engine.state.held_mib == 0
        assert hv.strayed == {}
        assert not any(vm.uneven for vm in hv.vms.values())
        assert has_right_records(engine, hv)
        assert_pinned_as_decided(engine, hv)
        if name not in {"gone", "shut off", "a stranger", "a stranger that is shut off", "another size"}:
            pins = {vm: (seen.pinned, seen.running) for vm, seen in vms.items()}
            assert {vm: (seen.pinned, seen.running) for vm, seen in hv.vms.items()} == pins
            assert engine.state.subsets == state.subsets
        if name == "a record of another level":
            hv.violations.clear()  # what watches for them went by that record
        calls = list(hv.calls)
        again = await check(engine)
        assert (again.findings, hv.calls) == ((), calls)
        assert sum(engine.drift.values()) == 1

    with_engine(test)


def test_an_image_and_an_arrival_are_remembered() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        before = hv.vms["b"].record
        change(hv, "b", record=None)
        assert kinds(await check(engine)) == [("record", "b", True)]
        after = hv.vms["b"].record
        assert before is not None
        assert after is not None
        assert (after.image, after.arrival) == (before.image, before.arrival)

    with_engine(test)


def test_what_is_adopted_gets_a_record() -> None:
    """Else the next daemon would place it anew, maybe elsewhere; and each check would find it."""

    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        hv.vms["new"] = outsider("new", 1, {7}, foreign_level=1500)
        assert kinds(await check(engine)) == [("adopted", "new", True)]
        assert has_right_records(engine, hv)

    with_engine(test)


def test_a_vm_that_fits_nowhere_is_told_each_time_and_counted_once() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        hv.vms["giant"] = outsider("giant", 64, {7})
        for _ in range(2):
            reply = await check(engine)
            assert kinds(reply) == [("unplaced", "giant", False)]
            assert "not enough cpu" in reply.findings[0].text
            assert "vmstackctl remove" in reply.findings[0].text
        assert engine.drift["unplaced"] == 1
        await ask(engine, requests.Remove(name="giant"))

    with_engine(test)


def test_a_vm_that_cannot_be_looked_at_keeps_its_place_and_is_told() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        before = hv.vms["a"]
        change(hv, "a", unknown="it is dying")
        for _ in range(2):
            reply = await check(engine)
            assert kinds(reply) == [("unseen", "a", False)]
            assert "it is dying" in reply.findings[0].text
        assert engine.drift["unseen"] == 1
        assert engine.status().host.vms == 3
        hv.vms["a"] = before
        assert (await check(engine)).findings == ()

    with_engine(test)


def test_accounts_that_contradict_themselves_are_told() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        right = engine.state
        engine._host.state = msgspec.structs.replace(right, allocated_mib=right.allocated_mib + 5)
        for _ in range(2):
            reply = await check(engine)
            assert kinds(reply) == [("accounts", "", False)]
            assert "MiB are counted" in reply.findings[0].text
            assert "restart" in reply.findings[0].text
        assert engine.drift["accounts"] == 1
        engine._host.state = msgspec.structs.replace(engine.state, allocated_mib=right.allocated_mib)
        assert (await check(engine)).findings == ()

    with_engine(test)


def test_a_level_that_owes_cpus_is_told() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        for name in ("a", "b", "c"):
            await ask(engine, deploy(name, vcpus=2, level=3000))
        right = engine.state
        engine._host.state = msgspec.structs.replace(right, rules=Rules(critical_size=100))
        reply = await check(engine)
        assert kinds(reply) == [("owed", "", False)]
        assert "level 3.0 has 2 CPUs and needs 6" in reply.findings[0].text
        engine._host.state = msgspec.structs.replace(engine.state, rules=right.rules)

    with_engine(test)


def test_what_cannot_be_pinned_is_told_with_the_reason_and_tried_again() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))
        hv.plan = failing("pin", "a")
        for _ in range(2):
            reply = await check(engine)
            assert kinds(reply) == [("pinning", "a", False)]
            assert "pin was told to fail" in reply.findings[0].text
        assert engine.drift["pinning"] == 1
        assert engine.state.held == (7,)
        hv.plan = hv._nothing
        assert kinds(await check(engine)) == [("pinning", "a", True)]
        assert engine.drift["pinning"] == 1

    with_engine(test)


def test_threads_that_cannot_be_moved_are_told_and_not_tried_for_ever() -> None:
    """libvirt's pins are right: pinning anew, every few seconds, would change nothing."""

    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        stuck = {hv.vms["a"].pinned: (10,), frozenset({7}): (11, 12)}

        async def again(operation: str, _name: str) -> None:
            if operation == "pin":
                hv.strayed["a"] = stuck

        hv.strayed["a"] = stuck
        hv.aftermath = again
        reply = await check(engine)
        assert kinds(reply) == [("affinity", "a", False)]
        assert "threads 11, 12 on CPUs 7" in reply.findings[0].text
        assert "taskset" in reply.findings[0].text
        assert "10" not in reply.findings[0].text
        calls = list(hv.calls)
        assert kinds(await check(engine)) == [("affinity", "a", False)]
        assert (hv.calls, engine.drift["affinity"]) == (calls, 1)
        assert engine.status().degraded == ()
        hv.aftermath = hv._nothing
        hv.strayed["a"] = {hv.vms["a"].pinned: (10,), frozenset({6}): (11, 12)}
        assert kinds(await check(engine)) == [("affinity", "a", True)]
        assert engine.drift["affinity"] == 2

    with_engine(test)


def test_a_record_that_cannot_be_written_is_told_and_tried_again() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "b", record=None)
        hv.plan = failing("write_record", "b")
        for _ in range(2):
            assert kinds(await check(engine)) == [("record", "b", False)]
        assert engine.drift["record"] == 1
        hv.plan = hv._nothing
        assert kinds(await check(engine)) == [("record", "b", True)]

    with_engine(test)


def test_what_is_being_changed_is_left_alone() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def plan(operation: str, name: str) -> None:
            if (operation, name) in {("destroy", "a"), ("create", "c")}:
                begun.set()
                await go_on.wait()

        hv.plan = plan
        for request in (requests.Remove(name="a"), deploy("c", vcpus=2, level=1500)):
            begun.clear()
            go_on.clear()
            operation = asyncio.create_task(ask(engine, request))
            await begun.wait()
            if isinstance(request, requests.Remove):
                change(hv, "a", pinned=frozenset({7}), record=None)
            calls = list(hv.calls)
            reply = await check(engine)
            assert (reply.findings, reply.busy) == ((), 1)
            assert hv.calls == calls
            go_on.set()
            await operation
        await quiet(engine)
        assert (await check(engine)).findings == ()

    with_engine(test)


def test_a_level_of_which_pins_are_to_follow_is_not_judged() -> None:
    """It has grown, and not all of its VMs have been pinned to what it has now."""

    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        pinning, go_on = asyncio.Event(), asyncio.Event()

        async def plan(operation: str, name: str) -> None:
            if (operation, name) == ("pin", "a"):
                pinning.set()
                await go_on.wait()

        hv.plan = plan
        deploying = [asyncio.create_task(ask(engine, deploy(name, vcpus=2, level=1500))) for name in ("c", "d")]
        await pinning.wait()
        checking = asyncio.create_task(check(engine, dry_run=True))
        reply = await checking
        assert reply.findings == ()
        go_on.set()
        await asyncio.gather(*deploying)
        await quiet(engine)
        assert (await check(engine)).findings == ()
        assert not any(engine.drift.values())

    with_engine(test)


def test_a_hypervisor_that_is_down_is_not_asked() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))
        hv.cut()
        for dry_run in (False, True):
            with pytest.raises(Unavailable, match="unreachable"):
                await check(engine, dry_run=dry_run)
        assert engine.state.held == ()
        hv.heal()
        await quiet(engine)
        assert hv.vms["a"].pinned == hv.vms["b"].pinned

    with_engine(test)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_hypervisor_that_fails_while_it_is_asked(dry_run: bool) -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))
        before = engine.state
        hv.linked = False  # without an event that would tell
        with pytest.raises(Unavailable, match="cannot be asked"):
            await check(engine, dry_run=dry_run)
        hv.linked = True
        hv.plan = failing("observe")
        with pytest.raises(HypervisorFailed, match="observe was told to fail"):
            await check(engine, dry_run=dry_run)
        assert engine.state is before
        hv.plan = hv._nothing
        assert kinds(await check(engine)) == [("pinning", "a", True)]

    with_engine(test)


def test_an_answer_that_never_comes_after_the_repair_repairs_nothing_for_sure() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))

        async def plan(operation: str, _name: str) -> None:
            if operation == "observe" and ("pin", "a") in hv.calls:
                raise HypervisorError("it has had enough")

        hv.calls.clear()
        hv.plan = plan
        assert kinds(await check(engine)) == [("pinning", "a", False)]
        hv.plan = hv._nothing
        assert (await check(engine)).findings == ()

    with_engine(test)


def test_how_many_are_compared_and_of_how_many_the_threads_are_hidden() -> None:
    class Hiding(FaultySim):
        def _seen(self, vm: ObservedVm, *, searched: bool) -> ObservedVm:
            return super()._seen(vm, searched=searched and vm.name != "a")

    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        hv.vms["off"] = outsider("off", 1, (), running=False)
        await check(engine)
        assert await check(engine) == replies.CheckReply(findings=(), vms=4, hidden=1)

    with_engine(test, Hiding())


def test_findings_beyond_what_one_answer_takes() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        count = replies.MOST_FINDINGS + 3
        for number in range(count):
            hv.vms[f"vm{number}"] = outsider(f"vm{number}", 64, {7}, memory_mib=1)
        for number in range(2):
            hv.vms[f"s{number}"] = outsider(f"s{number}", 1, {number})
        reply = await check(engine)
        assert (len(reply.findings), reply.left_out) == (replies.MOST_FINDINGS, 5)
        assert {finding.kind for finding in reply.findings} == {"unplaced"}
        assert max(len(finding.text) for finding in reply.findings) <= replies.MOST_TEXT
        hv.vms.clear()
        await check(engine)

    with_engine(test)


def test_the_periodic_pass_finds_and_repairs_the_same() -> None:
    hv = FaultySim()

    async def run() -> None:
        engine = make(hv)
        engine.reconfigure(engine.state.rules, engine._policy, 0.02, 0.0, None)  # type: ignore[arg-type]
        await engine.start()
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))
        hv.strayed["b"] = {frozenset({7}): (1,)}
        change(hv, "other", record=None)
        wanted = {"pinning": 1, "affinity": 1, "record": 1}
        deadline = time.monotonic() + PATIENCE
        while {kind: count for kind, count in engine.drift.items() if count} != wanted or hv.strayed:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await quiet(engine)
        assert has_right_records(engine, hv)
        assert_pinned_as_decided(engine, hv)
        assert engine.checked is not None
        assert engine.checked.remaining == 0
        await engine.stop()

    asyncio.run(run())


def test_every_kind_is_one_that_is_counted() -> None:
    found = {expected[0][0] for _, expected in DISTURBANCES.values()}
    assert found | {"accounts", "owed", "unplaced", "unseen"} == set(DRIFT)


def test_checks_at_the_same_time_count_once() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))
        found: list[replies.CheckReply] = await asyncio.gather(*(_later(check(engine)) for _ in range(4)))
        assert sorted(len(reply.findings) for reply in found) == [0, 0, 0, 1]
        assert engine.drift["pinning"] == 1

    with_engine(test)


async def _later(work: Awaitable[replies.CheckReply]) -> replies.CheckReply:
    return await work


@pytest.mark.parametrize("effect", ["before", "after"])
def test_a_daemon_killed_at_any_call_of_a_repair_loses_nothing(effect: str) -> None:
    for stop_at in range(1, 40):
        if not _killed_at(stop_at, effect):
            break
    else:
        raise AssertionError("it never ran through")
    assert stop_at > 5


def _killed_at(stop_at: int, effect: str) -> bool:
    """Whether the daemon was killed; checks that the next one finds the same VMs where they were."""
    hv = FaultySim()

    async def first() -> tuple[bool, dict[int, tuple[int, ...]]]:
        engine = make(hv)
        await engine.start()
        await _two(engine)
        decided = {subset.level: subset.cpus for subset in engine.state.subsets}
        change(hv, "a", pinned=frozenset({7}))
        hv.strayed["b"] = {frozenset({7}): (1,)}
        change(hv, "a", record=None)
        change_record(hv, "b", vcpus=9)
        change_record(hv, "other", generation=1 << 40)
        calls, dead = 0, asyncio.Event()

        async def stop(_operation: str, _name: str) -> None:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                dead.set()
            if dead.is_set():
                await asyncio.Event().wait()

        if effect == "before":
            hv.plan = stop
        else:
            hv.aftermath = stop
        checking = asyncio.create_task(check(engine))
        ended = asyncio.create_task(dead.wait())
        await asyncio.wait((checking, ended), return_when=asyncio.FIRST_COMPLETED)
        for task in (checking, ended, *engine._operations, *engine._tasks):
            task.cancel()
        await asyncio.sleep(0)
        return dead.is_set(), decided

    async def second(decided: dict[int, tuple[int, ...]]) -> None:
        hv.plan = hv.aftermath = hv._nothing
        await hv.close()
        engine = make(hv)
        await engine.start()
        await quiet(engine)
        assert engine.status().host.vms == 3
        # A level whose record was lost before it could be written again may have other CPUs; VMs never share them.
        assert decided.keys() >= {subset.level for subset in engine.state.subsets}
        assert_pinned_as_decided(engine, hv)
        assert has_right_records(engine, hv)
        assert (await check(engine)).findings == ()
        await engine.stop()

    killed, decided = asyncio.run(first())
    asyncio.run(second(decided))
    return killed


def test_threads_that_strayed_again_after_they_were_right_are_moved_again() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        stuck = {frozenset({7}): (11,)}

        async def again(operation: str, _name: str) -> None:
            if operation == "pin":
                hv.strayed["a"] = stuck

        hv.strayed["a"], hv.aftermath = stuck, again
        assert kinds(await check(engine)) == [("affinity", "a", False)]
        hv.strayed.clear()
        assert (await check(engine)).findings == ()
        hv.strayed["a"], hv.aftermath = stuck, hv._nothing
        assert kinds(await check(engine)) == [("affinity", "a", True)]
        assert engine.drift["affinity"] == 2

    with_engine(test)


def test_a_vm_that_hides_after_its_repair_is_not_called_repaired() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await _two(engine)
        change(hv, "a", pinned=frozenset({7}))

        async def hide(operation: str, name: str) -> None:
            if operation == "pin":
                change(hv, name, unknown="it hides")

        hv.aftermath = hide
        assert kinds(await check(engine)) == [("pinning", "a", False)]
        hv.aftermath = hv._nothing
        change(hv, "a", unknown="")
        assert (await check(engine)).findings == ()

    with_engine(test)
