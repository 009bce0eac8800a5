"""The typed client, against the real server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.demand import Lesson, Shape
from tests.faulty import FaultySim
from tests.running import PATIENCE, ROOT
from tests.transports.endpoint import until
from tests.transports.rpc import STRANGER, Door, as_root, door, packed
from vmstackd import client as client_module
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import (
    Cordoned,
    DeadlineExceeded,
    Denied,
    Internal,
    InvalidRequest,
    NoCapacity,
    NotFound,
    Unavailable,
    VmstackError,
)
from vmstackd.client import MOST_EVENTS, Client
from vmstackd.version import VERSION

DEPLOY = requests.Deploy(name="one", vcpus=2, memory_mib=2048, level=2000, image="/images/one.qcow2")
PROGRESS = requests.Progress(vcpus=2, memory_mib=4096, level=2000)
HELLO_REPLY = {"version": 1, "program": "x", "program_version": "0", "host": "h", "role": "reader"}


async def _connect(host: Door) -> Client:
    return await Client.connect(str(host.path), program="test")


def test_every_operation() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client:
            assert client.hello == session.HelloReply(
                version=1,
                program="vmstackd",
                program_version=VERSION,
                host=os.uname().nodename,
                role="operator",
                uuid=host.engine.identity.uuid,
            )
            deployed = await client.deploy(DEPLOY)
            assert (deployed.name, deployed.level, deployed.cpus) == ("one", 2000, (0, 8))
            assert deployed.generation == host.engine.status().host.generation
            assert (await client.progress(PROGRESS)).progress == host.engine._progress(PROGRESS).progress
            assert await client.status(requests.Status()) == await client.status() == host.engine.status()
            (vm,) = (await client.list()).vms
            assert vm == await client.describe(requests.Describe(name="one"))
            assert (vm.cpus, vm.state) == ((0, 8), "running")
            assert len((await client.topology()).cpus) == 16
            removed = await client.remove(requests.Remove(name="one"), timeout=30.0, request_id="mine")
            assert (removed.name, removed.released) == ("one", (0, 8))
            await client.ping(timeout=PATIENCE)
            cordoned = await client.cordon(requests.Cordon(reason="disk"))
            assert cordoned == replies.CordonReply(cordoned=True, reason="disk")
            with pytest.raises(Cordoned):
                await client.deploy(DEPLOY)
            assert await client.uncordon(requests.Uncordon()) == replies.CordonReply(cordoned=False, reason="")

    asyncio.run(check())


def test_addresses() -> None:
    async def check() -> None:
        async with door() as host:
            async with await Client.connect(f"unix:{host.path}", program="test") as client:
                await client.status()
            for address in ("localhost:0", "::1:8097", "vmstackd.sock", "unix:relative", "", "unix:/" + "x" * 200):
                with pytest.raises(InvalidRequest) as caught:
                    await Client.connect(address, program="test")
                assert caught.value.details == {"field": "address"}

    asyncio.run(check())


def test_what_only_a_cluster_can_be_asked() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client:
            for question in (
                client.hosts(),
                client.demand(),
                client.host_add(requests.HostAdd(address="a:1")),
                client.host_remove(requests.HostRemove(host="a")),
            ):
                with pytest.raises(InvalidRequest, match=r"there is no method '(host|demand)"):
                    await question
        hosts = {"hosts": [], "duplicates": [{"name": "one", "hosts": ["a", "b"]}]}
        listed = {"address": "a:1", "name": "a", "listed": False, "vms": 3}
        shapes = [{"level": 1500, "vcpus": 2, "memory_mib": 512, "count": 3}]
        demand = {"policy": "worth", "lesson": {"shapes": shapes, "seen": 3, "due": 64, "market": None}}
        answer = packed(
            [1, 2, None, hosts], [1, 3, None, listed], [1, 4, None, listed | {"listed": True}], [1, 5, None, demand]
        )
        async with _server(answer, hello=True) as path, await Client.connect(str(path), program="test") as client:
            listing, removed, added, learnt = await asyncio.gather(
                client.hosts(),
                client.host_remove(requests.HostRemove(host="a")),
                client.host_add(requests.HostAdd(address="a:1")),
                client.demand(),
            )
            assert learnt == replies.DemandReply("worth", Lesson((Shape(1500, 2, 512, 3),), 3, 64, None))
            assert listing.duplicates == (replies.DuplicateVm(name="one", hosts=("a", "b")),)
            assert (removed.listed, added.listed) == (False, True)
            assert removed.vms == 3

    asyncio.run(check())


def test_errors_come_as_what_they_are() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client:
            with pytest.raises(NotFound, match="does not exist"):
                await client.describe(requests.Describe(name="nobody"))
            with pytest.raises(NoCapacity) as caught:
                await client.progress(requests.Progress(vcpus=99, memory_mib=1, level=1000))
            assert caught.value.details["needed"] == 99
            with pytest.raises(InvalidRequest) as wrong:
                await client.progress(requests.Progress(vcpus=0, memory_mib=1, level=1000))
            assert wrong.value.details == {"field": "vcpus"}
            with pytest.raises(InvalidRequest, match="request_id"):
                await client.status(request_id="not one")

    asyncio.run(check())


def test_many_calls_at_once_and_a_slow_one_among_them() -> None:
    async def check() -> None:
        hypervisor = FaultySim()
        release = asyncio.Event()

        async def plan(operation: str, _name: str) -> None:
            if operation == "create":
                await release.wait()

        hypervisor.plan = plan
        async with door(hypervisor) as host, await _connect(host) as client:
            slow = asyncio.create_task(client.deploy(DEPLOY))
            answers = await asyncio.gather(*(client.progress(PROGRESS) for _ in range(500)))
            assert len(answers) == 500
            assert not slow.done()
            with pytest.raises(DeadlineExceeded):
                await client.remove(requests.Remove(name="one"), timeout=0.0)
            release.set()
            assert (await slow).cpus == (0, 8)

    asyncio.run(check())


def test_a_deadline_is_kept_by_both_sides() -> None:
    async def check() -> None:
        hypervisor = FaultySim()
        release = asyncio.Event()

        async def plan(operation: str, _name: str) -> None:
            if operation == "create":
                await release.wait()

        hypervisor.plan = plan
        async with door(hypervisor) as host, await _connect(host) as client:
            with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
                await client.deploy(DEPLOY, timeout=0.05)
            await client.status(timeout=10_000.0)  # longer than the server would take
            release.set()
            await until(lambda: "one" in hypervisor.vms)
            assert not client._link._calls

    asyncio.run(check())


def test_a_call_that_is_given_up_is_forgotten() -> None:
    async def check() -> None:
        async with _server(b"", hello=True) as path, await Client.connect(str(path), program="test") as client:
            call = asyncio.create_task(client.status())
            await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not client._link._calls

    asyncio.run(check())


# Subscriptions


def test_a_subscriber_sees_what_happens() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client, asyncio.timeout(PATIENCE):
            seen: list[session.Push] = []
            async for push in client.subscribe():
                seen.append(push)
                if len(seen) == 1:
                    assert push == host.engine.status()
                    await client.deploy(DEPLOY)
                if len(seen) == 3:
                    break
            assert {type(push) for push in seen[1:]} == {session.VmDeployed, replies.StatusReply}
            assert host.engine.status() in seen[1:]
            with pytest.raises(InvalidRequest):
                await anext(client.subscribe())

    asyncio.run(check())


def test_a_subscriber_is_told_the_names_of_the_moment_at_which_events_begin() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client, asyncio.timeout(PATIENCE):
            await client.deploy(DEPLOY)
            told, pushes = await client.watch(names=True)
            assert told.names == ("one",)
            assert await anext(pushes) == host.engine.status()
            await client.remove(requests.Remove(name="one"))
            first = await anext(pushes)
            event = first if isinstance(first, session.VmRemoved) else await anext(pushes)
            assert isinstance(event, session.VmRemoved)
            assert event.name == "one"
            with pytest.raises(InvalidRequest):
                await client.watch()
        async with door() as host, await _connect(host) as client:
            told, _ = await client.watch()
            assert told.names == ()

    asyncio.run(check())


def test_a_subscription_that_is_refused_may_be_tried_again() -> None:
    async def check() -> None:
        error = {"code": "Unavailable", "message": "later"}
        async with (
            _server(packed([1, 2, error, None]), hello=True) as path,
            await Client.connect(str(path), program="test") as client,
        ):
            with pytest.raises(Unavailable, match="later"):
                await client.watch()
            assert client._link.pushes is None

    asyncio.run(check())


def test_a_slow_subscriber_of_ours_misses_events_and_blocks_no_call() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client, asyncio.timeout(PATIENCE):
            pushes = client.subscribe()
            await anext(pushes)
            for number in range(3 * MOST_EVENTS):
                host.engine.feed.publish(session.VmGone(time=0.0, name=str(number)))
                if number % 100 == 0:
                    await client.status()
            await asyncio.sleep(0.1)
            await client.status()
            events = missed = 0
            while events + missed < 3 * MOST_EVENTS:
                push = await anext(pushes)
                if isinstance(push, session.Missed):
                    missed += push.count
                elif isinstance(push, session.VmGone):
                    events += 1
            assert events + missed == 3 * MOST_EVENTS
            assert events <= MOST_EVENTS

    asyncio.run(check())


def test_a_subscription_ends_with_an_error_when_the_server_goes() -> None:
    async def check() -> None:
        async with door() as host, await _connect(host) as client, asyncio.timeout(PATIENCE):
            pushes = client.subscribe()
            await anext(pushes)
            await host.transport.stop()
            with pytest.raises(Unavailable):
                await _exhausted(pushes)

    asyncio.run(check())


async def _exhausted(pushes: AsyncIterator[session.Push]) -> None:
    async for _ in pushes:
        pass


# Servers that are not there, or not what they should be


@asynccontextmanager
async def _server(answer: bytes, *, hello: bool, close: bool = False) -> AsyncIterator[Path]:
    """Says the same to everybody; first hello, if told so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        if hello:
            writer.write(packed([1, 1, None, HELLO_REPLY]))
            if answer:
                await reader.read(1000)
        writer.write(answer)
        if close:
            writer.close()
        await reader.read()
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.start_unix_server(serve, f"{folder}/s")
        yield Path(folder, "s")
        server.close()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "no such socket; is vmstackd running[?] systemctl status vmstackd"),
        (lambda path: path.write_text(""), "nobody listens there; is vmstackd running"),
        (lambda path: path.mkdir(), "cannot reach"),
    ],
    ids=["nothing", "a file", "a folder"],
)
def test_nobody_there(make: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    async def check() -> None:
        with pytest.raises(Unavailable, match=text):
            await Client.connect(str(tmp_path / "s"), program="test")

    make(tmp_path / "s")
    asyncio.run(check())


@as_root
def test_whoever_may_not_connect_is_told_how() -> None:
    code = (
        "import asyncio, sys; from vmstackd.client import Client; from vmstackd.api.errors import Unavailable\n"
        "try: asyncio.run(Client.connect(sys.argv[1], program='test'))\n"
        "except Unavailable as error: print(error)\n"
    )

    async def check() -> None:
        async with door() as host:
            done = await asyncio.to_thread(
                subprocess.run,
                [
                    sys.executable,
                    "-c",
                    f"import os; os.setgroups([]); os.setgid({STRANGER})\n" + _later(code),
                    str(host.path),
                ],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
            assert "join group vmstack" in done.stdout

    def _later(code: str) -> str:
        # The sources may be where others cannot read: they are loaded first.
        head, tail = code.split("\n", 1)
        return f"{head}\nos.setuid({STRANGER})\n{tail}"

    asyncio.run(check())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xc1",
        b"\xdd\x40\x00\x00\x00",
        packed([1, 1, None, {"version": "1"}]),
        packed([1, 1, {"text": "no code"}, None]),
        packed([5]),
        packed([0, 1, "hello", []]),
    ],
)
@pytest.mark.parametrize("hello", [True, False], ids=["after hello", "before"])
def test_what_is_no_answer_ends_the_connection(answer: bytes, *, hello: bool) -> None:
    async def check() -> None:
        async with _server(answer, hello=hello) as path:
            with pytest.raises(Unavailable, match="does not speak our protocol"):
                await _ask_once(path)

    asyncio.run(check())


