"""Policies choose which CPUs a subset gets; how many is decided by ``core.capacity``.

A new policy is one file here and one line in POLICIES.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.policy.base import Policy
from core.policy.reference import ReferencePolicy

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (ReferencePolicy(),)}
"""Every policy by its name."""

DEFAULT_POLICY = "reference"
"""The best one measured so far."""

__all__ = ["DEFAULT_POLICY", "POLICIES", "Policy"]
