"""Asks polkit whether a caller on the system bus may change something. Without a clear yes, it may not."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from vmstackd.daemon import log
from vmstackd.transports.dbus_connection import CallFailed, Connection

_AUTHORITY = (
    "org.freedesktop.PolicyKit1",
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1.Authority",
)
_ALLOW_USER_INTERACTION = 1
_PATIENCE_S = 25.0
_PATIENCE_WITH_USER_S = 300.0
"""Somebody has to find the password first."""
MOST_QUESTIONS = 8
"""About one user at a time: the bus lets us wait for 128 answers, and no user may take them all from the others."""


class Polkit:
    """Remembers whether it has been complained about, and whom it is being asked about."""

    def __init__(self) -> None:
        self._missed = False
        self._turns: WeakValueDictionary[int | None, asyncio.Semaphore] = WeakValueDictionary()

    async def allows(
        self,
        connection: Connection,
        sender: str,
        user: int | None,
        action: str,
        details: dict[str, str],
        *,
        interactive: bool,
    ) -> bool:
        """Whether the sender (its unique name) of this user may do this action. details: for polkit's rules.
        interactive: whether the user may be asked for a password.
        """
        turn = self._turns.setdefault(user, asyncio.Semaphore(MOST_QUESTIONS))
        try:
            async with turn:
                ((granted, _, _),) = await connection.call(
                    _AUTHORITY,
                    "CheckAuthorization",
                    "(sa{sv})sa{ss}us",
                    ("system-bus-name", {"name": ("s", sender)}),
                    action,
                    details,
                    _ALLOW_USER_INTERACTION if interactive else 0,
                    "",
                    patience=_PATIENCE_WITH_USER_S if interactive else _PATIENCE_S,
                )
        except CallFailed as error:
            if not self._missed:
                log.warning("polkit-failed", reason=error, note="over D-Bus only root may change anything now")
            self._missed = True
            return False
        self._missed = False
        return bool(granted)
