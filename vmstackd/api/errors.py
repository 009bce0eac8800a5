"""The error table. Every error that leaves the daemon is one of its rows."""

from __future__ import annotations

from typing import ClassVar

from core.level import format_level
from core.model import Refusal


class VmstackError(Exception):
    """An answer that is an error. The text is for people; ``code`` and ``details`` are for programs.

    http_status, exit_code (of the command line) and retryable (the same request may succeed later)
    belong to the code.
    """

    code: ClassVar[str]
    http_status: ClassVar[int]
    exit_code: ClassVar[int]
    retryable: ClassVar[bool]

    def __init__(self, message: str, **details: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(VmstackError):
    """A parameter is missing, malformed or out of range. details: field."""

    code, http_status, exit_code, retryable = "InvalidRequest", 400, 2, False


class Denied(VmstackError):
    """The caller may not do this."""

    code, http_status, exit_code, retryable = "Denied", 403, 5, False


class NotFound(VmstackError):
    """There is no such VM."""

    code, http_status, exit_code, retryable = "NotFound", 404, 3, False


class AlreadyExists(VmstackError):
    """The name is taken."""

    code, http_status, exit_code, retryable = "AlreadyExists", 409, 1, False


class NoCapacity(VmstackError):
    """The VM does not fit. details: those of core.model.Refusal."""

    code, http_status, exit_code, retryable = "NoCapacity", 409, 4, False


class HypervisorFailed(VmstackError):
    """The hypervisor refused or failed; nothing has changed."""

    code, http_status, exit_code, retryable = "HypervisorError", 502, 1, False


class Unavailable(VmstackError):
    """Not now: the hypervisor is unreachable, or the VM is in the middle of another operation."""

    code, http_status, exit_code, retryable = "Unavailable", 503, 6, True


class Cordoned(VmstackError):
    """The host takes no new VMs, because an operator said so."""

    code, http_status, exit_code, retryable = "Cordoned", 503, 6, True


class DeadlineExceeded(VmstackError):
    """The caller's deadline has passed. A change that has begun runs to its end all the same."""

    code, http_status, exit_code, retryable = "DeadlineExceeded", 504, 6, True


class Internal(VmstackError):
    """A mistake of ours; details are in the journal only."""

    code, http_status, exit_code, retryable = "Internal", 500, 1, False


ERRORS: tuple[type[VmstackError], ...] = (
    InvalidRequest,
    Denied,
    NotFound,
    AlreadyExists,
    NoCapacity,
    HypervisorFailed,
    Unavailable,
    Cordoned,
    DeadlineExceeded,
    Internal,
)


def refused(refusal: Refusal) -> VmstackError:
    """The error for a refusal of core, with its numbers."""
    if refusal.resource == "name":
        return AlreadyExists("a VM of this name is on this host already")
    fits = f"the largest VM that fits now has {refusal.largest_vcpus} vCPUs at level {format_level(refusal.level)}"
    if refusal.resource == "cpu":
        what = f"{refusal.needed} more CPUs needed, {refusal.free} free"
    else:
        what = f"{refusal.needed} MiB needed, {refusal.free} MiB free"
    return NoCapacity(
        f"not enough {refusal.resource}: {what}; {fits} and {refusal.largest_mib} MiB",
        resource=refusal.resource,
        needed=refusal.needed,
        free=refusal.free,
        largest_vcpus=refusal.largest_vcpus,
        largest_mib=refusal.largest_mib,
    )
