"""Which URI makes which hypervisor."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.hypervisor.backends import Events
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor.base import HypervisorUnreachable


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("sim:", "SimHypervisor"),
        ("test:///default", "LibvirtHypervisor"),
        ("qemu:///system", "LibvirtHypervisor"),
        ("qemu:///embed?root=/x", "LibvirtHypervisor"),
        ("qemu+unix:///system?socket=/x", "LibvirtHypervisor"),
    ],
)
def test_known(uri: str, kind: str) -> None:
    hypervisor = open_hypervisor(uri)
    assert (type(hypervisor).__name__, hypervisor.uri) == (kind, uri)


@pytest.mark.parametrize(
    "uri", ["", "sim", "sim:x", "xen:///system", "qemu", "qemu:/system", "qemu+ssh://h/system", "qemu://h/system"]
)
def test_unknown(uri: str) -> None:
    with pytest.raises(ValueError, match="allowed: qemu:///system"):
        open_hypervisor(uri)


@pytest.mark.parametrize("network", ["br0", "bridge:", "network", "user:x", "bridge:\n"])
def test_bad_network(network: str) -> None:
    with pytest.raises(ValueError, match="network"):
        open_hypervisor("sim:", HypervisorOptions(network=network))


def test_bad_embed_root() -> None:
    with pytest.raises(ValueError, match="root"):
        open_hypervisor("qemu:///embed?root=relative")


def test_an_embed_root_that_cannot_be_made() -> None:
    with pytest.raises(HypervisorUnreachable, match="/dev/null"):
        asyncio.run(open_hypervisor("qemu:///embed?root=/dev/null/x").open(Events()))


def test_sim_needs_no_libvirt() -> None:
    script = (
        "import sys; sys.modules['libvirt'] = None\n"
        "from vmstackd.hypervisor import open_hypervisor\n"
        "open_hypervisor('sim:')\n"
        "from vmstackd.hypervisor.base import HypervisorUnreachable\n"
        "try: open_hypervisor('qemu:///system')\n"
        "except HypervisorUnreachable as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "libvirt-python" in result.stdout
