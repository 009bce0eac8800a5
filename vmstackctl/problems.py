"""What went wrong, in one line: what, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

from vmstackctl.values import printable
from vmstackd.api.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Denied,
    HypervisorFailed,
    Internal,
    InvalidRequest,
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
    DeadlineExceeded: "a change that has begun goes on: look with vmstackctl list, or give a longer --timeout",
    Internal: "journalctl -u vmstackd says more",
}
_OPTIONS = {"name": "NAME", "vcpus": "--vcpus", "memory_mib": "--memory", "level": "--level", "image": "--image"}
"""How a field of a request is called on the command line."""
_NEITHER_GROUP = (
    "reading is for group vmstack, changes are for group vmstack-admin: "
    "sudo usermod -aG vmstack $USER and log in anew, or use sudo"
)


def exit_code(error: VmstackError) -> int:
    """That of the table of errors; a socket that may not be opened is a denial, whatever the client calls it."""
    return Denied.exit_code if _locked(error) else error.exit_code


def _locked(error: VmstackError) -> bool:
    return isinstance(error.__cause__, PermissionError)


def explain(error: VmstackError, subject: str = "", known: Iterable[str] = ()) -> str:
    """One line. subject: the VM that it is about, where the message may not say so; known: names that do exist."""
    message = printable(error.message)
    if isinstance(error, InvalidRequest):
        field = str(error.details.get("field", ""))
        if field in _OPTIONS and message.startswith(f"{field}:"):
            message = _OPTIONS[field] + message.removeprefix(field)
    if subject and printable(subject) not in message:
        message = f"{printable(subject)}: {message}"
    if _locked(error):
        return f"{message.partition(': ')[0]}: permission denied; {_NEITHER_GROUP}"
    if isinstance(error, NotFound) and (close := difflib.get_close_matches(subject, sorted(known), n=3)):
        return f"{message}; did you mean {' or '.join(printable(name) for name in close)}?"
    # Many messages end with what to do already, after a semicolon.
    step = _NEXT.get(type(error), "")
    return message if "; " in message or not step else f"{message}; {step}"


def explain_usage(error: click.ClickException) -> str:
    """One line for what click found wrong with the command line."""
    message = " ".join(printable(part.strip()) for part in error.format_message().splitlines()).rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "vmstackctl"
    if context is not None and isinstance(context.command, click.Group) and "command" in message:
        return f"{message}; commands are {', '.join(context.command.list_commands(context))}"
    return f"{message}; {path} --help shows what is allowed"
