"""The command line: ``vmstackd`` or ``python3 -m vmstackd``."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from core.cpuset import format_cpu_list
from vmstackd import app
from vmstackd.daemon import log
from vmstackd.daemon.table import SettingsError
from vmstackd.hypervisor.base import HypervisorError
from vmstackd.settings import TABLE, Settings, load_settings
from vmstackd.topology_source import dump_topology
from vmstackd.version import VERSION

EXIT_USAGE = 2
EXIT_CONFIG = 78

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


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {log.one_line(message)}; {self.prog} -h shows what there is\n")


def command_line() -> argparse.ArgumentParser:
    """The daemon's own flags, then those of the table of settings."""
    parser = _Parser(
        prog="vmstackd",
        description="Places VMs of several oversubscription levels into disjoint sets of this host's CPUs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vmstackd {VERSION}")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"TOML settings (default: {TABLE.file}, if there)")
    parser.add_argument(
        "--env-file", type=Path, metavar="FILE", help="KEY=VALUE lines; the prototype's keys are understood"
    )
    parser.add_argument("--check-config", action="store_true", help="read all settings and the topology, then exit")
    parser.add_argument("--dump-topology", action="store_true", help="write the topology as JSON, then exit")
    parser.add_argument("--load", metavar="FILE", help="the same as --topology FILE for a topology")
    for row in TABLE.rows:
        text = row.help.replace("%", "%%") + (f" (default: {row.shown_default})" if row.shown_default else "")
        parser.add_argument(row.flag, dest=row.key, metavar=row.metavar, help=text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    parser = command_line()
    given = parser.parse_args(arguments)
    flags = {row.key: value for row in TABLE.rows if (value := getattr(given, row.key)) is not None}
    if given.load is not None:
        if "topology" in flags:
            parser.error("--load FILE and --topology both name a topology; give one of them")
        _refuse_trace(parser, given.load)
        flags["topology"] = f"file:{given.load}"
    environment = dict(os.environ)

    def read_settings() -> Settings:
        return load_settings(flags, environment, given.env_file, given.config)

    try:
        settings = read_settings()
        if given.dump_topology:
            return _print(dump_topology(app.host_state(settings).topology))
        if given.check_config:
            return _check(settings)
        return _serve(settings, read_settings)
    except SettingsError as error:
        return _fail(error, EXIT_CONFIG)
    except HypervisorError as error:
        return _fail(error, app.EXIT_UNAVAILABLE)


def _serve(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    log.set_up(debug=settings.debug > 0)
    try:
        return asyncio.run(app.run(settings, read_settings))
    except KeyboardInterrupt:  # before app.run took over the signals: nothing has been started
        return app.EXIT_DONE


def _print(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered has nowhere to go; without this, Python would try again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"cannot write: {error.strerror}", app.EXIT_FAILED)
    return app.EXIT_DONE


def _fail(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"vmstackd: {log.one_line(str(error))}\n")
    return code


def _check(settings: Settings) -> int:
    state = app.host_state(settings)
    app.hypervisor(settings)
    cpus = format_cpu_list(sorted(state.topology.cpu_ids))
    return _print(f"vmstackd: the configuration is usable: CPUs {cpus}, {state.memory_mib} MiB\n")


def _refuse_trace(parser: argparse.ArgumentParser, path: str) -> None:
    """Recorded traces begin with their column names, tab separated (SEMANTICS 14)."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(256)
    except OSError as error:
        parser.error(f"--load {path}: cannot be read: {error.strerror}")
    if start.startswith(b"tmp\t") or path.lower().endswith(".csv"):
        parser.error(f"--load {path}: this is a recorded trace; this version loads topologies but cannot replay traces")


if __name__ == "__main__":
    sys.exit(main())
