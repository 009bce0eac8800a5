"""Real hypervisors for tests, each with all of its state in one temporary directory.

``missing`` functions say why this machine cannot have one, for a skip by name.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt

from vmstackd.hypervisor.embedded import prepare_root

WAIT_S = 60.0
"""For what takes under a second: generous, so that a busy machine fails nothing."""

LIBVIRTD = "/usr/sbin/libvirtd"
QEMU = "qemu-system-x86_64"

IDLE_BOOT_SECTOR = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
"""cli; hlt; and again: a guest that does nothing, for ever."""


def missing_qemu() -> str:
    """Why there is no QEMU to test with; empty if there is."""
    absent = [tool for tool in (QEMU, "qemu-img") if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


@functools.cache
def missing_embedded() -> str:
    """Why libvirt's embedded QEMU driver cannot be used; empty if it can."""
    try:
        libvirt.getVersion("QEMU")
    except libvirt.libvirtError as error:
        return f"libvirt without its QEMU driver: {error}"
    return missing_qemu()


@functools.cache
def missing_libvirtd() -> str:
    """Why no private libvirtd can be started; empty if it can."""
    if os.geteuid() != 0:
        return "a private libvirtd needs root"
    if not os.access(LIBVIRTD, os.X_OK):
        return f"not installed: {LIBVIRTD}"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        return "no mount namespaces for a private libvirtd"
    return missing_qemu()


def make_image(path: Path, boot_sector: bytes = IDLE_BOOT_SECTOR) -> Path:
    """A bootable qcow2 image of 1 MiB whose guest idles."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(boot_sector.ljust(1 << 20, b"\0"))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    raw.unlink()
    return path


@contextlib.contextmanager
def embedded_root(root: Path) -> Iterator[str]:
    """A ``qemu:///embed`` URI for this directory; its QEMUs are killed at the end.

    A process can use only one root in its life, and call libvirt.open on it a dozen times.
    """
    reap_qemus()
    prepare_root(str(root))
    with _shared_capabilities(root / "cache"):
        try:
            yield f"qemu:///embed?root={root}"
        finally:
            kill_qemus(root)


class PrivateLibvirtd:
    """A libvirtd of our own in its own mount namespace, where its usual directories are ours."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "run" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers."""
        places = {"etc": "/etc", "run": "/run", "lib": "/var/lib", "cache": "/var/cache", "log": "/var/log"}
        script = "set -e\n"
        for ours, theirs in places.items():
            (self.root / ours).mkdir(exist_ok=True)
            script += f'mkdir -p {theirs}/libvirt; mount --bind "$1/{ours}" {theirs}/libvirt\n'
        script += f"exec {LIBVIRTD} -f /etc/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid\n"
        (self.root / "etc" / "libvirtd.conf").write_text('auth_unix_rw = "none"\nauth_unix_ro = "none"\n')
        (self.root / "etc" / "qemu.conf").write_text('stdio_handler = "file"\nuser = "root"\ngroup = "root"\n')
        with (self.root / "libvirtd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                libvirt.open(self.uri).close()
            except libvirt.libvirtError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.root / "libvirtd.log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it this signal; its VMs run on."""
        assert self._process is not None
        self._process.send_signal(number)
        if number not in {signal.SIGSTOP, signal.SIGCONT}:
            self._process.wait(WAIT_S)

    def stop(self) -> None:
        """Kill its VMs and end it."""
        kill_qemus(self.root)
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(WAIT_S)


@contextlib.contextmanager
def private_libvirtd(root: Path) -> Iterator[PrivateLibvirtd]:
    """A running one. VMs must have their images below root, so that none can be left over."""
    reap_qemus()
    root.mkdir(parents=True, exist_ok=True)
    daemon = PrivateLibvirtd(root)
    with _shared_capabilities(root / "cache"):
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()


@functools.cache
def reap_qemus() -> None:
    """Reap QEMUs, and processes of containers, orphaned by this process or its children, from now on.

    They are left to process 1, which on some test machines takes seconds, and until then libvirt
    takes them for alive: each destruction of a VM would last as long.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

    def reap() -> None:
        while True:
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                # Only looking: other children are somebody else's to wait for.
                if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                for pid in _children():
                    if _is_orphan(pid):
                        os.waitpid(pid, os.WNOHANG)

    threading.Thread(target=reap, name="reap-qemus", daemon=True).start()


def _is_orphan(pid: int) -> bool:
    """A QEMU, or a process of another PID namespace: that cannot end before all of its processes are reaped."""
    spaces = re.findall(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0].split()
    return len(spaces) > 1 or Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")


def _children() -> list[int]:
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


def qemus(root: Path) -> list[int]:
    """Pids of the QEMU processes that use this directory."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in program and any(f"{root}/".encode() in argument for argument in arguments):
                    found.append(int(process.name))
    return found


def kill_qemus(root: Path) -> None:
    """Kill them all and wait until they are gone."""
    deadline = time.monotonic() + WAIT_S
    while left := qemus(root):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"QEMU processes that do not die: {left}")
        time.sleep(0.05)


def qemu_pid(root: Path, name: str) -> int:
    """Of this VM, whose state is below root."""
    return int((root / "run" / "qemu" / f"{name}.pid").read_text())


def vcpu_affinities(pid: int) -> dict[str, str]:
    """The kernel's list of allowed CPUs of each vCPU thread, by the thread's name ("CPU 0/TCG")."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith("CPU "):
            status = (task / "status").read_text().splitlines()
            found[name] = next(line.split()[1] for line in status if line.startswith("Cpus_allowed_list:"))
    return found


@functools.cache
def _capabilities() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="vmstack-capabilities-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@contextlib.contextmanager
def _shared_capabilities(cache: Path) -> Iterator[None]:
    """libvirt takes seconds to find out what QEMU can do: hand on what it found within this process.

    It checks by itself whether the file is still true.
    """
    there, shared = cache / "qemu" / "capabilities", _capabilities()
    there.mkdir(parents=True, exist_ok=True)
    for file in shared.iterdir():
        shutil.copy2(file, there)
    try:
        yield
    finally:
        for file in there.glob("*.xml"):
            shutil.copy2(file, shared)
