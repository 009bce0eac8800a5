"""What an operator may say about the VMs of a hypervisor."""

from __future__ import annotations

from typing import Literal

import msgspec


class HypervisorOptions(msgspec.Struct, frozen=True):
    """image_roots: directories that may hold disk images. machine: QEMU's machine type. emulator: path,
    empty = the hypervisor's own choice. network: empty (none), ``bridge:NAME`` or ``network:NAME``.
    virt_type: auto = KVM if it really works. workers: calls to the hypervisor at the same time.
    """

    image_roots: tuple[str, ...] = ()
    machine: str = "q35"
    emulator: str = ""
    network: str = ""
    virt_type: Literal["auto", "kvm", "qemu"] = "auto"
    workers: int = 4


def parse_network(network: str) -> tuple[str, str] | None:
    """("bridge" or "network", its name), or None for no network. Raises ValueError."""
    if not network:
        return None
    kind, colon, name = network.partition(":")
    if kind not in {"bridge", "network"} or not colon or not name or not name.isprintable():
        raise ValueError(f"network {network!r}: must be empty, bridge:NAME or network:NAME")
    return kind, name
