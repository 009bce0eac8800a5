"""Many simulated hosts in one process: ``python -m benchmarks.farm real|light COUNT PORT``.

Host number N listens at 127.A.B.C:PORT (see ``address``). real: an engine each, as vmstackd has it. light: hosts that
only tell what they have, and that they are there; for tens of thousands of them. Prints "ready" when all can be called.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from pathlib import Path

from core.admission import with_vm
from core.allocator import empty_state
from core.model import Rules
from core.policy import POLICIES
from core.status import HostStatus, host_status
from core.topology import Topology
from vmstackd import wire
from vmstackd.api import replies, session
from vmstackd.daemon import http, stream
from vmstackd.daemon.life import raise_file_limit
from vmstackd.engine import Engine
from vmstackd.hypervisor.sim import SimHypervisor
from vmstackd.topology_source import load_topology
from vmstackd.version import VERSION

TOPOLOGIES = Path(__file__).resolve().parent.parent / "topologies"
SOURCES = (
    f"file:{TOPOLOGIES / 'EPYC-7662.json'}",
    "synthetic:sockets=2,numa=1,l3=4,cores=8,smt=2,memory=524288",
    "synthetic:sockets=1,numa=1,l3=8,cores=8,smt=1,memory=262144",
    "synthetic:sockets=2,numa=1,l3=2,cores=8,smt=1,memory=131072",
)
"""256, 128, 64 and 32 CPUs."""
VMS = 40
"""Of a light host, at most."""


def address(number: int) -> str:
    """Where host number N is, without the port."""
    return f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"


async def real(count: int, port: int) -> None:
    """Engines that do what they are told."""
    topologies = [load_topology(source) for source in SOURCES]
    for number in range(count):
        state = empty_state(topologies[number % len(topologies)], Rules(critical_size=0))
        engine = Engine(state, POLICIES["reference"], SimHypervisor(), name=f"host{number}", period=3600)
        await engine.start()
        await stream.StreamTransport(engine, http.listen(address(number), port)).start()


async def light(port: int) -> None:
    """Hosts with some VMs, which never change."""
    topologies = [load_topology(source) for source in SOURCES]
    kinds = [_Kind(topologies[number % len(topologies)], number) for number in range(64)]
    listener = socket.create_server(("", port), backlog=4096)
    await asyncio.get_running_loop().create_server(lambda: _Light(kinds), sock=listener, backlog=4096)


class _Kind:
    """What hosts of one kind tell."""

    def __init__(self, topology: Topology, number: int) -> None:
        status: HostStatus = host_status(empty_state(topology, Rules()))
        self.vms = number % VMS
        for vm in range(self.vms):
            grown = with_vm(status, 1000 * (1 + vm % 3), 1 + vm % 4, 1024 * (1 + vm % 8))
            if grown.free_cpus >= 0 and grown.free_mib > 0:
                status = grown
        self.vms = status.vms
        reply = replies.StatusReply(host=status, hypervisor="up", unplaced=(), stopped=(), degraded=())
        self.frame = wire.notification(reply)


class _Light(asyncio.Protocol):
    def __init__(self, kinds: list[_Kind]) -> None:
        self._kinds = kinds
        self._inbox = wire.Inbox()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _, first, second, third = (int(part) for part in transport.get_extra_info("sockname")[0].split("."))
        self._number = (first - 1) * 62500 + second * 250 + third - 1

    def data_received(self, data: bytes) -> None:
        self._inbox.add(data)
        for message in self._inbox.messages():
            call = wire.read_call(message)
            self._transport.write(self._answer(call))

    def _answer(self, call: wire.Call) -> bytes:
        number, kind = self._number, self._kinds[self._number % len(self._kinds)]
        match call.method:
            case "hello":
                name = f"host{number}"
                return wire.response(
                    call.msgid,
                    session.HelloReply(
                        version=1,
                        program="vmstackd",
                        program_version=VERSION,
                        host=name,
                        role="operator",
                        uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
                    ),
                )
            case "subscribe":
                names = tuple(f"vm{number}-{vm}" for vm in range(kind.vms))
                return wire.response(call.msgid, session.Subscribed(names=names)) + kind.frame
            case "list":
                return wire.response(call.msgid, replies.ListReply(vms=()))
            case _:
                return wire.response(call.msgid, session.Pong())


async def _main(kind: str, count: int, port: int) -> None:
    if kind == "real":
        await real(count, port)
    else:
        await light(port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    raise_file_limit()
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
