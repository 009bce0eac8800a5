"""Whether KVM really runs guests here. A /dev/kvm that exists and opens does not show it: on some
machines QEMU starts with it and the guest never executes one instruction.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile

EXIT_PORT = 0xF4
EXIT_VALUE = 0x2A

BOOT_SECTOR = (
    (
        b"\xfa"  # cli
        b"\xba"
        + EXIT_PORT.to_bytes(2, "little")  # mov dx, EXIT_PORT
        + b"\xb0"
        + EXIT_VALUE.to_bytes(1, "little")  # mov al, EXIT_VALUE
        + b"\xee"  # out dx, al
        b"\xf4"  # hlt, should nobody listen at the port
        b"\xeb\xfd"  # and again
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
"""Tells QEMU's isa-debug-exit device to end the machine with a status of our choice."""

TIMEOUT_S = 5.0


@functools.cache
def kvm_works(emulator: str) -> bool:
    """True if a guest under KVM ran to its end in time. Blocks; the answer is kept for the process."""
    return boots(emulator, "kvm")


def boots(emulator: str, accelerator: str, timeout_s: float = TIMEOUT_S) -> bool:
    """True if the emulator ran our boot sector with this accelerator."""
    with tempfile.NamedTemporaryFile(prefix="vmstack-kvm-") as disk:
        disk.write(BOOT_SECTOR.ljust(64 * 1024, b"\0"))
        disk.flush()
        # timeout(1) ends it even if this process does not live to do so.
        command = ["timeout", "--signal=KILL", str(timeout_s), emulator]
        command += ["-accel", accelerator, "-machine", "pc", "-m", "16", "-nodefaults", "-display", "none"]
        command += ["-no-user-config", "-no-reboot", "-monitor", "none", "-serial", "none"]
        command += ["-drive", f"file={disk.name},format=raw,if=ide,snapshot=on"]
        command += ["-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"]
        try:
            status = subprocess.run(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout_s + 1,
                check=False,
            ).returncode
        except (OSError, subprocess.TimeoutExpired):
            return False
    return status == EXIT_VALUE << 1 | 1
