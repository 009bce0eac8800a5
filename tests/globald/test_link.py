"""Hosts that lie, are silent, or speak nonsense: each is found out alone, and the others are served throughout."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it comes without types
import pytest

from globald import link as link_module
from globald.member import Member
from globald.members import MOST_VMS, Members
from tests.globald.hostile import STATUS, HostileHost, Talk, deployed, status
from tests.globald.hosts import RealHost, Together, cluster_of, started, vm
from tests.running import PATIENCE
from tests.transports.endpoint import until
from vmstackd import wire
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import AlreadyExists, Cordoned, InvalidRequest, NoCapacity, NotFound, Unavailable
from vmstackd.client import Pushes
from vmstackd.daemon import http, log

GOOD = "good"
EVIL = "a\n2026-01-01T00:00:00.000Z error forged \x1b[2J"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 2 * PATIENCE))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes seconds takes tenths of them."""
    for name, seconds in {
        "CONNECT_S": 0.5,
        "QUIET_S": 0.2,
        "SILENT_S": 0.3,
        "FIRST_PAUSE_S": 0.05,
        "LONGEST_PAUSE_S": 0.3,
        "GRACE_S": 0.05,
    }.items():
        monkeypatch.setattr(link_module, name, seconds)
    monkeypatch.setattr("globald.cluster.READ_S", 0.3)


@asynccontextmanager
async def beside(hostile: HostileHost) -> AsyncIterator[Together]:
    """A cluster of one good host and this one, which is the first and the largest: it is asked first."""
    async with (
        started(RealHost(GOOD)) as hosts,
        hostile.serving(),
        cluster_of([hostile.address, hosts[GOOD].address], policy="first-fit", patience=0.5) as cluster,
    ):
        yield Together(cluster, hosts)


