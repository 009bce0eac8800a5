"""The ways to run VMs. ``base`` is what each of them does; a URI says which one."""

from __future__ import annotations

from core.topology import Topology
from vmstackd.hypervisor.base import Hypervisor, HypervisorUnreachable
from vmstackd.hypervisor.options import HypervisorOptions, parse_network

__all__ = ["HypervisorOptions", "open_hypervisor"]

ALLOWED = "qemu:///system, qemu:///embed?root=DIR, qemu+unix:///system?socket=PATH, test:///default, sim:"


def open_hypervisor(uri: str, options: HypervisorOptions | None = None, topology: Topology | None = None) -> Hypervisor:
    """The hypervisor of a URI, not yet connected (``Hypervisor.open`` does that).

    topology: of the host; only one that is simulated has to be told.

    Raises ValueError for a URI or option that makes no sense, HypervisorUnreachable where the
    library is missing.
    """
    options = options or HypervisorOptions()
    parse_network(options.network)
    scheme = uri.partition(":")[0]
    if uri == "sim:":
        from vmstackd.hypervisor.sim import SimHypervisor  # noqa: PLC0415 (only where it is used)

        return SimHypervisor(uri, topology=topology)
    if scheme in {"qemu", "qemu+unix", "test"} and uri.startswith(f"{scheme}:///"):
        try:
            from vmstackd.hypervisor.libvirt import LibvirtHypervisor  # noqa: PLC0415 (as above)
        except ImportError as error:
            raise HypervisorUnreachable(f"{uri} needs the Python package libvirt-python: {error}") from error
        return LibvirtHypervisor(uri, options)
    raise ValueError(f"hypervisor {uri!r} is not known; allowed: {ALLOWED}")
