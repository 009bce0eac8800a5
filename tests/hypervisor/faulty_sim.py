"""A SimHypervisor whose world can be disturbed, and whose calls can be made to fail."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

import msgspec

from vmstackd.hypervisor.base import (
    HypervisorError,
    HypervisorEvent,
    HypervisorUnreachable,
    ObservedVm,
    Record,
    VmDefinition,
)
from vmstackd.hypervisor.sim import SimHypervisor


class FaultySim(SimHypervisor):
    """failures: by name of a method, raised by its next call, once each, before it does anything.

    calls: every call, in order, as (method, VM).
    """

    def __init__(self, vms: dict[str, ObservedVm] | None = None) -> None:
        super().__init__(vms=vms)
        self.failures: dict[str, list[HypervisorError]] = {}
        self.calls: list[tuple[str, str]] = []
        self.down = ""

    # Changes from outside

    def appear(
        self,
        name: str,
        *,
        vcpus: int = 1,
        memory_mib: int = 64,
        pinned: Iterable[int] = (0,),
        running: bool = True,
        record: Record | None = None,
        foreign_level: int | None = None,
    ) -> None:
        """Someone else starts, or changes, a VM."""
        self.put(
            ObservedVm(
                name=name,
                uuid=str(uuid.uuid4()),
                running=running,
                vcpus=vcpus,
                memory_mib=memory_mib,
                pinned=frozenset(pinned) if running else frozenset(),
                record=record,
                foreign_level=foreign_level,
            )
        )

    def die(self, name: str) -> None:
        """The VM shuts down; its definition stays."""
        self.put(msgspec.structs.replace(self.vms[name], running=False, pinned=frozenset()))

    def vanish(self, name: str) -> None:
        """The VM is gone, its definition too."""
        self.drop(name)

    def repin(self, name: str, cpus: Iterable[int]) -> None:
        """Someone else pins it; libvirt sends no lifecycle event for that."""
        self.vms[name] = msgspec.structs.replace(self.vms[name], pinned=frozenset(cpus))

    # Failures

    def fail(self, method: str, *errors: HypervisorError) -> None:
        """Let the next calls of this method raise these."""
        self.failures.setdefault(method, []).extend(errors)

    def lose(self, reason: str = "cut") -> None:
        """The link breaks; events are lost until it is restored."""
        self.down = reason
        super()._emit(HypervisorEvent("lost", reason=reason))

    def restore(self) -> None:
        """The link is back."""
        self.down = ""
        super()._emit(HypervisorEvent("restored"))

    async def observe(self, names: Iterable[str] | None = None) -> list[ObservedVm]:
        """May fail."""
        self._call("observe", "")
        return await super().observe(names)

    async def create(self, definition: VmDefinition) -> None:
        """May fail."""
        self._call("create", definition.vm.name)
        await super().create(definition)

    async def destroy(self, name: str) -> None:
        """May fail."""
        self._call("destroy", name)
        await super().destroy(name)

    async def pin(self, name: str, cpus: Sequence[int]) -> frozenset[int]:
        """May fail."""
        self._call("pin", name)
        return await super().pin(name, cpus)

    async def write_record(self, name: str, record: Record) -> None:
        """May fail."""
        self._call("write_record", name)
        await super().write_record(name, record)

    def _emit(self, event: HypervisorEvent) -> None:
        if not self.down:
            super()._emit(event)

    def _call(self, method: str, name: str) -> None:
        self.calls.append((method, name))
        if self.down:
            raise HypervisorUnreachable(self.down)
        if self.failures.get(method):
            raise self.failures[method].pop(0)