def test_pages_of_hosts_that_do_not_follow_each_other() -> None:
    async def check() -> None:
        async with _server(packed([1, 1, None, {"hosts": [], "following": 5}]), hello=True) as path:
            client = await Client.connect(str(path), program="test")
            client._link._last = 0
            with pytest.raises(Unavailable, match="has counted its hosts wrong"):
                async with asyncio.timeout(PATIENCE):
                    await client.hosts()
            await client.close()

    asyncio.run(check())


async def _ask_once(path: Path) -> None:
    client = await Client.connect(str(path), program="test")
    client._link._last = 0  # so that the server's answer is to this call
    await client.status()


def test_a_server_that_hangs_up() -> None:
    async def check() -> None:
        async with _server(b"", hello=False, close=True) as path:
            with pytest.raises(Unavailable, match="closed the connection"):
                await Client.connect(str(path), program="test")
        async with _server(packed([2, "news", [1]]), hello=True, close=True) as path:
            client = await Client.connect(str(path), program="test")
            for _ in range(2):  # then, and ever after
                with pytest.raises(Unavailable, match="closed the connection"):
                    await client.status()
            await client.close()

    asyncio.run(check())


def test_a_server_that_says_nothing() -> None:
    async def check() -> None:
        async with _server(b"", hello=True) as path:
            client = await Client.connect(str(path), program="test")
            with pytest.raises(DeadlineExceeded):
                await client.status(timeout=0.05)
            waiting = asyncio.create_task(client.status())
            await asyncio.sleep(0.01)
            await client.close()
            with pytest.raises(Unavailable, match="is closed"):
                await waiting
            with pytest.raises(Unavailable, match="is closed"):
                await client.status()
        async with _server(b"\x94", hello=False) as path:
            with pytest.raises(Unavailable, match=r"does not answer within 0\.05 s"):
                await Client.connect(str(path), program="test", timeout=0.05)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ({"code": "Denied", "message": "no"}, Denied, "no"),
        ({"code": "Tired", "message": "later", "retryable": True}, Internal, "later (Tired)"),
    ],
)
def test_what_hello_is_refused_with(error: dict[str, object], kind: type[VmstackError], text: str) -> None:
    async def check() -> None:
        async with _server(packed([1, 1, error, None]), hello=False, close=True) as path:
            with pytest.raises(kind) as caught:
                await Client.connect(str(path), program="test")
            assert caught.value.message == text

    asyncio.run(check())


