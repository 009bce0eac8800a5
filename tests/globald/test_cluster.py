"""A cluster on real hosts: where VMs go, who is asked, and what is known afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Coroutine
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.demand import Lesson, Shape
from globald.cluster import MOST_SHAPES
from tests.cluster_oracle import ClusterOracle, plain
from tests.faulty import OPERATOR, failing, outsider
from tests.globald.hosts import LARGE, SMALL, TINY, RealHost, Together, cluster_of, started, together, vm
from tests.running import PATIENCE
from tests.transports.endpoint import until
from vmstackd import wire
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import (
    AlreadyExists,
    Cordoned,
    InvalidRequest,
    NoCapacity,
    NotFound,
    Unavailable,
    VmstackError,
)
from vmstackd.daemon import http, stream
from vmstackd.daemon.feed import Subscription
from vmstackd.hypervisor.base import HypervisorUnreachable

NOWHERE = "127.0.0.1:9"
"""Nobody listens there."""


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 2 * PATIENCE))


def hold_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host tells its figures again, after the first time."""
    monkeypatch.setattr(stream, "STATUS_PERIOD", 10 * PATIENCE)


async def events_until(subscription: Subscription, last: type[session.Event]) -> list[session.Event]:
    """What a subscriber is told, up to the first event of this kind."""
    found: list[session.Event] = []
    async with asyncio.timeout(PATIENCE):
        while not any(isinstance(event, last) for event in found):
            found += (await subscription.news()).events
    return found


# Where VMs go


@pytest.mark.parametrize("policy", ["progress", "first-fit"])
def test_every_vm_goes_where_a_plain_restatement_of_the_rules_says_until_all_is_full(policy: str) -> None:
    rng = random.Random(policy)
    shapes = [
        (rng.choice((1, 1, 2, 3, 4)), rng.choice((512, 1024, 4096, 9000)), rng.choice((1000, 1500, 3000)))
        for _ in range(70)
    ]

    async def test() -> None:
        hosts = (RealHost("a", TINY), RealHost("b", SMALL, 2), RealHost("c", LARGE, 6), RealHost("d", SMALL, 2))
        async with together(*hosts, policy=policy) as both:
            placed = refused = 0
            for number, (vcpus, memory, level) in enumerate(shapes):
                oracle = ClusterOracle()
                oracle.hosts = {place: plain(host.engine.state) for place, host in enumerate(hosts)}
                expected = oracle.choose(policy, Fraction(level, 1000), vcpus, memory)
                request = vm(f"vm{number}", vcpus, memory, level)
                if expected is None:
                    error = await both.refusal(request)
                    assert isinstance(error, NoCapacity)
                    counts = oracle.refusals(Fraction(level, 1000), vcpus, memory)
                    assert {reason: error.details.get(reason, 0) for reason in counts} == counts
                    refused += 1
                else:
                    reply = await both.deploy(request)
                    assert reply.host == hosts[expected[0]].name
                    assert reply.score == pytest.approx(expected[1])
                    assert request.name in hosts[expected[0]].vms
                    placed += 1
                await both.settled()
            assert placed > 15
            assert refused > 5

    run(test())


def test_of_equals_the_first_is_chosen() -> None:
    async def test() -> None:
        async with together(*(RealHost(name) for name in ("z", "y", "x"))) as both:
            first = await both.deploy(vm("one"))
            assert first.host == "z"

    run(test())


def test_three_at_once_with_one_name_are_one() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            answers = await asyncio.gather(*(both.deploy(vm("same")) for _ in range(3)), return_exceptions=True)
            assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyExists", "AlreadyExists", "Deployed"]
            assert sum("same" in host.vms for host in both.hosts.values()) == 1
            error = await both.refusal(vm("same"))
            assert isinstance(error, AlreadyExists)
            assert "is on host 'a' already" in error.message
            await both.settled()

    run(test())


def test_a_hundred_at_once_are_all_placed_and_known() -> None:
    async def test() -> None:
        hosts = [RealHost(f"host{number}", LARGE, 0) for number in range(5)]
        async with together(*hosts, attempts=1) as both:
            answers = await asyncio.gather(*(both.deploy(vm(f"vm{number}", 1, 64)) for number in range(100)))
            # One attempt each: so what was asked already has been counted.
            where = {answer.name: answer.host for answer in answers}
            assert {name: host.name for host in hosts for name in host.vms} == where
            await both.settled()
            removed = await asyncio.gather(
                *(both.ask(requests.Remove(name=name), replies.Removed) for name in sorted(where))
            )
            assert {answer.name: answer.host for answer in removed} == where
            assert not any(host.vms for host in hosts)
            await both.settled()

    run(test())


def test_what_is_on_its_way_is_counted_so_that_no_host_is_asked_in_vain() -> None:
    async def test() -> None:
        a, b = RealHost("a", TINY), RealHost("b", TINY)
        release = asyncio.Event()

        async def wait(operation: str, _name: str) -> None:
            if operation == "create":
                await release.wait()

        a.simulated.plan = b.simulated.plan = wait
        async with together(a, b, policy="first-fit", attempts=1) as both:
            tasks = [asyncio.create_task(both.deploy(vm(f"vm{number}", 2, 64))) for number in range(4)]
            await until(lambda: len(a.engine.status().starting) == 2 and len(b.engine.status().starting) == 2)
            error = await both.refusal(vm("more", 1, 64))
            assert isinstance(error, NoCapacity)
            assert error.details["cpu"] == 2
            await until(lambda: all(member.expected.free_cpus == 0 for member in both.cluster.members))  # type: ignore[union-attr]
            release.set()
            assert Counter(reply.host for reply in await asyncio.gather(*tasks)) == {"a": 2, "b": 2}
            await both.settled()

    run(test())


