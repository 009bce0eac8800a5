"""The command line: ``vmstackd`` or ``python3 -m vmstackd``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.cpuset import format_cpu_list
from vmstackd import app
from vmstackd.daemon import tcp
from vmstackd.daemon.command_line import EXIT_CONFIG, Given, fail, parser, serve, show, with_settings
from vmstackd.daemon.life import EXIT_UNAVAILABLE
from vmstackd.daemon.table import SettingsError
from vmstackd.hypervisor.base import HypervisorError
from vmstackd.settings import TABLE, Settings, load_settings
from vmstackd.topology_source import dump_topology

_EPILOG = f"""\
examples:
  vmstackd                                                  this host, its libvirtd
  vmstackd --topology topologies/EPYC-7662.json --hypervisor sim:
  vmstackd --exclude-cpus 0-1,64-65 --reserved-memory 4096  keep CPUs and memory for the host
  vmstackd --dump-topology > host.json                      this machine's CPUs, as a file
  vmstackd --check-config --config /etc/vmstack/vmstackd.toml

Every option that takes a value can also stand in the file ({TABLE.file}), as
"critical_size = 6", and in the environment, as VMSTACKD_CRITICAL_SIZE=6. A flag wins over
the environment, that over --env-file, that over the file.

exit codes: 0 done, 1 failed, 2 usage, 6 hypervisor unreachable, 78 configuration
"""


def command_line() -> argparse.ArgumentParser:
    """Every flag."""
    made = parser(
        TABLE, "Places VMs of several oversubscription levels into disjoint sets of this host's CPUs.", _EPILOG
    )
    made.add_argument("--dump-topology", action="store_true", help="write the topology as JSON, then exit")
    made.add_argument("--load", metavar="FILE", help="the same as --topology FILE for a topology")
    return with_settings(TABLE, made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    made = command_line()
    given = Given(TABLE, made.parse_args(arguments))
    if given.rest.load is not None:
        if "topology" in given.flags:
            made.error("--load FILE and --topology both name a topology; give one of them")
        _refuse_trace(made, given.rest.load)
        given.flags["topology"] = f"file:{given.rest.load}"
    try:
        settings = given.settings(load_settings)
        if given.rest.dump_topology:
            return show(TABLE, dump_topology(app.host_state(settings).topology))
        if given.rest.check_config:
            return _check(settings)
        return serve(TABLE, settings.debug, lambda: app.run(settings, lambda: given.settings(load_settings)))
    except SettingsError as error:
        return fail(TABLE, error, EXIT_CONFIG)
    except HypervisorError as error:
        return fail(TABLE, error, EXIT_UNAVAILABLE)


def _check(settings: Settings) -> int:
    state = app.host_state(settings)
    app.hypervisor(settings)
    tcp.check(settings.tcp_host, settings.tcp_port, settings.tls_ca, settings.tls_certificate, settings.tls_key)
    cpus = format_cpu_list(sorted(state.topology.cpu_ids))
    return show(TABLE, f"vmstackd: the configuration is usable: CPUs {cpus}, {state.memory_mib} MiB\n")


def _refuse_trace(made: argparse.ArgumentParser, path: str) -> None:
    """Recorded traces begin with their column names, tab separated (SEMANTICS 14)."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(256)
    except OSError as error:
        made.error(f"--load {path}: cannot be read: {error.strerror}")
    if start.startswith(b"tmp\t") or path.lower().endswith(".csv"):
        made.error(f"--load {path}: this is a recorded trace; this version loads topologies but cannot replay traces")


if __name__ == "__main__":
    sys.exit(main())
