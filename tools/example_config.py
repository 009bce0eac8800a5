"""Writes the package's configuration files, each setting explained: python -m tools.example_config DIRECTORY."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from core.cpuset import format_cpu_list
from globald.settings import TABLE as GLOBALD
from vmstackd.daemon.table import Setting, Table
from vmstackd.settings import TABLE as VMSTACKD

TABLES = (VMSTACKD, GLOBALD)
_NOTES = {
    "vmstackd": "# vmstackd.service sets VMSTACKD_REQUIRE_HYPERVISOR=no; systemctl edit vmstackd can change that.\n",
    "globald": "# Hosts can also be named in files of hosts_dir: vmstackctl --cluster host add ADDRESS writes one.\n",
}


def example(table: Table) -> str:
    """The file of one program, in TOML."""
    program = table.program
    head = f"""\
# Settings of {program}; see {program}.toml(5). What is commented out is the default.
# Each can also be given in the environment ({table.prefix}<KEY>) and as a flag, which win over this file.
# Check:  {program} --check-config      Use:  systemctl reload {program}  (or restart, where it says so)
"""
    return head + _NOTES[program] + "".join(f"\n{_entry(row)}" for row in table.rows)


def _entry(row: Setting) -> str:
    text = row.help[0].upper() + row.help[1:] + ("." if row.reload else ". Needs a restart.")
    lines = textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")
    return "\n".join([*lines, f"#{row.key} = {_toml(row)}"]) + "\n"


def _toml(row: Setting) -> str:
    match row.default:
        case bool():
            return "true" if row.default else "false"
        case int() | float():
            return str(row.default)
        case dict():
            return "{}"
        case tuple() if row.key == "exclude_cpus":
            return f'"{format_cpu_list(row.default)}"'
        case tuple():
            return "[" + ", ".join(f'"{item}"' for item in row.default) + "]"
        case _:
            return f'"{row.default}"'


def write(directory: Path) -> None:
    """All files, by the names that the programs look for."""
    directory.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        (directory / table.file.name).write_text(example(table), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.example_config DIRECTORY")
    write(Path(sys.argv[1]))
