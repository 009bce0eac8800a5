"""HTTP of a cluster as users of the prototype type it, on real hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from globald.http import ClusterHttp
from globald.metrics import ClusterMetrics
from tests.globald.hosts import SMALL, TINY, RealHost, Together, together, vm
from tests.running import PATIENCE, Answer
from tests.transports.endpoint import Endpoint, until
from vmstackd.api import requests
from vmstackd.daemon.http import listen

NOWHERE = "127.0.0.1:9"
SHAPE = "cpu=1&mem=1&oc=1"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 2 * PATIENCE))


class Front:
    """The endpoint of a cluster."""

    def __init__(self, both: Together, endpoint: Endpoint) -> None:
        self.both = both
        self.get = endpoint.get
        self.send = endpoint.send

    async def deploy(self, name: str, shape: str = SHAPE) -> Answer:
        return await self.get(f"/deploy?name={name}&{shape}&qcow2=/images/x.qcow2")


@asynccontextmanager
async def front(*hosts: RealHost, others: tuple[str, ...] = (), learn: bool = True) -> AsyncIterator[Front]:
    async with together(*hosts, others=others, patience=1.0 if learn else PATIENCE, learn=learn) as both:
        metrics = ClusterMetrics()
        metrics.watch(both.cluster.hosts)
        listener = listen("127.0.0.1", 0)
        transport = ClusterHttp(both.cluster, metrics, listener)
        await transport.start()
        try:
            yield Front(both, Endpoint(None, "127.0.0.1", listener.getsockname()[1]))  # type: ignore[arg-type]  # no engine
        finally:
            await transport.stop()


def test_the_conversation_of_the_prototype() -> None:
    async def test() -> None:
        async with front(RealHost("a", SMALL), RealHost("b", TINY)) as cluster:
            welcome = await cluster.get("/")
            assert (welcome.status, welcome.text) == (200, ClusterHttp.welcome)
            assert ClusterHttp.welcome == "SchedulerGlobal is working and waiting for instructions"

            done = await cluster.deploy("one", "cpu=2&mem=1.5&oc=1.5")
            assert (done.status, done.json["success"], done.json["reason"]) == (200, True, None)
            assert done.json["host"] == "b"  # whose memory per CPU is nearer
            assert isinstance(done.json["score"], float)
            await cluster.both.settled()

            shown = (await cluster.get("/status")).json
            assert list(shown) == ["a", "b"]
            assert set(shown["a"]) == {"cpu", "mem"}
            assert (await cluster.get("/listvm")).json == ["one"]

            progress = (await cluster.get("/progress?cpu=5&mem=1&oc=1")).json
            assert list(progress) == ["a", "b"]
            assert isinstance(progress["a"], float)
            assert progress["b"] is None

            gone = await cluster.get("/remove?name=one")
            assert (gone.status, gone.json) == (200, {"success": True, "reason": None, "host": "b"})
            again = await cluster.get("/remove?name=one")
            assert again.status == 404
            assert (again.json["success"], again.json["reason"]) == (False, "Unregistered VM")

    run(test())


def test_refusals_are_in_the_words_of_the_prototype_with_codes() -> None:
    async def test() -> None:
        async with front(RealHost("a", TINY), RealHost("b", TINY)) as cluster:
            full = await cluster.deploy("wide", "cpu=5&mem=1&oc=1")
            assert full.status == 409
            assert (full.json["success"], full.json["reason"]) == (False, "No appropriate node found")
            assert full.json["error"] == "NoCapacity"
            assert (await cluster.get("/progress?cpu=5&mem=1&oc=1")).status == 409
            await cluster.deploy("one")
            taken = await cluster.deploy("one")
            assert taken.status == 409
            assert taken.json["error"] == "AlreadyExists"
            assert "is on host 'a' already" in taken.json["reason"]
            for target in (
                "/deploy?name=x",
                "/deploy?name=x&cpu=a&mem=1&oc=1&qcow2=/x",
                "/remove",
                "/remove?name=a&b=c",
            ):
                bad = await cluster.get(target)
                assert (bad.status, bad.json["success"]) == (400, False)
            assert (await cluster.get("/nothing")).status == 404
            assert cluster.both.hosts["a"].vms == {"one"}

    run(test())


@pytest.mark.parametrize(
    ("typed", "name"), [("a%26b", "a&b"), ("a%3Db%3Fc%23d", "a=b?c#d"), ("a%2526b", "a%26b"), ("a+b", "a b")]
)
def test_a_name_arrives_as_it_was_meant(typed: str, name: str) -> None:
    async def test() -> None:
        async with front(RealHost("a")) as cluster:
            assert (await cluster.deploy(typed)).status == 200
            assert cluster.both.hosts["a"].vms == {name}
            assert (await cluster.get(f"/remove?name={typed}")).status == 200
            assert not cluster.both.hosts["a"].vms

    run(test())


def test_one_host_that_fails_is_left_out_and_the_rest_is_answered() -> None:
    async def test() -> None:
        a, b = RealHost("a"), RealHost("b")
        async with front(a, b) as cluster:
            await cluster.deploy("one")
            await cluster.both.settled()
            await a.crash()
            await cluster.both.state("a", "unknown")
            assert list((await cluster.get("/status")).json) == ["b"]
            progress = (await cluster.get(f"/progress?{SHAPE}")).json
            assert progress["a"] is None
            assert isinstance(progress["b"], float)
            assert (await cluster.deploy("two")).json["host"] == "b"
            assert (await cluster.get("/listvm")).json == ["one", "two"]
            lost = await cluster.get("/remove?name=one")
            assert (lost.status, lost.json["error"]) == (503, "Unavailable")
            assert (await cluster.get("/healthz")).status == 200

    run(test())


def test_it_is_healthy_while_it_lives_and_ready_once_it_has_learned() -> None:
    async def test() -> None:
        silent = listen("127.0.0.1", 0)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with front(RealHost("a"), others=(address,), learn=False) as cluster:
            await cluster.both.state("a", "up")
            healthy = await cluster.get("/healthz")
            assert (healthy.status, healthy.json) == (200, {"healthy": True})
            ready = await cluster.get("/readyz")
            assert (ready.status, ready.json["ready"], ready.json["hosts"]["up"]) == (503, False, 1)
            refused = await cluster.deploy("one")
            assert (refused.status, refused.json["error"]) == (503, "Unavailable")
            silent.close()
            cluster.both.cluster._learned.set()
            ready = await cluster.get("/readyz")
            assert (ready.status, ready.json["ready"]) == (200, True)
            cluster.both.cluster._tasks[0].cancel()
            await until(lambda: not cluster.both.cluster.running)
            ill = await cluster.get("/healthz")
            assert (ill.status, ill.json) == (503, {"healthy": False})
            cluster.both.cluster._tasks[0] = asyncio.create_task(cluster.both.cluster._keep_looking())

    run(test())


def test_metrics_are_of_this_moment() -> None:
    async def test() -> None:
        async with front(RealHost("a", TINY), others=(NOWHERE,)) as cluster:
            text = (await cluster.get("/metrics")).text
            assert 'vmstack_hosts{state="up"} 1' in text
            assert 'vmstack_hosts{state="unknown"} 1' in text
            assert 'vmstack_host_free_cpus{host="a"} 4' in text
            await cluster.deploy("one")
            await cluster.both.settled()
            assert 'vmstack_host_free_cpus{host="a"} 3' in (await cluster.get("/metrics")).text

    run(test())


def test_a_name_on_two_hosts_is_not_removed_by_guess() -> None:
    async def test() -> None:
        async with front(RealHost("a"), RealHost("b")) as cluster:
            for host in cluster.both.hosts.values():
                await host.ask(vm("same"))
            await cluster.both.settled()
            answer = await cluster.get("/remove?name=same")
            assert (answer.status, answer.json["success"]) == (400, False)
            assert "is on 2 hosts: a, b" in answer.json["reason"]
            assert all(host.vms == {"same"} for host in cluster.both.hosts.values())
            await cluster.both.hosts["a"].ask(requests.Remove(name="same"))
            await cluster.both.settled()
            assert (await cluster.get("/remove?name=same")).json["host"] == "b"

    run(test())


def test_other_sites_may_not_change_anything() -> None:
    async def test() -> None:
        async with front(RealHost("a")) as cluster:
            for headers in (
                {"Origin": "http://evil.example"},
                {"Host": "evil.example"},
                {"Sec-Fetch-Site": "cross-site"},
            ):
                answer = await cluster.get(f"/deploy?name=one&{SHAPE}&qcow2=/x", headers)
                assert answer.status == 403
            assert not cluster.both.hosts["a"].vms
            posted = await cluster.send("POST", f"/deploy?name=one&{SHAPE}&qcow2=/x")
            assert posted.status == 200

    run(test())
