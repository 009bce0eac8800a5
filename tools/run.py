"""``make run``: vmstackd with real VMs in a directory of its own: ``python -m tools.run STATE_DIR [OPTION...]``."""

from __future__ import annotations

import argparse
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO

from tools.hello_image import make_image
from tools.state_dir import DEFAULT, StateDir, StateDirError, say

IMAGES = ("hello.qcow2", *(f"hello{number}.qcow2" for number in range(2, 9)))
"""QEMU locks the image of a running VM, so each VM needs its own."""

_READY = re.compile(rb"^\S+ info ready http=(\S+)", re.MULTILINE)
_STOPPING = re.compile(rb"^\S+ info stopping vms=([0-9]+)", re.MULTILINE)
_IMPATIENCE = 5.0
"""Seconds without a word after which a starting daemon is said to be still starting."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until a signal; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.run",
        description="Runs vmstackd with real VMs, all of its state in one directory.",
        epilog="Further options go to vmstackd, such as --http-port 8199 or --critical-size 0.",
        allow_abbrev=False,
    )
    parser.add_argument("state_dir", nargs="?", default=DEFAULT, help=f"the directory (default: {DEFAULT})")
    given, options = parser.parse_known_args(arguments)
    try:
        state = StateDir(given.state_dir)
        state.make()
        _make_images(state)
    except StateDirError as error:
        say(str(error))
        return 1
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"{given.state_dir}: {error}")
        return 1
    return _Daemon(state, options).run()


def _make_images(state: StateDir) -> None:
    missing = [name for name in IMAGES if not (state.images / name).exists()]
    if missing:
        say(f"Making {len(missing)} small disk images in {state.images}")
    for name in missing:
        make_image(state.images / name)


class _Daemon:
    def __init__(self, state: StateDir, options: Sequence[str]) -> None:
        self._state = state
        self._options = options
        self._ready = False
        self._vms = 0
        """How many it left running."""

    def run(self) -> int:
        state = self._state
        say("Starting vmstackd: real VMs on this machine, through libvirt's embedded QEMU driver; no libvirtd is used")
        command = [sys.executable, "-m", "vmstackd", "--config", os.devnull, "--hypervisor", state.uri]
        command += ["--socket", str(state.socket), "--dbus", "none", "--image-roots", str(state.images)]
        command += self._options
        # libvirt's own log is not for the terminal, and only errors: it warns that QEMU runs as root, for
        # example. The processes that it forks log to stderr whatever is said about outputs.
        libvirt_log = {"LIBVIRT_DEBUG": "error", "LIBVIRT_LOG_OUTPUTS": f"4:file:{state.path}/libvirt.log"}
        # In a process group of its own, so that Ctrl-C reaches it once, through us.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=libvirt_log | os.environ,
            pass_fds=(state.lock,),
            process_group=0,
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: process.terminate())
        if process.stderr is None:
            raise TypeError("stderr is a pipe")
        self._pass_on(process, process.stderr)
        status = process.wait()
        if self._vms:
            say(f"vmstackd has ended, its VMs keep running ({self._vms}): {self._make('run')} manages them again,")
            say(f"{self._make('purge')} ends them and deletes {state.path}")
        elif self._ready:
            say(f"vmstackd has ended, no VM is left running; {self._make('purge')} deletes {state.path}")
        elif status:
            say("vmstackd did not start; the line above says why")
        else:
            say("vmstackd has ended before it was ready")
        return status if status >= 0 else 128 - status

    def _pass_on(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        """Show what the daemon logs, until it ends, and what to do once it is ready."""
        begin = time.monotonic()
        recent = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                # Nobody else should hold the pipe, but if someone did, its end would never come.
                ended = process.poll() is not None
                if not selector.select(0 if ended else _IMPATIENCE):
                    if ended:
                        return
                    if not self._ready:
                        say(f"still starting ({time.monotonic() - begin:.0f} s)")
                    continue
                part = os.read(pipe.fileno(), 65536)
                if not part:
                    return
                sys.stderr.buffer.write(part)
                sys.stderr.flush()
                recent = (recent + part)[-65536:]
                if not self._ready and (match := _READY.search(recent)):
                    self._ready = True
                    self._show_what_to_do(match[1].decode())
                if match := _STOPPING.search(recent):
                    self._vms = int(match[1])

    def _show_what_to_do(self, url: str) -> None:
        image = self._state.images / IMAGES[0]
        say("Ready. Ctrl-C ends vmstackd, not its VMs. Try in another terminal:")
        sys.stderr.write(f"      curl '{url}/deploy?name=hello&cpu=1&mem=0.125&oc=1.0&qcow2={image}'\n")
        sys.stderr.write(f"      curl {url}/status\n")
        sys.stderr.write(f"      .venv/bin/vmstackctl --socket {self._state.socket} status\n")
        sys.stderr.flush()

    def _make(self, target: str) -> str:
        directory = str(self._state.path)
        return f"make {target}" if directory == DEFAULT else f"make {target} STATE_DIR={shlex.quote(directory)}"


if __name__ == "__main__":
    sys.exit(main())
