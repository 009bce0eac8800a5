"""What real QEMU processes use, and that measuring it holds nothing up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.usage import VmCounters
from tests.hypervisor.backends import Backend, Events
from tests.real import WAIT_S, PrivateLibvirtd, make_image, qemu_pid
from vmstackd.hypervisor.base import Hypervisor, HypervisorError, HypervisorUnreachable

pytestmark = pytest.mark.real

BUSY_BOOT_SECTOR = b"\xfa\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"
"""cli; jmp to itself: a guest that computes for ever."""
ROUND_S = 2.0


@pytest.fixture(params=["embedded", "system"])
def real(request: pytest.FixtureRequest) -> Backend:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Backend)
    return found


async def start(
    real: Backend, hypervisor: Hypervisor, name: str, cpus: tuple[int, ...], sector: bytes = BUSY_BOOT_SECTOR
) -> None:
    image = make_image(Path(real.image).with_name(f"{name}.qcow2"), sector)
    await hypervisor.create(real.definition(name, vcpus=1, image=str(image), cpus=cpus))


def kernel_cpu_s(real: Backend, name: str) -> float:
    """What the kernel says that the process has used."""
    fields = Path(f"/proc/{qemu_pid(Path(real.image).parent, name)}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(hypervisor: Hypervisor, true: Callable[[dict[str, tuple[float, float]]], bool]) -> None:
    """Measure rounds until one is as it must be, because what else runs on this machine disturbs some.

    true: is given, by name, the CPUs that a VM kept busy, and for which part of the time it waited.
    """
    used: dict[str, tuple[float, float]] = {}
    try:
        async with asyncio.timeout(WAIT_S):
            while not used or not true(used):
                before = await hypervisor.measure()
                await asyncio.sleep(ROUND_S)
                after = await hypervisor.measure()
                used = {name: _between(before.vms[name], vm, after.at - before.at) for name, vm in after.vms.items()}
    except TimeoutError:
        pytest.fail(f"the last round was {used}")


def _between(before: VmCounters, after: VmCounters, seconds: float) -> tuple[float, float]:
    assert before.cpu_s is not None
    assert after.cpu_s is not None
    assert before.delay_s is not None
    assert after.delay_s is not None
    return (after.cpu_s - before.cpu_s) / seconds, (after.delay_s - before.delay_s) / seconds


def test_a_busy_vm_and_an_idle_one(real: Backend) -> None:
    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await start(real, hypervisor, "busy", real.cpus)
        await hypervisor.create(real.definition("idle", vcpus=1, cpus=real.cpus))
        await until(hypervisor, lambda used: used["busy"][0] > max(0.1, 3 * used["idle"][0]))
        before, from_kernel = await hypervisor.measure(), kernel_cpu_s(real, "busy")
        await asyncio.sleep(2 * ROUND_S)
        after, of_kernel = await hypervisor.measure(), kernel_cpu_s(real, "busy") - from_kernel
        busy_s = (after.vms["busy"].cpu_s or 0) - (before.vms["busy"].cpu_s or 0)
        assert of_kernel > 0
        assert busy_s == pytest.approx(of_kernel, rel=0.1)
        for vm in after.vms.values():
            assert vm.resident_mib is not None
            assert 10 < vm.resident_mib < 200

    real.run(scenario)


def test_vms_on_one_cpu_wait_for_each_other(real: Backend) -> None:
    cpus = real.cpus[-1:]

    def always_wants_to_run(busy: float, waited: float) -> bool:
        return 0.9 < busy + waited < 1.1

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await start(real, hypervisor, "left", cpus)
        await until(hypervisor, lambda used: always_wants_to_run(*used["left"]) and used["left"][1] < 0.4)
        await start(real, hypervisor, "right", cpus)
        await until(
            hypervisor,
            lambda used: all(
                always_wants_to_run(*used[name]) and 0.25 < used[name][0] < 0.6 and used[name][1] > 0.4
                for name in ("left", "right")
            ),
        )

    real.run(scenario)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_vm_that_hangs_is_measured_and_can_be_pinned(real: Backend) -> None:
    """libvirt's own statistics would wait for it, and the pin for them, for half a minute."""

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await start(real, hypervisor, "hangs", real.cpus[:1])
        await start(real, hypervisor, "runs", real.cpus[:1])
        with stopped(qemu_pid(Path(real.image).parent, "hangs")):
            async with asyncio.timeout(WAIT_S / 4):
                first = await hypervisor.measure()
                measuring = asyncio.gather(*(hypervisor.measure() for _ in range(3)))
                assert await hypervisor.pin("hangs", real.cpus[1:]) == frozenset(real.cpus[1:])
                await measuring
            await until(hypervisor, lambda used: used["hangs"] == (0.0, 0.0) and used["runs"][0] > 0.05)
        assert first.vms.keys() == {"hangs", "runs"}

    real.run(scenario)


def test_a_libvirtd_that_is_restarted(system: Backend, libvirtd: PrivateLibvirtd) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.create(system.definition("stays"))
        before = await hypervisor.measure()
        libvirtd.kill()
        await events.wait("lost")
        with pytest.raises(HypervisorUnreachable):
            await hypervisor.measure()
        await asyncio.to_thread(libvirtd.start)
        await events.wait("restored")
        after = await hypervisor.measure()
        assert after.vms["stays"].uuid == before.vms["stays"].uuid
        assert _between(before.vms["stays"], after.vms["stays"], 1) >= (0.0, 0.0)

    system.run(scenario)


def test_a_libvirtd_that_hangs(system: Backend, libvirtd: PrivateLibvirtd) -> None:
    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        await hypervisor.measure()
        with stopped(libvirtd.pid):
            async with asyncio.timeout(WAIT_S / 2):
                with pytest.raises(HypervisorError, match="has not answered"):
                    await hypervisor.measure()
                await events.wait("lost")
        await events.wait("restored")
        assert (await hypervisor.measure()).vms == {}

    system.run(scenario)
