from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.faulty import OPERATOR
from tests.running import PATIENCE
from tests.transports.endpoint import endpoint
from vmstackd.api import requests
from vmstackd.daemon.supervision import feed_watchdog, show_status, status_line
from vmstackd.daemon.systemd import Notifier
from vmstackd.hypervisor.base import HypervisorError
from vmstackd.hypervisor.sim import SimHypervisor


class Manager:
    """As much of systemd as listens."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)

    @property
    def notifier(self) -> Notifier:
        return Notifier({"NOTIFY_SOCKET": str(self.path)})

    async def hears(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode()

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path)


def deploy(name: str, level: int = 2000) -> requests.Deploy:
    return requests.Deploy(name=name, vcpus=2, memory_mib=1024, level=level, image="/images/a.qcow2")


def test_the_status_tells_vms_levels_and_cpus_whenever_they_change(manager: Manager) -> None:
    async def run() -> None:
        async with endpoint() as http:
            showing = asyncio.create_task(
                show_status(http.engine, manager.notifier, lambda: status_line(http.engine.status()))
            )
            assert await manager.hears() == "STATUS=0 VMs, 16 of 16 CPUs free"
            await http.engine.handle(deploy("a"), OPERATOR, "1")
            assert await manager.hears() == "STATUS=1 VMs, 14 of 16 CPUs free (2.0: 2 CPUs)"
            showing.cancel()

    asyncio.run(run())


class Broken(SimHypervisor):
    async def pin(self, name: str, cpus: object) -> frozenset[int]:
        raise HypervisorError("no pins today")


def test_what_is_degraded_comes_first() -> None:
    async def run() -> None:
        async with endpoint(Broken()) as http:
            await http.engine.handle(deploy("a"), OPERATOR, "1")
            await http.engine.handle(deploy("b"), OPERATOR, "2")
            await http.engine.handle(deploy("c", 1000), OPERATOR, "3")
            await http.engine.handle(deploy("d", 1000), OPERATOR, "4")
            line = status_line(http.engine.status())
            assert line.startswith("DEGRADED: VM 'c' is not pinned as decided: no pins today; 4 VMs")

    asyncio.run(run())


@pytest.mark.parametrize(("reason", "told"), [("", "cordoned"), ("new fans", "cordoned: new fans")])
def test_a_cordon_is_shown(reason: str, told: str) -> None:
    async def run() -> None:
        async with endpoint() as http:
            await http.engine.handle(requests.Cordon(reason=reason), OPERATOR, "1")
            assert status_line(http.engine.status()) == f"0 VMs, 16 of 16 CPUs free; {told}"

    asyncio.run(run())


def test_the_watchdog_is_fed_while_the_engine_works_and_no_longer(manager: Manager) -> None:
    async def run() -> None:
        async with endpoint() as http:
            feeding = asyncio.create_task(feed_watchdog(http.engine, manager.notifier, 0.03))
            for _ in range(3):
                assert await manager.hears() == "WATCHDOG=1"
            http.engine._tasks[0].cancel()  # what watches the hypervisor has died
            async with asyncio.timeout(PATIENCE):
                await feeding
            manager.heard()
            await asyncio.sleep(0.1)
            assert manager.heard() == []

    asyncio.run(run())
