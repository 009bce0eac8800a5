from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from core.allocator import empty_state
from core.invariants import broken
from core.model import HostState, Rules
from core.policy import POLICIES
from tests.faulty import OPERATOR, FaultySim, failing, outsider, slow
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import (
    AlreadyExists,
    Denied,
    HypervisorFailed,
    NoCapacity,
    NotFound,
    Unavailable,
    VmstackError,
)
from vmstackd.daemon.operations import Outcome
from vmstackd.engine import Engine
from vmstackd.host import GATHER_S
from vmstackd.hypervisor.base import HypervisorUnreachable, VmMissing
from vmstackd.topology_source import load_topology

ALWAYS = Rules(critical_size=0)
SMALL = load_topology("synthetic:sockets=1,numa=1,l3=2,cores=4,smt=2,memory=65536")
NEVER = 86400.0


def deploy(name: str, vcpus: int = 1, level: int = 1000, memory_mib: int = 1024) -> requests.Deploy:
    return requests.Deploy(name=name, vcpus=vcpus, memory_mib=memory_mib, level=level, image="/images/hello.qcow2")


def make(hypervisor: FaultySim, rules: Rules = ALWAYS, outcomes: list[Outcome] | None = None) -> Engine:
    observer = outcomes.append if outcomes is not None else lambda _: None
    return Engine(empty_state(SMALL, rules), POLICIES["reference"], hypervisor, period=NEVER, observer=observer)


def with_engine(
    test: Callable[[Engine, FaultySim], Awaitable[None]], hypervisor: FaultySim | None = None, rules: Rules = ALWAYS
) -> None:
    """Run a test on a started engine; afterwards all must be settled."""
    hv = hypervisor or FaultySim()

    async def run() -> None:
        engine = make(hv, rules)
        await engine.start()
        try:
            await test(engine, hv)
            await quiet(engine)
            assert broken(engine.state, may_owe=frozenset(s.level for s in engine.state.subsets)) == []
            assert_pinned_as_decided(engine, hv)
            assert hv.violations == []
        finally:
            await engine.stop()

    asyncio.run(run())


async def ask(engine: Engine, request: requests.Request, caller: Caller = OPERATOR) -> replies.Reply:
    return await engine.handle(request, caller, "test-1")


async def quiet(engine: Engine) -> None:
    """Let everything that is under way end, the looks that follow operations included."""
    await asyncio.sleep(2 * GATHER_S)
    for _ in range(300):
        await asyncio.sleep(0)


def assert_pinned_as_decided(engine: Engine, hv: FaultySim) -> None:
    for subset in engine.state.subsets:
        for name in subset.vms:
            assert hv.vms[name].pinned == frozenset(subset.cpus), name


def summary(state: HostState) -> dict[int, tuple[tuple[int, ...], tuple[str, ...]]]:
    return {subset.level: (subset.cpus, tuple(subset.vms)) for subset in state.subsets}


def test_deploy_starts_the_vm_on_the_cpus_of_its_subset() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        reply = await ask(engine, deploy("a", vcpus=2, level=2000))
        assert reply == replies.Deployed(name="a", level=2000, cpus=(0, 8), generation=engine.state.generation)
        assert hv.vms["a"].pinned == {0, 8}
        record = hv.vms["a"].record
        assert record is not None
        assert (record.level, record.cpus, record.image) == (2000, (0, 8), "/images/hello.qcow2")

    with_engine(test)


def test_others_are_widened_before_the_new_vm_starts() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        hv.calls.clear()
        await ask(engine, deploy("b", vcpus=2))
        assert [call for call in hv.calls if call[0] != "write_record"] == [("pin", "a"), ("create", "b")]
        assert hv.vms["a"].pinned == hv.vms["b"].pinned == {0, 8, 1, 9}

    with_engine(test)


def test_a_deploy_without_growth_touches_no_other_vm() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2, level=3000))
        hv.calls.clear()
        await ask(engine, deploy("b", vcpus=2, level=3000))
        await quiet(engine)
        assert hv.calls == [("create", "b")]

    with_engine(test)


