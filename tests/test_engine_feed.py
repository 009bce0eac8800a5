"""What subscribers of an engine are told, and a start without a hypervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from tests.faulty import OPERATOR, FaultySim, failing, outsider
from tests.running import PATIENCE, SMALL_HOST
from tests.transports.endpoint import until
from vmstackd import engine as engine_module
from vmstackd.api import errors, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.session import Degraded, Event, VmAdopted, VmDeployed, VmGone, VmRefused, VmRemoved
from vmstackd.engine import Engine
from vmstackd.hypervisor.base import HypervisorUnreachable
from vmstackd.hypervisor.options import HypervisorOptions
from vmstackd.topology_source import load_topology


def deploy(name: str, vcpus: int = 2, level: int = 2000, *, dry_run: bool = False) -> requests.Deploy:
    return requests.Deploy(
        name=name, vcpus=vcpus, memory_mib=1024, level=level, image="/images/a.qcow2", dry_run=dry_run
    )


def with_engine(test: Callable[[Engine, FaultySim], Awaitable[None]], *, start: bool = True) -> None:
    async def run() -> None:
        hv = FaultySim()
        state = empty_state(load_topology(SMALL_HOST), Rules(critical_size=0))
        engine = Engine(state, POLICIES["reference"], hv, period=3600)
        if start:
            await engine.start()
        try:
            await asyncio.wait_for(test(engine, hv), PATIENCE)
        finally:
            await engine.stop()

    asyncio.run(run())


class Heard:
    """Collects the events of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.events: list[Event] = []
        self._subscription = engine.feed.subscribe()

    async def first(self, kind: type[Event]) -> Event:
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            self.events += (await self._subscription.news()).events


def test_what_is_done_is_told_with_its_cpus() -> None:
    async def test(engine: Engine, _: FaultySim) -> None:
        heard = Heard(engine)
        await engine.handle(deploy("a"), OPERATOR, "1")
        await engine.handle(requests.Remove(name="a"), OPERATOR, "2")
        removed = await heard.first(VmRemoved)
        deployed = await heard.first(VmDeployed)
        assert isinstance(deployed, VmDeployed)
        assert (deployed.name, deployed.level, len(deployed.cpus)) == ("a", 2000, 2)
        assert isinstance(removed, VmRemoved)
        assert set(removed.released) == set(deployed.cpus)

    with_engine(test)


def test_refusals_are_told_but_not_what_anybody_can_cause() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        heard = Heard(engine)
        stranger = Caller(transport="inproc", identity="stranger", role=Role.READER)
        for request, caller, error in (
            (deploy("a"), stranger, errors.Denied),
            (deploy("/"), OPERATOR, errors.InvalidRequest),
            (deploy("dry", 17, dry_run=True), OPERATOR, errors.NoCapacity),
            (deploy("big", 17), OPERATOR, errors.NoCapacity),
            (requests.Remove(name="ghost"), OPERATOR, errors.NotFound),
        ):
            with pytest.raises(error):
                await engine.handle(request, caller, "1")
        await engine.handle(deploy("tried", dry_run=True), OPERATOR, "2")
        hv.plan = failing("create")
        with pytest.raises(errors.HypervisorFailed):
            await engine.handle(deploy("failed"), OPERATOR, "3")
        while len(heard.events) < 4:
            heard.events += (await heard._subscription.news()).events
        told = [(e.name, e.operation, e.code) for e in heard.events if isinstance(e, VmRefused)]
        assert told == [
            ("dry", "deploy", "NoCapacity"),
            ("big", "deploy", "NoCapacity"),
            ("ghost", "remove", "NotFound"),
            ("failed", "deploy", "HypervisorError"),
        ]

    with_engine(test)


def test_what_happens_outside_is_told() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        heard = Heard(engine)
        hv.put(outsider("x", 2, range(16)))
        adopted = await heard.first(VmAdopted)
        assert isinstance(adopted, VmAdopted)
        assert (adopted.name, adopted.level, len(adopted.cpus)) == ("x", 1000, 2)
        hv.drop("x")
        assert isinstance(await heard.first(VmGone), VmGone)

    with_engine(test)


