"""Prints the package's configuration file, each setting explained: python -m tools.example_config."""

from __future__ import annotations

import sys
import textwrap

from core.cpuset import format_cpu_list
from vmstackd.daemon.table import Setting
from vmstackd.settings import TABLE

_HEAD = f"""\
# Settings of vmstackd; see vmstackd.toml(5). What is commented out is the default.
# Each can also be given in the environment ({TABLE.prefix}<KEY>) and as a flag, which win over this file.
# Check:  vmstackd --check-config      Use:  systemctl reload vmstackd  (or restart, where it says so)
# vmstackd.service sets VMSTACKD_REQUIRE_HYPERVISOR=no; systemctl edit vmstackd can change that.
"""


def example() -> str:
    """The file, in TOML."""
    return _HEAD + "".join(f"\n{_entry(row)}" for row in TABLE.rows)


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


if __name__ == "__main__":
    sys.stdout.write(example())