def test_remove_narrows_the_others_and_frees_the_cpus() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        await ask(engine, deploy("b", vcpus=2))
        hv.calls.clear()
        before = engine.state.generation
        reply = await ask(engine, requests.Remove(name="b"))
        assert isinstance(reply, replies.Removed)
        assert (reply.name, reply.released) == ("b", (1, 9))
        assert before < reply.generation <= engine.state.generation
        assert hv.calls == [("write_record", "a"), ("destroy", "b"), ("write_record", "a"), ("pin", "a")]
        assert engine.state.free.count == 14
        assert engine.state.held == ()

    with_engine(test)


def test_removing_the_last_vm_forgets_the_level() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", level=2500))
        await ask(engine, requests.Remove(name="a"))
        assert engine.state.subsets == ()
        assert engine.state.free.count == 16
        with pytest.raises(NotFound, match="does not exist"):
            await ask(engine, requests.Remove(name="a"))

    with_engine(test)


def test_dry_run_decides_and_changes_nothing() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        before, hv.calls[:] = engine.state, []
        planned = await ask(engine, msgspec.structs.replace(deploy("b", vcpus=2), dry_run=True))
        assert planned == replies.Deployed(name="b", level=1000, cpus=(0, 8, 1, 9), dry_run=True)
        assert await ask(engine, requests.Remove(name="a", dry_run=True)) == replies.Removed(
            name="a", released=(0, 8), dry_run=True
        )
        assert engine.state is before
        assert hv.calls == []

    with_engine(test)


def test_two_deploys_of_one_name_at_once_one_wins() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        results = await asyncio.gather(
            ask(engine, deploy("a", level=2000)), ask(engine, deploy("a", level=3000)), return_exceptions=True
        )
        assert [type(result) for result in results] == [replies.Deployed, AlreadyExists]
        assert summary(engine.state) == {2000: ((0,), ("a",))}

    with_engine(test)


def test_many_deploys_at_once_all_end_pinned_to_the_final_subset() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        hv.plan = slow(random.Random(1))
        await asyncio.gather(*(ask(engine, deploy(f"vm{i}", level=1000 * (1 + i % 3))) for i in range(20)))
        assert len(hv.vms) == 20

    with_engine(test)


def test_a_refusal_of_the_hypervisor_leaves_everything_as_before() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        # Seven VMs of which six made the subset oversubscribed: it has more CPUs than it needs, and keeps them.
        for i in range(6):
            await ask(engine, deploy(f"vm{i}", level=3000))
        before = summary(engine.state)
        hv.plan = failing("create")
        for level, vcpus in ((3000, 8), (3000, 1), (2000, 4)):
            with pytest.raises(HypervisorFailed, match="told to fail"):
                await ask(engine, deploy("new", vcpus=vcpus, level=level))
            assert summary(engine.state) == before
            assert engine.state.held == ()
            assert "new" not in hv.vms

    with_engine(test, rules=Rules(critical_size=6))


def test_a_vm_that_cannot_be_destroyed_keeps_its_place_and_can_be_removed_later() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a"))
        await ask(engine, deploy("b"))
        before = summary(engine.state)
        hv.plan = failing("destroy")
        with pytest.raises(HypervisorFailed, match="told to fail"):
            await ask(engine, requests.Remove(name="b"))
        await quiet(engine)
        assert summary(engine.state) == before
        hv.plan = hv._nothing
        await ask(engine, requests.Remove(name="b"))
        assert list(hv.vms) == ["a"]

    with_engine(test)


def test_removing_a_vm_that_just_vanished_succeeds() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a"))
        hv.plan = failing("destroy", error=VmMissing)
        del hv.vms["a"]
        reply = await ask(engine, requests.Remove(name="a"))
        assert isinstance(reply, replies.Removed)
        assert (reply.name, reply.released) == ("a", (0,))

    with_engine(test)


