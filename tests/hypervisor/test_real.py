"""Real QEMU processes: what the kernel says, what fails, and what libvirtd's death does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.hypervisor.backends import Backend, Events
from tests.real import WAIT_S, PrivateLibvirtd, qemu_pid, qemus, vcpu_affinities
from vmstackd.hypervisor.base import Hypervisor, HypervisorError, HypervisorUnreachable

pytestmark = pytest.mark.real


@pytest.fixture(params=["embedded", "system"])
def real(request: pytest.FixtureRequest) -> Backend:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Backend)
    return found


THREADS = """<domain type='qemu'><name>threads</name><memory unit='MiB'>32</memory><vcpu>2</vcpu>
  <iothreads>2</iothreads><os><type machine='pc'>hvm</type></os></domain>"""
"""A VM that is not ours, with threads of all kinds and no pins."""


def root_of(backend: Backend) -> Path:
    return Path(backend.image).parent


def affinities(backend: Backend, name: str) -> set[str]:
    """What the kernel has for the vCPU threads; there must be two."""
    found = vcpu_affinities(qemu_pid(root_of(backend), name))
    assert set(found) == {"CPU 0/TCG", "CPU 1/TCG"}
    return set(found.values())


def all_affinities(backend: Backend, name: str) -> set[int]:
    """CPUs that any thread of the process may use, the emulator's included."""
    threads = Path(f"/proc/{qemu_pid(root_of(backend), name)}/task").iterdir()
    return {cpu for thread in threads for cpu in os.sched_getaffinity(int(thread.name))}


def test_the_kernel_has_the_pins(real: Backend) -> None:
    first, second = real.cpus

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await hypervisor.create(real.definition("kernel"))
        assert affinities(real, "kernel") == {str(first)}
        await hypervisor.pin("kernel", [second])
        assert affinities(real, "kernel") == {str(second)}
        # All of the process: the emulator's threads too.
        assert all_affinities(real, "kernel") == {second}
        await hypervisor.destroy("kernel")
        assert qemus(root_of(real)) == []
        assert root_of(real).joinpath("idle.qcow2") in root_of(real).iterdir()

    real.run(scenario)


