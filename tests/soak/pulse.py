"""A process that does a fixed little work for each call, as a measure of how fast the machine is.

``python -m tests.soak.pulse SOCKET``
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import ROOT, clean_environment

SIZE = 100
"""Bytes of a call, and of its answer."""
WORK = 10_000
"""Numbers that are added up meanwhile: some tenths of a millisecond, as long as a daemon works for a deployment."""


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(SIZE):
        sum(number for number in range(WORK))
        writer.write(data)


async def _main(path: str) -> None:
    server = await asyncio.start_unix_server(_serve, path)
    print("ready", flush=True)
    await server.serve_forever()


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """While there is one on this socket."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak.pulse", str(path)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
