"""One embed root and one libvirtd for the whole session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.hypervisor.backends import Backend, SimBackend, machine_cpus
from tests.real import (
    PrivateLibvirtd,
    embedded_root,
    make_image,
    missing_embedded,
    missing_libvirtd,
    private_libvirtd,
)
from vmstackd.hypervisor.libvirt import start_event_loop


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """Pytest's own directories may be too long for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="vmstack-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def embedded(short_tmp: Path) -> Iterator[Backend]:
    if missing_embedded():
        pytest.skip(f"qemu:///embed: {missing_embedded()}")
    root = short_tmp / "embed"
    with embedded_root(root) as uri:
        start_event_loop()
        yield Backend("embed", uri, make_image(root / "idle.qcow2"), machine_cpus(), libvirt.open(uri))


@pytest.fixture(scope="session")
def libvirtd(short_tmp: Path) -> Iterator[PrivateLibvirtd]:
    if missing_libvirtd():
        pytest.skip(f"qemu:///system: {missing_libvirtd()}")
    with private_libvirtd(short_tmp / "system") as daemon:
        yield daemon


@pytest.fixture
def system(libvirtd: PrivateLibvirtd) -> Iterator[Backend]:
    image = libvirtd.root / "idle.qcow2"
    outside = libvirt.open(libvirtd.uri)
    yield Backend("system", libvirtd.uri, image if image.exists() else make_image(image), machine_cpus(), outside)
    outside.close()


@pytest.fixture(
    params=[
        "sim",
        "test",
        pytest.param("embed", marks=pytest.mark.real),
        pytest.param("system", marks=pytest.mark.real),
    ]
)
def backend(request: pytest.FixtureRequest, short_tmp: Path) -> Backend:
    """Each hypervisor in turn."""
    match request.param:
        case "sim":
            return SimBackend()
        case "test":
            image = short_tmp / "test.qcow2"
            image.touch()
            start_event_loop()
            return Backend("test", "test:///default", image, (0, 7), libvirt.open("test:///default"))
        case "embed":
            found = request.getfixturevalue("embedded")
        case _:
            found = request.getfixturevalue("system")
    assert isinstance(found, Backend)
    return found


@pytest.fixture
def embedded_elsewhere(short_tmp: Path) -> Iterator[tuple[str, Path]]:
    """URI and image of an embed root for other processes than this one."""
    if missing_embedded():
        pytest.skip(f"qemu:///embed: {missing_embedded()}")
    root = short_tmp / "other"
    with embedded_root(root) as uri:
        yield uri, make_image(root / "idle.qcow2")
