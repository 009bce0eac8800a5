"""libvirt's embedded QEMU driver: real VMs without a libvirtd, all of its state in one directory."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_MARK = "# Written by vmstack. Without this line vmstack leaves the file alone."

MAX_ROOT_BYTES = 50
"""A Unix socket's path has at most 107 bytes, and below the root comes
lib/qemu/domain-ID-NAME/monitor.sock, NAME cut to 20."""


def embedded_root(uri: str) -> str | None:
    """The directory of ``qemu:///embed?root=DIR``; None for another URI. Raises ValueError."""
    parts = urlsplit(uri)
    if parts.scheme != "qemu" or parts.path != "/embed":
        return None
    roots = parse_qs(parts.query).get("root", [])
    if len(roots) != 1 or not roots[0].startswith("/"):
        raise ValueError(f"{uri}: root must be given once, as an absolute path")
    if len(roots[0].encode()) > MAX_ROOT_BYTES:
        raise ValueError(
            f"{uri}: root is too long for the Unix sockets below it: "
            f"{len(roots[0].encode())} bytes, at most {MAX_ROOT_BYTES}"
        )
    return roots[0]


def prepare_root(root: str) -> None:
    """Make the directory and its etc/qemu.conf, unless someone else wrote that. Raises OSError."""
    conf = Path(root, "etc", "qemu.conf")
    if conf.exists() and _MARK not in conf.read_text(encoding="utf-8", errors="replace"):
        return
    conf.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Without virtlogd the guest's output goes to a plain file. QEMU runs as we do: as libvirt's
    # default user it may not open /dev/kvm, which makes libvirt distrust its capability cache
    # and probe QEMU again, for seconds, at every start of a VM.
    text = f'{_MARK}\nstdio_handler = "file"\n'
    if os.geteuid() == 0:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        text += f'user = "{user}"\ngroup = "{group}"\n'
    conf.write_text(text, encoding="utf-8")


def probed_before(root: str) -> bool:
    """Whether libvirt has asked QEMU for its capabilities here already, which takes seconds."""
    return any(Path(root, "cache", "qemu", "capabilities").glob("*.xml"))
