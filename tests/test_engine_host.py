"""What a host tells a cluster, and what its operator tells it: who it is, its cordon, generations."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from tests.faulty import OPERATOR, FaultySim, outsider
from tests.running import PATIENCE, SMALL_HOST
from tests.test_engine import quiet
from tests.transports.endpoint import until
from vmstackd.api import replies, requests
from vmstackd.api.caller import Caller, Role
from vmstackd.api.errors import Cordoned, Denied, Internal, InvalidRequest, NotFound, Unavailable
from vmstackd.engine import Engine
from vmstackd.local_state import CORDON_FILE, UUID_FILE, LocalState
from vmstackd.topology_source import load_topology

Test = Callable[[Engine, FaultySim], Awaitable[None]]
REASON = "new fans"
READER = Caller(transport="inproc", identity="test", role=Role.READER)


class Held(FaultySim):
    """Every VM starts when ``go_on`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.plan = self._hold

    async def _hold(self, operation: str, _name: str) -> None:
        if operation == "create":
            await self.go_on.wait()


def deploy(name: str, *, host: str = "", dry_run: bool = False) -> requests.Deploy:
    return requests.Deploy(
        name=name, vcpus=2, memory_mib=1024, level=2000, image="/images/a.qcow2", host=host, dry_run=dry_run
    )


def with_engine(test: Test, folder: Path | None = None, hypervisor: FaultySim | None = None, name: str = "") -> None:
    """Run a test on a started engine that keeps its state in folder."""
    hv = FaultySim() if hypervisor is None else hypervisor

    async def run() -> None:
        state = empty_state(load_topology(SMALL_HOST), Rules(critical_size=0), 0)
        engine = Engine(state, POLICIES["reference"], hv, local=LocalState(folder), name=name, period=86400.0)
        await engine.start()
        try:
            await test(engine, hv)
            await quiet(engine)
        finally:
            await engine.stop()

    asyncio.run(run())


async def ask(engine: Engine, request: requests.Request, caller: Caller = OPERATOR) -> replies.Reply:
    return await asyncio.wait_for(engine.handle(request, caller, "test-1"), PATIENCE)


def cordoned(engine: Engine) -> tuple[bool, str]:
    status = engine.status()
    return status.cordoned, status.cordon_reason


# Cordon


def test_a_cordoned_host_takes_no_new_vm_until_it_is_uncordoned() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        assert cordoned(engine) == (False, "")
        reply = await ask(engine, requests.Cordon(reason=REASON))
        assert reply == replies.CordonReply(cordoned=True, reason=REASON)
        assert cordoned(engine) == (True, REASON)
        before = engine.state
        for dry_run in (False, True):
            with pytest.raises(Cordoned) as error:
                await ask(engine, deploy("a", dry_run=dry_run))
            assert REASON in error.value.message
            assert "vmstackctl uncordon" in error.value.message
        assert engine.state is before
        assert hv.calls == []
        assert await ask(engine, requests.Uncordon()) == replies.CordonReply(cordoned=False, reason="")
        assert cordoned(engine) == (False, "")
        await ask(engine, deploy("a"))
        assert list(hv.vms) == ["a"]

    with_engine(test)


def test_a_cordon_needs_no_reason_and_the_last_one_holds() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        await ask(engine, requests.Cordon())
        assert cordoned(engine) == (True, "")
        with pytest.raises(Cordoned, match="takes no new VMs; "):
            await ask(engine, deploy("a"))
        await ask(engine, requests.Cordon(reason="other"))
        assert cordoned(engine) == (True, "other")
        for _ in range(2):
            await ask(engine, requests.Uncordon())
            assert cordoned(engine) == (False, "")

    with_engine(test)


def test_a_cordon_that_comes_while_the_image_is_looked_at_still_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        looking, go_on = asyncio.Event(), asyncio.Event()

        async def check_image(path: str) -> str:
            looking.set()
            await go_on.wait()
            return path

        monkeypatch.setattr(hv, "check_image", check_image)
        deploying = asyncio.create_task(ask(engine, deploy("a")))
        await asyncio.wait_for(looking.wait(), PATIENCE)
        await ask(engine, requests.Cordon(reason=REASON))
        go_on.set()
        with pytest.raises(Cordoned):
            await deploying
        assert hv.calls == []
        assert engine.state.subsets == ()

    with_engine(test)


def test_a_cordon_leaves_what_runs_and_what_is_starting_alone() -> None:
    hv = Held()

    async def test(engine: Engine, _hv: FaultySim) -> None:
        hv.go_on.set()
        await ask(engine, deploy("a"))
        await ask(engine, deploy("b"))
        hv.go_on.clear()
        starting = asyncio.create_task(ask(engine, deploy("c")))
        await until(lambda: engine.status().starting == ("c",))
        await ask(engine, requests.Cordon(reason=REASON))
        hv.go_on.set()
        await starting
        assert set(hv.vms) == {"a", "b", "c"}
        assert engine.status().degraded == ()
        await ask(engine, requests.Remove(name="a"))
        assert set(hv.vms) == {"b", "c"}
        progress = await ask(engine, requests.Progress(vcpus=1, memory_mib=1, level=2000))
        assert isinstance(progress, replies.ProgressReply)

    with_engine(test, hypervisor=hv)


def test_a_vm_from_outside_is_taken_in_by_a_cordoned_host() -> None:
    """It runs already: where it is pinned has to be known and kept from others."""

    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, requests.Cordon())
        hv.put(outsider("theirs", 1, range(16)))
        await until(lambda: engine.names() == ("theirs",))

    with_engine(test)


def test_a_cordon_outlives_the_daemon(tmp_path: Path) -> None:
    told: list[str] = []

    async def first(engine: Engine, _hv: FaultySim) -> None:
        told.append(engine.identity.uuid)
        await ask(engine, deploy("a"))
        await ask(engine, requests.Cordon(reason=REASON))

    async def second(engine: Engine, _hv: FaultySim) -> None:
        assert engine.identity.uuid == told[0]
        assert cordoned(engine) == (True, REASON)
        assert engine.names() == ("a",)
        with pytest.raises(Cordoned):
            await ask(engine, deploy("b"))
        await ask(engine, requests.Remove(name="a"))
        await ask(engine, requests.Uncordon())

    async def third(engine: Engine, _hv: FaultySim) -> None:
        assert cordoned(engine) == (False, "")
        await ask(engine, deploy("b"))

    hypervisor = FaultySim()
    for test in (first, second, third):
        with_engine(test, tmp_path, hypervisor)


@pytest.mark.parametrize("before", [None, "old"])
def test_a_cordon_that_cannot_be_kept_is_refused_and_changes_nothing(
    tmp_path: Path, before: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    if before is not None:
        LocalState(folder).set_cordon(before)

    async def test(engine: Engine, _hv: FaultySim) -> None:
        blocked = folder / CORDON_FILE
        blocked.unlink(missing_ok=True)
        blocked.mkdir()
        changes: list[requests.Change] = [requests.Cordon(reason=REASON)]
        if before is not None:
            changes.append(requests.Uncordon())
        for change in changes:
            with pytest.raises(Internal) as error:
                await ask(engine, change)
            assert "nothing has changed" in error.value.message
            assert str(blocked) in error.value.message
            assert cordoned(engine) == (before is not None, before or "")
        assert "cordon-failed" in {record.getMessage() for record in caplog.records}
        blocked.rmdir()
        await ask(engine, requests.Cordon(reason=REASON))
        assert LocalState(folder).cordon == REASON

    with_engine(test, folder)


def test_a_slow_disk_holds_up_nobody_and_the_last_order_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()

    async def test(engine: Engine, _hv: FaultySim) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: os.read(reading, 1))
            cordoning = asyncio.create_task(ask(engine, requests.Cordon(reason=REASON)))
            await asyncio.sleep(0)
            uncordoning = asyncio.create_task(ask(engine, requests.Uncordon()))
            try:
                await ask(engine, deploy("a"))
                assert cordoned(engine) == (False, "")
                assert not cordoning.done()
            finally:
                os.write(writing, b"...")
            assert await cordoning == replies.CordonReply(cordoned=True, reason=REASON)
            assert await uncordoning == replies.CordonReply(cordoned=False, reason="")
        assert cordoned(engine) == (False, "")

    try:
        with_engine(test, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [UUID_FILE]
    finally:
        os.close(reading)
        os.close(writing)


def test_a_host_can_be_cordoned_while_its_hypervisor_is_away() -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        hv.cut()
        await until(lambda: engine.status().hypervisor == "down")
        await ask(engine, requests.Cordon())
        assert cordoned(engine) == (True, "")
        with pytest.raises(Unavailable):
            await ask(engine, deploy("a"))
        hv.heal()

    with_engine(test)


@pytest.mark.parametrize("change", [requests.Cordon(), requests.Uncordon()])
def test_readers_may_not_cordon(change: requests.Change) -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        with pytest.raises(Denied):
            await ask(engine, change, READER)

    with_engine(test)


def test_subscribers_see_a_cordon_and_its_end() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        subscription = engine.feed.subscribe()
        for change, expected in (
            (requests.Cordon(reason=REASON), (True, REASON)),
            (requests.Uncordon(), (False, "")),
        ):
            await ask(engine, change)
            news = await asyncio.wait_for(subscription.news(), PATIENCE)
            assert news.changed
            assert news.events == ()
            assert cordoned(engine) == expected

    with_engine(test)


# Who it is


def test_a_request_for_this_host_is_answered_by_whichever_of_its_names() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        assert (engine.identity.program, engine.identity.host) == ("vmstackd", "h1")
        await ask(engine, deploy("a", host="h1"))
        await ask(engine, deploy("b", host=engine.identity.uuid))
        for host in ("", "h1", engine.identity.uuid):
            assert await ask(engine, requests.Status(host=host)) == engine.status()
            assert isinstance(await ask(engine, requests.Describe(name="a", host=host)), replies.VmReply)

    with_engine(test, name="h1")


@pytest.mark.parametrize(
    "request_",
    [
        deploy("a", host="h2"),
        requests.Remove(name="here", host="h2"),
        requests.Cordon(host="h2"),
        requests.Uncordon(host="h2"),
        requests.Progress(vcpus=1, memory_mib=1, level=1000, host="h2"),
        requests.Status(host="h2"),
        requests.List(host="h2"),
        requests.Describe(name="here", host="h2"),
        requests.Topology(host="h2"),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_request_for_another_host_is_refused_and_changes_nothing(request_: requests.Request) -> None:
    async def test(engine: Engine, hv: FaultySim) -> None:
        await ask(engine, deploy("here"))
        before = engine.status()
        with pytest.raises(NotFound, match="this is host 'h1', not 'h2'"):
            await ask(engine, request_)
        assert engine.status() == before
        assert list(hv.vms) == ["here"]

    with_engine(test, name="h1")


def test_without_a_name_it_is_that_of_the_machine() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        assert engine.identity.host == platform.node()

    with_engine(test)


@pytest.mark.parametrize(
    "request_",
    [requests.Hosts(), requests.Demand(), requests.HostAdd(address="h2:8097"), requests.HostRemove(host="h2")],
    ids=lambda request: type(request).__name__,
)
def test_what_only_a_cluster_can_do_is_refused_by_name(request_: requests.Request) -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        with pytest.raises(InvalidRequest, match="vmstackd has no operation"):
            await ask(engine, request_)

    with_engine(test)


# What a cluster learns


def test_the_status_names_what_is_decided_but_not_yet_running() -> None:
    hv = Held()

    async def test(engine: Engine, _hv: FaultySim) -> None:
        hv.go_on.set()
        await ask(engine, deploy("a"))
        assert engine.status().starting == ()
        hv.go_on.clear()
        starting = asyncio.create_task(ask(engine, deploy("b")))
        await until(lambda: engine.status().host.vms == 2)
        assert engine.status().starting == ("b",)
        assert engine.names() == ("a", "b")
        hv.go_on.set()
        await starting
        assert engine.status().starting == ()

    with_engine(test, hypervisor=hv)


def test_names_are_those_of_all_levels() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        assert engine.names() == ()
        for name, level in (("a", 2000), ("b", 1000), ("c", 2000)):
            await ask(engine, requests.Deploy(name=name, vcpus=1, memory_mib=1, level=level, image="/i"))
        assert engine.names() == ("a", "c", "b")
        assert engine.names() == tuple(vm.name for vm in engine.vms().vms)
        await ask(engine, requests.Remove(name="a"))
        assert engine.names() == ("c", "b")

    with_engine(test)


def test_a_status_of_the_generation_that_an_answer_tells_knows_of_the_change() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        told: list[int] = [engine.status().host.generation]
        for index, name in enumerate(("a", "b"), 1):
            deployed = await ask(engine, deploy(name))
            assert isinstance(deployed, replies.Deployed)
            status = engine.status().host
            assert told[-1] < deployed.generation <= status.generation
            assert status.vms == index
            told.append(deployed.generation)
        removed = await ask(engine, requests.Remove(name="a"))
        assert isinstance(removed, replies.Removed)
        assert told[-1] < removed.generation <= engine.status().host.generation
        assert engine.status().host.vms == 1

    with_engine(test)


def test_what_is_only_decided_has_no_generation() -> None:
    async def test(engine: Engine, _hv: FaultySim) -> None:
        await ask(engine, deploy("a"))
        planned = await ask(engine, deploy("b", dry_run=True))
        removal = await ask(engine, requests.Remove(name="a", dry_run=True))
        assert isinstance(planned, replies.Deployed)
        assert isinstance(removal, replies.Removed)
        assert (planned.generation, removal.generation) == (0, 0)

    with_engine(test)
