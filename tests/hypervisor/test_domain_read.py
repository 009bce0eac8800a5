"""Domains as libvirt tells them, and what it would never tell."""

from __future__ import annotations

import pytest

from vmstackd.hypervisor.domain_read import read_domain

DOMAIN = "<domain><vcpu current='{vcpus}'>8</vcpu><memory unit='KiB'>{kib}</memory></domain>"


def test_as_many_vcpus_and_as_much_memory_as_a_vm_may_have() -> None:
    facts = read_domain(DOMAIN.format(vcpus=4096, kib=1 << 40))
    assert (facts.vcpus, facts.memory_mib) == (4096, 1 << 30)


@pytest.mark.parametrize(
    ("vcpus", "kib"),
    [
        ("0", "1024"),
        ("-1", "1024"),
        ("999999999999", "1024"),  # one step for each of them would take hours, and all memory
        ("4097", "1024"),
        ("1", "0"),
        ("1", "-1024"),
        ("1", str((1 << 40) + 1)),
        ("1", "9" * 5000),
    ],
)
def test_a_size_that_no_vm_has_is_refused(vcpus: str, kib: str) -> None:
    with pytest.raises(ValueError, match=r"vCPUs|integer"):
        read_domain(DOMAIN.format(vcpus=vcpus, kib=kib))
