"""A box: a throw-away machine with a real systemd as its process 1, in a container."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.system.keeper import BASE, BRIDGE, UNIFIED, prune
from tests.system.lab import PATIENCE, Lab, children

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}
POWER_OFF = signal.SIGRTMIN + 4
"""To systemd as process 1; see systemd(1)."""

PREPARATION = """[Unit]
Description=What a box needs before its services start
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
ExecStart=/bin/sh -ec '{script}'

[Install]
WantedBy=sysinit.target
"""


class Box:
    """A machine of a lab, running within a ``with`` statement and gone after it.

    It sees /usr, /etc and /var of this machine, and may change them for itself; everything else starts empty,
    and none of this machine's services is enabled. Its disk (``disk`` is its size as for mount(8)) is there
    before the first boot, so that files can be written for it. ``read_only`` and ``writable`` are files and
    directories of this machine, by their places in the box. With an address (10.77.0.2 to .254) it has an interface
    ``host0`` on the lab's bridge, otherwise only ``lo``.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        *,
        read_only: Mapping[str, Path] | None = None,
        writable: Mapping[str, Path] | None = None,
        address: str | None = None,
        kvm: bool = False,
        disk: str = "1g",
    ) -> None:
        assert re.fullmatch("[a-z][a-z0-9-]{0,11}", name), "a name for host and interface"
        self.lab = lab
        self.name = name
        self.address = address
        self.leader = 0
        """Pid of the box's process 1; 0 while it does not run."""
        self._directory = Path("/run/boxes", name)
        self._disk = lab.path(self._directory / "root")
        self._console = lab.path(self._directory / "console")
        self._cgroups = {hierarchy: cgroup / name for hierarchy, cgroup in lab.cgroups.items()}
        self._container: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._options = [f"--network-bridge={BRIDGE}"] if address else ["--private-network"]
        if kvm and Path("/dev/kvm").exists():
            self._options.append("--bind=/dev/kvm")
        for option, binds in (("bind-ro", read_only), ("bind", writable)):
            for inside, outside in (binds or {}).items():
                self._options.append(f"--{option}={_escaped(outside)}:{_escaped(inside)}")
        self._make_disk(disk)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def root(self) -> Path:
        """The root directory of the box as this process sees it; while it does not run, its disk only."""
        return Path(f"/proc/{self.leader}/root") if self.leader else self._disk

    def path(self, inside: str) -> Path:
        """A file or socket of the box as this process sees it.

        A link in the box to an absolute path leads out of the box when followed from here.
        """
        return self.root / inside.lstrip("/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Make a file of root's, and the directories above it."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def copy(self, source: Path, target: str) -> None:
        """Copy a file of this machine, or what a directory contains, to this path. It will be root's."""
        place = self.path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, place)

    def run(
        self,
        *argv: str,
        check: bool = True,
        user: str = "root",
        properties: Sequence[str] = (),
        stdin: str = "",
        timeout: float = PATIENCE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a service of the box, with more ``properties`` as they are written in units.

        One killed by a signal has status 255. Needs the box's D-Bus.
        """
        unit = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--service-type=exec"]
        unit += [f"--uid={user}", "--setenv=LANG=C.UTF-8", f"--property=RuntimeMaxSec={timeout:g}"]
        unit += [f"--property={text}" for text in properties]
        # systemd expands variables in the arguments.
        words = [word.replace("$", "$$") for word in argv]
        return self.enter(*unit, "--", *words, check=check, stdin=stdin, timeout=timeout)

    def enter(
        self, *argv: str, check: bool = True, stdin: str = "", timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the box as root, but in none of its units: faster, and without help from its systemd."""
        assert self.leader, f"box {self.name} does not run"
        command = ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd", "--"]
        command += ["setpriv", "--pdeathsig=KILL", f"--bounding-set={_denied(self.leader)}"]
        command += ["env", "--ignore-environment", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), *argv]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{argv} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def journal(self, *options: str) -> str:
        """What journalctl says about the box with these options, running or not."""
        if self.leader and not self._frozen:
            self.enter("journalctl", "--sync", check=False)
        journal = str(self._disk / "var/log/journal")
        done = subprocess.run(
            ["journalctl", "--no-pager", f"--directory={journal}", *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout

    def start(self) -> None:
        """Boot; returns when everything that is enabled has started. The disk is as it was left."""
        assert self._container is None, f"box {self.name} runs"
        for cgroup in self._cgroups.values():
            self.lab.path(cgroup).mkdir(exist_ok=True)
        # With a cgroup in common, two boxes would manage each other's units.
        join = "".join(f"echo 0 >{cgroup}/cgroup.procs; " for cgroup in self._cgroups.values())
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self._directory}/root"]
        command += [f"--machine={self.name}", "--register=no", "--keep-unit", "--notify-ready=yes"]
        command += ["--console=read-only", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        command += ["--system-call-filter=bpf"]  # else IPAddressDeny= and its like do nothing, silently
        notify = self._directory / "notify"
        self.lab.path(notify).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self._console.open("ab") as console:
            ready.bind(str(self.lab.path(notify)))
            ready.settimeout(0.5)
            self._container = subprocess.Popen(
                self.lab.command("sh", "-ec", f'{join} exec "$@"', "sh", *command, *self._options),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=ENVIRONMENT | {"NOTIFY_SOCKET": str(notify), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
            deadline = time.monotonic() + PATIENCE
            while True:
                with contextlib.suppress(TimeoutError):
                    if "READY=1" in ready.recv(4096).decode().splitlines():
                        break
                if self._container.poll() is not None or time.monotonic() > deadline:
                    self.crash()
                    raise RuntimeError(
                        f"box {self.name} does not boot:\n{self._console.read_text()}{self.journal('--lines=50')}"
                    )
        self.leader = self._find_leader()

    def wait(self) -> None:
        """Return when the box has ended by itself, as after ``systemctl poweroff`` or ``reboot`` in it."""
        if self._container is not None:
            self._container.wait(PATIENCE)
        self._container = None
        self.leader = 0

    def stop(self) -> None:
        """Shut down in order."""
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, POWER_OFF)
        self.wait()

    def crash(self) -> None:
        """Cut the power: every process is gone at once. The disk is kept, with all that was written."""
        if self._container is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            else:
                self.lab.path(self._cgroups[UNIFIED] / "cgroup.kill").write_text("1")
        if self._frozen:
            self.thaw()  # what is dead already stays so, and the container notices
        self.wait()

    def cut(self) -> None:
        """Part it from the lab's network, until ``heal`` or the next boot: packets vanish, and neither side is told."""
        self.lab.run("ip", "link", "set", f"vb-{self.name}", "nomaster")

    def heal(self) -> None:
        """Let it have the network back."""
        self.lab.run("ip", "link", "set", f"vb-{self.name}", "master", BRIDGE)

    def freeze(self) -> None:
        """Let it hang: none of its processes runs until ``thaw``, though its kernel still accepts connections."""
        self._set_frozen(frozen=True)

    def thaw(self) -> None:
        """Let it go on."""
        self._set_frozen(frozen=False)

    def remove(self) -> None:
        """Crash, and forget the disk."""
        if self.lab.boxes.pop(self.name, None) is None:
            return
        self.crash()
        self.lab.run("umount", "--lazy", "--recursive", str(self._directory))
        self.lab.path(self._directory).rmdir()
        for cgroup in self._cgroups.values():
            prune(self.lab.path(cgroup))

    def _make_disk(self, size: str) -> None:
        assert self.name not in self.lab.boxes, "two boxes of one name"
        directory = self._directory
        self.lab.run(
            "sh",
            "-ec",
            f"mkdir -p {directory}; mount -t tmpfs -o size={size},mode=755 {self.name} {directory}; cd {directory}; "
            "mkdir upper work root; "
            f"mount -t overlay {self.name} -o lowerdir={BASE}:/,upperdir=upper,workdir=work root",
        )
        self.lab.boxes[self.name] = self
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
        # libvirt finds controllers by their mounts, wherever they are.
        script = "".join(
            f"mkdir -p /run/cgroup/{names}; mount -t cgroup -o {names} cgroup /run/cgroup/{names}; "
            for names in self._cgroups
            if names != UNIFIED
        )
        if self.address:
            script += f"ip address add {self.address}/24 dev host0; ip link set host0 up; "
        self.write("/etc/systemd/system/box.service", PREPARATION.format(script=script + "true"))
        wants = self.path("/etc/systemd/system/sysinit.target.wants")
        wants.mkdir()
        (wants / "box.service").symlink_to("/etc/systemd/system/box.service")

    def _set_frozen(self, *, frozen: bool) -> None:
        cgroup = self.lab.path(self._cgroups[UNIFIED])
        self._frozen = frozen
        (cgroup / "cgroup.freeze").write_text(f"{frozen:d}")
        deadline = time.monotonic() + PATIENCE
        while f"frozen {frozen:d}\n" not in (cgroup / "cgroup.events").read_text():
            assert time.monotonic() < deadline, f"box {self.name} does not {'freeze' if frozen else 'thaw'}"
            time.sleep(0.01)

    def _find_leader(self) -> int:
        assert self._container is not None
        for container in children(self._container.pid):
            for child in children(container):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
        raise RuntimeError(f"box {self.name} has no process 1:\n{self._console.read_text()}")


def _denied(leader: int) -> str:
    """For setpriv: what a process 1 may not do (set this machine's clock, say), and so nobody in its box may."""
    status = Path(f"/proc/{leader}/status").read_text()
    granted = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:")), 16)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return ",".join(f"-cap_{number}" for number in range(last + 1) if not granted >> number & 1)


def _escaped(path: str | Path) -> str:
    """A path in a list that is separated by colons."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:")
