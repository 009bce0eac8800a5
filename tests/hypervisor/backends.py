"""The hypervisors that the contract suite runs over, and what happens to them from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from core.model import Vm
from tests.faulty import outsider
from tests.real import WAIT_S
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor.base import Hypervisor, HypervisorEvent, ObservedVm, Record, VmDefinition
from vmstackd.hypervisor.sim import SimHypervisor


class Events:
    """What a hypervisor reported, and waiting for more."""

    def __init__(self) -> None:
        self.seen: list[HypervisorEvent] = []
        self._more = asyncio.Event()

    def __call__(self, event: HypervisorEvent) -> None:
        """To be passed to Hypervisor.open."""
        self.seen.append(event)
        self._more.set()

    async def wait(self, kind: str, vm: str = "") -> HypervisorEvent:
        """The first such event that no earlier wait has returned, nor any event before it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                while self.seen:
                    event = self.seen.pop(0)
                    if (event.kind, event.vm) == (kind, vm):
                        return event
                self._more.clear()
                await self._more.wait()


class Backend:
    """cpus: two that VMs may be pinned to. image: one that VMs may use. outside: another connection,
    which stays open.
    """

    def __init__(self, kind: str, uri: str, image: Path, cpus: tuple[int, int], outside: Any = None) -> None:  # noqa: ANN401 (libvirt has no types)
        self.outside = outside
        self.kind, self.uri, self.image, self.cpus = kind, uri, str(image), cpus
        self.options = HypervisorOptions(image_roots=(str(image.parent),), virt_type="qemu")

    def make(self) -> Hypervisor:
        """A hypervisor, not yet open."""
        return open_hypervisor(self.uri, self.options)

    def run(self, scenario: Callable[[Hypervisor, Events], Awaitable[None]]) -> None:
        """Run it with an open hypervisor; afterwards no VM is left."""

        async def whole() -> None:
            hypervisor, events = self.make(), Events()
            await hypervisor.open(events)
            try:
                await scenario(hypervisor, events)
            finally:
                with contextlib.suppress(Exception):
                    for vm in await hypervisor.observe():
                        await hypervisor.destroy(vm.name)
                await hypervisor.close()

        asyncio.run(whole())

    def definition(self, name: str, vcpus: int = 2, **changes: Any) -> VmDefinition:  # noqa: ANN401 (fields differ)
        """A small VM on the first CPU; changes are of the record."""
        fields: dict[str, Any] = {
            "level": 2000,
            "vcpus": vcpus,
            "memory_mib": 32,
            "image": self.image,
            "cpus": self.cpus[:1],
            "generation": 7,
            "arrival": 5,
        }
        record = Record(**(fields | changes))
        return VmDefinition(vm=Vm(name, vcpus, record.memory_mib, record.level), record=record)

    def another_image(self, name: str) -> str:
        """Running VMs cannot share one."""
        return str(shutil.copy(self.image, Path(self.image).with_name(f"{name}.qcow2")))

    # From outside, all blocking

    def outside_define(self, name: str) -> None:
        """Someone else defines a VM and does not start it."""
        self.outside.defineXML(self._foreign(name))

    def outside_start(self, name: str) -> None:
        """Someone else starts a VM that is not ours."""
        self.outside.createXML(self._foreign(name))

    def outside_destroy(self, name: str) -> None:
        """Someone else stops a VM; its definition stays."""
        self.outside.lookupByName(name).destroy()

    def outside_vanish(self, name: str) -> None:
        """Someone else stops a VM and forgets it."""
        domain = self.outside.lookupByName(name)
        if domain.isActive():
            domain.destroy()
        domain.undefine()

    def _foreign(self, name: str) -> str:
        test = self.kind == "test"
        return f"""<domain type='{"test" if test else "qemu"}'><name>{name}</name><memory unit='MiB'>32</memory>
          <metadata><sched:ratio xmlns:sched='1.0.0' cpu='1.5'/></metadata><vcpu>1</vcpu>
          <os><type {"" if test else "machine='pc'"}>hvm</type></os>
          <devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='{self.image}'/>
          <target dev='vda' bus='virtio'/></disk></devices></domain>"""


class SimBackend(Backend):
    """Several hypervisors in a row see the same VMs."""

    def __init__(self) -> None:
        super().__init__("sim", "sim:", Path("/images/a.qcow2"), (300, 301))
        self._vms: dict[str, ObservedVm] = {}
        self._sim = SimHypervisor(vms=self._vms)

    def make(self) -> Hypervisor:
        """The same world each time."""
        self._sim = SimHypervisor(vms=self._vms)
        return self._sim

    def another_image(self, name: str) -> str:
        """As in Backend."""
        return f"/images/{name}.qcow2"

    def outside_define(self, name: str) -> None:
        """As in Backend."""
        self._sim.put(outsider(name, 1, (), memory_mib=32, running=False, foreign_level=1500))

    def outside_start(self, name: str) -> None:
        """As in Backend."""
        self._sim.put(outsider(name, 1, (0,), memory_mib=32, foreign_level=1500))

    def outside_destroy(self, name: str) -> None:
        """As in Backend."""
        self._sim.put(msgspec.structs.replace(self._vms[name], running=False, pinned=frozenset()))

    def outside_vanish(self, name: str) -> None:
        """As in Backend."""
        self._sim.drop(name)


def machine_cpus() -> tuple[int, int]:
    """Two CPUs of this machine (the same one twice if it has no other)."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[-1]