# Hosts that refuse


def test_a_host_whose_truth_is_newer_refuses_and_the_next_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_pushes(monkeypatch)

    async def test() -> None:
        async with together(RealHost("a", TINY), RealHost("b", TINY), policy="first-fit") as both:
            await both.hosts["a"].ask(vm("direct", 4, 64))
            reply = await both.deploy(vm("one", 2, 64))
            assert reply.host == "b"
            assert both.hosts["b"].vms == {"one"}
            assert not both.cluster.members.claims

    run(test())


def test_no_more_hosts_are_asked_than_attempts_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_pushes(monkeypatch)

    async def test() -> None:
        hosts = [RealHost(name, TINY) for name in "abc"]
        async with together(*hosts, policy="first-fit", attempts=2) as both:
            for host in hosts[:2]:
                await host.ask(vm(f"direct-{host.name}", 4, 64))
            error = await both.refusal(vm("one", 2, 64))
            assert isinstance(error, NoCapacity)
            assert "3 hosts: 2 refused, 1 not asked" in error.message
            assert "the last one asked said: " in error.message
            assert error.details["refused"] == 2
            assert hosts[2].vms == set()
            both.cluster.reconfigure(both.cluster._placing.policy, attempts=3)
            assert (await both.deploy(vm("one", 2, 64))).host == "c"

    run(test())


def test_a_refusal_counts_the_hosts_by_reason() -> None:
    async def test() -> None:
        hosts = [RealHost(f"tiny{number}", TINY) for number in range(9)]
        hosts += [RealHost(f"small{number}", "synthetic:sockets=1,l3=1,cores=8,smt=1,memory=1024") for number in (1, 2)]
        async with together(*hosts, others=[NOWHERE], patience=1.0) as both:
            error = await both.refusal(vm("one", 8, 2048))
            assert isinstance(error, NoCapacity)
            assert "12 hosts: 9 no cpu, 2 no memory, 1 unknown" in error.message
            assert {key: error.details[key] for key in ("cpu", "memory", "unknown", "hosts", "resource")} == {
                "cpu": 9,
                "memory": 2,
                "unknown": 1,
                "hosts": 12,
                "resource": "cpu",
            }

    run(test())


def test_without_hosts_it_is_said_how_to_add_one() -> None:
    async def test() -> None:
        async with together() as both:
            error = await both.refusal(vm("one"))
            assert isinstance(error, NoCapacity)
            assert "vmstackctl host add ADDRESS" in error.message
            progress = requests.Progress(vcpus=1, memory_mib=64, level=1000)
            assert isinstance(await both.refusal(progress), NoCapacity)

    run(test())


def test_a_hypervisor_that_fails_on_one_host_is_not_the_end() -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        a.simulated.plan = failing("create")
        async with together(a, b, policy="first-fit") as both:
            assert (await both.deploy(vm("one"))).host == "b"
            await both.settled()
            assert [member.name for member in both.cluster.members.owners("one")] == ["b"]

    run(test())


def test_where_nobody_knows_whether_it_runs_no_other_host_is_asked() -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        a.simulated.plan = failing("create", error=HypervisorUnreachable)
        async with together(a, b, policy="first-fit") as both:
            error = await both.refusal(vm("one"))
            assert isinstance(error, Unavailable)
            assert (error.details["outcome"], error.details["host"]) == ("unknown", "a")
            assert not b.vms
            again = await both.refusal(vm("one"))
            assert isinstance(again, AlreadyExists)
            assert "is not known yet" in again.message
            assert a.engine.state.vm("one") is not None  # the host holds its name, so the cluster must too

    run(test())


def test_a_vm_that_the_host_itself_is_not_sure_of_stays_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("globald.link.GRACE_S", 0.05)
    monkeypatch.setattr("vmstackd.engine.GRACE_S", 10 * PATIENCE)

    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        a.simulated.plan = failing("create", error=HypervisorUnreachable)
        async with together(a, b, policy="first-fit") as both:
            await both.refusal(vm("one"))
            await until(lambda: not both.cluster.members.claims)
            # The host keeps its place, and so its name, for as long as it may run.
            assert [member.name for member in both.cluster.members.owners("one")] == ["a"]
            assert isinstance(await both.refusal(vm("one")), AlreadyExists)

    run(test())


# One host, dry runs, cordons


def test_a_host_that_is_named_gets_the_vm_or_nobody() -> None:
    async def test() -> None:
        async with together(RealHost("a", LARGE), RealHost("b", TINY)) as both:
            b = both.hosts["b"]
            for number, name in enumerate(("b", b.engine.identity.uuid, b.address)):
                assert (await both.deploy(vm(f"vm{number}", 1, 64, host=name))).host == "b"
            error = await both.refusal(vm("wide", 2, 64, host="b"))
            assert isinstance(error, NoCapacity)
            assert "not enough cpu on host 'b': 1 CPUs free" in error.message
            error = await both.refusal(vm("heavy", 1, 8192, host="b"))
            assert "not enough memory on host 'b'" in error.message
            assert isinstance(await both.refusal(vm("lost", 1, 64, host="c")), NotFound)
            assert b.vms == {"vm0", "vm1", "vm2"}
            assert not both.hosts["a"].vms

    run(test())


