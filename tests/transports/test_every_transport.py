"""One conversation over every transport: the same replies, and the same errors in each one's dialect."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, get_args
from urllib.parse import urlencode

import msgspec
import pytest

from core.level import format_level
from tests.faulty import OPERATOR
from tests.running import PATIENCE
from tests.transports.bus import NOBODY, measured_sim, running_bus
from tests.transports.endpoint import Endpoint, endpoint
from vmstackd.api import errors, replies, requests
from vmstackd.client import Client
from vmstackd.daemon.operations import operation_of
from vmstackd.daemon.stream import StreamTransport
from vmstackd.daemon.tcp import listen as listen_tcp
from vmstackd.daemon.unix_socket import listen
from vmstackd.engine import Engine
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.transports.dbus import DbusTransport

Answer = tuple[str, object]
"""("ok", the reply as plain values) or (the code of the error, its message)."""


@pytest.fixture(scope="module")
def bus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_bus(tmp_path_factory.mktemp("bus")) as bus:
        yield bus.address


class Door(Protocol):
    """One way to an engine."""

    @property
    def engine(self) -> Engine:
        """Which."""

    async def ask(self, request: requests.Request) -> Answer:
        """Have it handled."""


def as_json(reply: replies.Reply) -> object:
    """Lists instead of tuples, and nothing but plain values."""
    return msgspec.json.decode(msgspec.json.encode(reply))


class Inproc:
    """Without any transport: what the others are compared with."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def ask(self, request: requests.Request) -> Answer:
        try:
            return "ok", as_json(await self.engine.handle(request, OPERATOR, "test"))
        except errors.VmstackError as error:
            return error.code, error.message


class Rpc:
    def __init__(self, engine: Engine, client: Client) -> None:
        self.engine = engine
        self._client = client

    async def ask(self, request: requests.Request) -> Answer:
        try:
            return "ok", as_json(await getattr(self._client, operation_of(request))(request))
        except errors.VmstackError as error:
            return error.code, error.message


