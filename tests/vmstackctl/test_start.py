from __future__ import annotations

import subprocess
import sys

from tests.running import PATIENCE, ROOT
from tests.vmstackctl.command import Host, environment, run

SLOW = {"pygments", "markdown_it", "rich.progress", "rich.markdown", "rich.syntax", "rich.live", "aiohttp", "libvirt"}
DRAWING = {"rich", "rich.console", "vmstackctl.tables", "vmstackctl.cpu_map", "vmstackctl.watch"}


def imported(*arguments: str) -> set[str]:
    """The modules that a command needs."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vmstackctl", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_commands_import_little(host: Host) -> None:
    where = ("--socket", str(host.socket))
    assert not imported(*where, "status") & SLOW
    assert not imported(*where, "list", "--output", "json") & (SLOW | DRAWING)
    assert not imported("--help") & (SLOW | DRAWING)


def test_certificates_cost_only_those_who_make_them(host: Host) -> None:
    found = imported("--socket", str(host.socket), "status")
    assert "vmstackctl.commands" in found
    assert not found & {"vmstackctl.pki", "vmstackctl.certificates", "cryptography"}
    assert "cryptography" not in imported("pki", "--help")


def test_the_entry_point_is_the_module() -> None:
    assert run("--version").out.startswith("vmstackctl ")
