"""What the command lines of our daemons have in common: flags from the table, sources put together, one-line errors."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from vmstackd.daemon import log
from vmstackd.daemon.life import EXIT_DONE, EXIT_FAILED
from vmstackd.daemon.table import Table
from vmstackd.version import VERSION

EXIT_USAGE = 2
EXIT_CONFIG = 78

_S_co = TypeVar("_S_co", covariant=True)


class Load(Protocol[_S_co]):
    """``load_settings`` of a daemon."""

    def __call__(
        self, flags: dict[str, str], environment: dict[str, str], env_file: Path | None, config_file: Path | None
    ) -> _S_co:
        """Raises SettingsError."""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {log.one_line(message)}; {self.prog} -h shows what there is\n")


class Given:
    """What was typed. flags: texts of settings by key. rest: everything else."""

    def __init__(self, table: Table, rest: argparse.Namespace) -> None:
        self.flags: dict[str, str] = {
            row.key: value for row in table.rows if (value := getattr(rest, row.key)) is not None
        }
        self.rest = rest
        self._environment = dict(os.environ)

    def settings(self, load: Load[_S_co]) -> _S_co:
        """All sources together, the files as they are now. Raises SettingsError."""
        return load(self.flags, self._environment, self.rest.env_file, self.rest.config)


def parser(table: Table, description: str, epilog: str) -> argparse.ArgumentParser:
    """The flags that every daemon has, but those of the table."""
    made = _Parser(
        prog=table.program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"{table.program} {VERSION}")
    made.add_argument("--config", type=Path, metavar="FILE", help=f"TOML settings (default: {table.file}, if there)")
    made.add_argument(
        "--env-file", type=Path, metavar="FILE", help="KEY=VALUE lines; the prototype's keys are understood"
    )
    made.add_argument("--check-config", action="store_true", help="read all settings, say what is wrong, then exit")
    return made


def with_settings(table: Table, made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same, with the flags of the table."""
    for row in table.rows:
        text = row.help.replace("%", "%%") + (f" (default: {row.shown_default})" if row.shown_default else "")
        made.add_argument(row.flag, dest=row.key, metavar=row.metavar, help=text)
    return made


def serve(table: Table, debug: int, run: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run the daemon; returns its exit code."""
    log.set_up(program=table.program, debug=debug > 0)
    try:
        return asyncio.run(run())
    except KeyboardInterrupt:  # before it took over the signals: nothing has been started
        return EXIT_DONE


def show(table: Table, text: str) -> int:
    """Write to stdout; returns the exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        abandon_stdout()
        return fail(table, f"cannot write: {error.strerror}", EXIT_FAILED)
    return EXIT_DONE


def abandon_stdout() -> None:
    """What is still buffered has nowhere to go; without this, Python would try again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(table: Table, error: Exception | str, code: int) -> int:
    """Say in one line what is wrong; returns the code."""
    sys.stderr.write(f"{table.program}: {log.one_line(str(error))}\n")
    return code
