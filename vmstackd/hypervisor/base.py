"""What the engine needs of a hypervisor. The engine decides; a hypervisor only carries out and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from core.model import Vm
from core.usage import HostCounters, VmCounters
from vmstackd.hypervisor.options import HypervisorOptions


class HypervisorError(Exception):
    """The hypervisor refused or failed; nothing has changed. The text is its own reason."""


class HypervisorUnreachable(HypervisorError):
    """The link is down or broke during the call: whether the call took effect is unknown."""


class VmMissing(HypervisorError):
    """The hypervisor has no VM of this name."""


class Record(msgspec.Struct, frozen=True):
    """What vmstack writes into the metadata of a VM, and trusts only after checking.

    level in thousandths. cpus: the subset of the level in attribution order when the record was
    written; generation: of the host state then, so that the highest one tells the subset.
    arrival: generation at which the VM was placed.
    """

    level: int
    vcpus: int
    memory_mib: int
    image: str
    cpus: tuple[int, ...]
    generation: int
    arrival: int


class VmDefinition(msgspec.Struct, frozen=True):
    """A VM to start: pinned to record.cpus from its first instant."""

    vm: Vm
    record: Record


class ObservedVm(msgspec.Struct, frozen=True):
    """A VM as the hypervisor has it now.

    pinned: CPUs that any of its threads may run on: vCPUs, emulator and I/O threads together (all of
    the host's where one of them is not pinned); empty when not running.
    uneven: whether some of them may run on fewer CPUs than these.
    record: ours, None if absent or malformed. foreign_level: the prototype's metadata, in thousandths.
    unknown: why it could not be looked at, though it is there; then only the name means anything.
    threads: ids of the threads of its process by the CPUs that the kernel lets them use, whatever the hypervisor
    says; empty where nobody has looked, or its process cannot be seen.
    """

    name: str
    uuid: str
    running: bool
    vcpus: int
    memory_mib: int
    pinned: frozenset[int]
    record: Record | None = None
    foreign_level: int | None = None
    unknown: str = ""
    uneven: bool = False
    threads: Mapping[frozenset[int], tuple[int, ...]] = {}


class Measured(msgspec.Struct, frozen=True):
    """What running VMs have used, by name. at: the moment, on the clock of ``time.monotonic``.

    host: of the host, where the hypervisor itself makes it up; None: the kernel of this machine tells.
    """

    at: float
    vms: Mapping[str, VmCounters]
    host: HostCounters | None = None


class HypervisorEvent(msgspec.Struct, frozen=True):
    """changed: something happened to this VM. lost, restored: the link to the hypervisor."""

    kind: Literal["changed", "lost", "restored"]
    vm: str = ""
    reason: str = ""


class Hypervisor(Protocol):
    """One connection to VMs. Calls may run at the same time; none blocks the event loop.

    Each raises HypervisorUnreachable when the link is down, HypervisorError when the hypervisor
    refuses, and VmMissing where it has no such VM.
    """

    uri: str
    immediate: bool
    """Whether pinning never waits, so that nothing is gained by several calls at the same time."""

    async def open(self, on_event: Callable[[HypervisorEvent], None]) -> None:
        """Connect. on_event is called in the event loop from then on; after "lost" the hypervisor
        reconnects by itself, registers for events again, and says "restored".
        """

    async def close(self) -> None:
        """Disconnect; VMs keep running. No event afterwards."""

    def reconfigure(self, options: HypervisorOptions) -> None:
        """Use these options for new VMs from now on; the number of workers stays."""

    async def check_image(self, image: str) -> str:
        """The path to use for a disk image, links resolved. Raises api.errors.InvalidRequest."""

    async def observe(self, names: Iterable[str] | None = None) -> list[ObservedVm]:
        """All VMs, or those of these names that exist; defined ones that do not run included.

        Of all VMs the threads are looked for, which takes longer than anything else; of some, only where that has
        been done before.
        """

    async def measure(self) -> Measured:
        """What all running VMs have used since their start, as far as that can be told without waiting for one.

        Called by one caller at a time, beside all other calls; it holds none of them up.
        """

    async def create(self, definition: VmDefinition) -> None:
        """Start a new VM and keep its definition.

        After an error it does not exist, except after HypervisorUnreachable, when that is unknown.
        """

    async def destroy(self, name: str) -> None:
        """Stop a VM and forget its definition; its disk stays."""

    async def pin(self, name: str, cpus: Sequence[int]) -> frozenset[int]:
        """Allow every vCPU, the emulator and the I/O threads on exactly these CPUs.

        Returns what is read back of all of them. After an error some of its threads may have been pinned.
        What the kernel lets other threads of the process do is put right where we may.
        """

    async def write_record(self, name: str, record: Record) -> None:
        """Replace the record in the VM's metadata."""