def test_a_vm_whose_start_nobody_could_confirm_is_told_once_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a cluster would never know its name, and would give it to another VM."""
    monkeypatch.setattr("vmstackd.engine.GRACE_S", 0.0)

    async def test(engine: Engine, hv: FaultySim) -> None:
        heard = Heard(engine)

        async def aftermath(operation: str, _name: str) -> None:
            if operation == "create":
                hv.cut()
                raise HypervisorUnreachable("the link is cut")

        hv.aftermath = aftermath
        with pytest.raises(errors.Unavailable):
            await engine.handle(deploy("a"), OPERATOR, "1")
        hv.heal()
        adopted = await heard.first(VmAdopted)
        assert isinstance(adopted, VmAdopted)
        assert (adopted.name, adopted.level, len(adopted.cpus)) == ("a", 2000, 2)

    with_engine(test)


def test_a_lost_link_degrades_and_its_return_ends_that() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        heard = Heard(engine)
        hv.cut()
        lost = await heard.first(Degraded)
        assert isinstance(lost, Degraded)
        assert "the link is cut" in lost.problems[0]
        heard.events.clear()
        hv.heal()
        assert (await heard.first(Degraded)).problems == ()  # type: ignore[union-attr]  # it is one of them

    with_engine(test)


def test_a_reader_may_change_what_somebody_grants() -> None:
    asked: list[requests.Request] = []

    async def grant(request: requests.Request) -> bool:
        asked.append(request)
        return isinstance(request, requests.Deploy)

    async def test(engine: Engine, _: FaultySim) -> None:
        caller = Caller(transport="inproc", identity="guest", role=Role.READER, grant=grant)
        await engine.handle(deploy("a"), caller, "1")
        with pytest.raises(errors.Denied):
            await engine.handle(requests.Remove(name="a"), caller, "2")
        with pytest.raises(errors.InvalidRequest):
            await engine.handle(deploy(""), caller, "3")
        await engine.handle(requests.Status(), caller, "4")
        assert asked == [deploy("a"), requests.Remove(name="a")], "only what makes sense is asked about"

    with_engine(test)


def test_the_end_does_not_wait_for_somebody_to_find_a_password() -> None:
    asked = asyncio.Event()

    async def never(_request: requests.Request) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    async def test(engine: Engine, hv: FaultySim) -> None:
        caller = Caller(transport="inproc", identity="guest", role=Role.READER, grant=never)
        waiting = asyncio.create_task(engine.handle(deploy("a"), caller, "1"))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await engine.stop()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert hv.calls == []

    with_engine(test)


def test_nobody_may_not_even_read() -> None:
    async def test(engine: Engine, _: FaultySim) -> None:
        with pytest.raises(errors.Denied):
            await engine.handle(requests.Status(), Caller(transport="inproc", identity="nobody", role=Role.NOBODY), "1")

    with_engine(test)


class Absent(FaultySim):
    """Cannot be reached until ``linked``."""

    async def open(self, on_event: object) -> None:
        if not self.linked:
            raise HypervisorUnreachable("nobody there")
        await super().open(on_event)  # type: ignore[arg-type]  # passed on as it came


def test_without_a_hypervisor_readers_are_served_until_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CONNECT_RETRY_S", 0.01)

    async def run() -> None:
        hv = Absent({"x": outsider("x", 2, range(16))})
        hv.linked = False
        engine = Engine(
            empty_state(load_topology(SMALL_HOST), Rules(critical_size=0)), POLICIES["reference"], hv, period=3600
        )
        with pytest.raises(HypervisorUnreachable):
            await engine.start()
        await engine.start(require_hypervisor=False)
        assert engine.running
        assert engine.status().hypervisor == "down"
        with pytest.raises(errors.Unavailable, match="nobody there"):
            await engine.handle(deploy("a"), OPERATOR, "1")
        hv.linked = True
        await until(lambda: engine.status().hypervisor == "up")
        assert [vm.name for vm in engine.status().unplaced] == []
        assert engine.status().host.vms == 1
        await engine.handle(deploy("a"), OPERATOR, "2")
        await engine.stop()
        with pytest.raises(errors.Unavailable, match="stopping"):
            await engine.handle(deploy("b"), OPERATOR, "3")

    asyncio.run(run())


def test_requests_before_the_start_wait_for_it() -> None:
    async def test(engine: Engine, _: FaultySim) -> None:
        waiting = asyncio.create_task(engine.handle(deploy("a"), OPERATOR, "1"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await engine.start()
        await waiting
        assert engine.status().host.vms == 1

    with_engine(test, start=False)


def test_other_rules_hold_from_the_next_decision_on() -> None:
    async def test(engine: Engine, _: FaultySim) -> None:
        await engine.handle(deploy("a", 4), OPERATOR, "1")
        await engine.handle(deploy("b", 4), OPERATOR, "2")
        [level] = engine.status().host.levels
        assert (level.cpus, level.ratio) == (4, 2000)
        engine.reconfigure(Rules(critical_size=6), POLICIES["reference"], 3600, 0, HypervisorOptions())
        [level] = engine.status().host.levels
        assert (level.cpus, level.needed, level.ratio) == (4, 8, 1000)
        assert "level 2.0 has 4 CPUs and needs 8" in engine.status().degraded
        await engine.handle(deploy("c", 1), OPERATOR, "3")
        [level] = engine.status().host.levels
        assert (level.cpus, level.degraded) == (9, False)

    with_engine(test)


def test_each_round_is_news_to_subscribers_to_usage_alone() -> None:
    async def test(engine: Engine, _: FaultySim) -> None:
        interested, other = engine.feed.subscribe(usage=True), engine.feed.subscribe()
        for _round in range(2):
            await engine.sampler.measure()
            assert (await interested.news()).changed
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.news(), 0.05)

    with_engine(test)


def test_that_measuring_was_switched_off_is_news_too() -> None:
    async def test(engine: Engine, _: FaultySim) -> None:
        await engine.sampler.measure()
        assert engine.status().usage is not None
        interested = engine.feed.subscribe(usage=True)
        engine.reconfigure(Rules(critical_size=0), POLICIES["reference"], 3600, 3600, HypervisorOptions())
        while engine.sampler.rounds < 2:
            await interested.news()
        engine.reconfigure(Rules(critical_size=0), POLICIES["reference"], 3600, 0, HypervisorOptions())
        while engine.status().usage is not None:
            await interested.news()

    with_engine(test)
