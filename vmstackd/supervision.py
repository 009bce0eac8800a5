"""Keeps systemd informed while the daemon runs: the watchdog, and what ``systemctl status`` shows."""

from __future__ import annotations

import asyncio

from core.level import format_level
from vmstackd import log
from vmstackd.api.replies import StatusReply
from vmstackd.engine import Engine
from vmstackd.systemd import Notifier

STATUS_S = 1.0
"""Seconds between two status lines, at least."""


async def feed_watchdog(engine: Engine, notifier: Notifier, interval: float) -> None:
    """Tell systemd that we are alive as long as the engine works; interval: seconds it waits for that.

    A hung event loop does not get here; an engine that has stopped working is not fed for.
    """
    while engine.running:
        notifier.watchdog()
        await asyncio.sleep(interval / 3)
    log.error("engine-stopped", next_step="nothing to do: the watchdog of systemd restarts vmstackd")


async def show_status(engine: Engine, notifier: Notifier) -> None:
    """Tell systemd in one line how the host is, whenever that changes."""
    subscription = engine.feed.subscribe()
    while True:
        notifier.status(status_line(engine.status()))
        while not (await subscription.news()).changed:
            pass
        await asyncio.sleep(STATUS_S)


def status_line(status: StatusReply) -> str:
    """VMs, levels and CPUs; what is degraded first."""
    host = status.host
    levels = ", ".join(f"{format_level(level.level)}: {level.cpus} CPUs" for level in host.levels)
    text = f"{host.vms} VMs, {host.free_cpus} of {host.cpus} CPUs free" + (f" ({levels})" if levels else "")
    return f"DEGRADED: {status.degraded[0]}; {text}" if status.degraded else text
