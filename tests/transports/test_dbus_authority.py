"""Who may change something over D-Bus: root, and whom polkit lets. polkit itself is played by a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args
from xml.etree import ElementTree

import pytest
from sdbus.sd_bus_internals import DbusUnprivilegedFlag, SdBusInterface, SdBusMessage

from tests.faulty import OPERATOR
from tests.running import ROOT
from tests.transports.bus import NOBODY, Bus, Served, busctl, running_bus, served
from tests.transports.endpoint import until
from vmstackd.api import requests
from vmstackd.engine import Engine
from vmstackd.transports import dbus_flags, polkit
from vmstackd.transports.dbus import NAME
from vmstackd.transports.dbus_connection import Connection, NotAnswered
from vmstackd.transports.dbus_interfaces import HOST, INTERFACES, SUBSET, VM
from vmstackd.transports.dbus_values import HOST_PATH, subset_path, vm_path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")

READING = {
    "org.vmstack.Host1": {"Progress", "Status", "List", "Describe", "Topology"},
    "org.vmstack.VM1": {"Describe"},
    "org.freedesktop.DBus.Introspectable": {"Introspect"},
    "org.freedesktop.DBus.ObjectManager": {"GetManagedObjects"},
    "org.freedesktop.DBus.Peer": {"GetMachineId", "Ping"},
    "org.freedesktop.DBus.Properties": {"Get", "GetAll"},
}
"""Methods that only read. Every other one must be refused to strangers."""
SETTER = ("org.freedesktop.DBus.Properties", "Set")
"""Refused by the library, property by property."""

IMAGE = "/images/a.qcow2"
ON_HOST = ("call", NAME, HOST_PATH, NAME)
DEPLOY = (*ON_HOST, "Deploy", "sudds", "one", "1", "1.0", "2.0", IMAGE)
DENIED = "may read but not"


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    with running_bus(tmp_path_factory.mktemp("bus")) as found, pytest.MonkeyPatch.context() as patch:
        # vmstackd believes that it is the system's.
        patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        yield found


def on(bus: Bus, check: Callable[[Served], Awaitable[None]], spec: str = "system") -> None:
    """Run a check with a started engine on the bus."""

    async def main() -> None:
        async with served(bus, spec=spec) as found:
            await check(found)

    asyncio.run(main())


class Asked(NamedTuple):
    """One question to polkit."""

    subject: tuple[str, dict[str, tuple[str, str]]]
    action: str
    details: dict[str, str]
    flags: int


class StandIn:
    """Has polkit's name and answers its one question; without an answer it waits for ``say_yes``."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], bool] | None = lambda _: True
        self.fails = False
        self._waiting: list[SdBusMessage] = []

    def question(self, message: SdBusMessage) -> None:
        """A call has come."""
        subject, action, details, flags, _ = message.parse_to_tuple()
        asked = Asked(subject, action, details, flags)
        self.asked.append(asked)
        if self.fails:
            message.create_error_reply("org.freedesktop.PolicyKit1.Error.Failed", "no").send()
        elif self.answer is None:
            self._waiting.append(message)
        else:
            self._say(message, self.answer(asked))

    def say_yes(self) -> None:
        """To all who wait."""
        for message in self._waiting:
            self._say(message, True)

    def _say(self, message: SdBusMessage, granted: bool) -> None:
        reply = message.create_reply()
        reply.append_data("(bba{ss})", (granted, False, {}))
        reply.send()


@contextlib.asynccontextmanager
async def stand_in(bus: Bus) -> AsyncIterator[StandIn]:
    """A polkit on this bus."""
    played = StandIn()
    connection = await Connection.open(bus.address)
    interface = SdBusInterface()
    interface.add_method(
        "CheckAuthorization",
        "(sa{sv})sa{ss}us",
        ("subject", "action_id", "details", "flags", "cancellation_id"),
        "(bba{ss})",
        ("result",),
        DbusUnprivilegedFlag,
        played.question,
    )
    connection._open_bus.add_interface(interface, polkit._AUTHORITY[1], polkit._AUTHORITY[2])
    assert await connection.take_name(polkit._AUTHORITY[0])
    try:
        yield played
    finally:
        interface._stop_export()
        connection.close()


