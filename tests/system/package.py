"""The Debian package, and boxes in which it is installed."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.running import ROOT
from tests.system.box import Box
from tests.system.lab import PATIENCE
from tools.hello_image import make_image

BUILD_PATIENCE = 600.0
BUS = ("org.vmstack.Host1", "/org/vmstack/Host1", "org.vmstack.Host1")
IMAGES = "/var/lib/libvirt/images"
CONFIG = "/etc/vmstack/vmstackd.toml"
CLUSTER_CONFIG = "/etc/vmstack/globald.toml"

REAL = 'virt_type = "qemu"\ncritical_size = 0\n'
"""Settings for real VMs where KVM cannot be relied on."""
SIM = 'hypervisor = "sim:"\ntopology = "/usr/share/vmstack/topologies/EPYC-7662.json"\n'


@functools.cache
def package() -> Path:
    """Build it, once; or the one that VMSTACK_PACKAGE names."""
    if given := os.environ.get("VMSTACK_PACKAGE"):
        return Path(given).resolve()
    done = subprocess.run(
        [str(ROOT / "tools" / "deb")], capture_output=True, text=True, timeout=BUILD_PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / done.stdout.splitlines()[-1]


def install(box: Box, config: str = "", cluster_config: str = "") -> None:
    """Install it as an administrator does; what is given is added to the settings of vmstackd and of globald."""
    box.copy(package(), f"/root/{package().name}")
    box.enter("apt-get", "install", "--yes", f"/root/{package().name}", timeout=BUILD_PATIENCE)
    for path, added in ((CONFIG, config), (CLUSTER_CONFIG, cluster_config)):
        if added:
            box.write(path, box.path(path).read_text() + added)


def upgrade(box: Box, folder: Path) -> str:
    """Install the same program as a newer version of the package; returns its file in the box."""
    tree, deb = folder / "tree", folder / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package()), str(tree)], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control.read_text(), flags=re.MULTILINE))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(deb)], check=True, capture_output=True
    )
    newer = "/root/newer.deb"
    box.copy(deb, newer)
    box.enter("apt-get", "install", "--yes", newer, timeout=BUILD_PATIENCE)
    return newer


def put_images(box: Box, *names: str) -> None:
    """Disk images that boot and idle."""
    for name in names:
        image = box.path(f"{IMAGES}/{name}")
        image.unlink(missing_ok=True)
        make_image(image)


def call(box: Box, method: str, *arguments: str, user: str = "root") -> Any:  # noqa: ANN401  whatever it is, the test looks inside
    """Call a method of the host over the system bus; its results as busctl prints them in JSON."""
    done = box.run("busctl", "--json=short", "call", *BUS, method, *arguments, user=user)
    return json.loads(done.stdout)["data"] if done.stdout.strip() else None


def refused(box: Box, method: str, *arguments: str, user: str = "root") -> str:
    """What busctl says when the call is refused."""
    done = box.run("busctl", "call", *BUS, method, *arguments, user=user, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def show(box: Box, *properties: str, unit: str = "vmstackd.service") -> list[str]:
    """Properties of a unit, in the order asked for."""
    lines = box.enter("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout.splitlines()
    found = dict(line.partition("=")[::2] for line in lines)
    return [found[name] for name in properties]


def until(condition: Callable[[], bool], what: str) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def vmstackctl(box: Box, *arguments: str, user: str = "root", check: bool = True) -> subprocess.CompletedProcess[str]:
    """The operator's command, in the box."""
    return box.run("vmstackctl", *arguments, user=user, check=check)
