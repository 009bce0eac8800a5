"""A daemon that ``make run`` starts: what it logs is shown line by line, with its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence

_NAME = 10
"""Columns for the name before each line."""


class Child:
    """One process. Whoever has this waits until ``pipe`` can be read, and then calls ``read``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Collection[int],
        wanted: Collection[re.Pattern[str]],
    ) -> None:
        """descriptors: that it inherits. wanted: what is to be found in its lines, see ``found``."""
        self.name = name
        self.found: dict[re.Pattern[str], re.Match[str]] = {}
        """The latest match of each."""
        self._wanted = wanted
        self._rest = b""
        # In a process group of its own, so that Ctrl-C reaches it once, through us.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=descriptors,
            process_group=0,
        )
        if self.process.stderr is None:
            raise TypeError("stderr is a pipe")
        self.pipe = self.process.stderr

    def read(self) -> bool:
        """Show what there is to be read; False at the end."""
        part = os.read(self.pipe.fileno(), 65536)
        *lines, self._rest = (self._rest + part).split(b"\n")
        if not part and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            sys.stderr.write(f"{self.name:{_NAME}}")
            sys.stderr.flush()
            sys.stderr.buffer.write(line + b"\n")
            self._look_at(line.decode("utf-8", "replace"))
        sys.stderr.flush()
        return bool(part)

    def _look_at(self, line: str) -> None:
        for pattern in self._wanted:
            match = pattern.search(line)
            if match is not None:
                self.found[pattern] = match