def test_a_dry_run_changes_nothing_and_claims_nothing() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            reply = await both.deploy(vm("one", dry_run=True))
            assert (reply.dry_run, reply.host) == (True, "a")
            assert not any(host.vms for host in both.hosts.values())
            assert not both.cluster.members.claims
            await both.deploy(vm("one"))
            gone = await both.ask(requests.Remove(name="one", dry_run=True), replies.Removed)
            assert (gone.dry_run, gone.host) == (True, "a")
            await both.settled()
            assert both.hosts["a"].vms == {"one"}

    run(test())


def test_a_cordoned_host_is_passed_over_wherever_it_was_cordoned(tmp_path: Path) -> None:
    async def test() -> None:
        async with together(RealHost("a", state_dir=tmp_path / "a"), RealHost("b", state_dir=tmp_path / "b")) as both:
            reply = await both.ask(requests.Cordon(host="a", reason="new fans"), replies.CordonReply)
            assert reply == replies.CordonReply(cordoned=True, reason="new fans", host="a")
            # At once, not only once the host has told.
            assert (await both.deploy(vm("one"))).host == "b"
            error = await both.refusal(vm("two", host="a"))
            assert isinstance(error, Cordoned)
            assert "new fans" in error.message
            assert (await both.state("a", "cordoned")).reason == "new fans"

            await both.hosts["b"].ask(requests.Cordon(reason="moving"))
            await both.state("b", "cordoned")
            error = await both.refusal(vm("two"))
            assert "2 hosts: 2 cordoned" in error.message
            assert error.details["cordoned"] == 2

            await both.hosts["a"].ask(requests.Uncordon())
            await both.state("a", "up")
            assert (await both.deploy(vm("two"))).host == "a"
            reply = await both.ask(requests.Uncordon(host="b"), replies.CordonReply)
            assert (reply.cordoned, reply.host) == (False, "b")
            await both.state("b", "up")
            # What it has can be removed all the same while it is cordoned.
            await both.ask(requests.Cordon(host="a"), replies.CordonReply)
            assert (await both.ask(requests.Remove(name="two"), replies.Removed)).host == "a"

    run(test())


def test_a_cordon_survives_the_restart_of_the_host(tmp_path: Path) -> None:
    async def test() -> None:
        a = RealHost("a", state_dir=tmp_path)
        async with together(a, RealHost("b")) as both:
            await both.ask(requests.Cordon(host="a", reason="slow disk"), replies.CordonReply)
            await a.crash()
            await both.state("a", "unknown")
            await a.start()
            assert (await both.state("a", "cordoned")).reason == "slow disk"
            assert (await both.deploy(vm("one"))).host == "b"

    run(test())


@pytest.mark.parametrize(
    "request_", [requests.Cordon(), requests.Uncordon(), requests.Topology()], ids=["cordon", "uncordon", "topology"]
)
def test_what_is_of_one_host_needs_its_name(request_: requests.Request) -> None:
    async def test() -> None:
        async with together(RealHost("a")) as both:
            error = await both.refusal(request_)
            assert isinstance(error, InvalidRequest)
            assert error.details["field"] == "host"

    run(test())


# Remove and read


def test_a_vm_is_removed_from_where_it_is() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            await both.hosts["b"].ask(vm("theirs"))
            await both.settled()
            reply = await both.ask(requests.Remove(name="theirs"), replies.Removed)
            assert (reply.host, len(reply.released)) == ("b", 2)
            assert not both.hosts["b"].vms
            assert isinstance(await both.refusal(requests.Remove(name="theirs")), NotFound)
            await both.deploy(vm("ours", host="b"))
            assert "does not exist on host 'a'" in (await both.refusal(requests.Remove(name="ours", host="a"))).message
            assert (await both.ask(requests.Remove(name="ours", host="b"), replies.Removed)).host == "b"
            await both.settled()

    run(test())


def test_a_name_is_free_as_soon_as_its_vm_is_removed() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            for _ in range(20):
                await both.deploy(vm("again"))
                await both.ask(requests.Remove(name="again"), replies.Removed)
            await both.deploy(vm("again"))
            await both.settled()
            assert sum("again" in host.vms for host in both.hosts.values()) == 1

    run(test())


def test_the_room_of_a_vm_that_was_removed_can_be_had_at_once() -> None:
    async def test() -> None:
        async with together(RealHost("a", TINY)) as both:
            for number in range(10):
                await both.deploy(vm(f"vm{number}", 4, 64))
                await both.settled()
                await both.ask(requests.Remove(name=f"vm{number}"), replies.Removed)
            await both.deploy(vm("last", 4, 64))

    run(test())


