"""Clients of the Unix socket that mean harm: each is dropped or held back, and others are served."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.faulty import FaultySim
from tests.running import PATIENCE, ROOT, SMALL_HOST
from tests.test_wire import MALFORMED
from tests.transports.endpoint import until
from tests.transports.rpc import HELLO, STRANGER, VM, Door, Speaker, as_root, door, packed, say_as
from vmstackd import wire
from vmstackd.api.errors import Internal
from vmstackd.daemon.stream import Limits

QUICK = Limits(hello=0.2, frame=0.2, stall=0.3, period=0.05)
STATUS = packed([0, 7, "status", []])


async def _ended(speaker: Speaker) -> bool:
    return await speaker.receive() is None


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("greeted", [True, False], ids=["after hello", "before"])
def test_whoever_breaks_the_protocol_is_dropped_alone(kind: str, *, greeted: bool) -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as other, host.stranger() as client:
            if greeted:
                await client.ask("hello", *HELLO)
            client.raw(MALFORMED[kind])
            # Some of it is complete and has to be answered first.
            while (message := await client.receive()) is not None:
                assert message[2] is not None
            await other.ask("status")
            await host.alive()
            await until(lambda: host.transport.kept == 0 and len(host.transport._connections) == 1)

    asyncio.run(check())


@pytest.mark.parametrize(
    "message",
    [[1, 1, None, {}], [2, "status", []], [0, -1, "status", []], [0, 1, "status"], 5, {"a": 1}, None],
    ids=["a response", "a notification", "an id below 0", "too short", "a number", "a map", "nil"],
)
def test_whoever_sends_what_is_no_request_is_dropped(message: object) -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client:
            client.send([0, 5, "progress", [{"vcpus": 1, "memory_mib": 1, "level": 1000}]], message, [0, 6, "list", []])
            assert (await client.receive())[1] == 5  # it came before
            assert await _ended(client)
            await host.alive()

    asyncio.run(check())


def test_depth_beyond_the_limit_drops_wherever_it_is() -> None:
    deep: object = []
    for _ in range(40):
        deep = [deep]

    async def check() -> None:
        async with door() as host:
            for method, params in (("status", [deep]), ("nonsense", [deep]), ("status", [{}, {"timeout": deep}])):
                async with host.speaker() as client:
                    client.send([0, 1, method, params])
                    assert await _ended(client)
            await host.alive()

    asyncio.run(check())


def test_noise() -> None:
    rng = random.Random(1)

    async def check() -> None:
        async with door() as host:
            for _ in range(100):
                async with host.stranger() as client:
                    if rng.random() < 0.5:
                        await client.ask("hello", *HELLO)
                    data = bytearray(STATUS * 3 if rng.random() < 0.5 else rng.randbytes(200))
                    for _ in range(3):
                        data[rng.randrange(len(data))] = rng.randrange(256)
                    client.raw(bytes(data))
                    client.writer.write_eof()
                    while await client.receive() is not None:
                        pass
            await host.alive()
            await until(lambda: not host.transport._connections)
            assert host.transport.kept == 0
            assert not host.transport._users

    asyncio.run(check())


def test_whoever_does_not_say_hello_is_dropped() -> None:
    async def check() -> None:
        async with (
            door(limits=QUICK) as host,
            host.speaker() as old,
            host.stranger() as silent,
            host.stranger() as half,
        ):
            half.raw(packed([0, 1, "hello", HELLO])[:-1])
            assert await _ended(silent)
            assert await _ended(half)
            await old.ask("status")  # one that is silent after hello may stay

    asyncio.run(check())


def test_whoever_does_not_finish_a_frame_is_dropped() -> None:
    async def check() -> None:
        async with door(limits=QUICK) as host, host.speaker() as client, host.speaker() as drip:
            client.raw(STATUS[:-1])
            dripping = asyncio.create_task(_drip(drip, packed([0, 1, "status", [{"x": "a" * 1000}]])))
            assert await _ended(client)
            assert await _ended(drip)
            dripping.cancel()
            await host.alive()

    asyncio.run(check())


async def _drip(client: Speaker, data: bytes) -> None:
    for at in range(len(data)):
        client.raw(data[at : at + 1])
        await asyncio.sleep(0.02)


def test_one_frame_after_the_other_in_pieces_is_no_harm() -> None:
    async def check() -> None:
        async with door(limits=QUICK) as host, host.speaker() as client:
            data = STATUS * 40
            for at in range(0, len(data), len(STATUS) - 2):
                client.raw(data[at : at + len(STATUS) - 2])
                await asyncio.sleep(0.01)
            for _ in range(40):
                assert (await client.receive())[1] == 7

    asyncio.run(check())


def test_unfinished_frames_are_bounded_over_all() -> None:
    async def check() -> None:
        limits = msgspec.structs.replace(Limits(), kept=4 << 20)
        async with door(limits=limits) as host, AsyncExitStack() as stack, host.speaker() as honest:
            honest.raw(STATUS[:-1])
            clients = [await stack.enter_async_context(host.speaker()) for _ in range(12)]
            frame = packed([0, 1, "status", [{"x": "a" * 900_000}]])
            for client in clients:
                client.raw(frame[:-1])
            ends = [asyncio.create_task(_ended(client)) for client in clients]
            await until(lambda: sum(end.done() for end in ends) == 8)
            await asyncio.sleep(0.05)
            assert sum(end.done() for end in ends) == 8  # four times 900 kB are within 4 MiB
            assert host.transport.kept == sum(each.kept for each in host.transport._connections) <= limits.kept
            honest.raw(STATUS[-1:])
            assert (await honest.receive())[2] is None
            for end in ends:
                end.cancel()

    asyncio.run(check())


@pytest.mark.parametrize("request_", [STATUS, packed([0, 7, "topology", []]), packed([0, 7, "nonsense", []])])
def test_whoever_does_not_read_is_not_read_and_then_dropped(request_: bytes) -> None:
    async def check() -> None:
        limits = msgspec.structs.replace(QUICK, hello=10.0, frame=10.0)
        async with door(limits=limits) as host, host.speaker() as client:
            (connection,) = host.transport._connections
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it can read, too
            client.raw(request_ * (8_000_000 // len(request_)))
            await until(lambda: not connection._reading)
            most = 0
            while connection in host.transport._connections:
                most = max(most, connection.pending)
                await host.alive()
                await asyncio.sleep(0.01)
            assert 0 < most <= limits.mark + 2 * (1 << 16)
            assert host.transport.kept == 0

    asyncio.run(check())


def test_answers_that_nobody_reads_are_bounded_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Internal("x" * (1 << 20))

    async def check() -> None:
        async with door(limits=msgspec.structs.replace(Limits(), pending=8 << 20)) as host, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(host.speaker()) for _ in range(12)]
            monkeypatch.setattr(host.engine, "read", _raise(large))
            for client in clients:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it can read, too
                client.raw(STATUS * 100)
            await until(lambda: len(host.transport._connections) < 12 and not host.transport.busy)
            assert sum(each.pending for each in host.transport._connections) <= 8 << 20
            assert len(host.transport._connections) >= 6
            monkeypatch.undo()
            await host.alive()

    asyncio.run(check())


def _raise(error: Exception) -> object:
    def read(*_: object) -> None:
        raise error

    return read


def test_a_slow_reader_may_stay() -> None:
    async def check() -> None:
        async with door(limits=QUICK) as host, host.speaker() as client:
            client.raw(packed([0, 7, "topology", []]) * 2000)
            for count in range(2000):
                assert (await client.receive())[1] == 7
                if count % 100 == 0:
                    await asyncio.sleep(0.05)

    asyncio.run(check())


def test_too_many_connections_are_refused_at_once() -> None:
    async def check() -> None:
        async with door(limits=Limits(connections=5)) as host, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(host.speaker()) for _ in range(5)]
            async with host.stranger() as client:
                assert await _ended(client)
            await clients[0].ask("status")
            clients[0].writer.close()
            await until(lambda: len(host.transport._connections) == 4)
            await host.alive()

    asyncio.run(check())


@as_root
def test_one_user_cannot_take_all_connections() -> None:
    hold = (
        "import socket, sys\n"
        "held = [socket.socket(socket.AF_UNIX) for _ in range(3)]\n"
        "for each in held: each.connect(sys.argv[1])\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )

    async def check() -> None:
        async with door(limits=Limits(per_user=3)) as host:
            await asyncio.to_thread(host.path.chmod, 0o666)
            command = [sys.executable, "-I", "-c", hold, str(host.path)]
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=STRANGER, group=STRANGER, cwd="/"
            )
            assert process.stdin is not None
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            await until(lambda: host.transport._users[STRANGER] == 3)
            messages = [[0, 1, "hello", HELLO]]
            # Either it reads the end at once, or cannot even write.
            with pytest.raises((AssertionError, subprocess.CalledProcessError)):
                assert await say_as(host.path, messages, uid=STRANGER, gid=STRANGER, groups=[])
            for _ in range(5):
                await host.alive()  # root is not limited
            process.stdin.close()
            await process.wait()
            await until(lambda: STRANGER not in host.transport._users)
            assert await say_as(host.path, messages, uid=STRANGER, gid=STRANGER, groups=[])

    asyncio.run(check())


def test_floods_of_changes_are_held_back() -> None:
    async def check() -> None:
        hypervisor = FaultySim()
        release = asyncio.Event()

        async def plan(operation: str, _name: str) -> None:
            if operation == "create":
                await release.wait()

        hypervisor.plan = plan
        async with door(hypervisor) as host, host.speaker() as client:
            (connection,) = host.transport._connections
            deploys = [
                [0, n, "deploy", [VM | {"name": f"vm{n}", "level": 64000, "memory_mib": 1}]] for n in range(2000)
            ]
            client.send(*deploys)
            await until(lambda: len(connection._calls) == Limits().calls)
            for _ in range(20):
                await host.alive()
            assert len(connection._calls) == Limits().calls
            release.set()
            for _ in deploys:
                await client.receive()

    asyncio.run(check())


# All at once, against a process of its own


@asynccontextmanager
async def _daemon(folder: Path) -> AsyncIterator[tuple[Door, int]]:
    """An engine behind a socket in another process: its path as a door, and its pid."""
    code = (
        f"import asyncio, sys; from tests.transports.rpc import serve\nasyncio.run(serve(sys.argv[1], {SMALL_HOST!r}))"
    )
    path = folder / "s"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"ready\n"
        yield Door(None, None, path), process.pid  # type: ignore[arg-type]  # both are elsewhere
    finally:
        process.terminate()
        await process.wait()


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def test_a_crowd_of_them_costs_little_and_others_are_served(tmp_path: Path) -> None:
    async def check() -> None:
        async with _daemon(tmp_path) as (host, pid), AsyncExitStack() as stack:
            await host.alive()
            before = _resident_mib(pid)
            for _ in range(1000):
                await stack.enter_async_context(host.speaker())
            idle = _resident_mib(pid)
            assert idle - before < 40
            half = packed([0, 1, "status", [{"x": "a" * 1_000_000}]])[:-1]
            dense = b"\x94\x00\x01\xa1x\x91" + b"\x92\x90" * 20
            for number in range(200):
                client = await stack.enter_async_context(host.speaker())
                client.raw((half, dense, STATUS * 20_000)[number % 3])
            unread = await stack.enter_async_context(host.speaker())
            unread.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it can read, too
            unread.raw(packed([0, 1, "topology", []]) * 50_000)
            loop = asyncio.get_running_loop()
            slowest = 0.0
            async with host.speaker() as honest:
                for number in range(300):
                    if number % 3 == 0:
                        async with host.stranger() as bad:
                            bad.raw(list(MALFORMED.values())[number % len(MALFORMED)])
                            await asyncio.sleep(0)
                    begin = loop.time()
                    await honest.ask("status")
                    slowest = max(slowest, loop.time() - begin)
            assert slowest < 2.0
            assert _resident_mib(pid) - before < 200
            await host.alive()

    asyncio.run(check())


def test_a_frame_full_of_small_values_does_not_cost_a_hundred_times_its_size(tmp_path: Path) -> None:
    async def check() -> None:
        async with _daemon(tmp_path) as (host, pid), AsyncExitStack() as stack:
            await host.alive()
            before = _resident_mib(pid)
            row = packed([[]] * wire.MAX_ITEMS)
            frame = packed([0, 1, "status", []])[:-1] + b"\xdc\x00\x40" + (b"\xdc\x00\x40" + row * 64) * 64
            for _ in range(50):
                client = await stack.enter_async_context(host.speaker())
                client.raw(frame[:-1])
                assert await _ended(client)
            assert _resident_mib(pid) - before < 30
            await host.alive()

    asyncio.run(check())
