"""Process 1 of a lab: prepares what all its boxes share, and ends with the process that started it.

Run as a program by tests/system/lab.py, in namespaces of its own and with a token as its argument. It
writes one line of JSON when the lab is ready: the lab's cgroups by their hierarchy's name. Then it waits
for the end of its standard input, which comes however its parent dies. The kernel takes care of
everything then but empty cgroups, so it removes these.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

BASE = Path("/run/base")
"""The layer of all boxes over the machine's own file system."""

BRIDGE = "lab0"

ADDRESS = "10.77.0.1"
"""Of the lab itself, in the network of its boxes."""

UNIFIED = "unified"
"""The name of the cgroup v2 hierarchy."""

SHOWN = {"bin", "etc", "lib", "lib32", "lib64", "libx32", "sbin", "usr", "var"}
"""What a box sees of the machine's root directory."""

EMPTY = {
    "boot": 0o755,
    "dev": 0o755,
    "home": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "srv": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    # The machine's own services and virtual machines are no business of a box.
    "etc/systemd/system": 0o755,
    "etc/libvirt/qemu": 0o700,
    **{f"etc/rc{level}.d": 0o755 for level in "0123456S"},
    "var/log/journal": 0o755,
    "var/tmp": 0o1777,
}
"""Directories that start empty, and their modes."""

HIDDEN = ("etc/fstab", "usr/sbin/policy-rc.d")
"""The latter keeps packages from starting their services on machines that are containers themselves."""

SLOW = (
    "cryptsetup.target",
    "dev-hugepages.mount",
    "getty.target",
    "integritysetup.target",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-firstboot.service",
    "systemd-initctl.socket",
    "systemd-journald-audit.socket",
    "systemd-machine-id-commit.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "veritysetup.target",
)
"""Units of every Debian that a box does without, because they only cost time."""

FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/resolv.conf": "",
    "etc/systemd/journald.conf.d/box.conf": "[Journal]\nStorage=persistent\nRateLimitBurst=0\nForwardToSyslog=no\n",
    "etc/systemd/system.conf.d/box.conf": "[Manager]\nDefaultTimeoutStopSec=10s\nShowStatus=no\n",
}


def prune(cgroup: Path, patience: float = 10.0) -> None:
    """Remove a cgroup and those below it, once their last processes are gone."""
    deadline = time.monotonic() + patience
    while cgroup.exists():
        for directory, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def make_base(machine: Path = Path("/")) -> None:
    """Over the machine's root: nothing private, nothing enabled."""
    for name, mode in EMPTY.items():
        directory = BASE / name
        directory.mkdir(parents=True)
        directory.chmod(mode)
        os.setxattr(directory, "trusted.overlay.opaque", b"y")
    others = [entry.name for entry in machine.iterdir() if entry.name not in SHOWN | EMPTY.keys()]
    for name in (*others, *HIDDEN):
        (BASE / name).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(BASE / name, stat.S_IFCHR)  # device 0/0: an overlay takes it for a deletion
    for unit in SLOW:
        (BASE / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for name, text in FILES.items():
        (BASE / name).parent.mkdir(parents=True, exist_ok=True)
        (BASE / name).write_text(text)


def make_cgroups(token: str) -> dict[str, Path]:
    """A cgroup for this lab in each hierarchy that systemd or libvirt use.

    The hierarchies are mounted anew, so that it does not matter where, and whether, this machine has them.
    """
    subprocess.run(["umount", "--recursive", "/sys/fs/cgroup"], check=False, capture_output=True)
    made = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, own = line.split(":", 2)
        if number == "0":
            name, mounted, options = UNIFIED, Path("/sys/fs/cgroup"), ["-t", "cgroup2"]
        elif {"cpu", "cpuacct", "cpuset", "memory"} & set(controllers.split(",")):
            name, mounted, options = controllers, Path("/run/cgroup", controllers), ["-t", "cgroup", "-o", controllers]
        else:
            continue
        mounted.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *options, "cgroup", str(mounted)], check=True)
        parent = mounted / own.lstrip("/")
        made[name] = cgroup = parent / f"vmstack-{token}"
        cgroup.mkdir()
        if (cgroup / "cgroup.clone_children").exists() and (cgroup / "cpuset.cpus").exists():
            # Without CPUs and memory a cpuset of version 1 takes no processes.
            for file in ("cpuset.cpus", "cpuset.mems"):
                (cgroup / file).write_text((parent / file).read_text())
            (cgroup / "cgroup.clone_children").write_text("1")
    return made


def main(token: str) -> None:
    # Also hides the sockets of the machine's own daemons.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "lab", "/run"], check=True)
    make_base()
    cgroups = make_cgroups(token)
    network = f"link set lo up\nlink add {BRIDGE} type bridge\nlink set {BRIDGE} up\n"
    network += f"address add {ADDRESS}/24 dev {BRIDGE}\n"
    subprocess.run(["ip", "-batch", "-"], input=network, text=True, check=True)
    # As process 1 it inherits orphans; nobody waits for them, so they must leave nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps({name: str(path) for name, path in cgroups.items()}), flush=True)
    sys.stdin.read()
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    for cgroup in cgroups.values():
        prune(cgroup)


if __name__ == "__main__":
    main(sys.argv[1])