def test_what_can_be_read_of_a_cluster_and_of_one_host() -> None:
    async def test() -> None:
        async with together(RealHost("a", SMALL), RealHost("b", TINY)) as both:
            await both.deploy(vm("one", 3, 1024, 1500, host="a"))
            await both.deploy(vm("two", 2, 512, 1500, host="b"))
            await both.settled()
            whole = await both.ask(requests.Status(), replies.StatusReply)
            assert (whole.host.cpus, whole.host.free_cpus, whole.host.vms) == (12, 7, 2)
            assert whole.host.memory_mib == 65536 + 8192
            assert [(level.level, level.cpus, level.vcpus, level.vms) for level in whole.host.levels] == [
                (1500, 5, 5, 2)
            ]
            assert (await both.ask(requests.Status(host="b"), replies.StatusReply)) == both.hosts["b"].engine.status()

            # What it really does is known of a host that is asked for, and of it alone.
            await both.hosts["b"].engine.sampler.measure()
            measured = await both.ask(requests.Status(host="b"), replies.StatusReply)
            assert measured.usage is not None
            assert measured == both.hosts["b"].engine.status()
            assert (await both.ask(requests.Status(), replies.StatusReply)).usage is None

            listed = await both.ask(requests.List(), replies.ListReply)
            assert [(found.name, found.host) for found in listed.vms] == [("one", "a"), ("two", "b")]
            listed = await both.ask(requests.List(host="b"), replies.ListReply)
            assert [(found.name, found.host) for found in listed.vms] == [("two", "b")]
            found = await both.ask(requests.Describe(name="two"), replies.VmReply)
            assert (found.host, found.vcpus, found.state) == ("b", 2, "running")
            assert isinstance(await both.refusal(requests.Describe(name="three")), NotFound)

            topology = await both.ask(requests.Topology(host="b"), replies.TopologyReply)
            assert [cpu.use for cpu in topology.cpus].count("1.5") == 2
            assert "there is no host 'c'" in (await both.refusal(requests.Topology(host="c"))).message

    run(test())


def test_progress_tells_of_every_host_and_the_best() -> None:
    async def test() -> None:
        async with together(RealHost("a", TINY), RealHost("b", LARGE), others=[NOWHERE], patience=1.0) as both:
            await both.hosts["b"].ask(vm("skew", 16, 1024))
            await both.settled()
            shape = requests.Progress(vcpus=5, memory_mib=8192, level=1000)
            reply = await both.ask(shape, replies.ProgressReply)
            assert reply.host == "b"
            assert [(host.host, host.reason) for host in reply.hosts] == [
                ("a", "cpu"),
                ("b", ""),
                (NOWHERE, "unknown"),
            ]
            assert reply.hosts[0].progress is None
            direct = await both.hosts["b"].ask(shape)
            assert isinstance(direct, replies.ProgressReply)
            assert reply.progress == reply.hosts[1].progress == pytest.approx(direct.progress)
            of_one = await both.ask(
                requests.Progress(vcpus=1, memory_mib=64, level=1000, host="a"), replies.ProgressReply
            )
            assert [host.host for host in of_one.hosts] == ["a"]
            error = await both.refusal(requests.Progress(vcpus=64, memory_mib=64, level=1000))
            assert "3 hosts: 2 no cpu, 1 unknown" in error.message

    run(test())


def test_every_vm_that_is_asked_for_teaches_once_and_nothing_else_does() -> None:
    async def test() -> None:
        async with together(RealHost("a", TINY), RealHost("b", TINY), policy="worth") as both:
            first = await both.ask(requests.Demand(), replies.DemandReply)
            assert first == replies.DemandReply("worth", Lesson((), 0, 0, None))
            await both.deploy(vm("one", 4, 512))
            await both.deploy(vm("there", 1, 512, host="b"))
            await both.deploy(vm("dry", 3, 512, dry_run=True))
            await both.ask(requests.Progress(vcpus=3, memory_mib=512, level=1000), replies.ProgressReply)
            assert isinstance(await both.refusal(vm("wide", 5, 512)), NoCapacity)
            assert isinstance(await both.refusal(vm("one", 2, 512)), AlreadyExists)
            lesson = (await both.ask(requests.Demand(), replies.DemandReply)).lesson
            assert lesson.shapes == (Shape(1000, 4, 512, 1), Shape(1000, 1, 512, 1), Shape(1000, 5, 512, 1))
            assert lesson.seen == 3
            assert lesson.market is not None
            assert lesson.market.shapes == (Shape(1000, 4, 512, 1),)  # nobody has looked again yet

    run(test())


def test_a_vm_that_several_hosts_refuse_teaches_once() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b"), RealHost("c"), policy="worth") as both:
            for name in ("a", "b"):
                both.hosts[name].simulated.plan = failing("create")
            assert (await both.deploy(vm("one"))).host == "c"
            assert both.cluster.members.inventory.demand.lesson().seen == 1

    run(test())


def test_of_very_many_shapes_the_most_frequent_are_told_in_the_order_in_which_they_came() -> None:
    async def test() -> None:
        async with cluster_of([]) as cluster:
            inventory = cluster.members.inventory
            sizes = list(range(1, MOST_SHAPES + 1001))
            random.Random(1).shuffle(sizes)
            for memory_mib in sizes:
                for _ in range(2 if memory_mib % 7 == 0 else 1):
                    inventory.arrived(1000, 1, memory_mib)
            reply = await cluster.handle(requests.Demand(), OPERATOR, "test")
            assert isinstance(reply, replies.DemandReply)
            frequent = [mib for mib in sizes if mib % 7 == 0]
            others = [mib for mib in sizes if mib % 7][: MOST_SHAPES - len(frequent)]
            kept = {*frequent, *others}
            assert [shape.memory_mib for shape in reply.lesson.shapes] == [mib for mib in sizes if mib in kept]
            assert [shape.memory_mib for shape in reply.lesson.shapes if shape.count == 2] == frequent
            widest = msgspec.structs.replace(reply.lesson.shapes[0], level=64000, vcpus=4096, memory_mib=1 << 30)
            assert len(msgspec.msgpack.encode([widest] * MOST_SHAPES)) < wire.MAX_REQUEST

    run(test())


