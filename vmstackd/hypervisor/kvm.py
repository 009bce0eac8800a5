"""Whether KVM really runs guests here. A /dev/kvm that exists and opens does not show it: on some
machines QEMU starts with it and the guest never executes one instruction, on others each
instruction is emulated, a hundred times slower than QEMU's own translation (TCG).
"""

from __future__ import annotations

import functools
import subprocess
import tempfile

EXIT_PORT = 0xF4
EXIT_VALUE = 0x2A
LOOPS = 50_000_000
"""Some 20 ms on a processor, 0.3 s under TCG, a minute where each instruction is emulated."""

_LOAD_ADDRESS = 0x7C00


def _boot_sector() -> bytes:
    """Counts down in 32-bit mode, then has QEMU's isa-debug-exit device end the machine."""
    count = b"".join(
        [
            b"\xb9" + LOOPS.to_bytes(4, "little"),  # mov ecx, LOOPS
            b"\x49\x75\xfd",  # dec ecx; jnz back to it
            b"\x66\xba" + EXIT_PORT.to_bytes(2, "little"),  # mov dx, EXIT_PORT
            b"\xb0" + EXIT_VALUE.to_bytes(1, "little"),  # mov al, EXIT_VALUE
            b"\xee",  # out dx, al
            b"\xf4\xeb\xfd",  # hlt and again, should nobody listen at the port
        ]
    )
    count_at, table_at = _LOAD_ADDRESS + 0x20, _LOAD_ADDRESS + 0x40
    enter = b"".join(
        [
            b"\xfa",  # cli
            b"\x31\xc0\x8e\xd8",  # xor ax, ax; mov ds, ax
            b"\x0f\x01\x16" + (table_at + 16).to_bytes(2, "little"),  # lgdt
            b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0",  # mov eax, cr0; or al, 1; mov cr0, eax
            b"\xea" + count_at.to_bytes(2, "little") + b"\x08\0",  # jmp 8:count
        ]
    )
    descriptors = bytes(8) + b"\xff\xff\0\0\0\x9a\xcf\0"  # none; 32-bit code, 0 to 4 GiB
    pointer = (len(descriptors) - 1).to_bytes(2, "little") + table_at.to_bytes(4, "little")
    code = enter.ljust(0x20, b"\0") + count.ljust(0x20, b"\0")
    return (code + descriptors + pointer).ljust(510, b"\0") + b"\x55\xaa"


BOOT_SECTOR = _boot_sector()

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
            status = subprocess.run(
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
