"""One line per event on stderr: time, severity, event, then key=value fields.

Values are quoted wherever they could be mistaken for something else, so no name that a user chose
can forge a line.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:/@+-")

logger = logging.getLogger("vmstackd")


def event(severity: int, name: str, **fields: object) -> None:
    """Log one event; fields that are None are left out."""
    if logger.isEnabledFor(severity):
        logger.log(severity, name, extra={"fields": fields})


def info(name: str, **fields: object) -> None:
    """Something happened as it should."""
    event(logging.INFO, name, **fields)


def warning(name: str, **fields: object) -> None:
    """Something an operator should look at."""
    event(logging.WARNING, name, **fields)


def error(name: str, **fields: object) -> None:
    """Something that ends the daemon or an operation."""
    event(logging.ERROR, name, **fields)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if text and _PLAIN.issuperset(text) else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + one_line(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def one_line(text: str) -> str:
    """The text with everything escaped that could end a line or move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        ours = hasattr(record, "fields")
        fields: dict[str, Any] = getattr(record, "fields", {})
        parts = [stamp, record.levelname.lower(), record.getMessage() if ours else _quoted(record.getMessage())]
        parts += [f"{key}={_text(value)}" for key, value in fields.items() if value is not None]
        line = " ".join(parts)
        if record.exc_info:
            # Set in, since the text of an exception may hold what a user wrote.
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {one_line(part)}" for part in trace)
        return line


def formatter() -> logging.Formatter:
    """What makes a line of an event."""
    return _Formatter()


def set_up(*, debug: bool) -> None:
    """Send everything to stderr, debug messages only on request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