def test_hosts_are_shown_with_state_age_and_figures() -> None:
    async def test() -> None:
        a = RealHost("a")
        async with together(a, others=[NOWHERE], patience=1.0) as both:
            await both.deploy(vm("one"))
            await both.settled()
            shown, lost = (await both.ask(requests.Hosts(), replies.HostsReply)).hosts
            assert (shown.name, shown.address, shown.uuid) == ("a", a.address, a.engine.identity.uuid)
            assert (shown.state, shown.source, shown.reason) == ("up", "static", "")
            assert shown.age is not None
            assert shown.status == a.engine.status().host
            assert (lost.name, lost.state, lost.age, lost.status) == (NOWHERE, "unknown", None, None)
            assert "nobody listens there" in lost.reason

    run(test())


# Hosts that are not there


def test_a_silent_host_is_unknown_its_vms_stay_known_and_its_cpus_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("globald.link.QUIET_S", 0.1)
    monkeypatch.setattr("globald.link.SILENT_S", 0.2)
    monkeypatch.setattr("globald.link.CONNECT_S", 0.5)

    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        async with together(a, b) as both:
            await both.deploy(vm("theirs", host="a"))
            await both.settled()
            a.transport._loop.remove_reader(a.transport._listener)
            for connection in a.transport._connections:
                connection._pause_reading()  # it is there, and says nothing
            shown = await both.state("a", "unknown")
            assert "silent for" in shown.reason or "does not answer" in shown.reason
            assert shown.status is not None
            assert isinstance(await both.refusal(vm("theirs")), AlreadyExists)
            assert (await both.deploy(vm("ours"))).host == "b"
            assert (await both.ask(requests.Status(), replies.StatusReply)).host.cpus == 8
            found = await both.ask(requests.Describe(name="theirs"), replies.VmReply)
            assert (found.state, found.host) == ("unknown", "a")
            listed = await both.ask(requests.List(), replies.ListReply)
            assert {(item.name, item.state) for item in listed.vms} == {("theirs", "unknown"), ("ours", "running")}
            assert isinstance(await both.refusal(requests.Remove(name="theirs")), Unavailable)
            assert any("host a is unknown" in problem for problem in both.cluster.status().degraded)
            told = await both.ask(requests.Status(host="a"), replies.StatusReply)
            assert told.hypervisor == "unknown"
            await a.crash()
            await a.start()
            await both.state("a", "up")
            await both.settled()
            assert (await both.ask(requests.Remove(name="theirs"), replies.Removed)).host == "a"

    run(test())


def test_a_restart_of_a_host_is_no_lie_and_loses_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        a = RealHost("a", state_dir=tmp_path)
        async with together(a, RealHost("b")) as both:
            for number in range(4):
                await both.deploy(vm(f"vm{number}", 1, 64, host="a"))
            await both.ask(requests.Remove(name="vm0"), replies.Removed)
            for _ in range(5):
                await both.deploy(vm("passing", host="a"))
                await both.ask(requests.Remove(name="passing"), replies.Removed)
            await both.settled()
            before = a.engine.state.generation
            await a.crash()
            await both.state("a", "unknown")
            del a.simulated.vms["vm1"]  # while nobody looked
            a.simulated.put(outsider("vm9", 1, (0, 1, 2, 3)))
            await a.start()
            assert a.engine.state.generation < before
            await both.state("a", "up")
            await both.settled()
            assert a.vms == {"vm2", "vm3", "vm9"}
            assert [member.name for member in both.cluster.members.owners("vm9")] == ["a"]
            assert not both.cluster.members.owners("vm1")

    run(test())


def test_a_host_that_dies_in_the_middle_of_a_deployment_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("globald.link.GRACE_S", 0.05)

    async def test(*, started_first: bool) -> None:
        a, b = RealHost("a", state_dir=tmp_path / f"{started_first}"), RealHost("b")
        creating, never = asyncio.Event(), asyncio.Event()

        async def hang(operation: str, _name: str) -> None:
            if operation == "create":
                creating.set()
                await never.wait()

        if started_first:
            a.simulated.aftermath = hang
        else:
            a.simulated.plan = hang
        async with together(a, b, policy="first-fit") as both:
            task = asyncio.create_task(both.refusal(vm("one")))
            await creating.wait()
            await a.crash()
            error = await task
            assert isinstance(error, Unavailable)
            assert error.details["outcome"] == "unknown"
            assert not b.vms
            assert isinstance(await both.refusal(vm("one")), AlreadyExists)
            a.simulated.plan = a.simulated.aftermath = a.simulated._nothing
            await a.start()
            await both.state("a", "up")
            await both.settled()
            if started_first:
                assert isinstance(await both.refusal(vm("one")), AlreadyExists)
                assert (await both.ask(requests.Remove(name="one"), replies.Removed)).host == "a"
            else:
                assert (await both.deploy(vm("one"))).host == "a"

    run(test(started_first=True))
    run(test(started_first=False))


def test_a_removal_that_is_cut_off_is_unknown_until_the_host_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        a = RealHost("a", state_dir=tmp_path)
        destroying, never = asyncio.Event(), asyncio.Event()

        async def hang(operation: str, _name: str) -> None:
            if operation == "destroy":
                destroying.set()
                await never.wait()

        a.simulated.aftermath = hang
        async with together(a) as both:
            await both.deploy(vm("one"))
            task = asyncio.create_task(both.refusal(requests.Remove(name="one")))
            await destroying.wait()
            await a.crash()
            error = await task
            assert isinstance(error, Unavailable)
            assert error.details["outcome"] == "unknown"
            assert isinstance(await both.refusal(vm("one")), (AlreadyExists, Unavailable))
            a.simulated.aftermath = a.simulated._nothing
            await a.start()
            await both.state("a", "up")
            await both.settled()
            assert isinstance(await both.refusal(requests.Remove(name="one")), NotFound)

    run(test())


