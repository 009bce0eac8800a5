"""What systemd, as our parent, gives and is told: sockets, readiness, status, the watchdog.

Without systemd all of it does nothing. The protocols are a datagram and a few variables, described in
sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping

from vmstackd.daemon import log

FIRST_SOCKET = 3
"""The descriptor of the first socket that systemd passes."""

MAX_STATUS = 500
"""Characters; systemd ignores a datagram of more than 4096 bytes."""

_NOTIFY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class PassedSocketsError(ValueError):
    """The sockets that systemd passes cannot be used. One line."""


class Notifier:
    """Tells systemd how the daemon is. Never raises and never waits: nobody may be listening any more.

    A change of state that could not be sent goes along with the next message.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """environment: looked at once, here; NOTIFY_SOCKET may be taken out of it afterwards."""
        name = environment.get("NOTIFY_SOCKET", "")
        # Other spellings (vsock:) are for virtual machines that tell their host.
        self._address = name if name.startswith("/") else "\0" + name[1:] if name.startswith("@") else None
        self._unsent = ""

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._change("READY=1")

    def reloading(self) -> None:
        """A reload has begun; ready() ends it."""
        # The time tells systemd which of its requests to reload this one answers.
        self._change(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._change("STOPPING=1")

    def status(self, text: str) -> None:
        """What systemctl status shows. One line; at most MAX_STATUS characters of it are sent."""
        shown = log.one_line(text[:MAX_STATUS])[:MAX_STATUS]
        # systemd takes away one level of backslashes.
        self._send("STATUS=" + shown.replace("\\", "\\\\"))

    def watchdog(self) -> None:
        """We are alive."""
        self._send("WATCHDOG=1")

    def _change(self, state: str) -> None:
        self._unsent = ""  # outdated, if there was one
        if not self._send(state):
            self._unsent = f"{state}\n"

    def _send(self, message: str) -> bool:
        if self._address is None:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto((self._unsent + message).encode(), self._address)
        except (OSError, UnicodeError):  # the latter: a name that is no file name
            return False
        self._unsent = ""
        return True


def watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Seconds without Notifier.watchdog() after which systemd ends us; None if it does not watch.

    Call watchdog() twice as often.
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    # Of 20 digits is what systemd calls infinity.
    return (int(text) / 1e6 or None) if re.fullmatch(r"[0-9]{1,19}", text) else None


def passed_sockets(environment: MutableMapping[str, str], pid: int) -> dict[str, socket.socket]:
    """The sockets that systemd passed to the process pid, by FileDescriptorName=; the caller closes them.

    A socket without a name is called by its kind: "unix" or "inet". They do not block, and programs
    that we start get neither them nor their variables: those are taken out of the environment. Raises
    PassedSocketsError if one is not a listening stream socket, two have the same name, or a variable is
    malformed.
    """
    given = {key: environment.pop(key) for key in _LISTEN if key in environment}
    if given.get("LISTEN_PID") != str(pid):
        return {}  # meant for another process; its descriptors are not ours to touch
    count = given.get("LISTEN_FDS", "")
    if not re.fullmatch(r"[0-9]{1,4}", count):
        raise PassedSocketsError(f"LISTEN_FDS={count[:100]!r} is not a number of sockets")
    descriptors = range(FIRST_SOCKET, FIRST_SOCKET + int(count))
    names = given["LISTEN_FDNAMES"].split(":") if given.get("LISTEN_FDNAMES") else [""] * len(descriptors)
    if len(names) != len(descriptors):
        raise PassedSocketsError(f"LISTEN_FDNAMES has {len(names)} names for {len(descriptors)} sockets")
    sockets: dict[str, socket.socket] = {}
    with contextlib.ExitStack() as opened:
        for descriptor, told in zip(descriptors, names, strict=True):
            passed = opened.enter_context(_listening(descriptor))
            name = told or ("unix" if passed.family == socket.AF_UNIX else "inet")
            if name in sockets:
                raise PassedSocketsError(
                    f"two passed sockets are named {name!r} (descriptors {sockets[name].fileno()} and {descriptor}); "
                    "each needs a .socket unit with a FileDescriptorName= of its own"
                )
            sockets[name] = passed
        opened.pop_all()
    return sockets


def _listening(descriptor: int) -> socket.socket:
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise PassedSocketsError(f"the passed descriptor {descriptor} cannot be used: {error.strerror}") from error
    if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.close()
        raise PassedSocketsError(
            f"the passed descriptor {descriptor} is not a listening stream socket; "
            "its .socket unit needs ListenStream= and Accept=no"
        )
    passed.set_inheritable(False)
    passed.setblocking(False)
    return passed


def forget(environment: MutableMapping[str, str]) -> None:
    """Take out all that is meant for this process alone, so that programs that we start do not get it."""
    for key in (*_NOTIFY, *_LISTEN):
        environment.pop(key, None)
