"""One run: the daemons, all tasks at once, samples, and the audit at the end."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.soak import churn, visitors
from tests.soak.audit import audit
from tests.soak.clients import Clients
from tests.soak.daemons import RESTARTED, RESTARTED_KIND, Servers, started
from tests.soak.pulse import beating
from tests.soak.samples import Moment
from tests.soak.verdict import Run

SAMPLE_S = 3.0
"""Seconds between two samples; in a short run less."""
TELL_S = 300.0
"""Seconds between two lines about how far it is."""
VMS = 300
"""About so many, in the cluster and directly on the hosts together."""


class Soaked(msgspec.Struct, frozen=True):
    """run: for the verdict. done: what was done, how often. wrong: what must not be, in words."""

    run: Run
    done: dict[str, int]
    wrong: list[str]


async def _sampled(clients: Clients, seconds: float, say: Callable[[str], None]) -> list[Moment]:
    """Samples until the run has lasted so long. Sets ``ending``."""
    moments: list[Moment] = []
    servers = clients.servers
    pause, told = min(SAMPLE_S, seconds / 60), 0
    while servers.now < seconds:
        async with clients.restarting:
            if servers.now < seconds:
                moments.append(servers.look())
        if servers.now // TELL_S > told:
            told += 1
            kib = sum(process.resident_kib for process in moments[-1].processes)
            say(f"{servers.now / 60:.0f} minutes: {len(clients.calls)} calls, {kib / 1024:.0f} MiB in all")
        await asyncio.sleep(pause)
    clients.ending.set()
    return moments


async def _run(servers: Servers, pulse: Path, seconds: float, say: Callable[[str], None]) -> Soaked:
    clients = Clients(servers, seconds)
    servers.begin()
    often = min(1.0, seconds / 60)
    async with asyncio.TaskGroup() as group:
        for work in (
            *(churn.through_socket(clients, VMS // 5, 0.05) for _ in range(3)),
            churn.through_http(clients, VMS // 5, 0.05),
            *(churn.on_host(clients, host, 6, 0.5) for host in servers.hosts),
            churn.cordons(clients, 20 * often),
            churn.reloads(clients, 15 * often),
            churn.restarts(clients, max(4.0, 45 * often)),
            visitors.subscriber(clients, servers.globald),
            visitors.subscriber(clients, servers.hosts[0], usage=True),
            visitors.subscriber(clients, servers.hosts[RESTARTED[0]]),
            visitors.slow_subscriber(clients, servers.globald),
            visitors.scrapes(clients, 5 * often),
            visitors.visits(clients, 0.1),
            visitors.refusals(clients, 0.3),
            visitors.pulses(clients, str(pulse), 0.05),
        ):
            group.create_task(work)
        moments = await _sampled(clients, seconds, say)
    say("the end: comparing what was acknowledged with what is there")
    calls = [call for call in clients.calls if call.at < seconds]
    done = Counter(clients.done)
    done["VMs that died with their daemon"] = clients.ledger.died
    done["VMs acknowledged and there at the end"] = len(clients.ledger.vms)
    done["VMs of which nobody knows"] = len(clients.ledger.uncertain)
    done["bytes of all recordings"] = sum(servers.recorded(host) for host in servers.hosts)
    wrong = await audit(clients)
    run = Run(seconds=seconds, moments=moments, calls=calls, unjudged=frozenset({RESTARTED_KIND}))
    return Soaked(run=run, done=dict(done), wrong=[*clients.ledger.wrong, *wrong, *servers.complaints])


def soak(seconds: float, say: Callable[[str], None]) -> Soaked:
    """A run of so many seconds. say: told how far it is."""
    with tempfile.TemporaryDirectory(prefix="vmstack-pulse-") as folder, started() as servers:
        pulse = Path(folder) / "socket"
        with beating(pulse):
            say(f"{len(servers.hosts)} hosts and globald run")
            return asyncio.run(_run(servers, pulse, seconds, say))