def test_a_host_without_hypervisor_gets_nothing_new() -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        async with together(a, b, policy="first-fit") as both:
            a.simulated.cut()
            assert "the link is cut" in (await both.state("a", "hypervisor-down")).reason
            assert (await both.deploy(vm("one"))).host == "b"
            assert isinstance(await both.refusal(vm("two", host="a")), Unavailable)
            a.simulated.heal()
            await both.state("a", "up")
            assert (await both.deploy(vm("two"))).host == "a"

    run(test())


# Learning


def test_nothing_is_deployed_before_the_hosts_have_told_what_they_have() -> None:
    async def test() -> None:
        listener = http.listen("127.0.0.1", 0)  # takes connections, and never answers
        silent = f"127.0.0.1:{listener.getsockname()[1]}"
        async with together(RealHost("a"), others=[silent], learn=False) as both:
            await both.state("a", "up")
            error = await both.refusal(vm("one"))
            assert isinstance(error, Unavailable)
            assert "1 of 2 hosts have not told yet what they have" in error.message
            for order in (requests.Remove(name="one"), requests.Describe(name="one")):  # it may be on the silent one
                error = await both.refusal(order)
                assert isinstance(error, Unavailable)
                assert "1 of 2 hosts have not told yet what they have" in error.message
            error = await both.refusal(requests.Remove(name="one", host=silent))
            assert f"host '{silent}' has not told yet what it has" in error.message
            assert isinstance(await both.refusal(requests.Remove(name="one", host="a")), NotFound)
            assert error.retryable
            assert not both.cluster.learned
            await both.ask(requests.Status(), replies.StatusReply)  # readers need not wait
        listener.close()

    run(test())


def test_patience_with_hosts_that_do_not_answer_ends() -> None:
    async def test() -> None:
        async with together(RealHost("a"), others=[NOWHERE], patience=0.3) as both:
            assert (await both.deploy(vm("one"))).host == "a"

    run(test())


def test_a_host_that_is_taken_out_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "lost.toml").write_text(f'address = "{NOWHERE}"\n')

    async def test() -> None:
        async with together(RealHost("a"), folder=tmp_path, learn=False, patience=10 * PATIENCE) as both:
            assert not both.cluster.learned
            await both.ask(requests.HostRemove(host=NOWHERE), replies.HostListed)
            await until(lambda: both.cluster.learned)
            await both.deploy(vm("one"))

    run(test())


def test_a_new_globald_knows_everything_that_the_old_one_did() -> None:
    async def test() -> None:
        async with started(RealHost("a", SMALL), RealHost("b", LARGE, 3)) as hosts:
            addresses = [host.address for host in hosts.values()]
            async with cluster_of(addresses) as first:
                old = Together(first, hosts)
                for number in range(9):
                    await old.deploy(vm(f"vm{number}", 1, 512, 1500))
                await old.settled()
                known = first.members.vm_names()
            async with cluster_of(addresses) as second:
                new = Together(second, hosts)
                await new.settled()
                assert second.members.vm_names() == known
                assert isinstance(await new.refusal(vm("vm3")), AlreadyExists)
                where = (await new.ask(requests.Remove(name="vm3"), replies.Removed)).host
                assert "vm3" not in hosts[where].vms

    run(test())


def test_globald_is_replaced_in_the_middle_of_a_hundred_deployments(tmp_path: Path) -> None:
    rng = random.Random(5)

    async def test() -> None:
        hosts = [RealHost(f"host{number}", LARGE, 0, tmp_path / f"{number}") for number in range(4)]

        async def take_turns(_operation: str, _name: str) -> None:
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)

        for host in hosts:
            host.simulated.plan = host.simulated.aftermath = take_turns
        async with started(*hosts) as found:
            addresses = [host.address for host in hosts]
            async with cluster_of(addresses) as first:
                old = Together(first, found)
                tasks = [asyncio.create_task(old.deploy(vm(f"vm{number}", 1, 64))) for number in range(100)]
                await until(lambda: sum(len(host.vms) for host in hosts) > 20)
                for link in first._links.values():
                    link.cut()  # as if it had been killed
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, (replies.Deployed, VmstackError)) for answer in answers)
            async with cluster_of(addresses) as second:
                new = Together(second, found)
                for number in range(100):
                    with contextlib.suppress(AlreadyExists):
                        await new.deploy(vm(f"vm{number}", 1, 64))
                await new.settled()
            names = Counter(name for host in hosts for name in host.vms)
            assert names == {f"vm{number}": 1 for number in range(100)}

    run(test())


# Subscribers