def test_cpus_stay_held_until_the_others_read_back_without_them() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        await ask(engine, deploy("b", vcpus=2))
        hv.plan = failing("pin", "a")
        await ask(engine, requests.Remove(name="b"))
        assert set(engine.state.held) == {1, 9}
        assert engine.state.free.count == 12
        degraded = engine.status().degraded
        assert any("'a' is not pinned as decided" in text for text in degraded), degraded
        with pytest.raises(NoCapacity):
            await ask(engine, deploy("c", vcpus=13, level=2000))
        hv.plan = hv._nothing
        engine._watch._look_at_everything()
        await quiet(engine)
        assert engine.state.held == ()
        assert engine.status().degraded == ()
        await ask(engine, deploy("c", vcpus=13, level=2000))

    with_engine(test)


def test_a_vm_that_dies_is_noticed_and_its_cpus_are_given_back() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        await ask(engine, deploy("b", vcpus=2))
        hv.drop("b")
        await quiet(engine)
        assert summary(engine.state) == {1000: ((0, 8), ("a",))}

    with_engine(test)


def test_neighbours_that_vanish_together_are_all_noticed() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        for i in range(6):
            await ask(engine, deploy(f"vm{i}"))
        for i in range(1, 5):
            hv.drop(f"vm{i}")
        await quiet(engine)
        assert summary(engine.state)[1000][1] == ("vm0", "vm5")

    with_engine(test)


def test_a_shut_off_vm_gives_up_its_cpus_but_keeps_its_name() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", level=2000))
        hv.put(msgspec.structs.replace(hv.vms["a"], running=False, pinned=frozenset()))
        await quiet(engine)
        assert engine.state.subsets == ()
        assert engine.status().stopped == ("a",)
        with pytest.raises(AlreadyExists, match="shut off"):
            await ask(engine, deploy("a"))
        # Started again from outside it comes back at its level.
        hv.put(msgspec.structs.replace(hv.vms["a"], running=True, pinned=frozenset({5})))
        await quiet(engine)
        assert summary(engine.state) == {2000: ((0,), ("a",))}
        assert hv.vms["a"].pinned == {0}
        assert engine.status().stopped == ()

    with_engine(test)


def test_a_shut_off_vm_can_be_removed() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a"))
        hv.put(msgspec.structs.replace(hv.vms["a"], running=False, pinned=frozenset()))
        await quiet(engine)
        assert await ask(engine, requests.Remove(name="a")) == replies.Removed(name="a", released=())
        assert hv.vms == {}
        await ask(engine, deploy("a"))

    with_engine(test)


def test_a_vm_from_outside_is_adopted_at_one_to_one_and_pinned() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        hv.put(outsider("foreign", 2, range(16)))
        await quiet(engine)
        assert summary(engine.state) == {1000: ((0, 8), ("foreign",))}
        assert hv.vms["foreign"].pinned == {0, 8}
        assert hv.vms["foreign"].record is not None

    with_engine(test)


def test_prototype_metadata_gives_the_level_of_an_adopted_vm() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        hv.put(outsider("foreign", 2, range(16), foreign_level=2500))
        await quiet(engine)
        assert summary(engine.state) == {2500: ((0, 8), ("foreign",))}

    with_engine(test)


def test_a_vm_from_outside_that_does_not_fit_is_reported_and_its_cpus_are_not_given_away() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=13))
        hv.put(outsider("wide", 4, {13, 14, 15}))
        await quiet(engine)
        (unplaced,) = engine.status().unplaced
        assert unplaced.name == "wide"
        assert "4 more CPUs needed" in unplaced.reason
        free = engine.state.free.ids()
        assert not {13, 14, 15} & set(free)
        with pytest.raises(AlreadyExists):
            await ask(engine, deploy("wide"))
        # Once there is room it gets its place.
        await ask(engine, requests.Remove(name="a"))
        engine._watch._look_at_everything()
        await quiet(engine)
        assert engine.status().unplaced == ()
        assert engine.state.vm("wide") is not None
        assert engine.state.held == ()

    with_engine(test)


def test_memory_of_a_vm_without_a_place_is_not_sold() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", memory_mib=65536 - 2048))
        hv.put(outsider("big", 1, {3}, memory_mib=4096))
        await quiet(engine)
        assert engine.state.free_mib == 0
        assert 3 in engine.state.held
        with pytest.raises(NoCapacity, match="memory"):
            await ask(engine, deploy("b", memory_mib=1))
        hv.drop("big")
        await quiet(engine)
        assert engine.state.free_mib == 2048
        assert engine.state.held == ()

    with_engine(test)


