"""Tests of vmstackd.hypervisor."""
