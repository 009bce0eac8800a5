"""What every hypervisor does alike."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from tests.hypervisor.backends import Backend, Events
from vmstackd.hypervisor.base import (
    Hypervisor,
    HypervisorError,
    HypervisorUnreachable,
    ObservedVm,
    VmMissing,
)


async def only(hypervisor: Hypervisor, name: str) -> ObservedVm:
    (vm,) = await hypervisor.observe([name])
    return vm


def test_a_vm_lives_as_ordered(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        definition = backend.definition("life")
        await hypervisor.create(definition)
        await events.wait("changed", "life")
        vm = await only(hypervisor, "life")
        assert vm == ObservedVm(
            name="life",
            uuid=vm.uuid,
            running=True,
            vcpus=2,
            memory_mib=32,
            pinned=frozenset(backend.cpus[:1]),
            record=definition.record,
        )
        assert await hypervisor.pin("life", backend.cpus) == frozenset(backend.cpus)
        assert await hypervisor.pin("life", backend.cpus) == frozenset(backend.cpus)
        record = msgspec.structs.replace(definition.record, cpus=backend.cpus[::-1], generation=8)
        await hypervisor.write_record("life", record)
        assert await only(hypervisor, "life") == msgspec.structs.replace(
            vm, pinned=frozenset(backend.cpus), record=record
        )
        assert await hypervisor.pin("life", backend.cpus[1:]) == frozenset(backend.cpus[1:])
        await hypervisor.destroy("life")
        assert await hypervisor.observe(["life"]) == []
        await hypervisor.create(definition)
        assert (await only(hypervisor, "life")).pinned == frozenset(backend.cpus[:1])

    backend.run(scenario)


def test_a_name_is_unique(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await hypervisor.create(backend.definition("one"))
        before = await only(hypervisor, "one")
        with pytest.raises(HypervisorError, match=r"exists|already"):
            await hypervisor.create(backend.definition("one", generation=9))
        assert await only(hypervisor, "one") == before
        backend.outside_define("two")
        before = await only(hypervisor, "two")
        assert not before.running
        with pytest.raises(HypervisorError, match=r"exists|already"):
            await hypervisor.create(backend.definition("two"))
        assert await only(hypervisor, "two") == before

    backend.run(scenario)


def test_two_creations_of_one_name(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        definition = backend.definition("same")
        results = await asyncio.gather(
            hypervisor.create(definition), hypervisor.create(definition), return_exceptions=True
        )
        assert [type(result) for result in results if result is not None] == [HypervisorError]
        assert (await only(hypervisor, "same")).running

    backend.run(scenario)


def test_no_such_vm(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        assert await hypervisor.observe(["ghost"]) == []
        with pytest.raises(VmMissing):
            await hypervisor.destroy("ghost")
        with pytest.raises(VmMissing):
            await hypervisor.pin("ghost", backend.cpus)
        with pytest.raises(VmMissing):
            await hypervisor.write_record("ghost", backend.definition("ghost").record)

    backend.run(scenario)


def test_a_vm_that_does_not_run(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        definition = backend.definition("off")
        await hypervisor.create(definition)
        await events.wait("changed", "off")
        backend.outside_destroy("off")
        await events.wait("changed", "off")
        vm = await only(hypervisor, "off")
        assert (vm.running, vm.pinned, vm.record) == (False, frozenset(), definition.record)
        record = msgspec.structs.replace(definition.record, generation=99)
        await hypervisor.write_record("off", record)
        assert (await only(hypervisor, "off")).record == record
        with pytest.raises(HypervisorError) as raised:
            await hypervisor.pin("off", backend.cpus)
        assert raised.type is HypervisorError
        await hypervisor.destroy("off")
        assert await hypervisor.observe(["off"]) == []

    backend.run(scenario)


def test_changes_from_outside(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        backend.outside_start("foreign")
        await events.wait("changed", "foreign")
        vm = await only(hypervisor, "foreign")
        assert (vm.running, vm.vcpus, vm.memory_mib, vm.record, vm.foreign_level) == (True, 1, 32, None, 1500)
        assert vm.pinned
        await hypervisor.write_record("foreign", backend.definition("foreign").record)
        vm = await only(hypervisor, "foreign")
        assert vm.record == backend.definition("foreign").record
        assert vm.foreign_level == 1500
        assert await hypervisor.pin("foreign", backend.cpus[1:]) == frozenset(backend.cpus[1:])
        await hypervisor.destroy("foreign")
        assert await hypervisor.observe(["foreign"]) == []
        await hypervisor.create(backend.definition("ours"))
        backend.outside_vanish("ours")
        await events.wait("changed", "ours")
        assert "ours" not in [found.name for found in await hypervisor.observe()]

    backend.run(scenario)


def test_several_at_once(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        names = ["a", "b", "c"]
        definitions = [backend.definition(name, image=backend.another_image(name)) for name in names]
        await asyncio.gather(*(hypervisor.create(definition) for definition in definitions))
        assert {vm.name for vm in await hypervisor.observe() if vm.record is not None} == set(names)
        assert [vm.name for vm in await hypervisor.observe(["c", "ghost", "a", "c"])] == ["c", "a"]
        assert await hypervisor.observe([]) == []
        await asyncio.gather(*(hypervisor.destroy(name) for name in names))
        assert await hypervisor.observe(names) == []

    backend.run(scenario)


def test_running_vms_are_measured(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        foreign = set((await hypervisor.measure()).vms)
        await hypervisor.create(backend.definition("first"))
        await hypervisor.create(backend.definition("off", image=backend.another_image("off")))
        await events.wait("changed", "off")
        backend.outside_destroy("off")
        await events.wait("changed", "off")
        before = time.monotonic()
        one = await hypervisor.measure()
        two = await hypervisor.measure()
        assert before <= one.at <= two.at <= time.monotonic()
        assert one.vms.keys() == two.vms.keys() == foreign | {"first"}
        vm = one.vms["first"]
        assert vm.uuid == (await only(hypervisor, "first")).uuid
        known = [vm.cpu_s is not None, vm.delay_s is not None, vm.resident_mib is not None]
        assert known == [backend.kind != "test"] * 3
        if backend.kind != "test":
            assert (vm.cpu_s or 0) <= (two.vms["first"].cpu_s or 0)
            assert (vm.delay_s or 0) <= (two.vms["first"].delay_s or 0)
        await hypervisor.destroy("first")
        assert (await hypervisor.measure()).vms.keys() == foreign

    backend.run(scenario)


def test_vms_outlive_the_connection(backend: Backend) -> None:
    definition = backend.definition("stays")

    async def first() -> None:
        hypervisor, events = backend.make(), Events()
        await hypervisor.open(events)
        await hypervisor.create(definition)
        await hypervisor.close()
        events.seen.clear()
        with pytest.raises(HypervisorUnreachable):
            await hypervisor.observe()
        assert events.seen == []

    async def second(hypervisor: Hypervisor, _events: Events) -> None:
        vm = await only(hypervisor, "stays")
        assert (vm.running, vm.pinned, vm.record) == (True, frozenset(backend.cpus[:1]), definition.record)

    asyncio.run(first())
    backend.run(second)


def test_odd_names_and_images(backend: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        for name in ("ein Wort & <mehr> \"'", "名前", "a" * 100):
            definition = backend.definition(name, vcpus=1)
            await hypervisor.create(definition)
            assert (await only(hypervisor, name)).record == definition.record
            await hypervisor.destroy(name)

    backend.run(scenario)


def test_a_cpu_that_is_not_there(backend: Backend) -> None:
    if backend.kind == "sim":
        return

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await hypervisor.create(backend.definition("pinned"))
        for cpus in ((), (5000,), (backend.cpus[0], 5000)):
            with pytest.raises(HypervisorError, match="cannot pin"):
                await hypervisor.pin("pinned", cpus)
        assert (await only(hypervisor, "pinned")).pinned == frozenset(backend.cpus[:1])

    backend.run(scenario)


def test_not_open(backend: Backend) -> None:
    async def scenario() -> None:
        hypervisor = backend.make()
        calls = [
            hypervisor.observe(),
            hypervisor.measure(),
            hypervisor.create(backend.definition("x")),
            hypervisor.destroy("x"),
            hypervisor.pin("x", [0]),
            hypervisor.write_record("x", backend.definition("x").record),
        ]
        results: list[object] = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [HypervisorUnreachable] * len(calls)

    asyncio.run(scenario())
