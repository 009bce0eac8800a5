"""What is answered over HTTP, in the prototype's form (SEMANTICS 7, 10, 11). ``openapi`` describes these very types."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web

from core.level import UNIT, format_level
from core.status import HostStatus


class Subset(msgspec.Struct, frozen=True):
    """A level, or all memory. pcap: CPUs or MiB that it owns. palloc: vCPUs or MiB that are given to VMs.

    vavail: how much more fits in; vpotential: what all that is free would add.
    """

    pcap: int
    palloc: int
    vavail: float
    vpotential: float


class Resource(msgspec.Struct, frozen=True):
    """avail: CPUs or MiB that are free. subset: by level, as "1.5"."""

    avail: int
    subset: dict[str, Subset]


class Figures(msgspec.Struct, frozen=True):
    """Of one host."""

    cpu: Resource
    mem: Resource


class Done(msgspec.Struct, frozen=True):
    """It was done."""

    success: Literal[True]
    reason: None


class RemovedFrom(Done, frozen=True):
    """It was done on this host of a cluster."""

    host: str


class DeployedOn(RemovedFrom, frozen=True):
    """score: what made this host the best one, larger is better."""

    score: float | None


class Gain(msgspec.Struct, frozen=True):
    """progress: MiB per CPU by which the host would come nearer to what its hardware has."""

    progress: float


class Health(msgspec.Struct, frozen=True):
    """Of a host. degraded: what is not as it should be, in words."""

    healthy: bool
    hypervisor: str
    degraded: tuple[str, ...]


class ClusterHealth(msgspec.Struct, frozen=True):
    """Whether globald works."""

    healthy: bool


class Readiness(msgspec.Struct, frozen=True):
    """ready: whether VMs are deployed. hosts: how many there are, by state."""

    ready: bool
    hosts: dict[str, int]


def answer(value: Any, status: int = 200) -> web.Response:  # noqa: ANN401  whatever JSON can hold
    """A response with one of the above, or a list or dict of them."""
    return web.json_response(msgspec.to_builtins(value), status=status)


def figures(host: HostStatus) -> Figures:
    """The prototype's status of a host (SEMANTICS 7)."""
    levels = {
        format_level(level.level): Subset(
            pcap=level.cpus,
            palloc=level.vcpus,
            vavail=level.available_thousandths / UNIT,
            vpotential=level.potential_thousandths / UNIT,
        )
        for level in host.levels
    }
    allocated = host.allocated_mib
    memory = Subset(pcap=allocated, palloc=allocated, vavail=0, vpotential=host.free_mib)
    return Figures(
        cpu=Resource(avail=host.free_cpus, subset=levels),
        mem=Resource(avail=host.free_mib, subset={"1": memory} if levels else {}),
    )