async def as_nobody(bus: Bus, *arguments: str) -> tuple[int, str, str]:
    return await busctl(bus, *arguments, user=NOBODY)


DAEMON = 1
"""Another unprivileged user."""


def test_root_is_not_asked_about(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            assert (await busctl(bus, *DEPLOY))[:2] == (0, "au 1 0")
            assert (await busctl(bus, *ON_HOST, "Remove", "s", "one"))[0] == 0
            assert authority.asked == []

    on(bus, check)


def test_polkit_is_told_who_wants_what(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            assert (await as_nobody(bus, *DEPLOY))[:2] == (0, "au 1 0")
            assert (await as_nobody(bus, *ON_HOST, "Remove", "s", "one"))[:2] == (0, "au 1 0")
            assert (await as_nobody(bus, *ON_HOST, "Remove", "s", "unknown"))[0] == 1
            deployed, removed, unknown = authority.asked
        for asked in authority.asked:
            kind, subject = asked.subject
            assert kind == "system-bus-name"
            assert list(subject) == ["name"]
            assert subject["name"][0] == "s"
            assert subject["name"][1].startswith(":1.")
        assert deployed.subject != removed.subject
        assert deployed.action == "org.vmstack.host1.deploy"
        assert deployed.details == {"vm": "one", "level": "2.0"}
        assert removed.action == "org.vmstack.host1.remove"
        assert removed.details == {"vm": "one", "level": "2.0"}
        assert unknown.details == {"vm": "unknown"}

    on(bus, check)


def test_every_way_to_change_something_asks(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        await on_bus.engine.handle(requests.Deploy("old", 1, 1, 3000, IMAGE), OPERATOR, "test")
        await until(lambda: len(on_bus.client.named("InterfacesAdded")) == 2)
        options = ("name", "s", "two", "vcpus", "u", "1", "memory_mib", "u", "1", "level", "u", "1500")
        async with stand_in(bus) as authority:
            authority.answer = lambda _: False
            for arguments in (
                (*ON_HOST, "DeployWithOptions", "a{sv}", "5", *options, "image", "s", IMAGE),
                (*ON_HOST, "DeployWithOptions", "a{sv}", "6", *options, "image", "s", IMAGE, "dry_run", "b", "1"),
                (*ON_HOST, "RemoveWithOptions", "sa{sv}", "old", "0"),
                ("call", NAME, vm_path("old"), VM.name, "Remove"),
            ):
                code, _, err = await as_nobody(bus, *arguments)
                assert (code, DENIED in err) == (1, True)
            assert [asked.details for asked in authority.asked] == [
                {"vm": "two", "level": "1.5"},
                {"vm": "two", "level": "1.5"},
                {"vm": "old", "level": "3.0"},
                {"vm": "old", "level": "3.0"},
            ]
        assert [vm[0] for vm in await on_bus.client.call("List")] == ["old"]

    on(bus, check)


def test_polkit_is_asked_for_each_change_by_its_own_action(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            for words in (
                DEPLOY,
                (*ON_HOST, "Cordon", "s", "new fans"),
                (*ON_HOST, "Uncordon"),
                (*ON_HOST, "Remove", "s", "one"),
            ):
                assert (await as_nobody(bus, *words))[0] == 0
            assert [(asked.action.rpartition(".")[2], asked.details) for asked in authority.asked] == [
                ("deploy", {"vm": "one", "level": "2.0"}),
                ("cordon", {}),
                ("uncordon", {}),
                ("remove", {"vm": "one", "level": "2.0"}),
            ]

    on(bus, check)


def test_polkit_decides_each_time(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            authority.answer = lambda asked: asked.details["level"] == "3.0"
            code, _, err = await as_nobody(bus, *DEPLOY)
            assert (code, DENIED in err) == (1, True)
            at_three = [word.replace("2.0", "3.0") for word in DEPLOY]
            assert (await as_nobody(bus, *at_three))[0] == 0
            authority.answer = lambda _: False
            assert (await as_nobody(bus, *ON_HOST, "Remove", "s", "one"))[0] == 1

    on(bus, check)


def test_a_request_that_makes_no_sense_asks_nobody(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            code, _, err = await as_nobody(bus, *DEPLOY[:-1], "relative.qcow2")
            assert (code, "image: must be" in err) == (1, True)
            assert authority.asked == []

    on(bus, check)


@pytest.mark.parametrize("interactive", [True, False])
def test_users_are_asked_only_if_the_call_allows_it(bus: Bus, interactive: bool) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            wish = f"--allow-interactive-authorization={'yes' if interactive else 'no'}"
            assert (await as_nobody(bus, wish, *DEPLOY))[0] == 0
            assert [asked.flags for asked in authority.asked] == [1 if interactive else 0]

    on(bus, check)


def test_with_another_sdbus_nobody_is_asked_for_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        __slots__ = ("one", "two")

    monkeypatch.setattr(dbus_flags, "SdBusMessage", Other)
    assert dbus_flags._library_function.__wrapped__() is None


def test_without_polkit_only_root(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def check(on_bus: Served) -> None:
        for _ in range(2):
            code, _, err = await as_nobody(bus, *DEPLOY)
            assert (code, DENIED in err) == (1, True)
        warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert warned == ["polkit-failed"]
        assert (await busctl(bus, *DEPLOY))[0] == 0
        assert (await as_nobody(bus, *ON_HOST, "List"))[0] == 0

    on(bus, check)


def test_a_polkit_that_fails_or_says_nothing_has_not_said_yes(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(polkit, "_PATIENCE_WITH_USER_S", 0.2)

    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            authority.answer = None
            code, _, err = await as_nobody(bus, *DEPLOY)
            assert (code, DENIED in err) == (1, True)
            authority.fails = True
            code, _, err = await as_nobody(bus, *DEPLOY)
            assert (code, DENIED in err) == (1, True)
            authority.fails, authority.answer = False, lambda _: True
            assert (await as_nobody(bus, *DEPLOY))[0] == 0

    on(bus, check)


def test_a_polkit_that_thinks_holds_up_nobody(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            authority.answer = None
            waiting = asyncio.create_task(as_nobody(bus, *DEPLOY))
            await until(lambda: bool(authority.asked))
            assert await on_bus.client.call("List") == []
            assert await on_bus.client.call("Deploy", "sudds", "two", 1, 1.0, 2.0, IMAGE) == [0]
            assert not waiting.done()
            authority.say_yes()
            assert (await waiting)[0] == 0

    on(bus, check)


def test_a_user_of_many_calls_does_not_keep_polkit_from_others(bus: Bus) -> None:
    """The system's bus lets us wait for so many answers and no more."""
    most = polkit.MOST_QUESTIONS

    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            authority.answer = None
            remove = (*ON_HOST, "Remove", "s", "unknown")
            calls = [asyncio.create_task(as_nobody(bus, *remove)) for _ in range(most + 2)]
            await until(lambda: len(authority.asked) == most)
            calls.append(asyncio.create_task(busctl(bus, *remove, user=DAEMON)))
            await until(lambda: len(authority.asked) == most + 1)
            authority.answer = lambda _: True
            authority.say_yes()
            answers = await asyncio.gather(*calls)
            assert all("does not exist" in err for _, _, err in answers)
            assert len(authority.asked) == most + 3

    on(bus, check)


def test_on_other_buses_nobody_asks_polkit(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        async with stand_in(bus) as authority:
            code, _, err = await as_nobody(bus, *DEPLOY)
            assert (code, DENIED in err) == (1, True)
            assert (await busctl(bus, *DEPLOY))[0] == 0
            assert authority.asked == []

    on(bus, check, bus.address)


def test_reading_asks_nobody_who_calls(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def user_of(_self: Connection, sender: str) -> int:
        raise AssertionError(f"somebody asked who {sender} is")

    monkeypatch.setattr(Connection, "user_of", user_of)

    async def check(on_bus: Served) -> None:
        for member, *arguments in (("List",), ("Status",), ("Topology",), ("Progress", "udd", "1", "1", "1")):
            assert (await as_nobody(bus, *ON_HOST, member, *arguments))[0] == 0

    on(bus, check)


def test_nobody_vouches_for_a_caller_that_is_gone(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def user_of(self: Connection, _sender: str) -> int:
        return int(await self.ask_bus("GetConnectionUnixUser", "s", ":1.99999"))

    monkeypatch.setattr(Connection, "user_of", user_of)

    async def check(on_bus: Served) -> None:
        code, _, err = await busctl(bus, *DEPLOY)
        assert (code, "/unknown may read but not deploy" in err) == (1, True)

    on(bus, check, bus.address)


def test_a_bus_too_busy_to_say_whose_call_it_is_denies_nobody(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def user_of(_self: Connection, _sender: str) -> int:
        raise NotAnswered("", "too busy")

    monkeypatch.setattr(Connection, "user_of", user_of)

    async def check(on_bus: Served) -> None:
        code, _, err = await busctl(bus, *DEPLOY)
        assert (code, "try again in a moment" in err) == (1, True)

    on(bus, check)


# Every member


class Member(NamedTuple):
    """One method of one object, and how to call it."""

    path: str
    interface: str
    name: str
    signature: str


async def _members(on_bus: Served, kind: str) -> list[Any]:
    """Every member of this kind of every object, as the objects themselves tell."""
    found = []
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        node = ElementTree.fromstring(await on_bus.client.introspect(path))
        waiting += [f"{path.rstrip('/')}/{child.get('name')}" for child in node.findall("node")]
        for interface in node.findall("interface"):
            found += [(path, interface.get("name", ""), member) for member in interface.findall(kind)]
    return found


VALUES = {"s": "one", "u": "1", "d": "2.0", "b": "true"}


def _arguments(signature: str) -> list[str]:
    """Values that make sense, as busctl takes them."""
    if signature == "sudds":
        return ["new", "1", "1.0", "2.0", IMAGE]
    if signature == "a{sv}":
        named = {"name": "s new", "vcpus": "u 1", "memory_mib": "u 1", "level": "u 2000", "image": f"s {IMAGE}"}
        return [str(len(named)), *(word for key, value in named.items() for word in (key, *value.split()))]
    if signature.endswith("a{sv}"):
        return [*_arguments(signature.removesuffix("a{sv}")), "0"]
    return [VALUES[letter] for letter in signature]


def test_strangers_may_call_nothing_that_changes_anything(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        for name in ("one", "two"):
            await on_bus.engine.handle(requests.Deploy(name, 1, 1, 2000, IMAGE), OPERATOR, "test")
        await until(lambda: len(on_bus.client.named("InterfacesAdded")) == 3)
        before = on_bus.engine.state
        seen = set()
        for path, interface, method in await _members(on_bus, "method"):
            name = method.get("name")
            if name in READING.get(interface, ()) or (interface, name) == SETTER:
                continue
            seen.add((interface, name))
            signature = "".join(arg.get("type") for arg in method.findall("arg") if arg.get("direction") == "in")
            call = ("call", NAME, path, interface, name, signature, *_arguments(signature))
            code, _, err = await as_nobody(bus, *call)
            assert (code, DENIED in err) == (1, True), call
            assert on_bus.engine.state is before
            assert not on_bus.engine.status().cordoned
        assert seen == {
            (HOST.name, "Deploy"),
            (HOST.name, "DeployWithOptions"),
            (HOST.name, "Remove"),
            (HOST.name, "RemoveWithOptions"),
            (HOST.name, "Cordon"),
            (HOST.name, "Uncordon"),
            (HOST.name, "Check"),
            (VM.name, "Remove"),
        }

    on(bus, check)


def test_no_property_can_be_set_by_anybody(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        await on_bus.engine.handle(requests.Deploy("one", 1, 1, 2000, IMAGE), OPERATOR, "test")
        await until(lambda: len(on_bus.client.named("InterfacesAdded")) == 2)
        found = await _members(on_bus, "property")
        assert {interface for _, interface, _ in found} == {interface.name for interface in INTERFACES}
        assert len(found) == sum(len(interface.properties) for interface in INTERFACES)
        for path, interface, prop in found:
            assert prop.get("access") == "read"
            value = {"s": ["x"], "u": ["1"], "t": ["1"], "d": ["1.0"], "b": ["1"]}.get(prop.get("type"), ["0"])
            for user in (None, NOBODY):
                code, _, err = await busctl(
                    bus, "set-property", NAME, path, interface, prop.get("name"), prop.get("type"), *value, user=user
                )
                assert (code, "not writable" in err) == (1, True)

    on(bus, check)


def test_strangers_may_read_everything(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        await on_bus.engine.handle(requests.Deploy("one", 1, 1, 2000, IMAGE), OPERATOR, "test")
        await until(lambda: len(on_bus.client.named("InterfacesAdded")) == 2)
        for interface in (HOST, VM):
            path = HOST_PATH if interface is HOST else vm_path("one")
            for method in interface.methods:
                if method.name in READING[interface.name]:
                    call = ("call", NAME, path, interface.name, method.name, method.takes, *_arguments(method.takes))
                    assert (await as_nobody(bus, *(word for word in call if word)))[0] == 0, call
        for path in (HOST_PATH, vm_path("one"), subset_path(2000)):
            assert (await as_nobody(bus, "introspect", NAME, path))[0] == 0
        code, out, _ = await as_nobody(bus, "get-property", NAME, subset_path(2000), SUBSET.name, "Vms")
        assert (code, out) == (0, 'as 1 "one"')

    on(bus, check)


# What is installed


def test_every_operation_that_changes_something_has_its_action() -> None:
    policy = ElementTree.parse(ROOT / "systemd" / "polkit" / "org.vmstack.host1.policy").getroot()
    actions = {action.get("id"): action for action in policy.findall("action")}
    changes = set(get_args(requests.Change)) & Engine.accepted
    assert set(actions) == {f"org.vmstack.host1.{kind.__struct_config__.tag}" for kind in changes}
    for action in actions.values():
        owners = [
            note.text for note in action.findall("annotate") if note.get("key") == "org.freedesktop.policykit.owner"
        ]
        assert owners == ["unix-user:vmstack"]
        defaults = {row.tag: row.text for row in action.find("defaults") or ()}
        assert defaults == {
            "allow_any": "auth_admin",
            "allow_inactive": "auth_admin",
            "allow_active": "auth_admin_keep",
        }


POLICY = (ROOT / "systemd" / "dbus" / "org.vmstack.Host1.conf").read_text(encoding="utf-8")


def test_only_root_and_our_user_may_have_the_name(tmp_path: Path) -> None:
    """With the policy that is installed, on a bus that is as strict as the system's."""

    async def main(bus: Bus) -> None:
        take = ("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", "su")
        code, _, err = await as_nobody(bus, *take, NAME, "0")
        assert (code, err) == (1, "Call failed: Access denied")
        async with served(bus):
            assert (await as_nobody(bus, *ON_HOST, "List"))[0] == 0

    # A user that every machine has stands for ours.
    assert POLICY.count('user="vmstack"') == 1
    ours = POLICY.replace('user="vmstack"', 'user="daemon"')
    with running_bus(tmp_path, policy=ours) as bus:
        asyncio.run(main(bus))
