"""Two hosts with real libvirtd and QEMU, and a globald in a box of its own."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.system.box import Box
from tests.system.cluster import HOST_PORT, SETTINGS, SOURCES, Authority, Cluster, Server, globald_of, host
from tests.system.lab import Lab
from tests.system.package import BUILD_PATIENCE, IMAGES, REAL, install, package, put_images, upgrade
from vmstackd.tls import TlsFiles

DISK = "400m"
"""Small, so that it is quickly filled."""
NAMES = {"one": 11, "two": 12}
"""Of the hosts, and the last parts of their addresses."""


class Packaged(Server):
    """A vmstackd that the package has brought, and that runs as a server's does."""

    def __init__(self, box: Box, name: str, port: int) -> None:
        super().__init__(box, "vmstackd", name, port)
        self.unit = "vmstackd.service"
        self._upgrades = 0

    def configure(self, text: str, files: TlsFiles) -> None:
        """Install it, write its settings and its certificate, and open it to the network."""
        box = self.box
        install(box, f"{self.tls_settings()}{text}\n")
        box.write(f"/etc/systemd/system/{self.unit}.d/cluster.conf", "[Service]\nIPAddressAllow=10.77.0.0/24\n")
        box.enter("systemctl", "daemon-reload")
        self.certify(files)
        box.enter("chown", "vmstack", f"{SETTINGS}/{self.name}/private.key")

    def upgrade(self, folder: Path) -> None:
        """Install a newer version, or the one before again, while it runs. folder: for the newer one; is made."""
        self._upgrades += 1
        if self._upgrades % 2:
            folder.mkdir()
            upgrade(self.box, folder)
        else:
            before = f"/root/{package().name}"
            self.box.enter("apt-get", "install", "--yes", "--allow-downgrades", before, timeout=BUILD_PATIENCE)


@contextlib.contextmanager
def farm(lab: Lab, folder: Path, images: int, *, packaged: bool) -> Iterator[Cluster]:
    """folder: for certificates. images: for as many VMs. packaged: the second host is."""
    with contextlib.ExitStack() as boxes:
        with contextlib.redirect_stdout(io.StringIO()):  # what vmstackctl pki says
            cluster = _built(lab, boxes, Authority(folder / "pki"), images, packaged=packaged)
        yield cluster


def _built(lab: Lab, boxes: contextlib.ExitStack, authority: Authority, images: int, *, packaged: bool) -> Cluster:
    servers = {}
    for name, number in NAMES.items():
        box = boxes.enter_context(Box(lab, name, read_only=SOURCES, address=f"10.77.0.{number}", disk=DISK))
        put_images(box, "any.qcow2")
        for image in range(images):
            shutil.copy(box.path(f"{IMAGES}/any.qcow2"), box.path(f"{IMAGES}/image{image}.qcow2"))
        box.enter("systemctl", "start", "libvirtd")
        if packaged and name == "two":
            server: Server = Packaged(box, name, HOST_PORT)
            settings = f'{REAL}name = "{name}"\ntcp_host = "{box.address}"\ntcp_port = {HOST_PORT}\n'
            server.configure(settings, authority.host(name, str(box.address)))
            server.systemctl("enable", "--now")
        else:
            server = host(box, authority, name, f'{REAL}dbus = "none"\n')
        servers[name] = server
    globald = boxes.enter_context(Box(lab, "globald", read_only=SOURCES, address="10.77.0.10"))
    operator = authority.client("operator", "operator")
    return Cluster(lab, globald_of(globald, authority, servers.values()), servers, operator)
