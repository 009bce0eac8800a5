"""Keeps systemd informed while the daemon runs: the watchdog, and what ``systemctl status`` shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.level import format_level
from vmstackd.api.replies import StatusReply
from vmstackd.daemon import log
from vmstackd.daemon.operations import Operations
from vmstackd.daemon.systemd import Notifier

STATUS_S = 1.0
"""Seconds between two status lines, at least."""


async def feed_watchdog(operations: Operations, notifier: Notifier, interval: float) -> None:
    """Tell systemd that we are alive as long as the operations work; interval: seconds it waits for that.

    A hung event loop does not get here; operations that have stopped working are not fed for.
    """
    while operations.running:
        notifier.watchdog()
        await asyncio.sleep(interval / 3)
    log.error("engine-stopped", next_step="nothing to do: the watchdog of systemd restarts it")


async def show_status(operations: Operations, notifier: Notifier, line: Callable[[], str]) -> None:
    """Tell systemd in one line how we are, whenever that changes."""
    subscription = operations.feed.subscribe()
    while True:
        notifier.status(line())
        while not (await subscription.news()).changed:
            pass
        await asyncio.sleep(STATUS_S)


def status_line(status: StatusReply) -> str:
    """VMs, levels and CPUs, and whether it is cordoned; what is degraded first."""
    host = status.host
    levels = ", ".join(f"{format_level(level.level)}: {level.cpus} CPUs" for level in host.levels)
    text = f"{host.vms} VMs, {host.free_cpus} of {host.cpus} CPUs free" + (f" ({levels})" if levels else "")
    if status.cordoned:
        text += f"; cordoned: {status.cordon_reason}" if status.cordon_reason else "; cordoned"
    return f"DEGRADED: {status.degraded[0]}; {text}" if status.degraded else text
