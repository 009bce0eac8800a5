"""The command line: ``vmstackd`` or ``python3 -m vmstackd``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from core.cpuset import format_cpu_list
from vmstackd import app, replay_record, replaying
from vmstackd.daemon import tcp
from vmstackd.daemon.command_line import EXIT_CONFIG, Given, fail, parser, serve, show, with_settings
from vmstackd.daemon.life import EXIT_UNAVAILABLE
from vmstackd.daemon.table import SettingsError
from vmstackd.hypervisor.base import HypervisorError
from vmstackd.replay_output import FORMS
from vmstackd.replaying import Order
from vmstackd.settings import TABLE, Settings, load_settings
from vmstackd.topology_source import dump_topology

_EPILOG = f"""\
examples:
  vmstackd                                                  this host, its libvirtd
  vmstackd --topology topologies/EPYC-7662.json --hypervisor sim:
  vmstackd --exclude-cpus 0-1,64-65 --reserved-memory 4096  keep CPUs and memory for the host
  vmstackd --dump-topology > host.json                      this machine's CPUs, as a file
  vmstackd --check-config --config /etc/vmstack/vmstackd.toml
  vmstackd --load results/monitoring.csv --topology topologies/EPYC-7662-exp.json

The last one replays a recorded trace; --critical-size, --relevel, another --topology and the
like then tell what would have been. --debug 1 or --record FILE writes what the host would
have recorded, for --debug to {replay_record.DEFAULT}.

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
    made.add_argument(
        "--load",
        metavar="FILE",
        help="replay a recorded trace offline, then exit: each of its VMs is placed anew, under the settings given "
        "here; of a topology, the same as --topology FILE",
    )
    made.add_argument(
        "--output", choices=FORMS, help="what a replay prints: text, json lines, csv, or none but the summary"
    )
    made.add_argument(
        "--relevel", metavar="LEVEL=LEVEL,...", help="replay VMs recorded at one level at another, such as 2.0=3.0"
    )
    return with_settings(TABLE, made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    made = command_line()
    given = Given(TABLE, made.parse_args(arguments))
    order: Callable[[Settings], Order] | None = None
    if given.rest.load is not None and _is_trace(made, given.rest.load):
        order = _order(made, given)
    elif given.rest.output is not None or given.rest.relevel is not None:
        what = "name one with --load FILE" if given.rest.load is None else f"--load {given.rest.load} is no trace"
        made.error(f"--output and --relevel are for replays of traces; {what}")
    elif given.rest.load is not None:
        if "topology" in given.flags:
            made.error(f"--load {given.rest.load} is no trace, so it names a topology; leave out --topology")
        given.flags["topology"] = f"file:{given.rest.load}"
    try:
        settings = given.settings(load_settings)
        if order is not None:
            return replaying.replay(settings, app.host_state(settings), order(settings))
        if given.rest.dump_topology:
            return show(TABLE, dump_topology(app.host_state(settings).topology))
        if given.rest.check_config:
            return _check(settings)
        return serve(TABLE, settings.debug, lambda: app.run(settings, lambda: given.settings(load_settings)))
    except SettingsError as error:
        return fail(TABLE, error, EXIT_CONFIG)
    except HypervisorError as error:
        return fail(TABLE, error, EXIT_UNAVAILABLE)
    except KeyboardInterrupt:  # while settings and topology are read
        return 128 + signal.SIGINT


def _check(settings: Settings) -> int:
    state = app.host_state(settings)
    app.hypervisor(settings)
    tcp.check(settings.tcp_host, settings.tcp_port, settings.tls_ca, settings.tls_certificate, settings.tls_key)
    cpus = format_cpu_list(sorted(state.topology.cpu_ids))
    return show(TABLE, f"vmstackd: the configuration is usable: CPUs {cpus}, {state.memory_mib} MiB\n")


def _is_trace(made: argparse.ArgumentParser, path: str) -> bool:
    try:
        return replaying.is_trace(Path(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        made.error(f"--load {path}: cannot be read: {error.strerror if isinstance(error, OSError) else error}")


def _order(made: argparse.ArgumentParser, given: Given) -> Callable[[Settings], Order]:
    """What to do with a trace; where to record it depends on the settings, too."""
    rest, trace = given.rest, Path(given.rest.load)
    if rest.dump_topology or rest.check_config:
        made.error(f"--load {trace}: a trace is replayed; --dump-topology and --check-config do something else")
    try:
        relevel = {} if rest.relevel is None else replaying.parse_relevel(rest.relevel)
    except ValueError as error:
        made.error(f"argument --relevel: {error}")

    def order(settings: Settings) -> Order:
        record = replaying.record_path(settings, given.flags.get("record"))
        refusal = None if record is None else replay_record.refusal(record, trace)
        if refusal is not None:
            made.error(f"--record {record}: {refusal}")
        return Order(trace=trace, output=rest.output or next(iter(FORMS)), relevel=relevel, record=record)

    return order


if __name__ == "__main__":
    sys.exit(main())
