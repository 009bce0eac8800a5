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
from vmstackd.hypervisor.base import Hypervisor, HypervisorError
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


def test_a_vm_that_cannot_be_defined_is_not_started(mock: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise failure(libvirt.VIR_ERR_OPERATION_FAILED)

    async def scenario(hypervisor: Hypervisor, events: Events) -> None:
        monkeypatch.setattr(libvirt.virConnect, "defineXML", refuse)
        with pytest.raises(HypervisorError, match="refused") as raised:
            await hypervisor.create(mock.definition("a"))
        assert raised.type is HypervisorError
        assert await hypervisor.observe(["a"]) == []
        assert events.seen == []

    mock.run(scenario)


def test_a_vm_that_cannot_be_started_leaves_no_definition(mock: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> Callable[..., None]:
        def refuse(*_args: object) -> None:
            raise failure(libvirt.VIR_ERR_OPERATION_FAILED, text)

        return refuse

    async def scenario(hypervisor: Hypervisor, _events: Events) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virDomain, "create", fail("no memory"))
            with pytest.raises(HypervisorError, match="no memory"):
                await hypervisor.create(mock.definition("a"))
            assert await hypervisor.observe(["a"]) == []
            patched.setattr(libvirt.virDomain, "undefineFlags", fail("busy"))
            patched.setattr(libvirt.virDomain, "undefine", fail("busy"))
            with pytest.raises(HypervisorError, match=r"no memory.*still defined.*busy"):
                await hypervisor.create(mock.definition("a"))
        (vm,) = await hypervisor.observe(["a"])
        assert not vm.running
        await hypervisor.destroy("a")
        await hypervisor.create(mock.definition("a"))

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
