"""``make run``: vmstackd with real VMs, and globald with this one host, in a directory of its own:
``python -m tools.run STATE_DIR [OPTION...]``.
"""

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

from tools.children import Child
from tools.hello_image import make_image
from tools.state_dir import DEFAULT, StateDir, StateDirError, say

IMAGES = ("hello.qcow2", *(f"hello{number}.qcow2" for number in range(2, 9)))
"""QEMU locks the image of a running VM, so each VM needs its own."""

_READY = re.compile(r"^\S+ info ready http=(\S+)(?:.* tcp=(\S+))?")
_LEARNED = re.compile(r"^\S+ info learned ")
_STOPPING = re.compile(r"^\S+ info stopping vms=([0-9]+)")
_IMPATIENCE = 5.0
"""Seconds without a word after which a starting daemon is said to be still starting."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemons until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.run",
        description="Runs vmstackd with real VMs, and globald with this host, all of their state in one directory.",
        epilog="Further options go to vmstackd, such as --http-port 8199 or --critical-size 0.",
        allow_abbrev=False,
    )
    parser.add_argument("state_dir", nargs="?", default=DEFAULT, help=f"the directory (default: {DEFAULT})")
    parser.add_argument(
        "--cluster-args", metavar="OPTIONS", default="", help='options of globald, as "--http-port 8200"'
    )
    given, options = parser.parse_known_args(arguments)
    try:
        cluster_options = shlex.split(given.cluster_args)
        state = StateDir(given.state_dir)
        state.make()
        _make_images(state)
    except StateDirError as error:
        say(str(error))
        return 1
    except ValueError as error:
        say(f"CLUSTER_ARGS: {error}")
        return 2
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"{given.state_dir}: {error}")
        return 1
    return _Daemons(state, options, cluster_options).run()


def _make_images(state: StateDir) -> None:
    missing = [name for name in IMAGES if not (state.images / name).exists()]
    if missing:
        say(f"Making {len(missing)} small disk images in {state.images}")
    for name in missing:
        make_image(state.images / name)


class _Daemons:
    """vmstackd, and globald once vmstackd is ready. The end of one is the end of both."""

    def __init__(self, state: StateDir, options: Sequence[str], cluster_options: Sequence[str]) -> None:
        self._state = state
        self._options = options
        self._cluster_options = cluster_options
        self._children: list[Child] = []
        self._stopping = False
        self._ready = False
        self._first: Child | None = None
        """Which has ended without being told to."""

    def run(self) -> int:
        say("Starting vmstackd: real VMs on this machine, through libvirt's embedded QEMU driver; no libvirtd is used")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop())
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            vmstackd = self._start("vmstackd", self._vmstackd_command(), (self._state.lock,))
            self._pass_on(vmstackd)
        return self._farewell(vmstackd)

    def _vmstackd_command(self) -> list[str]:
        state = self._state
        command = ["--config", os.devnull, "--hypervisor", state.uri, "--socket", str(state.socket), "--dbus", "none"]
        command += ["--image-roots", str(state.images), "--state-dir", str(state.host), "--tcp-host", "127.0.0.1"]
        return [*command, *self._options]

    def _globald_command(self, host: str) -> list[str]:
        state = self._state
        command = ["--config", os.devnull, "--hosts", host, "--hosts-dir", str(state.hosts_dir)]
        command += ["--socket", str(state.cluster_socket), "--tcp-host", "none"]
        return [*command, *self._cluster_options]

    def _start(self, program: str, options: Sequence[str], descriptors: Sequence[int] = ()) -> Child:
        # libvirt's own log is not for the terminal, and only errors: it warns that QEMU runs as root, for
        # example. The processes that it forks log to stderr whatever is said about outputs.
        libvirt_log = {"LIBVIRT_DEBUG": "error", "LIBVIRT_LOG_OUTPUTS": f"4:file:{self._state.path}/libvirt.log"}
        child = Child(
            program,
            [sys.executable, "-m", program, *options],
            libvirt_log | os.environ,
            descriptors,
            (_READY, _LEARNED, _STOPPING),
        )
        self._children.append(child)
        self._selector.register(child.pipe, selectors.EVENT_READ, child)
        if self._stopping:  # a signal came just before
            child.process.terminate()
        return child

    def _stop(self) -> None:
        """End globald first, which would miss its host; told once more, both at once."""
        for child in self._children if self._stopping else self._children[-1:]:
            child.process.terminate()
        self._stopping = True

    def _pass_on(self, vmstackd: Child) -> None:
        """Show what the daemons log, until both have ended, and what to do once they are ready."""
        begin = time.monotonic()
        while self._selector.get_map():
            # Nobody else should hold a pipe, but if someone did, its end would never come.
            ended = [child for child in self._reading() if child.process.poll() is not None]
            readable = [key.data for key, _ in self._selector.select(0 if ended else _IMPATIENCE)]
            if not readable and not ended and not self._ready and not self._stopping:
                say(f"still starting ({time.monotonic() - begin:.0f} s)")
            at_end = [child for child in readable if not child.read()]
            for child in at_end + [child for child in ended if child not in readable]:
                self._close(child)
            if not self._ready and not self._stopping:
                self._go_on(vmstackd)

    def _reading(self) -> list[Child]:
        return [key.data for key in self._selector.get_map().values()]

    def _close(self, child: Child) -> None:
        self._selector.unregister(child.pipe)
        child.pipe.close()
        child.process.wait()
        if not self._stopping:
            self._first = child
        self._stopping = True
        for other in self._reading():
            other.process.terminate()

    def _go_on(self, vmstackd: Child) -> None:
        """Start globald once vmstackd is ready, and say what can be done once both are."""
        ready = vmstackd.found.get(_READY)
        if ready is None:
            return
        if len(self._children) == 1 and ready[2] is not None:
            self._start("globald", self._globald_command(ready[2]))
        elif len(self._children) == 1:
            say("There is no cluster: vmstackd listens on no TCP port, and globald would need one")
            self._show_what_to_do(ready[1])
        else:
            cluster = self._children[1].found
            if _READY in cluster and _LEARNED in cluster:
                self._show_what_to_do(ready[1], cluster[_READY][1])

    def _show_what_to_do(self, url: str, cluster_url: str = "") -> None:
        self._ready = True
        image = self._state.images / IMAGES[0]
        vmstackctl = ".venv/bin/vmstackctl --address"
        daemons = " and ".join(child.name for child in self._children)
        say(f"Ready. Ctrl-C ends {daemons}, not the VMs. Try in another terminal:")
        lines = [
            f"curl '{url}/deploy?name=hello&cpu=1&mem=0.125&oc=1.0&qcow2={image}'",
            f"curl {url}/status",
            f"{vmstackctl} {self._state.socket} status",
        ]
        if cluster_url:
            lines += [f"curl {cluster_url}/status", f"{vmstackctl} {self._state.cluster_socket} hosts"]
        sys.stderr.write("".join(f"      {line}\n" for line in lines))
        sys.stderr.flush()

    def _farewell(self, vmstackd: Child) -> int:
        """Say what has become of daemons and VMs; returns the exit code."""
        state, first = self._state, self._first
        others = [child.name for child in self._children if child is not first]
        if first is not None and others:
            say(f"{first.name} {_end(first.process.returncode)}; {others[0]} was ended with it")
            if first is not vmstackd and not self._ready:
                say('What globald is to do in another way goes into CLUSTER_ARGS, as CLUSTER_ARGS="--http-port 8200"')
        stopping = vmstackd.found.get(_STOPPING)
        if stopping is not None and int(stopping[1]):
            say(f"vmstackd has ended, its VMs keep running ({stopping[1]}): {self._make('run')} manages them again,")
            say(f"{self._make('purge')} ends them and deletes {state.path}")
        elif stopping is not None:
            say(f"vmstackd has ended, no VM is left running; {self._make('purge')} deletes {state.path}")
        elif _READY in vmstackd.found:
            say(f"any VMs of vmstackd keep running: {self._make('run')} manages them again")
        elif vmstackd.process.returncode:
            say("vmstackd did not start; the line above says why")
        else:
            say("vmstackd has ended before it was ready")
        status: int = (first or vmstackd).process.returncode
        return status if status >= 0 else 128 - status

    def _make(self, target: str) -> str:
        directory = str(self._state.path)
        return f"make {target}" if directory == DEFAULT else f"make {target} STATE_DIR={shlex.quote(directory)}"


def _end(status: int) -> str:
    """How a daemon has ended that nobody told to."""
    if status >= 0:
        return "has ended by itself, its last line says why"
    return f"was killed ({signal.Signals(-status).name})"


if __name__ == "__main__":
    sys.exit(main())
