"""The command line: ``globald`` or ``python3 -m globald``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from globald import app
from globald.settings import TABLE, Settings, load_settings
from vmstackd.daemon import tcp
from vmstackd.daemon.command_line import EXIT_CONFIG, Given, fail, parser, serve, show, with_settings
from vmstackd.daemon.table import SettingsError

_EPILOG = f"""\
examples:
  globald --hosts 10.0.0.5:8097,10.0.0.6:8097 --tls-ca ca.crt --tls-certificate globald.crt --tls-key globald.key
  globald --hosts-dir /etc/vmstack/hosts.d                  hosts come and go with the files there
  globald --check-config --config /etc/vmstack/globald.toml

Every option that takes a value can also stand in the file ({TABLE.file}), as
"attempts = 3", and in the environment, as GLOBALD_ATTEMPTS=3. A flag wins over
the environment, that over --env-file, that over the file.

exit codes: 0 done, 1 failed, 2 usage, 78 configuration
"""


def command_line() -> argparse.ArgumentParser:
    """Every flag."""
    made = parser(TABLE, "Chooses the host of each new VM of a cluster, and has it started there.", _EPILOG)
    made.add_argument("--list", metavar="ADDRESSES", help="the same as --hosts, in the prototype's word")
    return with_settings(TABLE, made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    made = command_line()
    given = Given(TABLE, made.parse_args(arguments))
    if given.rest.list is not None:
        if "hosts" in given.flags:
            made.error("--list and --hosts both name hosts; give one of them")
        given.flags["hosts"] = given.rest.list
    try:
        settings = given.settings(load_settings)
        if given.rest.check_config:
            return _check(settings)
        return serve(TABLE, settings.debug, lambda: app.run(settings, lambda: given.settings(load_settings)))
    except SettingsError as error:
        return fail(TABLE, error, EXIT_CONFIG)


def _check(settings: Settings) -> int:
    tcp.check(settings.tcp_host, settings.tcp_port, settings.tls_ca, settings.tls_certificate, settings.tls_key)
    folder = "" if settings.hosts_dir == "none" else f", and those of {settings.hosts_dir}"
    return show(TABLE, f"globald: the configuration is usable: {len(settings.hosts)} hosts{folder}\n")


if __name__ == "__main__":
    sys.exit(main())
