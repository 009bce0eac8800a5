"""What the contract cannot show: hosts that this machine is not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from tests.hypervisor.backends import Backend, Events
from vmstackd.hypervisor import libvirt as driver
from vmstackd.hypervisor.base import Hypervisor, HypervisorError, HypervisorUnreachable
from vmstackd.hypervisor.libvirt_types import Connection


@pytest.fixture
def mock(tmp_path: Path) -> Backend:
    (tmp_path / "a.qcow2").touch()
    return Backend("test", "test:///default", tmp_path / "a.qcow2", (0, 7))


def failure(code: int, text: str = "refused") -> libvirt.libvirtError:
    error = libvirt.libvirtError(text)
    error.err = (code, 0, text, 0, "", None, None, -1, -1)
    return error


def test_a_host_without_cpu_shares(mock: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create = driver._create

    def create_without_shares(connection: Connection, xml: str) -> None:
        asked.append("<shares>" in xml)
        if asked[-1]:
            raise failure(libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
        create(connection, xml)

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        await hypervisor.create(mock.definition("a"))
        await hypervisor.create(mock.definition("b"))
        assert asked == [True, False, False]

    monkeypatch.setattr(driver, "_create", create_without_shares)
    mock.run(scenario)


def test_another_refusal_does_not_cost_the_shares(mock: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def refuse(_connection: Connection, xml: str) -> None:
        asked.append("<shares>" in xml)
        raise failure(libvirt.VIR_ERR_CONFIG_UNSUPPORTED)

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        for _ in range(2):
            with pytest.raises(HypervisorError, match="refused"):
                await hypervisor.create(mock.definition("a"))
        assert asked == [True, False] * 2

    monkeypatch.setattr(driver, "_create", refuse)
    mock.run(scenario)


def test_a_vm_that_cannot_be_defined_is_stopped(mock: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise failure(libvirt.VIR_ERR_OPERATION_FAILED)

    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        monkeypatch.setattr(libvirt.virConnect, "defineXML", refuse)
        with pytest.raises(HypervisorError, match="refused"):
            await hypervisor.create(mock.definition("a"))
        assert await hypervisor.observe(["a"]) == []
        await events.wait("changed", "a")

    mock.run(scenario)


def test_a_vm_that_can_neither_be_defined_nor_stopped(mock: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str, code: int) -> Callable[..., None]:
        def refuse(*_args: object) -> None:
            raise failure(code, text)

        return refuse

    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virConnect, "defineXML", fail("no space", libvirt.VIR_ERR_OPERATION_FAILED))
            patched.setattr(libvirt.virDomain, "destroy", fail("busy", libvirt.VIR_ERR_OPERATION_FAILED))
            with pytest.raises(HypervisorUnreachable, match=r"no space.*busy"):
                await hypervisor.create(mock.definition("a"))
            # It ended by itself: so it does not run, as for any other refusal.
            patched.setattr(libvirt.virDomain, "destroy", fail("gone", libvirt.VIR_ERR_NO_DOMAIN))
            with pytest.raises(HypervisorError, match="no space") as raised:
                await hypervisor.create(mock.definition("b"))
            assert raised.type is HypervisorError
        (vm,) = await hypervisor.observe(["a"])
        assert vm.running
        assert vm.record == mock.definition("a").record
        assert [event.kind for event in events.seen if event.kind != "changed"] == []

    mock.run(scenario)


def test_weights_by_version_of_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    assert driver._cgroup_weights() == (100, 10000)
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert driver._cgroup_weights() == (1024, 262144)


def test_an_image_on_which_direct_io_fails(tmp_path: Path) -> None:
    assert driver._direct_io(str(tmp_path / "absent"))
    assert not driver._direct_io("/proc/self/status")


def test_errors_are_raised_and_not_printed() -> None:
    script = (
        "import asyncio\n"
        "from vmstackd.hypervisor import open_hypervisor\n"
        "async def main():\n"
        "    hypervisor = open_hypervisor('test:///default')\n"
        "    await hypervisor.open(print)\n"
        "    try: await hypervisor.destroy('ghost')\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "    await hypervisor.close()\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("VmMissing\n", "")


def test_open_and_close_at_once(mock: Backend) -> None:
    async def scenario() -> None:
        for _ in range(3):
            hypervisor = mock.make()
            await hypervisor.open(Events())
            await hypervisor.close()

    asyncio.run(scenario())
