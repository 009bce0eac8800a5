"""VMs that exist only as values: any topology, no processes. For planning, demonstrations and tests."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from core.topology import Topology
from vmstackd.api.errors import InvalidRequest
from vmstackd.hypervisor.base import (
    HypervisorError,
    HypervisorEvent,
    HypervisorUnreachable,
    Measured,
    ObservedVm,
    Record,
    VmDefinition,
    VmMissing,
)
from vmstackd.hypervisor.options import HypervisorOptions
from vmstackd.hypervisor.sim_load import SimLoad


class SimHypervisor:
    """vms: by name. Given one from outside, several lives of a daemon see the same VMs."""

    def __init__(
        self,
        uri: str = "sim:",
        vms: dict[str, ObservedVm] | None = None,
        clock: Callable[[], float] = time.monotonic,
        topology: Topology | None = None,
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        """topology: of the simulated host, whose CPUs and memory are measured too; without one, only VMs are.

        new_uuid: of each new VM.
        """
        self.uri = uri
        self.immediate = True
        self.vms: dict[str, ObservedVm] = {} if vms is None else vms
        self._clock = clock
        self._new_uuid = new_uuid
        self._load = SimLoad(topology)
        self._on_event: Callable[[HypervisorEvent], None] | None = None
        self.strayed: dict[str, Mapping[frozenset[int], tuple[int, ...]]] = {}
        """What the simulated kernel lets the threads of a VM do, where that is not what the VM says; until it is pinned
        anew.
        """

    async def open(self, on_event: Callable[[HypervisorEvent], None]) -> None:
        """As in base."""
        self._on_event = on_event

    async def close(self) -> None:
        """As in base."""
        self._on_event = None

    def reconfigure(self, options: HypervisorOptions) -> None:
        """As in base: nothing here depends on them."""

    async def check_image(self, image: str) -> str:
        """Any absolute path will do: nothing is ever read from it."""
        if not image.startswith("/") or not image.isprintable():
            raise InvalidRequest("image: must be an absolute path of printable characters", field="image")
        return image

    async def observe(self, names: Iterable[str] | None = None) -> list[ObservedVm]:
        """As in base."""
        self._check_open()
        wanted = list(self.vms) if names is None else dict.fromkeys(names)
        return [self._seen(self.vms[name], searched=names is None) for name in wanted if name in self.vms]

    async def measure(self) -> Measured:
        """As in base."""
        self._check_open()
        return self._load.measure(self._clock(), self.vms.values())

    async def create(self, definition: VmDefinition) -> None:
        """As in base."""
        self._check_open()
        vm = definition.vm
        if vm.name in self.vms:
            raise HypervisorError(f"domain '{vm.name}' already exists")
        self.put(
            ObservedVm(
                name=vm.name,
                uuid=str(self._new_uuid()),
                running=True,
                vcpus=vm.vcpus,
                memory_mib=vm.memory_mib,
                pinned=frozenset(definition.record.cpus),
                record=definition.record,
            )
        )

    async def destroy(self, name: str) -> None:
        """As in base."""
        self._find(name)
        self.drop(name)

    async def pin(self, name: str, cpus: Sequence[int]) -> frozenset[int]:
        """As in base."""
        vm = self._find(name)
        if not vm.running:
            raise HypervisorError("domain is not running")
        if not cpus:
            raise HypervisorError("no CPUs to pin to")
        pinned = frozenset(cpus)
        self.strayed.pop(name, None)
        self.vms[name] = msgspec.structs.replace(vm, pinned=pinned, uneven=False)
        return pinned

    async def write_record(self, name: str, record: Record) -> None:
        """As in base."""
        self.vms[name] = msgspec.structs.replace(self._find(name), record=record)

    def put(self, vm: ObservedVm) -> None:
        """Make a VM be there as given, and say that it changed."""
        self.vms[vm.name] = vm
        self._emit(HypervisorEvent("changed", vm=vm.name))

    def drop(self, name: str) -> None:
        """Make a VM be gone, and say that it changed."""
        del self.vms[name]
        self._emit(HypervisorEvent("changed", vm=name))

    def _seen(self, vm: ObservedVm, *, searched: bool) -> ObservedVm:
        threads = self.strayed.get(vm.name, {vm.pinned: (1,)} if searched else {})
        return msgspec.structs.replace(vm, threads=threads) if vm.running and threads else vm

    def _emit(self, event: HypervisorEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _find(self, name: str) -> ObservedVm:
        self._check_open()
        try:
            return self.vms[name]
        except KeyError:
            raise VmMissing(f"no domain named '{name}'") from None

    def _check_open(self) -> None:
        if self._on_event is None:
            raise HypervisorUnreachable("not connected")
