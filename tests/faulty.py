"""A simulated hypervisor that is slow, fails on request, and watches that no two levels share a CPU."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from core.topology import Topology
from vmstackd.api.caller import Caller, Role
from vmstackd.hypervisor.base import (
    HypervisorError,
    HypervisorEvent,
    HypervisorUnreachable,
    Measured,
    ObservedVm,
    Record,
    VmDefinition,
)
from vmstackd.hypervisor.sim import SimHypervisor

OPERATOR = Caller(transport="inproc", identity="test", role=Role.OPERATOR)


class FaultySim(SimHypervisor):
    """plan: asked before each call with (operation, VM name); it may wait, and raise what the call is to raise.

    calls: every call that took effect, in order. ours: VMs that were created or pinned through it.
    violations: instants at which a CPU was open to VMs of two levels.
    """

    def __init__(self, vms: dict[str, ObservedVm] | None = None, topology: Topology | None = None) -> None:
        super().__init__("sim:", vms, topology=topology)
        self.immediate = False
        self.plan: Callable[[str, str], Awaitable[None]] = self._nothing
        self.aftermath: Callable[[str, str], Awaitable[None]] = self._nothing
        self.calls: list[tuple[str, str]] = []
        self.linked = True
        self.ours: set[str] = set()
        self.violations: list[str] = []

    async def _nothing(self, operation: str, name: str) -> None:
        await asyncio.sleep(0)

    async def _before(self, operation: str, name: str) -> None:
        await self.plan(operation, name)
        if not self.linked:
            raise HypervisorUnreachable("the link is cut")

    def _took_effect(self, operation: str, name: str) -> None:
        self.calls.append((operation, name))
        if operation in {"create", "pin"}:
            self.ours.add(name)
        if not self.separated():
            self.violations.append(f"after {operation} of {name}")

    async def observe(self, names: Iterable[str] | None = None) -> list[ObservedVm]:
        await self._before("observe", "")
        seen = await super().observe(names)
        await self.aftermath("observe", "")  # what was seen may be outdated when it arrives
        return seen

    async def measure(self) -> Measured:
        await self._before("measure", "")
        return await super().measure()

    async def create(self, definition: VmDefinition) -> None:
        await self._before("create", definition.vm.name)
        await super().create(definition)
        self._took_effect("create", definition.vm.name)
        await self.aftermath("create", definition.vm.name)

    async def destroy(self, name: str) -> None:
        await self._before("destroy", name)
        await super().destroy(name)
        self._took_effect("destroy", name)
        await self.aftermath("destroy", name)

    async def pin(self, name: str, cpus: Sequence[int]) -> frozenset[int]:
        await self._before("pin", name)
        result = await super().pin(name, cpus)
        self._took_effect("pin", name)
        await self.aftermath("pin", name)
        return result

    async def write_record(self, name: str, record: Record) -> None:
        await self._before("write_record", name)
        await super().write_record(name, record)
        self._took_effect("write_record", name)
        await self.aftermath("write_record", name)

    def cut(self) -> None:
        """The link breaks."""
        self.linked = False
        self._emit(HypervisorEvent("lost", reason="the link is cut"))

    def heal(self) -> None:
        """The link is back."""
        self.linked = True
        self._emit(HypervisorEvent("restored"))

    def separated(self) -> bool:
        """Whether no CPU is open to VMs of two levels; one from outside counts once it has been pinned."""
        owner: dict[int, int] = {}
        for vm in self.vms.values():
            if vm.running and vm.record is not None and vm.name in self.ours:
                for cpu in vm.pinned:
                    if owner.setdefault(cpu, vm.record.level) != vm.record.level:
                        return False
        return True


def failing(
    operation: str, *names: str, error: type[HypervisorError] = HypervisorError
) -> Callable[[str, str], Awaitable[None]]:
    """A plan: this operation fails for these VMs (all, if none is named)."""

    async def plan(called: str, name: str) -> None:
        await asyncio.sleep(0)
        if called == operation and (not names or name in names):
            raise error(f"{operation} was told to fail")

    return plan


def slow(rng: random.Random) -> Callable[[str, str], Awaitable[None]]:
    """A plan: every call takes some turns of the event loop."""

    async def plan(_operation: str, _name: str) -> None:
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)

    return plan


def outsider(name: str, vcpus: int, pinned: Iterable[int], **more: object) -> ObservedVm:
    """A VM that somebody else started."""
    vm = ObservedVm(
        name=name, uuid=f"uuid-{name}", running=True, vcpus=vcpus, memory_mib=1024, pinned=frozenset(pinned)
    )
    return msgspec.structs.replace(vm, **more)