def test_subscribers_of_a_cluster_are_told_what_happens_on_which_host() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            subscription = both.cluster.feed.subscribe()
            await both.deploy(vm("one", host="b"))
            deployed = (await events_until(subscription, session.VmDeployed))[-1]
            assert isinstance(deployed, session.VmDeployed)
            assert (deployed.name, deployed.host) == ("one", "b")
            await both.hosts["b"].ask(requests.Remove(name="one"))
            removed = (await events_until(subscription, session.VmRemoved))[-1]
            assert isinstance(removed, session.VmRemoved)
            assert (removed.name, removed.host) == ("one", "b")
            await both.refusal(vm("one", 4096))
            refused = (await events_until(subscription, session.VmRefused))[-1]
            assert isinstance(refused, session.VmRefused)
            assert (refused.name, refused.code) == ("one", "NoCapacity")
            await both.hosts["a"].crash()
            changed = (await events_until(subscription, session.HostChanged))[-1]
            assert isinstance(changed, session.HostChanged)
            assert (changed.host, changed.state) == ("a", "unknown")

    run(test())


# Files


def test_hosts_come_and_go_with_requests_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("globald.cluster.LOOK_S", 0.02)
    folder = tmp_path / "hosts.d"

    async def test() -> None:
        static, b, c = RealHost("static"), RealHost("b"), RealHost("c")
        async with started(b, c), together(static, folder=folder) as both:
            added = await both.ask(requests.HostAdd(address=b.address, name="rack1"), replies.HostListed)
            assert (added.address, added.listed, added.name) == (b.address, True, f"{folder}/rack1.toml")
            assert (folder / "rack1.toml").read_text() == f'address = "{b.address}"\n'
            assert (await both.state("b", "up")).source == f"{folder}/rack1.toml"
            (folder / "more.toml").write_text(f'addresses = ["{c.address}"]\n')
            await both.state(c.address, "up")
            assert (await both.deploy(vm("one", host="b"))).host == "b"

            assert isinstance(await both.refusal(requests.HostAdd(address=b.address)), AlreadyExists)
            error = await both.refusal(requests.HostAdd(address="127.0.0.1:1", name="rack1"))
            assert isinstance(error, AlreadyExists)
            assert isinstance(await both.refusal(requests.HostAdd(address="127.0.0.1:1", name="../up")), InvalidRequest)
            assert "named by the setting hosts" in (await both.refusal(requests.HostRemove(host="static"))).message
            assert isinstance(await both.refusal(requests.HostRemove(host="nobody")), NotFound)

            gone = await both.ask(requests.HostRemove(host="b"), replies.HostListed)
            assert (gone.address, gone.listed, gone.vms) == (b.address, False, 1)
            assert not (folder / "rack1.toml").exists()
            assert b.vms == {"one"}
            assert not both.cluster.members.owners("one")
            (folder / "more.toml").unlink()
            await until(lambda: len(both.cluster.members) == 1)

    run(test())


def test_without_a_folder_no_host_can_be_added() -> None:
    async def test() -> None:
        async with together() as both:
            error = await both.refusal(requests.HostAdd(address="127.0.0.1:1"))
            assert isinstance(error, InvalidRequest)
            assert "hosts_dir is none" in error.message

    run(test())


def test_a_host_in_two_files_stays_until_both_are_gone(tmp_path: Path) -> None:
    async def test() -> None:
        a = RealHost("a")
        async with started(a):
            for name in ("one", "two"):
                (tmp_path / f"{name}.toml").write_text(f'address = "{a.address}"\n')
            async with together(folder=tmp_path) as both:
                await both.state("a", "up")
                problems = both.cluster.status().degraded
                assert any("is named by" in problem and "two.toml" in problem for problem in problems)
                first = await both.ask(requests.HostRemove(host="a"), replies.HostListed)
                assert first.listed
                second = await both.ask(requests.HostRemove(host="a"), replies.HostListed)
                assert not second.listed
                assert not len(both.cluster.members)

    run(test())


def test_a_host_that_is_taken_out_during_a_deployment_leaves_no_trace(tmp_path: Path) -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        creating, go_on = asyncio.Event(), asyncio.Event()

        async def wait(operation: str, _name: str) -> None:
            if operation == "create":
                creating.set()
                await go_on.wait()

        a.simulated.plan = wait
        async with started(a, b) as hosts:
            (tmp_path / "a.toml").write_text(f'address = "{a.address}"\n')
            (tmp_path / "b.toml").write_text(f'address = "{b.address}"\n')
            async with cluster_of([], folder=tmp_path, policy="first-fit") as cluster:
                both = Together(cluster, hosts)
                task = asyncio.create_task(both.refusal(vm("one")))
                await creating.wait()
                await both.ask(requests.HostRemove(host="a"), replies.HostListed)
                error = await task
                assert isinstance(error, Unavailable)
                assert error.details["outcome"] == "unknown"
                assert not b.vms  # nobody asked another one
                go_on.set()
                await until(lambda: a.vms == {"one"})
                assert not cluster.members.claims
                assert not cluster.members.owners("one")
                assert len(cluster.members) == 1
                # Its number is another one's now.
                await both.ask(requests.HostAdd(address=a.address), replies.HostListed)
                await both.state("a", "up")
                await both.settled()
                assert isinstance(await both.refusal(vm("one")), AlreadyExists)

    run(test())


def test_files_that_cannot_be_understood_do_not_stop_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("globald.cluster.LOOK_S", 0.02)

    async def test() -> None:
        async with together(RealHost("a"), folder=tmp_path) as both:
            (tmp_path / "bad.toml").write_text("address = ")
            await until(lambda: any("bad.toml" in problem for problem in both.cluster.status().degraded))
            for _ in range(5):  # it stays reported
                await asyncio.sleep(0.02)
                assert any("bad.toml" in problem for problem in both.cluster.status().degraded)
            await both.deploy(vm("one"))
            monkeypatch.setattr(both.cluster._folder, "read", lambda: 1 / 0)
            await asyncio.sleep(0.1)
            assert both.cluster.running

    run(test())