def test_pins_from_outside_are_observed(real: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await hypervisor.create(real.definition("moved"))
        real.outside.lookupByName("moved").pinVcpu(1, tuple(cpu in real.cpus[1:] for cpu in range(real.cpus[1] + 1)))
        (vm,) = await hypervisor.observe(["moved"])
        assert vm.pinned == frozenset(real.cpus)

    real.run(scenario)


def test_paused_vms_hold_their_cpus(real: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(real.definition("paused"))
        await events.wait("changed", "paused")
        events.seen.clear()
        real.outside.lookupByName("paused").suspend()
        await events.wait("changed", "paused")
        (vm,) = await hypervisor.observe(["paused"])
        assert vm.running
        assert vm.pinned == frozenset(real.cpus[:1])

    real.run(scenario)


def test_io_threads_are_pinned_too(real: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        real.outside.createXML(
            "<domain type='qemu'><name>io</name><memory unit='MiB'>32</memory><vcpu>1</vcpu><iothreads>1</iothreads>"
            "<os><type machine='pc'>hvm</type></os></domain>"
        )
        await hypervisor.pin("io", real.cpus[1:])
        ((_, allowed),) = real.outside.lookupByName("io").ioThreadInfo()
        assert [cpu for cpu, is_allowed in enumerate(allowed) if is_allowed] == list(real.cpus[1:])

    real.run(scenario)


@pytest.mark.parametrize(
    ("method", "calls"), [("pinEmulator", 0), ("pinIOThread", 0), ("pinIOThread", 1), ("pinVcpu", 0), ("pinVcpu", 1)]
)
def test_a_pinning_cut_short_is_seen_as_it_is(
    real: Backend, monkeypatch: pytest.MonkeyPatch, method: str, calls: int
) -> None:
    """As after SIGKILL between two of libvirt's calls: nothing is taken for narrowed that is not."""
    working, done = getattr(libvirt.virDomain, method), 0

    def cut(*arguments: object) -> object:
        nonlocal done
        done += 1
        if done > calls:
            raise libvirt.libvirtError("cut short")
        return working(*arguments)

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        real.outside.createXML(THREADS)
        assert await hypervisor.pin("threads", real.cpus) == all_affinities(real, "threads") == set(real.cpus)
        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virDomain, method, cut)
            with pytest.raises(HypervisorError, match="cut short"):
                await hypervisor.pin("threads", real.cpus[1:])
        (vm,) = await hypervisor.observe(["threads"])
        assert vm.pinned == all_affinities(real, "threads")
        assert await hypervisor.pin("threads", real.cpus[1:]) == frozenset(real.cpus[1:])
        (vm,) = await hypervisor.observe(["threads"])
        assert vm.pinned == all_affinities(real, "threads") == set(real.cpus[1:])

    real.run(scenario)


def test_only_the_vcpus_of_a_foreign_vm_are_pinned(real: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        real.outside.createXML(THREADS)
        domain = real.outside.lookupByName("threads")
        for vcpu in range(2):
            domain.pinVcpu(vcpu, tuple(cpu in real.cpus[1:] for cpu in range(real.cpus[1] + 1)))
        assert affinities(real, "threads") == {str(real.cpus[1])}
        (vm,) = await hypervisor.observe(["threads"])
        assert vm.pinned >= all_affinities(real, "threads") >= set(real.cpus)

    real.run(scenario)


@pytest.mark.parametrize("reason", ["image", "format", "cpu"])
def test_a_failed_start_leaves_nothing(real: Backend, reason: str) -> None:
    bad: dict[str, Any] = {
        "image": {"image": f"{root_of(real)}/absent.qcow2"},
        "format": {"image": f"{root_of(real)}/not-qcow2"},
        "cpu": {"cpus": (4000,)},
    }
    (root_of(real) / "not-qcow2").write_bytes(bytes(4096))

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        with pytest.raises(HypervisorError) as raised:
            await hypervisor.create(real.definition("bad", **bad[reason]))
        assert raised.type is HypervisorError
        assert str(raised.value)
        assert await hypervisor.observe() == []
        assert qemus(root_of(real)) == []
        await hypervisor.create(real.definition("bad"))

    real.run(scenario)


def test_a_refused_destroy_leaves_the_vm_as_it_was(real: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(real.definition("kept"))
        before = await hypervisor.observe()
        with monkeypatch.context() as patched:
            # libvirt itself refuses, because of a flag that it does not know.
            patched.setattr(libvirt.virDomain, "destroy", lambda domain: domain.destroyFlags(1 << 20))
            with pytest.raises(HypervisorError, match="unsupported flags") as raised:
                await hypervisor.destroy("kept")
        assert raised.type is HypervisorError
        assert await hypervisor.observe() == before
        assert before[0].pinned == all_affinities(real, "kept") == set(real.cpus[:1])
        assert real.outside.lookupByName("kept").isPersistent()
        assert [event.kind for event in events.seen if event.kind != "changed"] == []
        await hypervisor.destroy("kept")
        assert await hypervisor.observe() == []

    real.run(scenario)


def test_a_killed_qemu_is_noticed(real: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(real.definition("killed"))
        await events.wait("changed", "killed")
        events.seen.clear()
        os.kill(qemu_pid(root_of(real), "killed"), signal.SIGKILL)
        while (await hypervisor.observe(["killed"]))[0].running:
            await events.wait("changed", "killed")
        await hypervisor.destroy("killed")

    real.run(scenario)


def test_virsh_is_noticed(system: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(system.definition("virsh"))
        for command in ("suspend", "resume", "destroy", "start", "destroy", "undefine"):
            await asyncio.sleep(0)
            events.seen.clear()
            await asyncio.to_thread(subprocess.run, ["virsh", "-c", system.uri, command, "virsh"], check=True)
            await events.wait("changed", "virsh")
        assert await hypervisor.observe(["virsh"]) == []

    system.run(scenario)


def test_libvirtd_dies_and_comes_back(system: Backend, libvirtd: PrivateLibvirtd) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(system.definition("survivor"))
        (before,) = await hypervisor.observe()
        libvirtd.kill()
        assert (await events.wait("lost")).reason
        for call in (
            hypervisor.observe(),
            hypervisor.pin("survivor", system.cpus),
            hypervisor.create(system.definition("other")),
            hypervisor.destroy("survivor"),
        ):
            with pytest.raises(HypervisorUnreachable):
                await call
        await asyncio.sleep(1)
        assert [event.kind for event in events.seen if event.kind != "changed"] == []
        await asyncio.to_thread(libvirtd.start)
        await events.wait("restored")
        assert await hypervisor.observe() == [before]
        assert affinities(system, "survivor") == {str(system.cpus[0])}
        assert await hypervisor.pin("survivor", system.cpus) == frozenset(system.cpus)
        await hypervisor.destroy("survivor")
        await events.wait("changed", "survivor")

    system.run(scenario)


def test_libvirtd_dies_during_a_call(system: Backend, libvirtd: PrivateLibvirtd) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        creating = asyncio.create_task(hypervisor.create(system.definition("half")))
        await events.wait("changed", "half")
        libvirtd.kill()
        # The call may have ended before the daemon did; if not, it must say that nothing is known.
        result = (await asyncio.gather(creating, return_exceptions=True))[0]
        assert result is None or isinstance(result, HypervisorUnreachable)
        await events.wait("lost")
        await asyncio.to_thread(libvirtd.start)
        await events.wait("restored")
        await hypervisor.observe()

    system.run(scenario)


def test_libvirtd_hangs(system: Backend, libvirtd: PrivateLibvirtd) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(system.definition("waiting"))
        libvirtd.kill(signal.SIGSTOP)
        try:
            with pytest.raises(HypervisorUnreachable):
                await hypervisor.observe()
            await events.wait("lost")
        finally:
            libvirtd.kill(signal.SIGCONT)
        await events.wait("restored")
        assert [vm.name for vm in await hypervisor.observe()] == ["waiting"]

    system.run(scenario)


def test_no_libvirtd_at_the_start(system: Backend, short_tmp: Path) -> None:
    nowhere = Backend("system", f"qemu+unix:///system?socket={short_tmp}/none", Path(system.image), system.cpus)

    async def scenario() -> None:
        hypervisor = nowhere.make()
        with pytest.raises(HypervisorUnreachable, match="Failed to connect socket"):
            await hypervisor.open(Events())

    asyncio.run(scenario())


OWNER = """
import asyncio, sys
from pathlib import Path
from tests.hypervisor.backends import Backend, Events, machine_cpus

uri, image, what = sys.argv[1:]
backend = Backend("embed", uri, Path(image), machine_cpus())

async def main():
    hypervisor, events = backend.make(), Events()
    await hypervisor.open(events)
    if what == "create":
        await hypervisor.create(backend.definition("heir"))
        print("created", flush=True)
        await asyncio.sleep(600)
    (vm,) = await hypervisor.observe()
    assert vm.running and vm.pinned == frozenset(backend.cpus[:1]), vm
    assert vm.record == backend.definition("heir").record, vm
    assert await hypervisor.pin("heir", backend.cpus[1:]) == frozenset(backend.cpus[1:])
    await hypervisor.destroy("heir")
    assert await hypervisor.observe() == []
    await hypervisor.close()
    print("found", flush=True)

asyncio.run(main())
"""


def test_embedded_vms_outlive_a_killed_process(embedded_elsewhere: tuple[str, Path]) -> None:
    uri, image = embedded_elsewhere
    command = [sys.executable, "-c", OWNER, uri, str(image)]
    with subprocess.Popen([*command, "create"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "created\n"
        second = subprocess.run([*command, "find"], capture_output=True, text=True, check=False, timeout=WAIT_S)
        assert "pid file" in second.stderr  # one process at a time
        first.kill()
    pid = qemu_pid(image.parent, "heir")
    assert qemus(image.parent) == [pid]
    third = subprocess.run([*command, "find"], capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert third.stdout == "found\n", third.stderr
    assert qemus(image.parent) == []
