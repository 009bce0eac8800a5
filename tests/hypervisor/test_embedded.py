"""The directory of libvirt's embedded driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmstackd.hypervisor.embedded import MAX_ROOT_BYTES, embedded_root, prepare_root, probed_before


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("qemu:///embed?root=/var/tmp/x", "/var/tmp/x"),
        ("qemu:///embed?root=/a%20b", "/a b"),
        ("qemu:///system", None),
        ("qemu+unix:///system?socket=/embed", None),
        ("test:///default", None),
    ],
)
def test_root_of_a_uri(uri: str, root: str | None) -> None:
    assert embedded_root(uri) == root


@pytest.mark.parametrize(
    "query", ["", "?root=", "?root=relative", "?root=/a&root=/b", f"?root=/{'x' * MAX_ROOT_BYTES}"]
)
def test_roots_that_cannot_work(query: str) -> None:
    with pytest.raises(ValueError, match=r"root (must be given|is too long)"):
        embedded_root(f"qemu:///embed{query}")


def test_the_configuration(tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    prepare_root(str(root))
    conf = root / "etc" / "qemu.conf"
    text = conf.read_text()
    assert 'stdio_handler = "file"' in text
    assert ('user = "root"' in text) == (os.geteuid() == 0)
    conf.write_text(text + "# an older version of ours\n")
    prepare_root(str(root))
    assert conf.read_text() == text
    conf.write_text('user = "someone"\n')
    prepare_root(str(root))
    assert conf.read_text() == 'user = "someone"\n'


def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        prepare_root(str(tmp_path / "file"))


def test_probed_before(tmp_path: Path) -> None:
    assert not probed_before(str(tmp_path))
    cache = tmp_path / "cache" / "qemu" / "capabilities"
    cache.mkdir(parents=True)
    assert not probed_before(str(tmp_path))
    (cache / "0.xml").touch()
    assert probed_before(str(tmp_path))
