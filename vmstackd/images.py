"""Which disk images a request may name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from vmstackd.api.errors import InvalidRequest


def resolve_image(image: str, roots: Iterable[str]) -> str:
    """The real path of an image that lies, links resolved, in one of these directories.

    Raises InvalidRequest unless it is a regular file that this process may read.
    """
    if not image.startswith("/") or not image.isprintable():
        raise _refused("must be an absolute path of printable characters")
    allowed = [root for root in roots if root.startswith("/")]
    if not allowed:
        raise _refused("no directory for images is configured (image roots)")
    shown = f"{image[:200]!r}"
    # Before anything about the file is told: outside the roots, a path must not reveal what exists.
    try:
        real = os.path.realpath(image)
        inside = any(_is_within(real, os.path.realpath(root)) for root in allowed)
    except (OSError, ValueError) as error:
        raise _refused(f"{shown}: {error}") from None
    if not inside:
        raise _refused(f"{shown} is outside the allowed directories: {', '.join(allowed)}")
    try:
        mode = Path(real).stat().st_mode
    except FileNotFoundError:
        raise _refused(f"{shown} does not exist") from None
    except OSError as error:
        raise _refused(f"{shown}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise _refused(f"{shown} is a directory; it must be a regular file")
    if not stat.S_ISREG(mode):
        raise _refused(f"{shown} is not a regular file")
    # As the kernel will see it: with the capability to read all files, which access(2) would leave out.
    if not os.access(real, os.R_OK, effective_ids=True):
        raise _refused(f"{shown} is not readable")
    return real


def _is_within(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"image: {reason}", field="image")