def test_a_vm_whose_size_changed_is_accounted_anew() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2, level=2000))
        hv.put(msgspec.structs.replace(hv.vms["a"], vcpus=6))
        await quiet(engine)
        resized = engine.state.vm("a")
        assert resized is not None
        assert resized.vcpus == 6
        assert len(hv.vms["a"].pinned) == 6

    with_engine(test)


def test_a_pin_that_somebody_changed_is_repaired() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2))
        hv.put(msgspec.structs.replace(hv.vms["a"], pinned=frozenset(range(16))))
        await quiet(engine)
        assert hv.vms["a"].pinned == {0, 8}

    with_engine(test)


def test_without_a_link_changes_are_refused_and_reads_answered_until_it_heals() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a"))
        hv.cut()
        with pytest.raises(Unavailable, match="unreachable"):
            await ask(engine, deploy("b"))
        with pytest.raises(Unavailable):
            await ask(engine, requests.Remove(name="a"))
        assert engine.status().hypervisor == "down"
        assert isinstance(await ask(engine, requests.List()), replies.ListReply)
        assert isinstance(
            await ask(engine, requests.Progress(vcpus=1, memory_mib=1024, level=1000)), replies.ProgressReply
        )
        del hv.vms["a"]
        hv.heal()
        await quiet(engine)
        assert engine.status().hypervisor == "up"
        assert engine.state.subsets == ()
        await ask(engine, deploy("b"))

    with_engine(test)


def test_a_vm_that_cannot_be_looked_at_keeps_its_cpus_and_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstackd.watch.RETRY_S", 0.0)

    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a"))
        await quiet(engine)
        healthy = hv.vms["a"]
        looks = []

        async def plan(operation: str, name: str) -> None:
            if operation == "observe":
                looks.append(operation)
                hv.vms["a"] = msgspec.structs.replace(healthy, unknown="it is dying" if len(looks) < 3 else "")

        hv.plan = plan
        hv.put(healthy)
        for _ in range(8):
            await asyncio.sleep(0)
        assert looks
        assert engine.state.vm("a") is not None
        assert any("cannot be looked at: it is dying" in text for text in engine.status().degraded)
        await quiet(engine)
        assert len(looks) == 3
        assert engine.status().degraded == ()

    with_engine(test)


@pytest.mark.parametrize("started", [True, False])
def test_a_link_that_breaks_during_a_start_leaves_the_vm_unclear_until_it_is_back(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmstackd.engine.GRACE_S", 0.02)

    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a"))

        async def plan(operation: str, name: str) -> None:
            if (operation, name) == ("create", "b"):
                record = hv.vms["a"].record
                if started and record is not None:
                    newer = msgspec.structs.replace(record, cpus=(0, 8), generation=99)
                    hv.vms["b"] = outsider("b", 1, {0, 8}, record=newer)
                hv.cut()
                raise HypervisorUnreachable("the link is cut")

        hv.plan = plan
        with pytest.raises(Unavailable, match="whether 'b' has started is unknown"):
            await ask(engine, deploy("b"))
        assert engine.state.vm("b") is not None  # unknown freezes its CPUs
        hv.heal()
        await quiet(engine)
        assert engine.state.vm("b") is not None  # the order to start it may still be under way
        await asyncio.sleep(0.05)
        await quiet(engine)
        assert (engine.state.vm("b") is not None) is started

    with_engine(test)


def test_a_vm_without_a_place_is_removed_even_if_nobody_can_look_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstackd.watch.RETRY_S", 0.0)

    async def test(engine: Engine, hv: FaultySim) -> None:
        hv.put(outsider("off", 1, (), running=False))
        await quiet(engine)
        assert engine.status().stopped == ("off",)
        hv.plan = failing("observe")
        assert await ask(engine, requests.Remove(name="off")) == replies.Removed(name="off", released=())
        hv.plan = hv._nothing
        await quiet(engine)
        assert engine.status().stopped == ()

    with_engine(test)


def test_a_reader_may_not_change_anything() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        reader = Caller(transport="inproc", identity="somebody", role=Role.READER)
        for request in (deploy("a"), requests.Remove(name="a")):
            with pytest.raises(Denied, match="somebody may read but not"):
                await ask(engine, request, reader)
        for harmless in (requests.Status(), requests.List(), requests.Topology()):
            await ask(engine, harmless, reader)

    with_engine(test)


def test_describe_list_and_topology_tell_the_same_story() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("a", vcpus=2, level=2000))
        await ask(engine, deploy("b", level=1000))
        described = await ask(engine, requests.Describe(name="a"))
        assert described == replies.VmReply(
            name="a",
            vcpus=2,
            memory_mib=1024,
            level=2000,
            cpus=(0, 8),
            pinned=(0, 8),
            state="running",
            image="/images/hello.qcow2",
        )
        listed = await ask(engine, requests.List())
        assert isinstance(listed, replies.ListReply)
        assert [vm.name for vm in listed.vms] == ["a", "b"]
        topology = await ask(engine, requests.Topology())
        assert isinstance(topology, replies.TopologyReply)
        use = {cpu.id: cpu.use for cpu in topology.cpus}
        assert [use[0], use[8], use[4], use[1]] == ["2.0", "2.0", "1.0", "free"]
        with pytest.raises(NotFound):
            await ask(engine, requests.Describe(name="ghost"))

    with_engine(test)


