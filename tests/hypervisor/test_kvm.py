"""Whether KVM works is found out by running something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.real import QEMU, missing_qemu
from vmstackd.hypervisor import kvm


def test_the_boot_sector() -> None:
    assert len(kvm.BOOT_SECTOR) == 512
    assert kvm.BOOT_SECTOR.endswith(b"\x55\xaa")


def test_no_emulator() -> None:
    assert not kvm.boots("/nonexistent/qemu", "kvm")
    assert not kvm.boots("", "kvm")


@pytest.mark.parametrize(
    ("script", "works"), [("exit 85", True), ("exit 0", False), ("exit 1", False), ("sleep 60", False)]
)
def test_what_counts(tmp_path: Path, script: str, works: bool) -> None:
    emulator = tmp_path / "qemu"
    emulator.write_text(f"#!/bin/sh\n{script}\n")
    emulator.chmod(0o755)
    assert kvm.boots(str(emulator), "kvm", timeout_s=2) == works


@pytest.mark.real
def test_a_real_guest_runs_it() -> None:
    if missing_qemu():
        pytest.skip(missing_qemu())
    assert kvm.boots(QEMU, "tcg", timeout_s=60)


@pytest.mark.real
def test_the_answer_is_kept() -> None:
    if missing_qemu():
        pytest.skip(missing_qemu())
    works = kvm.kvm_works(QEMU)
    assert kvm.kvm_works(QEMU) is works
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert not works