# Stopping


def test_a_deployment_in_progress_ends_before_globald_does() -> None:
    async def test() -> None:
        a = RealHost("a")
        creating, go_on = asyncio.Event(), asyncio.Event()

        async def wait(operation: str, _name: str) -> None:
            if operation == "create":
                creating.set()
                await go_on.wait()

        a.simulated.plan = wait
        async with together(a) as both:
            task = asyncio.create_task(both.deploy(vm("one")))
            await creating.wait()
            stopping = asyncio.create_task(both.cluster.end_operations())
            await asyncio.sleep(0)
            assert "globald is stopping" in (await both.refusal(vm("two"))).message
            go_on.set()
            assert (await task).host == "a"
            await stopping

    run(test())


def test_a_deployment_that_does_not_end_is_cut_off_and_the_host_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmstackd.daemon.operations.STOP_PATIENCE", 0.05)

    async def test() -> None:
        a = RealHost("a")
        creating, go_on = asyncio.Event(), asyncio.Event()

        async def wait(operation: str, _name: str) -> None:
            if operation == "create":
                creating.set()
                await go_on.wait()

        a.simulated.plan = wait
        async with started(a) as hosts:
            async with cluster_of([a.address]) as cluster:
                task = asyncio.create_task(Together(cluster, hosts).refusal(vm("one")))
                await creating.wait()
            error = await task
            assert error.details["outcome"] == "unknown"
            go_on.set()
            await until(lambda: a.vms == {"one"})

    run(test())


# The prototype's two hosts


def test_two_hosts_the_owner_is_the_chosen_one_and_not_the_last_examined() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            assert (await both.deploy(vm("one"))).host == "a"
            assert (await both.ask(requests.Remove(name="one"), replies.Removed)).host == "a"

    run(test())


def test_two_hosts_a_vm_that_is_removed_directly_on_its_host_is_forgotten() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            await both.deploy(vm("one"))
            await both.hosts["a"].ask(requests.Remove(name="one"))
            await until(lambda: not both.cluster.members.owners("one"))
            assert isinstance(await both.refusal(requests.Remove(name="one")), NotFound)
            await both.deploy(vm("one"))

    run(test())


def test_two_hosts_a_vm_wider_than_its_level_may_grow_goes_to_the_other() -> None:
    """Level 3.0 with 4 CPUs and 12 vCPUs, 4 CPUs free: twelve wide would need twelve CPUs."""

    async def test() -> None:
        first = RealHost("first", "synthetic:sockets=1,l3=1,cores=8,smt=1,memory=65536")
        second = RealHost("second", "synthetic:sockets=1,l3=1,cores=248,smt=1,memory=65536")
        async with together(first, second) as both:
            for number in range(3):
                await first.ask(vm(f"vm{number}", 4, 1024, 3000))
            await both.settled()
            level = first.engine.status().host.levels[0]
            assert (level.cpus, level.vcpus, first.engine.status().host.free_cpus) == (4, 12, 4)
            assert (await both.deploy(vm("wide", 12, 1024, 3000))).host == "second"

    run(test())


def test_two_hosts_a_name_is_deployed_once() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            await both.hosts["b"].ask(vm("one"))
            await both.settled()
            error = await both.refusal(vm("one"))
            assert isinstance(error, AlreadyExists)
            assert "on host 'b'" in error.message
            assert not both.hosts["a"].vms

    run(test())


def test_two_hosts_a_name_that_both_have_is_reported_and_never_removed_by_guess() -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        async with started(a, b) as hosts:
            await a.ask(vm("same"))
            await b.ask(vm("same"))
            async with cluster_of([a.address, b.address]) as cluster:
                both = Together(cluster, hosts)
                shown = (await both.ask(requests.Hosts(), replies.HostsReply)).duplicates
                assert shown == (replies.DuplicateVm(name="same", hosts=("a", "b")),)
                assert any("'same' is on several hosts: a, b" in text for text in cluster.status().degraded)
                error = await both.refusal(requests.Remove(name="same"))
                assert isinstance(error, InvalidRequest)
                assert "is on 2 hosts: a, b" in error.message
                assert (a.vms, b.vms) == ({"same"}, {"same"})
                assert isinstance(await both.refusal(vm("same")), AlreadyExists)
                assert isinstance(await both.refusal(requests.Describe(name="same")), InvalidRequest)
                await both.ask(requests.Remove(name="same", host="b"), replies.Removed)
                assert (a.vms, b.vms) == ({"same"}, set())
                assert not cluster.hosts().duplicates
                await both.ask(requests.Remove(name="same"), replies.Removed)

    run(test())


def test_two_hosts_one_of_which_fails_the_other_serves() -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        async with together(a, b) as both:
            await a.crash()
            reply = await both.deploy(vm("one"))
            assert reply.host == "b"
            progress = await both.ask(requests.Progress(vcpus=1, memory_mib=64, level=1000), replies.ProgressReply)
            assert progress.host == "b"

    run(test())


@pytest.mark.parametrize("name", ["a&b", "a=b?c#d", "a%26b", "ü b"])
def test_two_hosts_names_arrive_as_they_are(name: str) -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            await both.deploy(vm(name))
            assert both.hosts["a"].vms == {name}
            await both.ask(requests.Remove(name=name), replies.Removed)
            assert not both.hosts["a"].vms

    run(test())
