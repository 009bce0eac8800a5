"""What went wrong, in one line: what, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import click

from vmstackctl.defaults import GLOBALD, VMSTACKD, FileError
from vmstackctl.values import printable
from vmstackd.api.errors import (
    AlreadyExists,
    Cordoned,
    DeadlineExceeded,
    Denied,
    HypervisorFailed,
    Internal,
    InvalidRequest,
    NoCapacity,
    NotFound,
    Unavailable,
    VmstackError,
)

_NEXT: dict[type[VmstackError], str] = {
    InvalidRequest: "the command's --help shows what is allowed",
    Denied: "changes are for root and group vmstack-admin, reading for group vmstack: "
    "sudo usermod -aG vmstack-admin $USER, then log in anew",
    NotFound: "vmstackctl list shows the VMs of this host",
    AlreadyExists: "choose another name, or see vmstackctl list",
    HypervisorFailed: "journalctl -u vmstackd says more",
    Unavailable: "try again in a moment; systemctl status vmstackd says more",
    Cordoned: "vmstackctl uncordon lets it have new VMs again",
    DeadlineExceeded: "a change that has begun goes on: look with vmstackctl list, or give a longer --timeout",
    Internal: "journalctl -u vmstackd says more",
}
_NEXT_OF_CLUSTER: dict[type[VmstackError], str] = {
    **_NEXT,
    NotFound: "vmstackctl list shows the VMs of the cluster",
    Internal: "journalctl -u globald says more",
    NoCapacity: "vmstackctl hosts shows what is free",
    HypervisorFailed: "journalctl -u vmstackd on that host says more",
    Unavailable: "try again in a moment; vmstackctl hosts shows which hosts are up",
    Cordoned: "vmstackctl uncordon HOST lets it have new VMs again",
}
_OPTIONS = {
    "name": "NAME",
    "vcpus": "--vcpus",
    "memory_mib": "--memory",
    "level": "--level",
    "image": "--image",
    "address": "ADDRESS",
    "host": "HOST",
    "reason": "--reason",
}
"""How a field of a request is called on the command line."""
_HINTS = ("is {} running?", "systemctl status {}", "journalctl -u {}", "is it {}?")
"""What messages of the client say of the program."""
_ROLE = "the role in our certificate decides: vmstackctl pki client --help shows how to make one for an operator"
_NEITHER_GROUP = (
    "reading is for group vmstack, changes are for group vmstack-admin: "
    "sudo usermod -aG vmstack $USER and log in anew, or use sudo"
)


def no_pictures(command: str, error: ImportError, what: str) -> str:
    """What somebody is told who has not what draws pictures. what: is to be taken to where it is."""
    return (
        f"vmstackctl {command} needs matplotlib, which cannot be imported ({printable(str(error))}); with pip, install "
        f"vmstack[report]; in a clone, make setup does; the Debian package has none: copy {what} to where a clone is"
    )


def exit_code(error: VmstackError) -> int:
    """That of the table of errors; a socket that may not be opened is a denial, whatever the client calls it."""
    return Denied.exit_code if _locked(error) else error.exit_code


def _locked(error: VmstackError) -> bool:
    return isinstance(error.__cause__, PermissionError)


def explain(
    error: VmstackError,
    subject: str = "",
    known: Iterable[str] = (),
    *,
    program: str = VMSTACKD,
    certified: bool = False,
) -> str:
    """One line. subject: the VM that it is about, where the message may not say so; known: names that do exist.

    program: that was asked. certified: by somebody whom a certificate introduces.
    """
    message = _told_by(program, printable(error.message))
    if isinstance(error, InvalidRequest):
        field = str(error.details.get("field", ""))
        if field in _OPTIONS and message.startswith(f"{field}:"):
            message = _OPTIONS[field] + message.removeprefix(field)
        if field == "host":
            message = re.sub(r"\bwith host$", "with --host", message)
    if subject and printable(subject) not in message:
        message = f"{printable(subject)}: {message}"
    if _locked(error):
        return f"{message.partition(': ')[0]}: permission denied; {_NEITHER_GROUP}"
    # Many messages end with what to do already, after a semicolon.
    if "; " in message:
        return message
    if isinstance(error, NotFound) and (close := difflib.get_close_matches(subject, sorted({*known}), n=3)):
        return f"{message}; did you mean {' or '.join(printable(name) for name in close)}?"
    if certified and isinstance(error, Denied):
        return f"{message}; {_ROLE}"
    step = (_NEXT_OF_CLUSTER if program == GLOBALD else _NEXT).get(type(error), "")
    return f"{message}; {step}" if step else message


def _told_by(program: str, message: str) -> str:
    """The client does not know yet whom it was about to reach."""
    for hint in _HINTS if program == GLOBALD else ():
        message = message.replace(hint.format(VMSTACKD), hint.format(GLOBALD))
    return message


def explain_usage(error: click.ClickException) -> str:
    """One line for what click found wrong with the command line."""
    if isinstance(error, FileError):
        return error.message
    message = " ".join(printable(part.strip()) for part in error.format_message().splitlines()).rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "vmstackctl"
    if context is not None and isinstance(context.command, click.Group) and "command" in message:
        return f"{message}; commands are {', '.join(context.command.list_commands(context))}"
    return f"{message}; {path} --help shows what is allowed"
