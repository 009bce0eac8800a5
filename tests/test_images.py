"""Tests of vmstackd.images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmstackd.api.errors import InvalidRequest
from vmstackd.images import resolve_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Holds one good image."""
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.qcow2").touch()
    (tmp_path / "secret").touch()
    return root


def refused(image: str | Path, *roots: str | Path) -> str:
    with pytest.raises(InvalidRequest) as raised:
        resolve_image(str(image), [str(root) for root in roots])
    assert raised.value.details == {"field": "image"}
    return raised.value.message


def test_good_ones(root: Path, tmp_path: Path) -> None:
    good = str(root / "a.qcow2")
    assert resolve_image(good, [str(root)]) == good
    assert resolve_image(good, ["/nonexistent", f"{root}/"]) == good
    assert resolve_image(f"{root}/../images/./a.qcow2", [str(root)]) == good
    assert resolve_image(good, ["/"]) == good
    (root / "sub").mkdir()
    (root / "link").symlink_to("a.qcow2")
    (root / "sub" / "up").symlink_to("../link")
    assert resolve_image(str(root / "sub" / "up"), [str(root)]) == good
    (tmp_path / "alias").symlink_to(root)
    assert resolve_image(str(tmp_path / "alias" / "a.qcow2"), [str(root)]) == good
    assert resolve_image(good, [str(tmp_path / "alias")]) == good


@pytest.mark.parametrize("image", ["", "a.qcow2", "./a.qcow2", "~/a.qcow2", "file:///a.qcow2"])
def test_relative(root: Path, image: str) -> None:
    assert "absolute" in refused(image, root)


@pytest.mark.parametrize("bad", ["\0", "\n", "\x1b", "\u202e", "\ud800"])
def test_unprintable(root: Path, bad: str) -> None:
    assert "printable" in refused(f"{root}/{bad}a.qcow2", root)


def test_missing(root: Path) -> None:
    assert "does not exist" in refused(root / "b.qcow2", root)
    assert "does not exist" in refused(root / "none" / "b.qcow2", root)
    (root / "dangling").symlink_to("nothing")
    assert "does not exist" in refused(root / "dangling", root)


def test_outside(root: Path, tmp_path: Path) -> None:
    for image in (tmp_path / "secret", tmp_path / "absent", Path("/etc/passwd"), root / ".." / "secret"):
        message = refused(image, root)
        assert "outside" in message
        assert str(root) in message
    beside = tmp_path / "images-of-others"
    beside.mkdir()
    (beside / "a.qcow2").touch()
    assert "outside" in refused(beside / "a.qcow2", root)


def test_links_out(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    assert "outside" in refused(root / "out", root)
    assert "outside" in refused(root / "up" / "secret", root)


def test_not_a_file(root: Path) -> None:
    assert "directory" in refused(root / "sub" / "..", root.parent)
    (root / "sub").mkdir()
    assert "directory" in refused(root / "sub", root)
    assert "outside" in refused(root, root)
    os.mkfifo(root / "pipe")
    assert "regular" in refused(root / "pipe", root)
    assert "regular" in refused("/dev/null", "/dev")


def test_odd_links_and_lengths(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    refused(root / "loop", root)
    refused(root / ("a" * 300), root)
    refused(f"{root}{'/a' * 5000}", root)
    refused(root / "a.qcow2" / "b", root)


def test_unreadable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may read anything
    assert "readable" in refused(root / "a.qcow2", root)


def test_no_roots(root: Path) -> None:
    assert "configured" in refused(root / "a.qcow2")
    assert "configured" in refused(root / "a.qcow2", "relative", "")
