"""A short run of the real thing, and what a real process shows when clients hold connections."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from tests.running import PATIENCE, SMALL_HOST, Daemon
from tests.soak.running import soak
from tests.soak.samples import Call, Moment, look_at
from tests.soak.verdict import Limits, Run, judge
from vmstackd.client import Client

SHORT = Limits(memory=1.25, time=20.0, log=3.0, log_slack=200.0, threads=4, windows=2, slack_ms=50.0)
"""In so short a time nothing is warm, and the machine does other things too: what remains is what explodes."""


def test_a_short_run_is_right_and_nothing_explodes() -> None:
    soaked = soak(12.0, lambda _: None)
    assert soaked.wrong == []
    assert [row for row in judge(soaked.run, SHORT) if not row.good] == []
    assert soaked.done["restarts"] >= 1
    assert soaked.done["VMs that died with their daemon"] > 0
    assert soaked.done["VMs acknowledged and there at the end"] > 0
    assert soaked.done["globald, socket: ok"] > 50
    assert soaked.done["globald, HTTP: ok"] > 20
    assert soaked.done["vmstackd, socket: ok"] > 50
    assert {"pushes", "reloads", "bytes of the slow subscriber", "refused: NoCapacity"} <= soaked.done.keys()


def test_connections_that_clients_hold_are_no_leak_of_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Daemon("--hypervisor", "sim:", "--topology", SMALL_HOST, "--socket", str(path)) as daemon:
        moments = asyncio.run(_subscribing(daemon, str(path)))

    def bad(moments: list[Moment]) -> list[str]:
        calls = [Call(at=moment.at, door="status", seconds=0.001) for moment in moments]
        rows = judge(Run(seconds=len(moments), moments=moments, calls=calls), SHORT)
        return [row.what for row in rows if not row.good]

    assert bad(moments) == []
    # The same, if nobody had said that clients hold them.
    blamed = [
        Moment(at=moment.at, processes=(msgspec.structs.replace(moment.processes[0], held=0),)) for moment in moments
    ]
    assert bad(blamed) == ["vmstackd: descriptors of its own"]


async def _subscribing(daemon: Daemon, path: str) -> list[Moment]:
    """A moment after each of many subscriptions that are never ended."""
    clients, moments = [], []
    begin = time.monotonic()
    for number in range(30):
        client = await Client.connect(f"unix:{path}", program="holder")
        await client.watch()
        clients.append(client)
        assert time.monotonic() - begin < PATIENCE
        held = len(clients)
        process = look_at(daemon.process.pid, "host", "vmstackd", held=held, log_bytes=len(daemon.log))
        moments.append(Moment(at=float(number), processes=(process,)))
    for client in clients:
        await client.close()
    return moments
