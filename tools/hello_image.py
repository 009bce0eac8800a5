"""A disk image that boots, says hello on its serial port and then idles: ``python -m tools.hello_image PATH``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HELLO = "Hello from a VM of vmstack."

_LOAD_ADDRESS = 0x7C00
_DISK_BYTES = 1 << 20


def boot_sector(text: str) -> bytes:
    """The 512 bytes that a BIOS loads and runs: they write a line to COM1 and halt for ever."""
    code = (
        b"\x31\xc0"  # xor ax, ax
        b"\x8e\xd8"  # mov ds, ax
        b"\xfc"  # cld
        b"\xbe%b"  # mov si, address of the text
        b"\xac"  # next: lodsb
        b"\x84\xc0"  # test al, al
        b"\x74\x11"  # jz idle
        b"\x88\xc4"  # mov ah, al
        b"\xba\xfd\x03"  # mov dx, 0x3fd: the line status of COM1
        b"\xec"  # wait: in al, dx
        b"\xa8\x20"  # test al, 0x20: may a byte be sent?
        b"\x74\xfb"  # jz wait
        b"\xb2\xf8"  # mov dl, 0xf8: the data register
        b"\x88\xe0"  # mov al, ah
        b"\xee"  # out dx, al
        b"\xeb\xea"  # jmp next
        b"\xfb"  # idle: sti, so that the clock interrupt ends each halt
        b"\xf4"  # again: hlt
        b"\xeb\xfd"  # jmp again
    )
    address = _LOAD_ADDRESS + len(code)  # "%b" and the address are both two bytes long
    sector = code % address.to_bytes(2, "little") + text.encode("ascii") + b"\r\n\0"
    if len(sector) > 510:
        raise ValueError(f"the text is {len(sector) - 510} bytes too long for a boot sector")
    return sector.ljust(510, b"\0") + b"\x55\xaa"


def make_image(path: Path, text: str = HELLO) -> None:
    """Write a qcow2 image, whole or not at all. Raises OSError or CalledProcessError."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".hello-") as folder:
        raw, image = Path(folder, "raw"), Path(folder, "qcow2")
        raw.write_bytes(boot_sector(text).ljust(_DISK_BYTES, b"\0"))
        subprocess.run(
            ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(image)],
            check=True,
        )
        image.chmod(0o644)
        image.rename(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one image; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.hello_image", description="Makes a small bootable disk.")
    parser.add_argument("path", type=Path, help="the qcow2 file to write; replaced if it is there")
    given = parser.parse_args(arguments)
    try:
        make_image(given.path)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{given.path}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
