"""Host policies choose on which host a VM goes; whether it fits there is decided by ``core.admission``.

A new policy is one file here and one line in HOST_POLICIES.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.host_policy.base import HostPolicy
from core.host_policy.first_fit import FirstFitPolicy
from core.host_policy.progress import ProgressPolicy
from core.host_policy.worth import WorthPolicy

HOST_POLICIES: Mapping[str, HostPolicy] = {
    policy.name: policy for policy in (WorthPolicy(), ProgressPolicy(), FirstFitPolicy())
}
"""Every host policy by its name."""

DEFAULT_HOST_POLICY = "worth"
"""The best one measured so far (docs/sizing.md)."""

__all__ = ["DEFAULT_HOST_POLICY", "HOST_POLICIES", "HostPolicy"]