def test_every_request_is_observed_with_its_outcome() -> None:
    outcomes: list[Outcome] = []

    async def run() -> None:
        engine = make(FaultySim(), outcomes=outcomes)
        await engine.start()
        await ask(engine, deploy("a"))
        for request in (deploy("a"), deploy("w", vcpus=99), requests.Remove(name="ghost"), deploy("", vcpus=1)):
            with pytest.raises(VmstackError):
                await ask(engine, request)
        await engine.stop()

    asyncio.run(run())
    assert [(o.operation, o.outcome, o.reason) for o in outcomes] == [
        ("deploy", "ok", ""),
        ("deploy", "AlreadyExists", ""),
        ("deploy", "NoCapacity", "cpu"),
        ("remove", "NotFound", ""),
        ("deploy", "InvalidRequest", ""),
    ]


def test_an_unreachable_hypervisor_fails_the_start_and_is_closed() -> None:
    class Dead(FaultySim):
        closed = False

        async def _before(self, operation: str, name: str) -> None:
            raise HypervisorUnreachable("nobody answers")

        async def close(self) -> None:
            self.closed = True
            await super().close()

    async def run() -> None:
        hv = Dead()
        with pytest.raises(HypervisorUnreachable, match="nobody answers"):
            await make(hv).start()
        assert hv.closed

    asyncio.run(run())


def test_a_caller_that_goes_away_does_not_stop_its_deploy() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        hv.plan = slow(random.Random(3))
        task = asyncio.create_task(ask(engine, deploy("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await quiet(engine)
        assert task.cancelled()
        assert "a" in hv.vms
        assert engine.state.vm("a") is not None

    with_engine(test)


def test_stopping_waits_for_operations_in_progress() -> None:
    async def run() -> None:
        hv = FaultySim()
        hv.plan = slow(random.Random(5))
        engine = make(hv)
        await engine.start()
        task = asyncio.create_task(ask(engine, deploy("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await engine.stop()
        assert "a" in hv.vms
        assert isinstance(await task, replies.Deployed)

    asyncio.run(run())


def test_a_deploy_whose_caller_goes_away_is_told_with_its_real_outcome() -> None:
    outcomes: list[Outcome] = []

    async def run() -> None:
        hv = FaultySim()
        engine = make(hv, outcomes=outcomes)
        await engine.start()
        hv.plan = failing("create")
        asking = asyncio.create_task(ask(engine, deploy("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        await quiet(engine)
        assert asking.cancelled()
        await engine.stop()

    asyncio.run(run())
    assert [outcome.outcome for outcome in outcomes] == ["HypervisorError"]
