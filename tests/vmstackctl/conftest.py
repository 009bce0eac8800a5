"""A simulated host without VMs, with its daemon running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vmstackctl.command import Host


@pytest.fixture(scope="module")
def running_host() -> Iterator[Host]:
    host = Host()
    try:
        with host.daemon():
            yield host
    finally:
        host.close()


@pytest.fixture
def host(running_host: Host) -> Host:
    """Starting a daemon takes longer than removing what a test has left."""
    names = [vm["name"] for vm in running_host.json("list")["vms"]]
    if names:
        assert running_host.ctl("remove", *names).code == 0
    return running_host