def test_a_newer_server_may_say_more() -> None:
    async def check() -> None:
        answer = packed(
            [2, "weather", [{"sun": True}]],
            [2, "event", [{"event": "eclipse", "time": 0.0}]],
            [1, 99, None, {"nobody": "asked"}],
            [1, 2, None, {"progress": 0.5, "confidence": 0.9}],
        )
        async with _server(answer, hello=True) as path, await Client.connect(str(path), program="test") as client:
            assert (await client.progress(PROGRESS)).progress == 0.5

    asyncio.run(check())


def test_thousands_of_connections_take_little_memory() -> None:
    count, most = 200, 25 * 1024

    async def check() -> None:
        event = packed([2, "event", [{"event": "gone", "time": 0.0, "name": "x" * 2000}]])
        ours: list[client_module._Link] = []
        tracemalloc.start()
        try:
            for turn in range(2):
                before = tracemalloc.get_traced_memory()[0]
                for _ in range(count if turn else 1):  # what is only loaded once does not count
                    link = client_module._Link("here")
                    link.pushes = client_module.Pushes()
                    for _ in range(3):
                        link.get_buffer(-1)[: len(event)] = event
                        link.buffer_updated(len(event))
                    assert isinstance(await anext(link.pushes), session.VmGone)
                    ours.append(link)
            each = (tracemalloc.get_traced_memory()[0] - before) / count
        finally:
            tracemalloc.stop()
        assert each < most

    asyncio.run(check())


def test_it_is_light() -> None:
    code = (
        "import sys; import vmstackd.client\n"
        "heavy = {'aiohttp', 'libvirt', 'prometheus_client', 'sdbus', 'vmstackd.engine', 'vmstackd.transports'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or None)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE)
    assert client_module.CONNECT_TIMEOUT > 0
