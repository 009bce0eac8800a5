"""One target in a process of its own: ``python -m tests.fuzz.one TARGET [OPTION OR FOLDER OF LIBFUZZER ...]``.

Only Python is instrumented: what is compiled, ``core`` and the decoders of msgspec and msgpack, is run as it is, and
guides nothing.
"""

from __future__ import annotations

import resource
import shlex
import sys

import atheris  # type: ignore[import-untyped]  # it comes without types

from tests.fuzz.target import limited, load

MOST_MEMORY = 3 << 30
"""Bytes of addresses: where one input takes too much, it fails before the machine does."""


def main() -> None:
    """Does not return; the exit code is libFuzzer's."""
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["globald", "vmstackctl", "vmstackd", "tests.fuzz.planted"]):
        target = load(name)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    # As what it is called to merge: libFuzzer hands this to a shell.
    itself = f"{shlex.quote(sys.executable)} -m tests.fuzz.one {name}"
    atheris.Setup([itself, *arguments], limited(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
