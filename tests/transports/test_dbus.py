"""org.vmstack.Host1 on a bus of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sdbus.sd_bus_internals import decode_object_path, is_object_path_valid

from tests.faulty import OPERATOR, FaultySim, failing, outsider
from tests.running import ROOT
from tests.transports.bus import (
    Bus,
    Client,
    Served,
    bus,
    busctl,
    client_of,
    measured_sim,
    new_engine,
    on,
    ours,
    refused,
)
from tests.transports.endpoint import until
from tools.introspection import document
from vmstackd.api import replies, requests
from vmstackd.api.errors import ERRORS, VmstackError
from vmstackd.daemon import log, restraint
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.transports import dbus_steps
from vmstackd.transports.dbus import NAME, DbusTransport
from vmstackd.transports.dbus_connection import CallFailed, Connection
from vmstackd.transports.dbus_interfaces import SUBSET, VM
from vmstackd.transports.dbus_values import HOST_PATH, dictionary, subset_path, text, vm_path
from vmstackd.transports.turns import MOST_CALLS

__all__ = ["bus"]

IMAGE = "/var/lib/libvirt/images/hello.qcow2"
EXAMPLE = ("example", 2, 2.0, 2.0, IMAGE)
BUSCTL = ("call", NAME, HOST_PATH, NAME)


# Calls


def test_the_line_from_the_documentation(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        line = "Deploy sudds example 2 2.0 2.0 /var/lib/libvirt/images/hello.qcow2"
        assert await busctl(bus, *BUSCTL, *line.split()) == (0, "au 2 0 8", "")
        assert await busctl(bus, *BUSCTL, "Remove", "s", "example") == (0, "au 2 0 8", "")
        code, _, err = await busctl(bus, *BUSCTL, "Remove", "s", "example")
        assert (code, err) == (1, "Call failed: 'example' does not exist on this host")

    on(bus, check)


def test_what_methods_answer(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        call = on_bus.client.call
        assert await call("Deploy", "sudds", "one", 2, 1.5, 1.5, IMAGE) == [0, 8]
        deployed = {
            "name": ("s", "two"),
            "level": ("x", 3000),
            "cpus": ("au", [4]),
            "dry_run": ("b", False),
            "generation": ("x", 2),
        }
        options = {
            "name": ("s", "two"),
            "vcpus": ("u", 1),
            "memory_mib": ("t", 1024),
            "level": ("i", 3000),
            "image": ("s", IMAGE),
        }
        dry = await call("DeployWithOptions", "a{sv}", options | {"dry_run": ("b", True)})
        assert dry == deployed | {"dry_run": ("b", True), "generation": ("x", 0)}
        assert on_bus.engine.status().host.vms == 1
        assert await call("DeployWithOptions", "a{sv}", options) == deployed
        assert await call("List") == [
            ("one", 2, 1.5, 1536, "running", "/org/vmstack/Host1/vm/one"),
            ("two", 1, 3.0, 1024, "running", "/org/vmstack/Host1/vm/two"),
        ]
        described = await call("Describe", "s", "one")
        assert described == {
            "name": ("s", "one"),
            "vcpus": ("x", 2),
            "memory_mib": ("x", 1536),
            "level": ("x", 1500),
            "cpus": ("au", [0, 8]),
            "pinned": ("au", [0, 8]),
            "state": ("s", "running"),
            "image": ("s", IMAGE),
        }
        assert await call("Describe", path=vm_path("one")) == described
        assert isinstance(await call("Progress", "udd", 2, 2.0, 2.0), float)
        status = await call("Status")
        assert status["free_cpus"] == ("x", 13)
        assert status["hypervisor"] == ("s", "up")
        assert status["levels"][1][0]["level"] == ("x", 1500)
        assert (status["cordoned"], status["starting"]) == (("b", False), ("as", []))
        assert status["critical_sizes"] == ("aau", [])
        topology = await call("Topology")
        assert topology["cpus"][1][0]["use"] == ("s", "1.5")
        assert topology["node_distances"][0] == "aau"
        removed = await call("RemoveWithOptions", "sa{sv}", "two", {"dry_run": ("b", True)})
        assert removed == {
            "name": ("s", "two"),
            "released": ("au", [4]),
            "dry_run": ("b", True),
            "generation": ("x", 0),
        }
        really = await call("RemoveWithOptions", "sa{sv}", "two", {})
        assert really.pop("generation") > ("x", 2)
        assert really == {"name": ("s", "two"), "released": ("au", [4]), "dry_run": ("b", False)}
        assert await call("Remove", path=vm_path("one")) == [0, 8]
        assert await call("List") == []

    on(bus, check)


@pytest.mark.parametrize(
    ("member", "signature", "values", "field"),
    [
        ("Deploy", "sudds", ("a", 2, float("nan"), 2.0, IMAGE), "memory_gib"),
        ("Deploy", "sudds", ("a", 2, float("inf"), 2.0, IMAGE), "memory_gib"),
        ("Deploy", "sudds", ("a", 2, 1e308, 2.0, IMAGE), "memory_gib"),
        ("Deploy", "sudds", ("a", 2, -1.0, 2.0, IMAGE), "memory_mib"),
        ("Deploy", "sudds", ("a", 2, 0.0009, 2.0, IMAGE), "memory_mib"),
        ("Deploy", "sudds", ("a", 2, 1.0, 1.5555, IMAGE), "level"),
        ("Deploy", "sudds", ("a", 2, 1.0, 0.5, IMAGE), "level"),
        ("Deploy", "sudds", ("a", 2, 1.0, 1e300, IMAGE), "level"),
        ("Deploy", "sudds", ("a", 2, 1.0, float("nan"), IMAGE), "level"),
        ("Deploy", "sudds", ("a", 0, 1.0, 1.0, IMAGE), "vcpus"),
        ("Deploy", "sudds", ("", 1, 1.0, 1.0, IMAGE), "name"),
        ("Deploy", "sudds", ("a/b", 1, 1.0, 1.0, IMAGE), "name"),
        ("Deploy", "sudds", ("a", 1, 1.0, 1.0, "disk.qcow2"), "image"),
        ("Progress", "udd", (0, 1.0, 1.0), "vcpus"),
        ("Remove", "s", ("",), "name"),
        ("Describe", "s", ("x" * 256,), "name"),
        ("RemoveWithOptions", "sa{sv}", ("a", {"name": ("s", "b")}), "'name' is not an option"),
        ("RemoveWithOptions", "sa{sv}", ("a", {"dry_run": ("i", 1)}), "dry_run"),
        ("DeployWithOptions", "a{sv}", ({"oc": ("d", 2.0)},), "'oc' is not an option here; there are: name, vcpus"),
        ("DeployWithOptions", "a{sv}", ({"operation": ("s", "deploy")},), "'operation' is not an option"),
        ("DeployWithOptions", "a{sv}", ({"name": ("s", "a")},), "vcpus: is missing"),
        (
            "DeployWithOptions",
            "a{sv}",
            (
                {
                    "name": ("s", "a"),
                    "vcpus": ("u", 1),
                    "memory_mib": ("u", 1),
                    "image": ("s", "/a"),
                    "level": ("d", 2.0),
                },
            ),
            "level",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    bus: Bus, member: str, signature: str, values: tuple[object, ...], field: str
) -> None:
    async def check(on_bus: Served) -> None:
        before = on_bus.engine.state
        error = await refused(on_bus.client.call(member, signature, *values))
        assert error.error == "org.vmstack.Error.InvalidRequest"
        assert str(error).startswith(field)
        assert on_bus.engine.state is before

    on(bus, check)


def test_what_is_refused_before_the_engine_is_asked_is_logged(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, log.logger.name)

    async def check(on_bus: Served) -> None:
        await refused(on_bus.client.call("Progress", "udd", 1, float("nan"), 1.0))
        (record,) = [record for record in caplog.records if record.getMessage() == "dbus-refused"]
        fields = vars(record)["fields"]
        assert fields["caller"].startswith("dbus::1.")
        assert (fields["asked"], fields["outcome"]) == ("Progress", "InvalidRequest")

    on(bus, check)


def test_nobody_can_fill_the_log_with_nonsense(
    bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restraint, "PERIOD_S", 3600.0)
    caplog.set_level(logging.INFO, log.logger.name)

    async def check(on_bus: Served) -> None:
        for _ in range(restraint.MOST + 5):
            await refused(on_bus.client.call("Progress", "udd", 1, float("nan"), 1.0))

    on(bus, check)
    told = [record for record in caplog.records if record.getMessage() == "dbus-refused"]
    assert len(told) == restraint.MOST


@pytest.mark.parametrize(("level", "exact"), [(1.0, 1000), (1.1, 1100), (1.001, 1001), (63.999, 63999), (64.0, 64000)])
def test_levels_are_exact(bus: Bus, level: float, exact: int) -> None:
    async def check(on_bus: Served) -> None:
        await on_bus.client.call("Deploy", "sudds", "a", 1, 0.2, level, IMAGE)
        ((_, _, told, mib, _, _),) = await on_bus.client.call("List")
        assert (told, mib) == (level, 204)
        assert on_bus.engine.state.subsets[0].level == exact

    on(bus, check)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_error_crosses_the_bus(bus: Bus, error: type[VmstackError], monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(on_bus: Served) -> None:
        async def handle(*_: object) -> replies.Reply:
            raise error("this is why: 50% \0 \ud800")

        def read(*_: object) -> replies.Reply:
            raise error("and this")

        monkeypatch.setattr(on_bus.engine, "handle", handle)
        got = await refused(on_bus.client.call("Remove", "s", "a"))
        assert (got.error, str(got)) == (f"org.vmstack.Error.{error.code}", "this is why: 50% \ufffd \ufffd")
        monkeypatch.setattr(on_bus.engine, "read", read)
        got = await refused(on_bus.client.call("Status"))
        assert (got.error, str(got)) == (f"org.vmstack.Error.{error.code}", "and this")
        monkeypatch.undo()

    on(bus, check)


@pytest.mark.parametrize("place", ["handle", "read", "answer"])
def test_what_goes_wrong_inside_stays_inside(
    bus: Bus, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(on_bus: Served) -> None:
        async def handle(*_: object) -> replies.Reply:
            raise RuntimeError("the secret")

        def read(*_: object) -> replies.Reply:
            raise RuntimeError("the secret")

        def answer(*_: object) -> replies.Reply:
            return cast("replies.Reply", "the secret")

        member = "Remove" if place == "handle" else "Describe"
        name, instead = {"handle": ("handle", handle), "read": ("read", read), "answer": ("read", answer)}[place]
        monkeypatch.setattr(on_bus.engine, name, instead)
        error = await refused(on_bus.client.call(member, "s", "a"))
        assert error.error == "org.vmstack.Error.Internal"
        assert str(error) == "internal error; the log of vmstackd has the details"
        monkeypatch.undo()
        assert await on_bus.client.call("List") == []

    on(bus, check)
    assert f"unexpected error in the D-Bus call {'Remove' if place == 'handle' else 'Describe'}" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "values", "error"),
    [
        (HOST_PATH, NAME, "Destroy", "s", ("a",), "UnknownMethod"),
        (HOST_PATH, NAME, "deploy", "s", ("a",), "UnknownMethod"),
        (HOST_PATH, "org.vmstack.VM1", "Remove", "", (), "UnknownMethod"),
        (HOST_PATH, NAME, "Remove", "", (), "InvalidArgs"),
        (HOST_PATH, NAME, "Remove", "u", (1,), "InvalidArgs"),
        (HOST_PATH, NAME, "Remove", "ss", ("a", "b"), "InvalidArgs"),
        (HOST_PATH, NAME, "Deploy", "sidds", EXAMPLE, "InvalidArgs"),
        (HOST_PATH, NAME, "Deploy", "(sudds)", (EXAMPLE,), "InvalidArgs"),
        (HOST_PATH, NAME, "DeployWithOptions", "a{ss}", ({"name": "a"},), "InvalidArgs"),
        (vm_path("nobody"), "org.vmstack.VM1", "Remove", "", (), "UnknownObject"),
        ("/org/vmstack/Host2", NAME, "List", "", (), "UnknownObject"),
        (HOST_PATH, "org.freedesktop.DBus.Properties", "Set", "ssv", (NAME, "Vms", ("u", 1)), "PropertyReadOnly"),
        (HOST_PATH, "org.freedesktop.DBus.Properties", "Get", "ss", (NAME, "Name"), "UnknownProperty"),
    ],
)
def test_what_does_not_exist_is_refused_by_the_library(
    bus: Bus, path: str, interface: str, member: str, signature: str, values: tuple[object, ...], error: str
) -> None:
    async def check(on_bus: Served) -> None:
        found = await refused(on_bus.client.connection.call((NAME, path, interface), member, signature, *values))
        assert found.error == f"org.freedesktop.DBus.Error.{error}"
        assert await on_bus.client.call("List") == []

    on(bus, check)


def test_what_nobody_waits_for_is_done_all_the_same(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        sender = on_bus.client.connection._open_bus
        for name in ("a", "a", "b"):
            message = sender.new_method_call_message(NAME, HOST_PATH, NAME, "Deploy")
            message.append_data("sudds", name, 1, 1.0, 1.0, IMAGE)
            message.expect_reply = False
            message.send()
        await until(lambda: on_bus.engine.status().host.vms == 2)

    on(bus, check)


# Properties, objects, signals


def test_properties_tell_when_they_change(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client = on_bus.client
        while (before := await client.properties())["HypervisorState"] != "up":
            pass
        assert (before["Cpus"], before["FreeCpus"], before["Vms"]) == (16, 16, 0)
        assert (before["MemoryMib"], before["FreeMemoryMib"]) == (65536, 65536)
        assert (before["Levels"], before["Degraded"]) == ([], [])
        client.signals.clear()
        await client.call("Deploy", "sudds", *EXAMPLE)
        after = await client.properties()
        assert after["Levels"] == [(2.0, 2.0, 2, 2, 1, 2)]
        await until(lambda: bool(client.named("PropertiesChanged")))
        ((interface, changed, invalidated),) = client.named("PropertiesChanged")
        assert (interface, invalidated) == (NAME, [])
        assert {name: value for name, (_, value) in changed.items()} == {
            name: after[name] for name in after if after[name] != before[name]
        }
        assert set(changed) == {"FreeCpus", "FreeMemoryMib", "Levels", "Vms"}

    on(bus, check)


MEASURED = {
    NAME: {"BusyCpus", "MemoryUsedMib"},
    SUBSET.name: {"BusyCpus", "DelaySeconds", "DelayMedian", "DelayP99"},
    VM.name: {"BusyCpus", "DelayRatio", "ResidentMib"},
}
UNKNOWN = {"MemoryUsedMib": 0, "ResidentMib": 0}
"""All others are no number then."""


async def measured_properties(client: Client) -> dict[str, dict[str, Any]]:
    """Those of the host, of the VM "example" and of its subset."""
    paths = {NAME: HOST_PATH, VM.name: vm_path("example"), SUBSET.name: subset_path(2000)}
    found = {interface: await client.properties(path, interface) for interface, path in paths.items()}
    return {interface: {name: found[interface][name] for name in names} for interface, names in MEASURED.items()}


def test_what_is_measured_is_read_and_not_told(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client, sampler = on_bus.client, on_bus.engine.sampler
        await client.call("Deploy", "sudds", *EXAMPLE)
        assert await measured_properties(client) == {
            interface: {name: UNKNOWN.get(name) for name in names} for interface, names in MEASURED.items()
        }
        assert await busctl(bus, "get-property", NAME, HOST_PATH, NAME, "BusyCpus", "MemoryUsedMib") == (
            0,
            "d nan\nt 0",
            "",
        )
        await until(lambda: bool(client.named("PropertiesChanged")))
        client.signals.clear()
        told: list[dict[str, dict[str, Any]]] = []
        for _ in range(3):
            await sampler.measure()
            usage, vm = sampler.usage, sampler.of("example")
            assert usage is not None
            assert vm is not None
            (level,) = usage.host.levels
            told.append(await measured_properties(client))
            assert told[-1] == {
                NAME: {"BusyCpus": usage.host.busy_cpus, "MemoryUsedMib": usage.host.used_mib},
                SUBSET.name: {
                    "BusyCpus": level.busy_cpus,
                    "DelaySeconds": level.delay_s,
                    "DelayMedian": level.delay_median,
                    "DelayP99": level.delay_p99,
                },
                VM.name: {
                    "BusyCpus": vm.busy_cpus,
                    "DelayRatio": vm.delay_ratio,
                    "ResidentMib": vm.resident_mib,
                },
            }
        assert told[0][NAME]["BusyCpus"] is None  # there is no earlier moment yet
        assert told[1][NAME]["BusyCpus"] > 0
        assert told[1][VM.name]["BusyCpus"] != told[2][VM.name]["BusyCpus"]
        assert (await client.managed())[vm_path("example")][VM.name].items() >= told[2][VM.name].items()
        # What happens next is told, and nothing before or beside it.
        await client.call("Deploy", "sudds", "other", 1, 1.0, 1.0, IMAGE)
        await until(lambda: bool(client.named("PropertiesChanged")))
        ((_, changed, _),) = client.named("PropertiesChanged")
        assert set(changed) == {"FreeCpus", "FreeMemoryMib", "Levels", "Vms"}

    on(bus, check, measured_sim())


def test_another_vm_of_the_same_name_has_not_done_what_the_one_before_did(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client, sampler = on_bus.client, on_bus.engine.sampler
        await client.call("Deploy", "sudds", *EXAMPLE)
        for _ in range(2):
            await sampler.measure()
        assert (await measured_properties(client))[VM.name]["ResidentMib"] > 0
        await client.call("Remove", "s", "example")
        await client.call("Deploy", "sudds", *EXAMPLE)
        assert (await measured_properties(client))[VM.name] == {name: UNKNOWN.get(name) for name in MEASURED[VM.name]}

    on(bus, check, measured_sim())


def test_measurements_are_in_the_answers_as_far_as_they_are_known(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        call, sampler = on_bus.client.call, on_bus.engine.sampler
        await call("Deploy", "sudds", *EXAMPLE)
        assert "usage" not in await call("Status")
        assert "usage" not in await call("Describe", "s", "example")
        await sampler.measure()
        kind, first = (await call("Status"))["usage"]
        assert (kind, first["memory_mib"]) == ("a{sv}", ("x", 65536))
        assert "busy_cpus" not in first
        assert (await call("Describe", "s", "example"))["usage"][1].keys() == {"resident_mib"}
        await sampler.measure()
        assert sampler.usage is not None
        _, second = (await call("Status"))["usage"]
        assert second["busy_cpus"] == ("d", sampler.usage.host.busy_cpus)
        (level,) = second["levels"][1]
        assert level == {
            "level": ("x", 2000),
            "busy_cpus": ("d", sampler.usage.host.levels[0].busy_cpus),
            "delay_s": ("d", 0.0),
            "delay_median": ("d", 0.0),
            "delay_p99": ("d", 0.0),
        }
        described = await call("Describe", path=vm_path("example"))
        assert described["usage"][1].keys() == {"busy_cpus", "delay_s", "delay_ratio", "resident_mib"}

    on(bus, check, measured_sim())


def test_a_cordon_is_a_property_that_tells_when_it_changes(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client = on_bus.client
        while (await client.properties())["HypervisorState"] != "up":
            pass
        for method, arguments, told in (
            ("Cordon", ("s", "Lüfter"), {"Cordoned": True, "CordonReason": "Lüfter"}),
            ("Cordon", ("s", "other"), {"CordonReason": "other"}),
            ("Uncordon", (), {"Cordoned": False, "CordonReason": ""}),
        ):
            client.signals.clear()
            before = await client.properties()
            assert await client.call(method, *arguments) is None
            assert await client.properties() == before | told
            await until(lambda: bool(client.named("PropertiesChanged")))
            ((interface, changed, invalidated),) = client.named("PropertiesChanged")
            assert (interface, invalidated) == (NAME, [])
            assert {name: value for name, (_, value) in changed.items()} == told

    on(bus, check)


def test_a_cordoned_host_deploys_nothing_over_the_bus(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client = on_bus.client
        await client.call("Cordon", "s", "new fans")
        error = await refused(client.call("Deploy", "sudds", *EXAMPLE))
        assert error.error == "org.vmstack.Error.Cordoned"
        assert "new fans" in str(error)
        await client.call("Uncordon")
        assert await client.call("Deploy", "sudds", *EXAMPLE) == [0, 8]

    on(bus, check)


def test_many_changes_are_told_together(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client = on_bus.client
        for number in range(200):
            name = f"vm{number}"
            for request in (requests.Deploy(name, 1, 1, 1000, IMAGE), requests.Remove(name)):
                await on_bus.engine.handle(request, OPERATOR, "test")
        await on_bus.engine.handle(requests.Deploy("last", 1, 1, 1000, IMAGE), OPERATOR, "test")
        await until(lambda: "last" in [values[0] for values in client.named("VmDeployed")])
        assert len(client.named("VmDeployed")) == 201
        assert len(client.named("VmRemoved")) == 200
        assert len(client.named("PropertiesChanged")) < 100

    on(bus, check)


def test_signals_tell_what_happens(bus: Bus) -> None:
    sim = FaultySim()

    async def check(on_bus: Served) -> None:
        client = on_bus.client
        await client.call("Deploy", "sudds", *EXAMPLE)
        await until(lambda: bool(client.named("VmDeployed")))
        told = [signal.name for signal in client.signals]
        assert told.index("InterfacesAdded") < told.index("VmDeployed")  # whoever hears of it finds it
        sim.plan = failing("create")
        await refused(client.call("Deploy", "sudds", "broken", 1, 1.0, 1.0, IMAGE))
        await refused(client.call("Deploy", "sudds", "large", 17, 1.0, 1.0, IMAGE))
        sim.plan = sim._nothing
        await client.call("Remove", "s", "example")
        sim.put(outsider("theirs", 1, range(16)))
        await until(lambda: bool(client.named("VmAdopted")))
        sim.drop("theirs")
        await until(lambda: bool(client.named("VmGone")))
        sim.cut()
        await until(lambda: bool(client.named("Degraded")))
        await until(lambda: bool(client.named("Degraded")))
        assert client.named("VmDeployed") == [("example", 2.0, [0, 8])]
        assert [values[:3] for values in client.named("VmRefused")] == [
            ("broken", "deploy", "HypervisorError"),
            ("large", "deploy", "NoCapacity"),
        ]
        assert client.named("VmRemoved") == [("example", [0, 8])]
        assert client.named("VmAdopted") == [("theirs", 1.0, [0])]
        assert client.named("VmGone") == [("theirs",)]
        ((problems,),) = client.named("Degraded")
        assert "the link is cut" in problems[0]
        assert (await client.properties())["HypervisorState"] == "down"
        assert {signal.path for signal in client.signals if signal.name.startswith("Vm")} == {HOST_PATH}

    on(bus, check, sim)


def test_whoever_changes_something_sees_it_at_once(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        client = on_bus.client
        for number in range(20):
            name = f"vm{number}"
            await client.call("Deploy", "sudds", name, 1, 1.0, 2.0, IMAGE)
            found = await client.managed()
            assert found[vm_path(name)][VM.name]["State"] == "running"
            assert name in found[subset_path(2000)][SUBSET.name]["Vms"]
            assert (await client.properties())["Vms"] == 1
            await client.call("Remove", path=vm_path(name))
            assert await client.managed() == {}

    on(bus, check)


def mirror(client: Client) -> dict[str, dict[str, dict[str, Any]]]:
    """The objects as somebody knows them who has only listened."""
    objects: dict[str, dict[str, dict[str, Any]]] = {}
    for path, name, values in client.signals:
        if name == "InterfacesAdded":
            assert values[0] not in objects
            objects[values[0]] = ours(values[1])
        elif name == "InterfacesRemoved":
            del objects[values[0]]
        elif name == "PropertiesChanged" and path != HOST_PATH:
            interface, changed, _ = values
            objects[path][interface] |= {key: value for key, (_, value) in changed.items()}
    return objects


@pytest.mark.parametrize("seed", range(3))
def test_listening_tells_the_same_as_asking(bus: Bus, seed: int) -> None:
    rng = random.Random(seed)
    sim = FaultySim()

    async def check(on_bus: Served) -> None:
        client = on_bus.client
        for number in range(60):
            match rng.randrange(5):
                case 0 | 1:
                    level = rng.choice([1000, 1500, 2000])
                    request: requests.Change = requests.Deploy(f"vm {number}é", rng.randint(1, 3), 64, level, IMAGE)
                case 2 if sim.vms:
                    request = requests.Remove(rng.choice(list(sim.vms)))
                case 3 if sim.vms:
                    sim.drop(rng.choice(list(sim.vms)))
                    continue
                case _:
                    sim.put(outsider(f"their{number}", 1, range(16)))
                    continue
            with contextlib.suppress(VmstackError):
                await on_bus.engine.handle(request, OPERATOR, "test")
            await asyncio.sleep(rng.choice([0, 0, 0.01, 0.06]))
        await asyncio.sleep(0.2)
        before = await client.managed()
        marker = await client.properties()
        assert marker["Vms"] == len([path for path in before if "/vm/" in path]) > 0
        await until(lambda: mirror(client) == before)
        for figures in on_bus.engine.status().host.levels:
            told = before[subset_path(figures.level)][SUBSET.name]
            assert len(told["Vms"]) == figures.vms
            for name in told["Vms"]:
                assert before[vm_path(name)][VM.name]["Cpus"] == told["Cpus"]

    on(bus, check, sim)


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda name: len(name.encode()) <= 255
)


@given(names)
@example("1")
@example("_")
@example("_5f")
@example("a/b\n")
@example("ü" * 127)
@example("\U0010ffff")
def test_every_name_has_a_path_and_comes_back(name: str) -> None:
    path = vm_path(name)
    assert is_object_path_valid(path)
    assert path.startswith("/org/vmstack/Host1/vm/")
    assert path.count("/") == 5
    assert decode_object_path(f"{HOST_PATH}/vm", path) == name


@given(names, names)
def test_different_names_have_different_paths(one: str, other: str) -> None:
    assert (vm_path(one) == vm_path(other)) == (one == other)


@pytest.mark.parametrize("name", ["weiß nicht", "-x", "\ufdd0 and \U0001ffff", "x" * 255, "a\nb", "_"])
def test_vms_with_names_of_others_can_be_seen_and_removed(bus: Bus, name: str) -> None:
    sim = SimHypervisor()

    async def check(on_bus: Served) -> None:
        sim.put(outsider(name, 1, range(16)))
        await until(lambda: bool(on_bus.client.named("VmAdopted")))
        ((told, _, _, _, _, path),) = await on_bus.client.call("List")
        assert told == text(name)
        assert path == vm_path(name)
        code, out, _ = await busctl(bus, "get-property", NAME, path, VM.name, "Vcpus")
        assert (code, out) == (0, "u 1")
        await on_bus.client.call("Remove", path=path)
        assert name not in sim.vms

    on(bus, check, sim)


@given(st.text(st.characters()))
def test_any_text_can_cross(value: str) -> None:
    spoken = text(value)
    assert len(spoken) == len(value)
    assert "\0" not in spoken
    assert all(other in (one, "\ufffd") for one, other in zip(value, spoken, strict=True))
    spoken.encode()


def test_dictionaries_have_every_field_that_a_host_fills() -> None:
    vm = replies.VmReply("a", 1, 2, 3000, (1, 0), (0, 1), "running", "/a", host="of a cluster")
    assert list(dictionary(vm)) == ["name", "vcpus", "memory_mib", "level", "cpus", "pinned", "state", "image"]


# Many, slow and silent callers


def test_a_slow_operation_does_not_hold_up_others(bus: Bus) -> None:
    sim = FaultySim()

    async def check(on_bus: Served) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def plan(operation: str, _: str) -> None:
            if operation == "create":
                begun.set()
                await go_on.wait()

        sim.plan = plan
        slow = asyncio.create_task(on_bus.client.call("Deploy", "sudds", *EXAMPLE))
        await begun.wait()
        async with client_of(bus.address) as other:
            for client in (on_bus.client, other):
                assert isinstance(await client.call("Progress", "udd", 1, 1.0, 1.0), float)
                assert (await client.call("List"))[0][4] == "starting"
            error = await refused(other.call("Remove", "s", "example"))
            assert error.error == "org.vmstack.Error.Unavailable"
        assert not slow.done()
        go_on.set()
        assert await slow == [0, 8]

    on(bus, check, sim)


def test_calls_before_the_start_are_answered_after_it(bus: Bus) -> None:
    async def main() -> None:
        engine = new_engine()
        transport = DbusTransport(engine, bus.address)
        await transport.start()
        async with client_of(bus.address) as client:
            calls = [
                asyncio.create_task(client.call("List")),
                asyncio.create_task(client.call("Deploy", "sudds", *EXAMPLE)),
            ]
            assert (await client.properties())["HypervisorState"] == "down"
            assert not any(call.done() for call in calls)
            await engine.start()
            assert (await calls[0], await calls[1]) == ([], [0, 8])
            assert (await client.properties())["HypervisorState"] == "up"
            await engine.stop()
            await transport.stop()

    asyncio.run(main())


def test_too_many_calls_of_one_caller_are_refused(bus: Bus) -> None:
    async def main() -> None:
        engine = new_engine()
        transport = DbusTransport(engine, bus.address)
        await transport.start()
        async with client_of(bus.address) as client, client_of(bus.address) as other:
            calls = [asyncio.create_task(client.call("List")) for _ in range(MOST_CALLS + 10)]
            await until(lambda: sum(call.done() for call in calls) == 10)
            listed = asyncio.create_task(other.call("List"))
            await engine.start()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            refusals = [answer for answer in answers if isinstance(answer, CallFailed)]
            assert {refusal.error for refusal in refusals} == {"org.vmstack.Error.Unavailable"}
            assert len(refusals) == 10
            assert await listed == []
            await engine.stop()
            await transport.stop()

    asyncio.run(main())


def test_a_client_that_never_reads_holds_up_nobody(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        deaf = await Connection.open(bus.address)
        try:
            deaf._watched.forget()  # it does not look at its socket any more
            loop = asyncio.get_running_loop()
            end = loop.time() + 2.0
            made = 0
            while made < 20000 and loop.time() < end:
                message = deaf._open_bus.new_method_call_message(NAME, HOST_PATH, NAME, "Topology")
                message.send()
                made += 1
                if made % 500 == 0:
                    assert await on_bus.client.call("List") == []
            assert await on_bus.client.call("Deploy", "sudds", *EXAMPLE) == [0, 8]
        finally:
            deaf.close()

    on(bus, check)


def test_what_the_library_answers_holds_up_nobody_either(bus: Bus) -> None:
    async def check(on_bus: Served) -> None:
        await on_bus.client.call("Deploy", "sudds", *EXAMPLE)
        deaf = await Connection.open(bus.address)
        try:
            for _ in range(3000):
                manager = "org.freedesktop.DBus.ObjectManager"
                message = deaf._open_bus.new_method_call_message(NAME, HOST_PATH, manager, "GetManagedObjects")
                message.expect_reply = False
                message.send()
            loop = asyncio.get_running_loop()
            begin = before = loop.time()
            longest = 0.0
            listed = asyncio.create_task(on_bus.client.call("List"))
            while not listed.done():
                await asyncio.sleep(0)
                now = loop.time()
                longest, before = max(longest, now - before), now
            assert await listed
            assert longest < (before - begin) / 4
        finally:
            deaf.close()

    on(bus, check)


def test_with_another_sdbus_it_works_too(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        __slots__ = ("one", "two")

    with monkeypatch.context() as patch:
        patch.setattr(dbus_steps, "SdBus", Other)
        assert dbus_steps._library.__wrapped__() is None
    monkeypatch.setattr(dbus_steps, "_library", lambda: None)

    async def check(on_bus: Served) -> None:
        assert await on_bus.client.call("Deploy", "sudds", *EXAMPLE) == [0, 8]

    on(bus, check)


# Introspection


def _normal(xml: str) -> dict[str, list[str]]:
    """Members of each interface of ours, written one way."""
    return {
        interface.get("name", ""): sorted(
            ElementTree.canonicalize(ElementTree.tostring(member, encoding="unicode"), strip_text=True)
            for member in interface
            if member.get("name")
        )
        for interface in ElementTree.fromstring(xml).iter("interface")
        if interface.get("name", "").startswith("org.vmstack.")
    }


def _not_told(xml: str) -> dict[str, set[str]]:
    """Properties of each interface that change without a signal."""
    annotation = "annotation[@name='org.freedesktop.DBus.Property.EmitsChangedSignal'][@value='false']"
    return {
        interface.get("name", ""): {
            prop.get("name", "") for prop in interface.iter("property") if prop.find(annotation) is not None
        }
        for interface in ElementTree.fromstring(xml).iter("interface")
    }


def test_the_introspection_that_is_installed_is_what_is_on_the_bus(bus: Bus) -> None:
    installed = (ROOT / "systemd" / "dbus" / "org.vmstack.Host1.xml").read_text(encoding="utf-8")
    assert installed == document(), "run: make introspection"

    async def check(on_bus: Served) -> None:
        await on_bus.client.call("Deploy", "sudds", *EXAMPLE)
        live: Mapping[str, list[str]] = {}
        for path in (HOST_PATH, vm_path("example"), subset_path(2000)):
            live = {**live, **_normal(await on_bus.client.introspect(path))}
        assert _normal(installed) == live
        assert len(live) == 3
        assert _not_told(installed) == MEASURED

    on(bus, check)
