"""What a process has open."""

from __future__ import annotations

import contextlib
from pathlib import Path


def descriptors(pid: int | None = None) -> int:
    """How many, but for files below /proc: a thread of the tests may be reading one at any moment. pid: None: ours."""
    count = 0
    for entry in Path(f"/proc/{'self' if pid is None else pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, such as the one that lists them
            count += not str(entry.readlink()).startswith("/proc/")
    return count
