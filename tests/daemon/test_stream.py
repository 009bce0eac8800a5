"""What a client in any language gets over the Unix socket."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import grp
import itertools
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faulty import FaultySim
from tests.running import PATIENCE, ROOT
from tests.transports.endpoint import until
from tests.transports.rpc import HELLO, STRANGER, VM, as_root, door, say_as
from vmstackd.api.caller import Role
from vmstackd.api.session import VmGone
from vmstackd.daemon import peers
from vmstackd.daemon.feed import MOST_EVENTS
from vmstackd.daemon.stream import ListenError, listen

PROGRESS = {"vcpus": 2, "memory_mib": 4096, "level": 2000}


class Held:
    """A hypervisor that starts no VM until it may."""

    def __init__(self) -> None:
        self.hypervisor = FaultySim()
        self.hypervisor.plan = self._plan
        self.release = asyncio.Event()

    async def _plan(self, operation: str, _name: str) -> None:
        if operation == "create":
            await self.release.wait()


# Operations


def test_every_operation() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client:
            assert await client.ask("deploy", VM | {"dry_run": True}) == {
                "name": "one",
                "level": 2000,
                "cpus": [0, 8],
                "dry_run": True,
                "generation": 0,
                "host": "",
                "score": None,
            }
            assert (await client.ask("deploy", VM))["cpus"] == [0, 8]
            assert list(await client.ask("progress", PROGRESS)) == ["progress", "host", "hosts"]
            status = await client.ask("status")
            assert (status["host"]["vms"], status["host"]["levels"][0]["vcpus"]) == (1, 2)
            vm = VM | {"cpus": [0, 8], "pinned": [0, 8], "state": "running", "host": "", "usage": None}
            assert await client.ask("list") == {"vms": [vm]}
            assert await client.ask("describe", {"name": "one"}) == vm
            assert len((await client.ask("topology", {}))["cpus"]) == 16
            removed = await client.ask("remove", {"name": "one"}, {"timeout": 30.0, "request_id": "r-1"})
            assert (removed["name"], removed["released"], removed["dry_run"]) == ("one", [0, 8], False)
            assert removed["generation"] > status["host"]["generation"]
            assert await client.ask("ping") == {}
            cordoned = await client.ask("cordon", {"reason": "disk"})
            assert cordoned == {"cordoned": True, "reason": "disk", "host": ""}
            assert not (await client.ask("uncordon"))["cordoned"]
            assert "there is no method 'hosts'" in (await client.refusal("hosts"))["message"]

    asyncio.run(check())


def test_errors_are_maps_for_programs_and_text_for_people() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client:
            error = await client.refusal("describe", {"name": "nobody"})
            assert error == {
                "code": "NotFound",
                "message": "'nobody' does not exist on this host",
                "retryable": False,
                "details": {},
            }
            error = await client.refusal("deploy", VM | {"vcpus": 99})
            assert error["code"] == "NoCapacity"
            assert error["details"]["needed"] == 99
            error = await client.refusal("progress", PROGRESS | {"level": 1})
            assert (error["code"], error["details"]) == ("InvalidRequest", {"field": "level"})
            error = await client.refusal("progress", PROGRESS | {"cpu": 1})
            assert (error["code"], error["details"]) == ("InvalidRequest", {"field": "cpu"})
            error = await client.refusal("destroy", {"name": "one"})
            assert "subscribe" in error["message"]
            await client.ask("status")

    asyncio.run(check())


def test_calls_are_logged_with_their_number_or_the_callers_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vmstack")

    async def check() -> None:
        async with door() as host, host.speaker() as client:
            await client.ask("deploy", VM)
            await client.ask("remove", {"name": "one"}, {"request_id": "mine.1"})

    asyncio.run(check())
    fields = [vars(record)["fields"] for record in caplog.records if record.message in ("deploy", "remove")]
    assert [field["request"] for field in fields] == ["unix-1", "mine.1"]
    assert fields[0]["caller"] == f"unix:{peers.user_peer(os.geteuid()).user}[{os.getpid()}]"


def test_very_many_calls_in_one_piece_are_all_answered() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client:
            client.send(*([0, 1000 + n, "progress", [PROGRESS]] for n in range(3000)))
            answers = [await client.receive() for _ in range(3000)]
            assert [answer[1] for answer in answers] == [1000 + n for n in range(3000)]
            assert {answer[2] for answer in answers} == {None}

    asyncio.run(check())


def test_an_engine_that_has_not_started_yet_answers_when_it_has() -> None:
    async def check() -> None:
        async with door(start=False) as host, host.speaker() as client:
            client.send([0, 5, "status", []], [0, 6, "status", [{}, {"timeout": 0.05}]])
            assert (await client.receive())[2]["code"] == "DeadlineExceeded"
            await host.engine.start()
            assert (await client.receive())[:3] == [1, 5, None]
            await host.engine.stop()

    asyncio.run(check())


# Hello


def test_hello_introduces_both() -> None:
    async def check() -> None:
        async with door() as host, host.stranger() as client:
            hello = await client.ask("hello", {"versions": [1, 7, 99], "client": "test"})
            assert hello["version"] == 1
            assert hello["program"] == "vmstackd"
            assert hello["role"] == "operator"
            assert hello["host"] == socket.gethostname()
            error = await client.refusal("hello", *HELLO)
            assert error["code"] == "InvalidRequest"
            await client.ask("status")

    asyncio.run(check())


@pytest.mark.parametrize(
    ("method", "params", "text"),
    [
        ("status", [], "the first call must be hello"),
        ("deploy", [VM], "the first call must be hello"),
        ("nonsense", [], "the first call must be hello"),
        ("hello", [], "versions: missing"),
        ("hello", [{"versions": "1"}], "versions: expected array"),
        ("hello", [{"versions": [1], "secret": 1}], "no field 'secret'"),
        ("hello", [{"versions": [7, 99]}], "the client speaks 7, 99, vmstackd 0"),
        ("hello", [{"versions": []}], "the client speaks none"),
    ],
)
def test_whoever_does_not_begin_with_hello_is_told_so_and_dropped(method: str, params: list[object], text: str) -> None:
    async def check() -> None:
        async with door() as host, host.stranger() as client:
            client.send([0, 1, method, params], [0, 2, "status", []])
            kind, msgid, error, result = await client.receive()
            assert (kind, msgid, result) == (1, 1, None)
            assert error["code"] == "InvalidRequest"
            assert text in error["message"]
            assert await client.receive() is None
            await host.alive()
            assert host.engine.status().host.vms == 0

    asyncio.run(check())


# Roles


@as_root
def test_what_the_kernel_says_of_another_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {peers.READERS: 4201, peers.OPERATORS: 4202}

    def known(name: str) -> grp.struct_group:
        return grp.struct_group((name, "x", groups[name], []))

    monkeypatch.setattr(grp, "getgrnam", known)
    messages = [[0, 1, "hello", HELLO], [0, 2, "status", []], [0, 3, "remove", [{"name": "one", "dry_run": True}]]]

    async def check() -> None:
        async with door() as host:
            host.path.chmod(0o666)
            await host.engine.start()
            async with host.speaker() as client:
                await client.ask("deploy", VM)

            async def say(*groups: int, gid: int = STRANGER) -> list[Any]:
                return await say_as(host.path, messages, uid=STRANGER, gid=gid, groups=list(groups))

            (denied,) = await say()
            assert denied[2]["code"] == "Denied"
            hello, status, remove = await say(4201)
            assert hello[3]["role"] == "reader"
            assert status[2] is None
            assert remove[2]["code"] == "Denied"
            hello, status, *_ = await say(4202)
            assert hello[3]["role"] == "operator"
            hello, *_ = await say(gid=4201)
            assert hello[3]["role"] == "reader"

    asyncio.run(check())


@as_root
def test_other_users_cannot_even_connect() -> None:
    async def check() -> None:
        async with door() as host:
            assert stat.S_IMODE(host.path.stat().st_mode) == 0o660
            with pytest.raises(subprocess.CalledProcessError) as caught:
                await say_as(host.path, [[0, 1, "hello", HELLO]], uid=STRANGER, gid=STRANGER, groups=[])
            assert "PermissionError" in caught.value.stderr

    asyncio.run(check())


def test_the_role_is_asked_for_at_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with door() as host:
            monkeypatch.setattr("vmstackd.daemon.callers.role_of", lambda _: Role.NOBODY)
            async with host.stranger() as client:
                error = await client.refusal("hello", *HELLO)
                assert error["code"] == "Denied"
                assert "group vmstack" in error["message"]
                assert await client.receive() is None
            monkeypatch.setattr("vmstackd.daemon.callers.role_of", lambda _: Role.READER)
            async with host.stranger() as client:
                assert (await client.ask("hello", *HELLO))["role"] == "reader"
                assert (await client.refusal("deploy", VM))["code"] == "Denied"
                await client.ask("list")

    asyncio.run(check())


# Several calls at once


def test_a_slow_deployment_delays_nobody() -> None:
    async def check() -> None:
        held = Held()
        async with door(held.hypervisor) as host, host.speaker() as client:
            client.send([0, 50, "deploy", [VM]], [0, 51, "progress", [PROGRESS]])
            assert (await client.receive())[1] == 51
            client.send([0, 52, "list", []])
            assert (await client.receive())[3]["vms"][0]["state"] == "starting"
            held.release.set()
            assert (await client.receive())[:3] == [1, 50, None]

    asyncio.run(check())


def test_a_deadline_ends_the_waiting_but_not_the_change() -> None:
    async def check() -> None:
        held = Held()
        async with door(held.hypervisor) as host, host.speaker() as client:
            error = await client.refusal("deploy", VM, {"timeout": 0.05, "request_id": "late"})
            assert (error["code"], error["retryable"]) == ("DeadlineExceeded", True)
            assert "late" in error["message"]
            held.release.set()
            await until(lambda: host.engine.status().host.vms == 1 and "one" in held.hypervisor.vms)
            assert (await client.refusal("deploy", VM))["code"] == "AlreadyExists"

    asyncio.run(check())


def test_a_change_goes_on_when_its_caller_hangs_up() -> None:
    async def check() -> None:
        held = Held()
        async with door(held.hypervisor) as host:
            async with host.speaker() as client:
                client.send([0, 50, "deploy", [VM]])
                await until(lambda: host.engine.status().host.vms == 1)
            held.release.set()
            await until(lambda: "one" in held.hypervisor.vms)
            await host.alive()

    asyncio.run(check())


def test_calls_beyond_those_in_progress_wait_their_turn() -> None:
    async def check() -> None:
        held = Held()
        async with door(held.hypervisor) as host, host.speaker() as client:
            calls = host.transport.limits.calls
            for number in range(calls + 20):
                vm = VM | {"name": f"vm{number}", "vcpus": 1, "memory_mib": 1, "level": 64000}
                client.send([0, number, "deploy", [vm]])
            client.send([0, 9999, "progress", [PROGRESS]])
            await until(lambda: host.engine.status().host.vms == calls)
            async with host.speaker() as other:  # by now the first connection would have been served
                assert (await other.ask("status"))["host"]["vms"] == calls
            held.release.set()
            answers = [await client.receive() for _ in range(calls + 21)]
            assert {answer[1] for answer in answers} == {*range(calls + 20), 9999}

    asyncio.run(check())


# Subscribers


def test_a_subscriber_is_told_what_is_and_what_happens() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client, host.speaker() as other:
            assert await client.ask("subscribe") == {"names": []}
            kind, method, (status,) = await client.receive()
            assert (kind, method, status["host"]["vms"]) == (2, "status", 0)
            await other.ask("deploy", VM)
            seen = [await client.receive(), await client.receive()]
            pushed = {method: params[0] for _, method, params in seen}
            assert pushed["event"]["event"] == "deployed"
            assert pushed["event"]["name"] == "one"
            assert pushed["event"]["cpus"] == [0, 8]
            assert pushed["status"] == await other.ask("status")
            assert (await client.refusal("subscribe"))["code"] == "InvalidRequest"
            await client.ask("progress", PROGRESS)

    asyncio.run(check())


def test_statuses_are_gathered_and_none_comes_twice() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client, host.speaker() as other:
            await client.ask("subscribe")
            await client.receive()
            for _ in range(50):
                host.engine.feed.touch()  # nothing has really changed
                await asyncio.sleep(0)
            for number in range(100):
                await other.ask("deploy", VM | {"name": f"vm{number}", "vcpus": 1, "memory_mib": 1, "level": 64000})
            statuses: list[Any] = []
            events = 0
            while not statuses or statuses[-1]["host"]["vms"] < 100:
                _, method, (content,) = await client.receive()
                if method == "status":
                    statuses.append(content)
                else:
                    events += 1
            assert all(first != second for first, second in itertools.pairwise(statuses))
            assert len(statuses) < 60
            while events < 100:
                assert (await client.receive())[1] == "event"
                events += 1

    asyncio.run(check())


def test_subscribers_to_usage_get_a_status_after_each_round_and_others_do_not() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client, host.speaker() as other, host.speaker() as third:
            await other.ask("subscribe")
            assert (await other.receive())[2][0]["usage"] is None
            await client.ask("subscribe", {"usage": True})
            assert (await client.receive())[2][0]["usage"] is None
            times = []
            for _ in range(3):
                await host.engine.sampler.measure()
                kind, method, (status,) = await client.receive()
                assert (kind, method) == (2, "status")
                times.append(status["usage"]["time"])
            assert times == sorted(set(times))
            assert (await third.ask("status"))["usage"] == status["usage"]
            await third.ask("deploy", VM)
            told = {method: content for _, method, (content,) in [await other.receive(), await other.receive()]}
            assert set(told) == {"event", "status"}, "nothing came of the rounds before"
            assert told["status"]["usage"] is None

    asyncio.run(check())


def test_a_subscriber_that_does_not_read_learns_how_much_it_missed() -> None:
    async def check() -> None:
        async with door() as host, host.speaker() as client:
            await client.ask("subscribe")
            await client.receive()
            (connection,) = (each for each in host.transport._connections if each._subscriber is not None)
            sent = 0
            while not host.transport.stalled or sent < 5 * MOST_EVENTS:
                host.engine.feed.publish(VmGone(time=0.0, name="x" * 2000))
                sent += 1
                if sent % 500 == 0 or sent < MOST_EVENTS:
                    await asyncio.sleep(0)
            assert connection.pending < 4 << 20
            events = missed = 0
            while events + missed < sent:
                _, method, (content,) = await client.receive()
                if content.get("event") == "missed":
                    missed += content["count"]
                elif method == "event":
                    events += 1
            assert events + missed == sent
            assert missed > 0

    asyncio.run(check())


def test_a_subscription_ends_with_its_connection() -> None:
    async def check() -> None:
        async with door() as host:
            before = len(host.engine.feed._subscriptions)
            async with host.speaker() as client:
                await client.ask("subscribe")
                await client.receive()
                assert len(host.engine.feed._subscriptions) == before + 1
            await until(lambda: len(host.engine.feed._subscriptions) == before)

    asyncio.run(check())


# The end


def test_a_client_that_says_all_at_once_and_no_more_gets_its_answers() -> None:
    async def check() -> None:
        held = Held()
        async with door(held.hypervisor) as host, host.stranger() as client:
            client.send([0, 1, "hello", HELLO], [0, 2, "deploy", [VM]], [0, 3, "status", []])
            client.writer.write_eof()
            assert [(await client.receive())[1] for _ in range(2)] == [1, 3]
            held.release.set()
            assert (await client.receive())[:3] == [1, 2, None]
            assert await client.receive() is None

    asyncio.run(check())


def test_stopping_waits_a_moment_for_what_is_in_progress() -> None:
    async def check() -> None:
        held = Held()
        async with door(held.hypervisor) as host, host.speaker() as client:
            client.send([0, 50, "deploy", [VM]])
            await until(lambda: host.engine.status().host.vms == 1)
            asyncio.get_running_loop().call_later(0.1, held.release.set)
            await host.transport.stop()
            assert (await client.receive())[:3] == [1, 50, None]
            assert await client.receive() is None
            assert not host.path.exists()

    asyncio.run(check())


# Listening


def test_the_socket_file_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path, "root") as listener:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert not listener.get_inheritable()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()
    listener.close()  # once more does no harm
    listen(path, "root").close()


@as_root
def test_the_group_gets_it(tmp_path: Path) -> None:
    with listen(tmp_path / "s", "daemon"):
        assert (tmp_path / "s").stat().st_gid == grp.getgrnam("daemon").gr_gid


def test_a_group_that_is_not_there_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listen(tmp_path / "s", "no-such-group"):
        assert (tmp_path / "s").stat().st_gid == os.getegid()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    assert [record.message for record in caplog.records] == ["socket-group-missing"]


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    assert (tmp_path / "s").exists()
    with listen(tmp_path / "s", "root"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_a_socket_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/elsewhere")
    before = path.lstat()
    with pytest.raises(ListenError, match="not a socket"):
        listen(path, "root")
    assert path.lstat() == before


def test_a_second_daemon_is_told_who_is_first(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path, "root"):
        name = Path("/proc/self/comm").read_text().strip()
        with pytest.raises(ListenError) as caught:
            listen(path, "root")
        assert f"process {os.getpid()} ({name}) has it" in str(caught.value)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # it has not been harmed
    listen(path, "root").close()


def test_a_lock_without_a_socket_is_respected(tmp_path: Path) -> None:
    with (tmp_path / "s.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ListenError, match="another process has it"):
            listen(tmp_path / "s", "root")


def test_the_next_daemon_may_listen_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vmstackd.daemon.unix_socket import listen\n"
        "kept = listen(Path(sys.argv[1]), 'root'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], cwd=ROOT, timeout=PATIENCE, check=False)
    assert (tmp_path / "s").exists()
    listen(tmp_path / "s", "root").close()


def test_another_ones_socket_is_not_taken_away(tmp_path: Path) -> None:
    listener = listen(tmp_path / "s", "root")
    (tmp_path / "s").rename(tmp_path / "moved")
    (tmp_path / "s").write_text("another")
    listener.close()
    assert (tmp_path / "s").read_text() == "another"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("missing/s", "the folder .*missing does not exist; make it: install -d"),
        ("n" * 200, "at most 107 bytes"),
    ],
)
def test_a_path_that_cannot_be_used_is_explained_in_one_line(path: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=text) as caught:
        listen(tmp_path / path, "root")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ListenError, match="absolute"):
        listen(Path("s"), "root")


def test_a_system_without_room_for_connections_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        monkeypatch.setattr("vmstackd.daemon.stream.ACCEPT_PAUSE", 0.05)
        async with door() as host, host.speaker() as old:
            real, failures = host.transport._listener, 0

            class Full:
                """A listener of a process that has all the descriptors it may have."""

                def accept(self) -> None:
                    nonlocal failures
                    failures += 1
                    raise OSError(errno.EMFILE, "Too many open files")

                def fileno(self) -> int:
                    return real.fileno()

                def close(self) -> None:
                    real.close()

            monkeypatch.setattr(host.transport, "_listener", Full())
            async with host.stranger() as new:
                new.send([0, 1, "hello", HELLO])
                await until(lambda: failures >= 2)
                await old.ask("status")
                assert failures < 100
                monkeypatch.setattr(host.transport, "_listener", real)
                assert (await new.receive())[2] is None

    asyncio.run(check())
