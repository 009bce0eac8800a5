"""vmstackctl capacity, asking real daemons, and reading what they told before."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.globald.test_usage import Globald
from tests.running import PATIENCE, Daemon
from tests.vmstackctl.command import Host, run
from tests.vmstackctl.test_commands import failed
from vmstackctl.inventory_file import gather, save
from vmstackctl.saved_inventory import SavedInventory
from vmstackd.client import Client

TOPOLOGY = "synthetic:sockets=1,l3=1,cores=8,smt=1,memory=32768"
NAMES = ("server1", "server2", "server3")


class RealCluster:
    """globald and three hosts of 8 CPUs and 32 GiB, each a process of its own."""

    def __init__(self, socket: Path, globald: Daemon) -> None:
        self._socket = str(socket)
        self._globald = globald

    def inventory(self) -> SavedInventory:
        """What it tells now."""

        async def told() -> SavedInventory:
            async with await Client.connect(self._socket, program="test", timeout=PATIENCE) as client:
                return await gather(client)

        return asyncio.run(told())

    def settled(self, vms: int) -> None:
        """Wait until the hosts have told that they have so many: that they have them is known a moment before."""
        deadline = time.monotonic() + PATIENCE
        while sum(host.status.vms for host in self.inventory().hosts if host.status is not None) != vms:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  whatever it is, the test looks inside
        done = run("--socket", self._socket, *arguments, "--output", "json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def table(self, *arguments: str) -> list[str]:
        done = run("--socket", self._socket, *arguments)
        assert done.code == 0, done.err
        return done.out.splitlines()

    def deploy(self, name: str, vcpus: int, memory_gib: int, level: float) -> bool:
        """Whether it is done."""
        path = f"/deploy?name={name}&cpu={vcpus}&mem={memory_gib}&oc={level:g}&qcow2=/images/x.qcow2"
        return bool(self._globald.get(path).json["success"])

    def remove(self, name: str) -> None:
        assert self._globald.get(f"/remove?name={name}").json["success"] is True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    folder = tmp_path_factory.mktemp("capacity")
    with ExitStack() as stack:
        addresses = []
        for name in NAMES:
            flags = ("--hypervisor", "sim:", "--topology", TOPOLOGY, "--critical-size", "2", "--name", name)
            host = stack.enter_context(Daemon(*flags, "--tcp-host", "127.0.0.1", "--tcp-port", "0"))
            addresses.append(host.wait_for(r" ready .* tcp=(\S+)")[1].removeprefix("tcp:"))
        socket = folder / "globald.sock"
        globald = stack.enter_context(Globald("--hosts", ",".join(addresses), "--socket", str(socket)))
        globald.wait_for(r" learned hosts=3 vms=0")
        yield RealCluster(socket, globald)


def test_what_is_said_to_fit_is_deployed_and_no_more(cluster: RealCluster) -> None:
    for number in range(3):
        assert cluster.deploy(f"old{number}", 2, 4, 1)
    cluster.settled(3)
    [fits] = cluster.json("capacity", "--shape", "3:2G@3")["shapes"]
    names = [f"new{number}" for number in range(fits["now"])]
    assert len(names) >= 9
    assert all([cluster.deploy(name, 3, 2, 3) for name in names])
    assert not cluster.deploy("one-more", 3, 2, 3)
    cluster.settled(3 + len(names))
    [after] = cluster.json("capacity", "--shape", "3:2G@3")["shapes"]
    assert (after["now"], after["short"]) == (0, fits["short"])
    for name in names:
        cluster.remove(name)
    cluster.settled(3)
    assert cluster.json("capacity", "--shape", "3:2G@3")["shapes"] == [fits]
    for number in range(3):
        cluster.remove(f"old{number}")


def test_a_cluster_tells_what_it_is_asked_for_most(cluster: RealCluster) -> None:
    assert cluster.deploy("web", 2, 8, 2)
    cluster.settled(1)
    told = cluster.json("capacity")
    assert told["sizes_from"] == "arrivals"
    assert {shape["level_text"] for shape in told["shapes"]} == {"2.0"}
    assert (2, 8192) in {(shape["vcpus"], shape["memory_mib"]) for shape in told["shapes"]}
    assert [*told["tried"]] == [["server1"], ["server2"], ["server3"]]
    assert (told["uncovered"], told["presumed"]) == ([], [])
    assert cluster.table("capacity")[-1].strip() == "Sizes: those asked for most often."
    cluster.remove("web")


def test_a_saved_inventory_says_the_same(cluster: RealCluster, tmp_path: Path) -> None:
    assert cluster.deploy("web", 6, 8, 1)
    cluster.settled(1)
    file = tmp_path / "cluster.json"
    save(file, cluster.inventory())
    flags = ("capacity", "--shape", "2:4G", "--level", "1", "--level", "2", "--reserve", "2")
    live = cluster.json(*flags)
    cluster.remove("web")
    done = run(*flags, "--inventory", str(file), "--output", "json")
    assert (done.code, json.loads(done.out)) == (0, live)
    assert [(fits["now"], fits["after"]) for fits in live["shapes"]] == [(9, 1), (18, 2)]


def test_one_host_answers_for_itself() -> None:
    host = Host(TOPOLOGY, "--critical-size", "2")
    try:
        with host.daemon():
            told = host.json("capacity")
            assert (told["hosts"], told["reserve"], told["sizes_from"]) == (1, 0, "usual")
            assert [fits["now"] for fits in told["shapes"]] == [8, 16, 16, 4, 8, 8, 2, 2, 2]
            host.deploy("web1", 2, "2:1")
            assert host.json("capacity")["shapes"] == [
                {
                    "level": 2000,
                    "level_text": "2.0",
                    "vcpus": 2,
                    "memory_mib": 512,
                    "now": 7,
                    "by_cpu": 7,
                    "by_memory": 63,
                    "short": "cpu",
                    "after": None,
                    "worst": [],
                }
            ]
            assert host.ctl("capacity").out.splitlines()[1].split() == ["2", "x", "512", "MiB", "7", "CPU"]
    finally:
        host.close()


def test_wrong_usage(tmp_path: Path) -> None:
    file = str(tmp_path / "absent.json")
    failed(run("capacity", "--inventory", file, "--shape", "2x8G"), 2, "'2x8G' is no shape; write vCPUs:memory")
    failed(run("capacity", "--inventory", file, "--level", "0.5"), 2, "is not an oversubscription level")
    failed(run("capacity", "--inventory", file, "--reserve", "-1"), 2, "--reserve")
    failed(run("capacity", "--inventory", file, "--output", "name"), 2, "here it may be table or json")
    failed(run("capacity", "--inventory", file), 1, f"{file}: cannot be read: No such file")
    failed(run("--socket", file, "capacity"), 6, file)