async def others_are_served(both: Together) -> None:
    """The good host takes a VM and gives it back, and everything can be read."""
    assert (await both.deploy(vm("probe", 1, 64, host=GOOD))).host == GOOD
    assert (await both.ask(requests.Describe(name="probe"), replies.VmReply)).state == "running"
    assert (await both.ask(requests.Remove(name="probe"), replies.Removed)).host == GOOD
    shown = await both.ask(requests.Hosts(), replies.HostsReply)
    assert len(wire.response(1, shown)) < 1 << 16
    assert wire.response(1, await both.ask(requests.Status(), replies.StatusReply))
    await both.ask(requests.List(), replies.ListReply)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log as it is written."""
    made = log.formatter()
    return [made.format(record) for record in caplog.records]


# What is no host of ours


def _greets(**fields: object) -> HostileHost:
    host = HostileHost()
    host.hello |= fields
    return host


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (_greets(program="globald"), "what answers there is 'globald', not a vmstackd"),
        (_greets(program="x" * 1000), "not a vmstackd"),
        (_greets(uuid=""), "it has no UUID"),
        (_greets(uuid="x" * 1000), "it has no proper UUID: 'xxx"),
        (_greets(uuid="a\nb"), r"it has no proper UUID: 'a\nb'"),
        (_greets(role="reader"), "our certificate needs the role globald"),
        (_greets(role=5), "does not speak our protocol"),
    ],
    ids=[
        "another program",
        "a long program",
        "no UUID",
        "a long UUID",
        "two lines of UUID",
        "a reader",
        "a wrong type",
    ],
)
def test_who_is_no_host_of_ours_is_quarantined_with_the_reason(host: HostileHost, reason: str) -> None:
    async def test() -> None:
        async with beside(host) as both:
            shown = await both.state(host.address, "quarantined")
            assert reason in shown.reason
            assert len(shown.reason) < 400
            assert (await both.deploy(vm("one"))).host == GOOD
            assert any(reason in problem for problem in both.cluster.status().degraded)
            await others_are_served(both)

    run(test())


@pytest.mark.parametrize(
    "name", [EVIL, "", "x" * 1000, "127.0.0.1:1", GOOD], ids=["evil", "none", "long", "address", "taken"]
)
def test_a_host_that_calls_itself_what_it_may_not_is_called_by_its_address(name: str) -> None:
    async def test() -> None:
        host = _greets(host=name, uuid="another")
        async with beside(host) as both:
            await until(lambda: len(both.cluster.members) == 2 and all(found.uuid for found in both.cluster.members))
            # Whoever says it first is called good.
            assert {found.name for found in both.cluster.members} <= {host.address, GOOD, both.hosts[GOOD].address}
            assert both.cluster.members.find("127.0.0.1:1") is None
            await both.ask(requests.Hosts(), replies.HostsReply)

    run(test())


# Lies


def _level(**figures: object) -> dict[str, Any]:
    good = {
        "level": 1000,
        "ratio": 1000,
        "cpus": 4,
        "vcpus": 4,
        "vms": 1,
        "needed": 4,
        "available_thousandths": 0,
        "potential_thousandths": 0,
        "widest": 4,
    }
    return status(free_cpus=60, vms=1, levels=[good | figures])


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "negative CPUs": (status(free_cpus=-5), "free_cpus is -5"),
    "no CPUs": (status(cpus=0, free_cpus=0), "cpus is 0"),
    "absurd CPUs": (status(cpus=1 << 40, free_cpus=1 << 40), "cpus is 1099511627776"),
    "more free than there are": (status(free_cpus=65), "65 free"),
    "negative memory": (status(free_mib=-1), "free_mib is -1"),
    "more memory than there is": (status(free_mib=1 << 21), "MiB are free"),
    "negative generation": (status(generation=-1), "generation is -1"),
    "an unknown level": (_level(level=17), "17 thousandths are no level"),
    "a huge level": (_level(level=1 << 60), "are no level"),
    "a level without VMs": (_level(vms=0), "vms is 0"),
    "negative vCPUs": (_level(vcpus=-4), "vcpus is -4"),
    "VMs that are in no level": (status(vms=3), "3 VMs, but 0 in its levels"),
    "a name of a megabyte": (status(stopped=["x" * (1 << 20)]), "the name of a VM has 1048576 characters"),
}


@pytest.mark.parametrize("first", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_lies_is_quarantined_and_what_was_known_before_is_not_spoilt(lie: str, *, first: bool) -> None:
    fields, reason = LIES[lie]

    async def test() -> None:
        host = HostileHost()
        host.names = ["theirs"]
        if first:
            host.first = fields
        async with beside(host) as both:
            if not first:
                await both.state("hostile", "up")
                host.talk.push(fields)
                host.first = fields
            shown = await both.state("hostile" if not first else host.address, "quarantined")
            assert "what it tells cannot be true: " in shown.reason
            assert reason in shown.reason
            assert (await both.deploy(vm("one"))).host == GOOD
            assert shown.status is None if first else shown.status is not None and shown.status.free_cpus == 64
            assert bool(both.cluster.members.owners("theirs")) is not first
            await others_are_served(both)

    run(test())


def test_a_generation_that_goes_back_is_a_lie_but_not_after_a_new_connection() -> None:
    async def test() -> None:
        host = HostileHost()
        host.first = status(generation=7)
        async with beside(host) as both:
            await both.state("hostile", "up")
            host.talk.push(status(generation=6))
            assert "generation went back from 7 to 6" in (await both.state("hostile", "quarantined")).reason
            host.first = status(generation=2)
            await both.state("hostile", "up")
            await others_are_served(both)

    run(test())


def test_who_is_quarantined_may_try_again() -> None:
    async def test() -> None:
        host = HostileHost()
        host.first = LIES["negative CPUs"][0]
        async with beside(host) as both:
            await both.state(host.address, "quarantined")
            host.first = STATUS
            await both.state("hostile", "up")
            assert (await both.deploy(vm("one"))).host == "hostile"

    run(test())


def test_a_lie_is_found_out_while_an_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SILENT_S", 4 * PATIENCE)

    async def test() -> None:
        host = HostileHost()
        host.script = host.silent
        async with beside(host) as both:
            await both.state("hostile", "up")
            await until(lambda: bool(host.asked("ping")))
            host.talk.push(LIES["negative CPUs"][0])
            await both.state("hostile", "quarantined")

    run(test())


def test_two_hosts_with_one_uuid_are_told_by_both_names() -> None:
    async def test() -> None:
        host, copy = HostileHost("first"), HostileHost("copy")
        copy.hello["uuid"] = host.hello["uuid"]
        async with host.serving(), copy.serving(), cluster_of([host.address]) as cluster:
            both = Together(cluster, {})
            await both.state("first", "up")
            cluster._static = (host.address, copy.address)
            cluster._look()
            shown = await both.state(copy.address, "quarantined")
            assert f"it has the UUID of first ({host.address})" in shown.reason
            assert "delete host-uuid" in shown.reason
            assert (await both.state("first", "up")).uuid == host.hello["uuid"]

    run(test())


def test_a_host_that_moves_takes_its_vms_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        old, new = HostileHost("mover"), HostileHost("mover")
        old.names = new.names = ["theirs"]
        async with new.serving(), old.serving(), cluster_of([old.address]) as cluster:
            both = Together(cluster, {})
            await both.state("mover", "up")
            old.on_connect = Talk.close
            old.talk.close()
            await both.state("mover", "unknown")
            cluster._static = (old.address, new.address)
            cluster._look()
            await until(lambda: [member.entry.address for member in cluster.members.owners("theirs")] == [new.address])
            assert both.member("mover").entry.address == new.address
            assert not cluster.hosts().duplicates
        assert any(record.message == "host-moved" for record in caplog.records)

    run(test())


# Bytes


def _nested(talk: Talk) -> None:
    talk.raw(b"\xdd\x00\x3f\xff\xff" * 2000)


def _half(talk: Talk) -> None:
    talk.raw(msgpack.packb([1, 1, None, {"text": "x" * 1000}])[:500])


BYTES: dict[str, Callable[[Talk], None]] = {
    "a text of 4 GB": lambda talk: talk.raw(b"\xdb\xff\xff\xff\xff" + b"x" * (5 << 20)),
    "an array of 4 G": lambda talk: talk.raw(b"\xdd\xff\xff\xff\xff"),
    "bytes of 4 GB": lambda talk: talk.raw(b"\xc6\xff\xff\xff\xff" + b"x" * (5 << 20)),
    "arrays in arrays": _nested,
    "a frame of 5 MiB": lambda talk: talk.send([2, "event", [{"event": "x", "text": "x" * (5 << 20)}]]),
    "a list of 5 MiB": lambda talk: talk.send([2, "unknown", [0] * (5 << 20)]),
    "noise": lambda talk: talk.raw(bytes(range(256)) * 40),
    "HTTP": lambda talk: talk.raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "a number": lambda talk: talk.send(5),
    "a status that is none": lambda talk: talk.push({"host": 5}),
    "an event without a name": lambda talk: talk.event("deployed"),
    "a request": lambda talk: talk.send([0, 1, "deploy", []]),
    "an extension": lambda talk: talk.send(msgpack.ExtType(5, b"x")),
}


@pytest.mark.parametrize("when", ["connect", "hello", "subscribe", "later"])
@pytest.mark.parametrize("kind", BYTES)
def test_what_is_not_our_protocol_ends_the_connection_and_costs_no_memory(kind: str, when: str) -> None:
    send = BYTES[kind]

    async def test() -> None:
        host = HostileHost()
        match when:
            case "connect":
                host.on_connect = send
            case "hello":
                host.on_hello = lambda talk, _: send(talk)
            case "subscribe":
                host.on_subscribe = lambda talk, _: send(talk)
        async with beside(host) as both:
            if when == "later":
                await both.state("hostile", "up")
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                host.on_connect = send
                send(host.talk)
                shown = await both.state("hostile", "quarantined")
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown < 200 << 10
            else:
                shown = await both.state(host.address, "quarantined")
            assert "does not speak our protocol" in shown.reason
            assert len(shown.reason) < 400
            await others_are_served(both)

    run(test())


@pytest.mark.parametrize("kind", [0xDB, 0xC6], ids=["a text", "bytes"])
def test_the_mere_announcement_of_gigabytes_is_silence(kind: int) -> None:
    async def test() -> None:
        host = HostileHost()
        host.script = host.silent
        async with beside(host) as both:
            await both.state("hostile", "up")
            host.talk.raw(bytes([kind]) + b"\xff" * 4)
            await both.state("hostile", "unknown")
            await others_are_served(both)

    run(test())


@pytest.mark.parametrize("when", ["connect", "hello", "subscribe", "first status", "later"])
def test_a_host_that_falls_silent_is_unknown(when: str) -> None:
    async def test() -> None:
        host = HostileHost()
        match when:
            case "hello":
                host.on_hello = lambda talk, _: _half(talk)
            case "subscribe":
                host.on_subscribe = lambda talk, _: None
            case "first status":
                host.on_subscribe = lambda talk, msgid: talk.answer(msgid, {"names": []})
            case "later":
                host.script = host.silent
            case _:
                host.on_hello = lambda talk, _: None
        async with beside(host) as both:
            if when == "later":
                await both.state("hostile", "up")
                shown = await both.state("hostile", "unknown")
                assert "silent for" in shown.reason
            else:
                shown = await both.state(host.address, "unknown")
                assert "within 0.5 s" in shown.reason
            await others_are_served(both)

    run(test())


def test_bytes_that_end_nowhere_are_silence() -> None:
    async def test() -> None:
        host = HostileHost()
        stop = asyncio.Event()

        async def trickle(talk: Talk, _msgid: int, _method: str, _fields: dict[str, Any]) -> None:
            talk.raw(b"\xdb\x00\x10\x00\x00")
            while not stop.is_set() and not talk.writer.is_closing():
                talk.raw(b"x")
                await asyncio.sleep(0.01)

        host.script = trickle
        async with beside(host) as both:
            await both.state("hostile", "up")
            assert "silent for" in (await both.state("hostile", "unknown")).reason
            await others_are_served(both)
            stop.set()

    run(test())


def test_a_host_that_answers_late_but_tells_meanwhile_is_there() -> None:
    async def test() -> None:
        host = HostileHost()
        host.script = host.silent
        async with beside(host) as both:
            await both.state("hostile", "up")
            for generation in range(1, 16):  # longer than it may be silent
                host.talk.push(status(generation=generation))
                await asyncio.sleep(0.1)
            assert (await both.state("hostile", "up", "unknown")).state == "up"
            assert len(host.talks) == 1

    run(test())


def test_answers_to_calls_that_were_never_made_are_nothing() -> None:
    async def test() -> None:
        host = HostileHost()
        async with beside(host) as both:
            await both.state("hostile", "up")
            for msgid in range(1000, 2000):
                host.talk.answer(msgid, {"name": "x"})
                host.talk.refuse(msgid, "NoCapacity")
            host.talk.send([2, "newer than us", [{}]])
            host.talk.event("newer-than-us")
            host.talk.push(status(generation=5))
            await until(lambda: both.member("hostile").reply.host.generation == 5)  # type: ignore[union-attr]
            await others_are_served(both)

    run(test())


# Answers to orders


def _wrong_name(fields: dict[str, Any]) -> dict[str, Any]:
    return deployed(fields) | {"name": "another"}


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "another VM": _wrong_name,
    "another level": lambda fields: deployed(fields) | {"level": 64000},
    "a dry run": lambda fields: deployed(fields) | {"dry_run": True},
    "a negative generation": lambda fields: deployed(fields) | {"generation": -1},
    "negative CPUs": lambda fields: deployed(fields) | {"cpus": [-1]},
    "a status": lambda _: STATUS,
    "nothing": lambda _: None,
    "a text": lambda _: "done",
    "a list": lambda _: [1],
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_answer_that_is_none_quarantines_and_nobody_else_is_asked(kind: str) -> None:
    async def test() -> None:
        host = HostileHost()

        async def lie(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            if method == "deploy":
                talk.answer(msgid, WRONG[kind](fields))
            else:
                await host.polite(talk, msgid, method, fields)

        host.script = lie
        async with beside(host) as both:
            await both.state("hostile", "up")
            error = await both.refusal(vm("one"))
            assert isinstance(error, Unavailable)
            assert (error.details["outcome"], error.details["host"]) == ("unknown", "hostile")
            assert not both.hosts[GOOD].vms
            shown = await both.state("hostile", "quarantined")
            assert "cannot be true" in shown.reason or "our protocol" in shown.reason or "it answered" in shown.reason
            await others_are_served(both)
            # Back, and asked, it says that there is no such VM: then its name is free.
            host.script = host.polite
            await both.state("hostile", "up")
            await until(lambda: not both.cluster.members.claims)
            await both.deploy(vm("one", host=GOOD))

    run(test())


def test_a_host_that_hangs_up_in_the_middle_of_a_deployment() -> None:
    async def test() -> None:
        host = HostileHost()

        async def hang_up(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            if method == "deploy":
                talk.close()
            else:
                await host.polite(talk, msgid, method, fields)

        host.script = hang_up
        async with beside(host) as both:
            await both.state("hostile", "up")
            error = await both.refusal(vm("one"))
            assert error.details["outcome"] == "unknown"
            assert not both.hosts[GOOD].vms
            # It got the order after all, and has the VM when it is back.
            host.names = ["one"]
            await until(lambda: [member.name for member in both.cluster.members.owners("one")] == ["hostile"])
            assert not both.cluster.members.claims
            assert isinstance(await both.refusal(vm("one")), AlreadyExists)
            await others_are_served(both)

    run(test())


def test_an_order_of_which_a_host_that_is_back_does_not_tell_is_asked_about() -> None:
    async def test() -> None:
        host = HostileHost()
        known = asyncio.Event()

        async def script(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            match method:
                case "deploy":
                    talk.close()
                case "describe" if known.is_set():
                    described = {"name": "one", "vcpus": 1, "memory_mib": 1, "level": 1000, "cpus": [0], "pinned": []}
                    talk.answer(msgid, described | {"state": "starting", "image": ""})
                case "describe":
                    talk.refuse(msgid, "Unavailable")
                case _:
                    await host.polite(talk, msgid, method, fields)

        host.script = script
        async with beside(host) as both:
            await both.state("hostile", "up")
            await both.refusal(vm("one"))
            await until(lambda: len(host.asked("describe")) > 2)  # as long as it does not say
            assert "is not known yet" in (await both.refusal(vm("one"))).message
            known.set()
            await until(lambda: not both.cluster.members.claims)
            assert [member.name for member in both.cluster.members.owners("one")] == ["hostile"]
            # It was being started, and could not be.
            host.talk.event("refused", name="one", operation="deploy", code="HypervisorError", reason="no")
            host.talk.push(status(generation=9))
            await until(lambda: not both.cluster.members.owners("one"))

    run(test())


def test_a_host_that_answers_an_order_never_holds_up_nobody_else() -> None:
    async def test() -> None:
        host = HostileHost()

        async def script(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            if method == "ping":
                talk.answer(msgid, {})

        host.script = script
        async with beside(host) as both:
            await both.state("hostile", "up")
            task = asyncio.create_task(both.deploy(vm("one")))
            await until(lambda: bool(host.asked("deploy")))
            assert "is being deployed on host 'hostile'" in (await both.refusal(vm("one"))).message
            await others_are_served(both)  # list asks it too, and does not wait for it
            assert not task.done()
            host.talk.answer(_last_msgid(host), deployed(host.asked("deploy")[0]))
            assert (await task).host == "hostile"
            assert [member.name for member in both.cluster.members.owners("one")] == ["hostile"]

    run(test())


def _last_msgid(host: HostileHost) -> int:
    """Of the order: the calls of one connection are numbered from one, hello and subscribe being the first two."""
    return [method for method, _ in host.calls].index("deploy") + 1


@pytest.mark.parametrize(
    ("code", "kind", "elsewhere"),
    [
        ("NoCapacity", NoCapacity, True),
        ("Cordoned", Cordoned, True),
        ("HypervisorError", None, True),
        ("Unavailable", Unavailable, True),
        ("InvalidRequest", InvalidRequest, False),
        ("AlreadyExists", AlreadyExists, False),
        ("Internal", Unavailable, False),
        ("NewerThanUs", Unavailable, False),
    ],
)
def test_what_a_host_refuses_goes_elsewhere_where_that_can_help(
    code: str, kind: type | None, *, elsewhere: bool
) -> None:
    async def test() -> None:
        host = HostileHost()

        async def refuse(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            if method == "deploy":
                talk.refuse(msgid, code, "x" * 100_000, text="y" * 100_000, **{"z" * 1000: 1})
            else:
                await host.polite(talk, msgid, method, fields)

        host.script = refuse
        async with beside(host) as both:
            await both.state("hostile", "up")
            if elsewhere:
                assert (await both.deploy(vm("one"))).host == GOOD
                assert not both.cluster.members.claims
            else:
                error = await both.refusal(vm("one"))
                assert kind is not None
                assert isinstance(error, kind)
                assert len(error.message) < 1000
                assert sum(len(str(item)) for item in error.details.items()) < 2000
                assert not both.hosts[GOOD].vms
            await until(lambda: not both.cluster.members.claims)

    run(test())


def test_a_removal_that_is_answered_with_something_else_quarantines() -> None:
    async def test() -> None:
        host = HostileHost()
        host.names = ["theirs"]

        async def lie(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            if method == "remove":
                talk.answer(msgid, {"name": "another", "released": []})
            else:
                await host.polite(talk, msgid, method, fields)

        host.script = lie
        async with beside(host) as both:
            await both.state("hostile", "up")
            assert isinstance(await both.refusal(requests.Remove(name="theirs")), Unavailable)
            assert "asked to remove 'theirs'" in (await both.state("hostile", "quarantined")).reason
            assert both.cluster.members.owners("theirs")

    run(test())


# Too much


def test_a_flood_of_events_is_given_up_on_and_hurts_nobody() -> None:
    async def test() -> None:
        host = HostileHost()
        async with beside(host) as both:
            await both.state("hostile", "up")
            frame = msgpack.packb([2, "event", [{"event": "degraded", "time": 1.0, "problems": ["x" * 100]}]])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(20):
                if not host.talk.writer.is_closing():
                    host.talk.raw(frame * 5000)
                await others_are_served(both)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10

    run(test())


def test_more_vms_than_a_host_can_have_are_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("globald.members.MOST_VMS", 3000)

    async def test() -> None:
        host = HostileHost()
        async with beside(host) as both:
            await both.state("hostile", "up")
            for number in range(4000):
                host.talk.event("deployed", name=f"vm{number}", level=1000, cpus=[])
                if number % 500 == 0:
                    await asyncio.sleep(0.01)
            assert "more than 3000 VMs" in (await both.state("hostile", "quarantined")).reason
            assert len(both.member("hostile").names) <= 3000
            await others_are_served(both)
            host.names = [f"vm{number}" for number in range(4000)]
            await asyncio.sleep(0.5)
            assert len(both.member("hostile").names) <= 3000

    run(test())


def test_thousands_of_names_that_others_have_too_can_still_be_shown() -> None:
    assert MOST_VMS > 20_000

    async def test() -> None:
        first, second = HostileHost("first"), HostileHost("second")
        first.names = second.names = [f"vm{number}{'x' * 100}" for number in range(20_000)]
        async with first.serving(), beside(second) as both:
            await both.state("second", "up")
            both.cluster._static = (*both.cluster._static, first.address)
            both.cluster._look()
            await both.state("first", "up")
            shown = both.cluster.hosts()
            assert len(wire.response(1, shown)) < wire.MAX_REPLY
            assert shown.duplicates[0].hosts == ("second", "first")
            assert len(both.cluster.status().degraded) < 100
            assert (await both.deploy(vm("ours", host=GOOD))).host == GOOD

    run(test())


def test_whatever_a_host_says_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        host = HostileHost()
        host.names = [EVIL, "same"]
        host.hello["program_version"] = EVIL
        host.first = status(cordoned=False, degraded=[EVIL], hypervisor="up")

        async def refuse(talk: Talk, msgid: int, method: str, fields: dict[str, Any]) -> None:
            if method == "deploy":
                talk.refuse(msgid, "NoCapacity", EVIL * 1000)
            else:
                await host.polite(talk, msgid, method, fields)

        host.script = refuse
        async with beside(host) as both:
            await both.state("hostile", "up")
            await both.hosts[GOOD].ask(vm("same"))
            await both.deploy(vm("one"))
            host.talk.push(status(cordoned=True, cordon_reason=EVIL * 1000, generation=1))
            assert len((await both.state("hostile", "cordoned")).reason) < 400
            host.hello["program"] = EVIL * 10
            host.talk.close()
            await both.state("hostile", "quarantined")
            await others_are_served(both)

    run(test())
    written = lines(caplog)
    assert any("host-refused" in line for line in written)
    assert all(line.isprintable() for line in written)
    assert max(map(len, written)) < 2000


def test_what_a_host_pushes_is_taken_in_the_order_in_which_it_came() -> None:
    async def test() -> None:
        pushes = Pushes()
        first, gone, second, back = (
            wire.read_result(status(generation=1), replies.StatusReply),
            session.VmGone(time=1.0, name="a"),
            wire.read_result(status(generation=2), replies.StatusReply),
            session.VmDeployed(time=1.0, name="a", level=1000, cpus=()),
        )
        pushes.add(first)
        pushes.add(gone)
        assert [await anext(pushes) for _ in range(2)] == [first, gone]
        for push in (first, gone, second, back):
            pushes.add(push)
        assert [await anext(pushes) for _ in range(3)] == [gone, second, back]  # of statuses the newest

    run(test())


# Links


def test_a_link_survives_a_mistake_of_ours(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    happened = Members.happened

    def mistaken(self: Members, member: Member, event: session.Event) -> None:
        if getattr(event, "name", "") == "poison":
            raise KeyError("a mistake of ours")
        happened(self, member, event)

    monkeypatch.setattr(Members, "happened", mistaken)

    async def test() -> None:
        host = HostileHost()
        async with beside(host) as both:
            await both.state("hostile", "up")
            host.talk.event("gone", name="poison")
            assert "internal error" in (await both.state("hostile", "quarantined")).reason
            assert both.cluster.running
            await both.state("hostile", "up")
            await others_are_served(both)
        assert any(
            record.exc_info and "unexpected error with the host" in record.getMessage() for record in caplog.records
        )

    run(test())


def test_names_that_are_none_and_hosts_that_are_not_there_are_tried_again() -> None:
    async def test() -> None:
        listener = http.listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        listener.close()
        async with started(RealHost(GOOD)) as hosts:
            late = RealHost("late")
            late.port = port
            static = ["no-such-host.invalid:8097", "10.255.255.1:8097", late.address, hosts[GOOD].address]
            async with cluster_of(static, patience=1.0) as cluster:
                both = Together(cluster, hosts)
                assert "is not known" in (await both.state("no-such-host.invalid:8097", "unknown")).reason
                assert "TLS is needed" in (await both.state("10.255.255.1:8097", "unknown")).reason
                await both.state(late.address, "unknown")
                await late.start()
                await both.state("late", "up")
                await others_are_served(both)
            await late.stop()

    run(test())


def test_a_hang_up_is_noticed_at_once_and_the_host_is_back_soon() -> None:
    async def test() -> None:
        host = HostileHost()
        async with beside(host) as both:
            for _ in range(3):
                await both.state("hostile", "up")
                talks = len(host.talks)
                host.talk.close()
                await both.state("hostile", "unknown")
                await until(lambda talks=talks: len(host.talks) > talks)  # type: ignore[misc]
            assert isinstance(await both.refusal(requests.Remove(name="nothing")), NotFound)

    run(test())
