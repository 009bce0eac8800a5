"""Health, metrics, request ids, and the lines of the log that belong to requests."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import re

import pytest

from tests.transports.endpoint import VM, endpoint, parse, until
from vmstackd import metrics
from vmstackd.hypervisor.base import HypervisorError, HypervisorEvent, VmDefinition
from vmstackd.hypervisor.sim import SimHypervisor


class LosableSim(SimHypervisor):
    """Its link can be lost."""

    def lose(self) -> None:
        self._emit(HypervisorEvent("lost", reason="end of file"))

    def restore(self) -> None:
        self._emit(HypervisorEvent("restored"))


def test_health_is_200_while_the_hypervisor_answers_and_503_while_it_does_not() -> None:
    async def check() -> None:
        sim = LosableSim()
        async with endpoint(sim) as host:
            await host.get(VM)
            well = await host.get("/healthz")
            assert (well.status, well.json) == (200, {"healthy": True, "hypervisor": "up", "degraded": []})
            sim.lose()
            ill = await host.get("/healthz")
            assert (ill.status, ill.json["healthy"], ill.json["hypervisor"]) == (503, False, "down")
            assert ill.json["degraded"] == ["the hypervisor is unreachable: end of file"]
            assert "vmstack_hypervisor_up 0.0" in (await host.get("/metrics")).text
            refused = await host.get("/remove?name=here")
            assert (refused.status, refused.json["error"]) == (503, "Unavailable")
            assert (await host.get("/listvm")).json == ["here"]
            sim.restore()
            await until(lambda: host.engine.status().hypervisor == "up")
            assert (await host.get("/healthz")).status == 200
            assert (await host.get("/remove?name=here")).status == 200

    asyncio.run(check())


class RefusingSim(SimHypervisor):
    """Starts or destroys nothing while ``reason`` says why."""

    reason = ""

    async def create(self, definition: VmDefinition) -> None:
        if self.reason:
            raise HypervisorError(self.reason)
        await super().create(definition)

    async def destroy(self, name: str) -> None:
        if self.reason:
            raise HypervisorError(self.reason)
        await super().destroy(name)


@pytest.mark.parametrize("target", ["/deploy?name=new&cpu=2&mem=1&oc=3&qcow2=/images/new", "/remove?name=here"])
def test_a_refusal_of_the_hypervisor_is_a_502_with_its_reason_and_changes_nothing(target: str) -> None:
    async def check() -> None:
        async with endpoint(sim := RefusingSim()) as host:
            await host.get(VM)
            before = (await host.get("/status")).json
            sim.reason = "internal error: no room for a 'disk'"
            answer = await host.get(target)
            assert (answer.status, answer.json["error"]) == (502, "HypervisorError")
            assert sim.reason in answer.json["reason"]
            assert (await host.get("/status")).json == before
            assert (await host.get("/listvm")).json == ["here"]

    asyncio.run(check())


def test_metrics_have_the_content_type_of_their_format() -> None:
    async def check() -> None:
        async with endpoint() as host:
            answer = await host.get("/metrics")
            assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
            assert answer.body.endswith(b"\n")

    asyncio.run(check())


@pytest.mark.parametrize(
    ("given", "honoured"),
    [
        (b"abc-1", True),
        (b"A.b_C-9", True),
        (b"x" * 64, True),
        (b"x" * 65, False),
        (b"", False),
        (b"a b", False),
        (b'a" outcome=ok', False),
        (b"a\tb", False),
        (b"\xff\xfe", False),
        ("ü".encode(), False),
        (b"a=b", False),
    ],
)
def test_a_request_id_is_honoured_only_when_it_is_harmless(
    given: bytes, honoured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def check() -> str:
        async with endpoint() as host:
            head = f"GET {VM} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: ".encode()
            answer = parse(await host.raw(head + given + b"\r\n\r\n"))
            assert answer.status == 200
            return answer.headers["X-Request-Id"]

    told = asyncio.run(check())
    assert told == given.decode() if honoured else re.fullmatch(r"http-[0-9]+", told)
    assert [r.__dict__["fields"]["request"] for r in caplog.records if r.message == "deploy"] == [told]


def test_each_request_has_an_id_of_its_own() -> None:
    async def check() -> None:
        async with endpoint() as host:
            answers = [await host.get("/status") for _ in range(3)] + [await host.get("/nothing")]
            assert len({answer.headers["X-Request-Id"] for answer in answers}) == 4

    asyncio.run(check())


@pytest.mark.parametrize(
    ("target", "outcome", "why"),
    [
        ("/deploy?name=new&cpu=two&mem=1&oc=1&qcow2=/i", "InvalidRequest", "cpu: 'two'"),
        ("/remove?name=%FF", "InvalidRequest", "name: is not UTF-8"),
    ],
)
def test_what_never_reaches_a_decision_is_told_once_too(
    target: str, outcome: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def check() -> str:
        async with endpoint() as host:
            return (await host.get(target)).headers["X-Request-Id"]

    told = asyncio.run(check())
    (fields,) = [r.__dict__["fields"] for r in caplog.records if r.message == "http-refused"]
    assert (fields["request"], fields["outcome"], fields["asked"]) == (told, outcome, f"GET {target}")
    assert fields["why"].startswith(why)


def test_a_decision_is_one_line_with_what_was_asked_decided_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def check() -> None:
        async with endpoint() as host:
            await host.get(VM, {"X-Request-Id": "one"})
            await host.get("/deploy?name=wide&cpu=99&mem=1&oc=1.5&qcow2=/i", {"X-Request-Id": "two"})
            await host.get("/remove?name=here", {"X-Request-Id": "three"})
            await host.get("/remove?name=here", {"X-Request-Id": "four"})

    asyncio.run(check())
    told = {r.__dict__["fields"]["request"]: (r.message, r.__dict__["fields"]) for r in caplog.records}
    assert list(told) == ["one", "two", "three", "four"]
    assert len(caplog.records) == 4
    event, placed = told["one"]
    asked = {"vm": "here", "vcpus": 2, "memory_mib": 2048, "level": "2.0", "image": "/images/here.qcow2"}
    assert event == "deploy"
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert placed.items() >= (asked | {"outcome": "ok", "caller": f"http:{user}@127.0.0.1"}).items()
    assert len(placed["cpus"].split(",")) == 2
    assert told["two"][1]["outcome"] == "NoCapacity"
    assert told["two"][1]["why"].startswith("not enough cpu: 99 more CPUs needed, 14 free")
    assert (told["three"][0], told["three"][1]["outcome"]) == ("remove", "ok")
    assert told["three"][1]["released"]
    assert told["four"][1]["outcome"] == "NotFound"