class Dbus:
    """busctl, as a user has it. Answers are dictionaries of the bus turned into plain values."""

    def __init__(self, engine: Engine, address: str) -> None:
        self.engine = engine
        self._address = address

    async def ask(self, request: requests.Request) -> Answer:
        code, out, err = await self.call(*_on_the_bus(request))
        if code:
            name, _, text = err.partition("Call failed: ")
            return await self._code(request), text.strip() if text else name
        return "ok", _plain(json.loads(out)["data"]) if out else []

    async def call(self, *words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            "busctl",
            f"--address={self._address}",
            "--json=short",
            "call",
            "org.vmstack.Host1",
            "/org/vmstack/Host1",
            "org.vmstack.Host1",
            *words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        return process.returncode or 0, out.decode(), err.decode()

    async def _code(self, request: requests.Request) -> str:
        """busctl shows the text of an error only; its name is seen with dbus-send."""
        words = _on_the_bus(request)
        if len(words) < 2 or "v" in words[1]:
            return "?"  # not written so for dbus-send
        kinds = {"s": "string", "u": "uint32", "d": "double", "b": "boolean"}
        process = await asyncio.create_subprocess_exec(
            "dbus-send",
            f"--bus={self._address}",
            "--print-reply",
            "--dest=org.vmstack.Host1",
            "/org/vmstack/Host1",
            f"org.vmstack.Host1.{words[0]}",
            *(f"{kinds[kind]}:{word}" for kind, word in zip(words[1], words[2:], strict=True)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        return err.decode().removeprefix("Error org.vmstack.Error.").partition(":")[0]


def _on_the_bus(request: requests.Request) -> list[str]:
    match request:
        case requests.Deploy(dry_run=False):
            size = [str(request.vcpus), repr(request.memory_mib / 1024), format_level(request.level)]
            return ["Deploy", "sudds", request.name, *size, request.image]
        case requests.Deploy():
            fields = {"name": "s", "vcpus": "x", "memory_mib": "x", "level": "x", "image": "s", "dry_run": "b"}
            words = [word for name, kind in fields.items() for word in (name, kind, _word(getattr(request, name)))]
            return ["DeployWithOptions", "a{sv}", str(len(fields)), *words]
        case requests.Remove(dry_run=False):
            return ["Remove", "s", request.name]
        case requests.Remove():
            return ["RemoveWithOptions", "sa{sv}", request.name, "1", "dry_run", "b", "true"]
        case requests.Cordon():
            return ["Cordon", "s", request.reason]
        case requests.Check():
            return ["Check", "b", _word(request.dry_run)]
        case requests.Progress():
            size = [str(request.vcpus), repr(request.memory_mib / 1024), format_level(request.level)]
            return ["Progress", "udd", *size]
        case requests.Describe():
            return ["Describe", "s", request.name]
        case _:
            return [type(request).__name__]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever busctl printed
    """Without the types that busctl tells of each variant."""
    if isinstance(value, dict) and set(value) == {"type", "data"}:
        return _plain(value["data"])
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class Http:
    """As far as the prototype's calls go: it knew no cordon, for example."""

    def __init__(self, http: Endpoint) -> None:
        self.engine = http.engine
        self._http = http

    async def ask(self, request: requests.Request) -> Answer:
        target = _target(request)
        if target is None:
            return "?", None
        answer = await self._http.get(target)
        if answer.status == 200:
            return "ok", answer.json
        return answer.json["error"], answer.json["message"]


def _target(request: requests.Request) -> str | None:
    match request:
        case requests.Deploy(dry_run=False) | requests.Progress():
            given = {"cpu": request.vcpus, "mem": repr(request.memory_mib / 1024), "oc": format_level(request.level)}
            if isinstance(request, requests.Progress):
                return f"/progress?{urlencode(given)}"
            return "/deploy?" + urlencode({"name": request.name, **given, "qcow2": request.image})
        case requests.Remove(dry_run=False):
            return f"/remove?{urlencode({'name': request.name})}"
        case requests.Status():
            return "/status"
        case requests.List():
            return "/listvm"
        case _:
            return None


Opening = Callable[[Path, str], AbstractAsyncContextManager[Door]]


@asynccontextmanager
async def inproc(_directory: Path, _bus: str) -> AsyncIterator[Door]:
    async with endpoint(measured_sim()) as http:
        yield Inproc(http.engine)


@asynccontextmanager
async def unix(directory: Path, _bus: str) -> AsyncIterator[Door]:
    path = directory / "s"
    async with endpoint(measured_sim()) as http:
        transport = StreamTransport(http.engine, listen(path, "vmstack"))
        await transport.start()
        async with await Client.connect(str(path), program="test", timeout=PATIENCE) as client:
            yield Rpc(http.engine, client)
        await transport.stop()


@asynccontextmanager
async def tcp(_directory: Path, _bus: str) -> AsyncIterator[Door]:
    async with endpoint(measured_sim()) as http:
        transport = StreamTransport(http.engine, listen_tcp("127.0.0.1", 0, None))
        await transport.start()
        async with await Client.connect(transport.address, program="test", timeout=PATIENCE) as client:
            yield Rpc(http.engine, client)
        await transport.stop()


@asynccontextmanager
async def http(_directory: Path, _bus: str) -> AsyncIterator[Door]:
    async with endpoint(measured_sim()) as host:
        yield Http(host)


@asynccontextmanager
async def dbus(_directory: Path, bus: str) -> AsyncIterator[Door]:
    async with endpoint(measured_sim()) as host:
        transport = DbusTransport(host.engine, bus)
        await transport.start()
        yield Dbus(host.engine, bus)
        await transport.stop()


OPENINGS: dict[str, Opening] = {"inproc": inproc, "unix": unix, "tcp": tcp, "http": http, "dbus": dbus}


def deploy(
    name: str, vcpus: int = 2, level: int = 2000, *, memory_mib: int = 1536, dry_run: bool = False
) -> requests.Deploy:
    return requests.Deploy(
        name=name, vcpus=vcpus, memory_mib=memory_mib, level=level, image="/images/a.qcow2", dry_run=dry_run
    )


CONVERSATION: tuple[requests.Request, ...] = (
    requests.Status(),
    requests.List(),
    requests.Topology(),
    requests.Progress(vcpus=2, memory_mib=1536, level=2000),
    deploy("würzburg 1", dry_run=True),
    deploy("würzburg 1"),
    deploy("b", 3, 1500),
    deploy("b"),
    deploy("big", 99),
    deploy("heavy", memory_mib=1 << 29),
    deploy("bad/name"),
    deploy("low", level=999),
    deploy("none", 0),
    requests.Progress(vcpus=99, memory_mib=1536, level=2000),
    requests.Progress(vcpus=1, memory_mib=0, level=2000),
    requests.Describe(name="würzburg 1"),
    requests.Describe(name="ghost"),
    requests.Status(),
    requests.List(),
    requests.Topology(),
    requests.Remove(name="b", dry_run=True),
    requests.Remove(name="b"),
    requests.Remove(name="b"),
    requests.Remove(name=""),
    requests.Status(),
    requests.Cordon(reason="a\nb"),
)
CORDONED: tuple[requests.Request, ...] = (
    requests.Check(dry_run=True),
    requests.Check(),
    requests.Cordon(reason="Lüfter, Reihe 3"),
    requests.Status(),
    deploy("late"),
    requests.Progress(vcpus=2, memory_mib=1536, level=2000),
    requests.Remove(name="würzburg 1"),
    requests.Cordon(),
    requests.Status(),
    requests.Uncordon(),
    requests.Uncordon(),
    requests.Status(),
    deploy("late"),
    requests.Remove(name="late"),
    requests.List(),
)
"""The end of the conversation over transports that know it."""


async def conversation(opening: Opening, directory: Path, bus: str) -> list[Answer]:
    async with opening(directory, bus) as door:
        return [await door.ask(request) for request in (*CONVERSATION, *CORDONED)]


def alike(code: str, message: object) -> str:
    """What must be the same; where people write levels as decimals, what is wrong is said of their text."""
    return str(message).partition(":")[0] if code == "InvalidRequest" else str(message)


def known(value: Any) -> Any:  # noqa: ANN401  plain values
    """Without what is None, for which the bus has no value."""
    if isinstance(value, dict):
        return {key: known(item) for key, item in value.items() if item is not None}
    return [known(item) for item in value] if isinstance(value, list) else value


def same_on_the_bus(request: requests.Request, expected: Answer, got: Answer) -> None:
    """Plain methods answer less than those with dictionaries do."""
    code, value = expected
    if code != "ok":
        assert (got[0], alike(code, got[1])) == (code if got[0] != "?" else "?", alike(code, value)), request
        return
    reply: Any = value
    for name in ("score", *(["host"] if reply.get("host") == "" else [])):  # a cluster would fill them
        reply.pop(name, None)
    assert got[0] == "ok", (request, got)
    results: Any = got[1]
    if isinstance(request, requests.Cordon | requests.Uncordon):
        assert results == []
        return
    answer = results[0]
    match request:
        case requests.Deploy(dry_run=False):
            assert answer == reply["cpus"]
        case requests.Remove(dry_run=False):
            assert answer == reply["released"]
        case requests.Progress():
            assert answer == reply["progress"]
        case requests.List():
            assert [tuple(vm[:5]) for vm in answer] == [
                (vm["name"], vm["vcpus"], vm["level"] / 1000, vm["memory_mib"], vm["state"]) for vm in reply["vms"]
            ]
        case requests.Status():
            host = reply.pop("host")
            assert answer == known(host | reply)
        case _:
            assert answer == known(reply)


def same_over_http(request: requests.Request, expected: Answer, got: Answer) -> None:
    """As much as the prototype's answers say, in its words for the fields."""
    code, value = expected
    if got == ("?", None):
        return
    if code != "ok":
        ours = {"vcpus": "cpu", "memory_mib": "mem", "level": "oc", "image": "qcow2"}
        field, _, rest = str(value).partition(":")
        said = f"{ours.get(field, field)}:{rest}" if rest else value
        assert (code, alike(code, said)) == (got[0], alike(code, got[1])), request
        return
    reply: Any = value
    answer: Any = got[1]
    match request:
        case requests.Progress():
            assert answer == {"progress": reply["progress"]}
        case requests.List():
            assert answer == [vm["name"] for vm in reply["vms"]]
        case requests.Status():
            assert (answer["cpu"]["avail"], answer["mem"]["avail"]) == (
                reply["host"]["free_cpus"],
                reply["host"]["free_mib"],
            )
            assert [level["palloc"] for level in answer["cpu"]["subset"].values()] == [
                level["vcpus"] for level in reply["host"]["levels"]
            ]
        case _:
            assert answer == {"success": True, "reason": None}


def test_the_whole_api_is_the_same_over_every_transport(tmp_path: Path, bus_address: str) -> None:
    heard = {name: asyncio.run(conversation(opening, tmp_path, bus_address)) for name, opening in OPENINGS.items()}
    codes = {code for code, _ in heard["inproc"]}
    assert codes == {"ok", "NoCapacity", "AlreadyExists", "InvalidRequest", "NotFound", "Cordoned"}
    assert heard["unix"] == heard["tcp"] == heard["inproc"]
    for request, expected, over_http in zip(CONVERSATION, heard["inproc"], heard["http"], strict=False):
        same_over_http(request, expected, over_http)
    for request, expected, on_the_bus in zip((*CONVERSATION, *CORDONED), heard["inproc"], heard["dbus"], strict=True):
        same_on_the_bus(request, expected, on_the_bus)


def without_time(answer: Answer) -> Any:  # noqa: ANN401  plain values
    """A status or VM with its measurements, but for the clock's time of these."""
    code, value = answer
    assert code == "ok"
    found: Any = value[0] if isinstance(value, list) else value
    found["usage"].pop("time", None)
    return found


async def measurements(opening: Opening, directory: Path, bus: str) -> list[Any]:
    """Of the host and of a VM: before there is something to compare them with, and after."""
    async with opening(directory, bus) as door:
        for request in (deploy("würzburg 1"), deploy("b", 3, 1500)):
            assert (await door.ask(request))[0] == "ok"
        found = []
        for _ in range(2):
            await door.engine.sampler.measure()
            found += [without_time(await door.ask(request)) for request in (requests.Status(), requests.Describe("b"))]
        return found


def test_measurements_are_the_same_over_every_transport_that_tells_them(tmp_path: Path, bus_address: str) -> None:
    heard = {
        name: asyncio.run(measurements(opening, tmp_path, bus_address))
        for name, opening in OPENINGS.items()
        if name != "http"  # the prototype measured nothing
    }
    first, vm_first, second, vm = heard["inproc"]
    assert (first["usage"]["busy_cpus"], vm_first["usage"]["busy_cpus"]) == (None, None)
    assert first["usage"]["memory_mib"] == 65536
    assert second["usage"]["seconds"] == 15.0
    assert second["usage"]["busy_cpus"] > 0
    assert [level["level"] for level in second["usage"]["levels"]] == [2000, 1500]
    assert all(level["delay_p99"] is not None for level in second["usage"]["levels"])
    assert 0 < vm["usage"]["busy_cpus"] <= 3
    assert heard["unix"] == heard["tcp"] == heard["inproc"]
    for expected, got in zip(heard["inproc"], heard["dbus"], strict=True):
        figures = expected.pop("host") or {}  # of a VM, only a cluster tells it
        assert got == known(figures | expected)


def test_every_operation_is_in_the_conversation() -> None:
    assert {type(request) for request in (*CONVERSATION, *CORDONED)} == Engine.accepted


SPEAK = """
import json, socket, sys, msgpack
path = sys.argv[1]
with socket.create_connection(("127.0.0.1", int(path))) if path.isdigit() else socket.socket(socket.AF_UNIX) as s:
    if s.family == socket.AF_UNIX:
        s.connect(path)
    s.sendall(msgpack.packb([0, 1, "hello", [{"versions": [1]}]]) + msgpack.packb([0, 2, *json.loads(sys.argv[2])]))
    answers = msgpack.Unpacker()
    seen = {}
    while 2 not in seen and (data := s.recv(65536)):
        answers.feed(data)
        for _, number, error, result in answers:
            seen[number] = (error or {}).get("code", "ok")
print(json.dumps(seen))
"""
"""What a stranger sends to the Unix socket, or to a TCP port."""

CHANGES: tuple[requests.Change, ...] = (
    deploy("new"),
    requests.Remove(name="here"),
    requests.Cordon(reason="none of your business"),
    requests.Uncordon(),
    requests.Check(),
)


def test_the_changes_that_are_tried_are_all_there_are() -> None:
    assert {type(change) for change in CHANGES} == set(get_args(requests.Change)) & Engine.accepted


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_an_unprivileged_user_is_refused_every_change_on_every_transport(
    change: requests.Change, bus_address: str
) -> None:
    """A real process of another user at each door; tests/transports/test_dbus_authority.py walks all of D-Bus."""

    async def as_nobody(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *words, user=NOBODY, group=NOBODY, extra_groups=[], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return (await asyncio.wait_for(process.communicate(), PATIENCE))[0].decode()

    async def run(path: Path) -> None:
        async with endpoint(SimHypervisor()) as http:
            await http.engine.handle(deploy("here"), OPERATOR, "test")
            before = http.engine.status()
            listener = listen(path, "vmstack")
            os.chmod(path, 0o666)  # noqa: PTH101  the door itself stands open
            port = listen_tcp("127.0.0.1", 0, None)
            doors = (
                StreamTransport(http.engine, listener),
                StreamTransport(http.engine, port),
                DbusTransport(http.engine, bus_address),
            )
            for door in doors:
                await door.start()
            fields = {key: value for key, value in msgspec.to_builtins(change).items() if key != "operation"}
            spoken = json.dumps([operation_of(change), [fields]])
            for where in (str(path), str(port.getsockname()[1])):
                assert "Denied" in await as_nobody(sys.executable, "-c", SPEAK, where, spoken)
            # What HTTP does not know has no path there that could be open.
            target, code = (_target(change), "Denied") if _target(change) else (f"/{operation_of(change)}", "NotFound")
            said = await as_nobody("curl", "-s", f"http://127.0.0.1:{http.port}{target}")
            assert f'"error": "{code}"' in said
            call = ("busctl", f"--address={bus_address}", "call", *("org.vmstack.Host1", "/org/vmstack/Host1"))
            said = await as_nobody(*call, "org.vmstack.Host1", *_on_the_bus(change))
            assert "may read but not" in said
            after = http.engine.status()
            assert after == before
            for door in doors:
                await door.stop()

    with tempfile.TemporaryDirectory(prefix="vmstack-door-") as directory:
        Path(directory).chmod(0o755)
        asyncio.run(run(Path(directory, "s")))
