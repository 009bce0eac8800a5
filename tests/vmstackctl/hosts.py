"""Replies as a daemon would send them, made by hand."""

from __future__ import annotations

import re

from core.cpuset import parse_cpu_list
from core.status import HostStatus, LevelStatus
from vmstackctl.terminal import Look, drawn
from vmstackd.api.replies import CpuReply, StatusReply, TopologyReply, VmReply

PIPE = Look(width=None, colour=False)
ESCAPE = re.compile(r"\033\[[0-9;]*m")
_ROW = re.compile(r"([0-9][0-9,.-]*) {2,}([0-9a-z.#? ]+)")


def terminal(width: int, *, colour: bool = False) -> Look:
    return Look(width=width, colour=colour)


def cpu(number: int, core: int, use: str = "free", *, package: int = 0, cache: int = 0) -> CpuReply:
    return CpuReply(id=number, package=package, node=package, core=core, caches=(core, cache), use=use)


def host(
    cpus: tuple[CpuReply, ...], levels: tuple[int, ...] = (), degraded: tuple[str, ...] = ()
) -> tuple[TopologyReply, StatusReply]:
    topology = TopologyReply(
        name="a host",
        host_cpus=len(cpus),
        cache_names=("L2", "L3"),
        nodes=(0,),
        node_distances=((10,),),
        memory_mib=4096,
        cpus=cpus,
    )
    status = StatusReply(
        host=HostStatus(
            cpus=len(cpus),
            free_cpus=sum(cpu.use == "free" for cpu in cpus),
            held_cpus=sum(cpu.use == "held" for cpu in cpus),
            memory_mib=4096,
            allocated_mib=2048,
            free_mib=2048,
            vms=len(levels),
            generation=1,
            levels=tuple(
                LevelStatus(
                    level=level,
                    ratio=level,
                    cpus=3,
                    vcpus=4,
                    vms=1,
                    needed=5,
                    available_thousandths=-500,
                    potential_thousandths=4500,
                )
                for level in levels
            ),
        ),
        hypervisor="up",
        unplaced=(),
        stopped=(),
        degraded=degraded,
    )
    return topology, status


def vm(name: str = "web1", cpus: str = "8,136,9,137", pinned: str = "8-9,136-137", image: str = "/srv/web1") -> VmReply:
    return VmReply(
        name=name,
        vcpus=4,
        memory_mib=8192,
        level=2000,
        cpus=parse_cpu_list(cpus),
        pinned=parse_cpu_list(pinned),
        state="running",
        image=image,
    )


def signs(text: str, topology: TopologyReply) -> dict[int, str]:
    """The sign of each CPU, read from the map: a row names its CPUs, its cores are in ascending order."""
    core_of = {cpu.id: (cpu.package, cpu.core) for cpu in topology.cpus}
    found: dict[int, str] = {}
    for line in text.splitlines():
        match = _ROW.fullmatch(line.rstrip())
        if match is None:
            continue
        cores: dict[tuple[int, int], list[int]] = {}
        for number in parse_cpu_list(match[1]):
            cores.setdefault(core_of[number], []).append(number)
        blocks = match[2].split()
        assert [len(block) for block in blocks] == [len(cpus) for cpus in cores.values()]
        for block, cpus in zip(blocks, cores.values(), strict=True):
            for number, sign in zip(cpus, block, strict=True):
                assert number not in found
                found[number] = sign
    return found


__all__ = ["ESCAPE", "PIPE", "cpu", "drawn", "host", "signs", "terminal", "vm"]
