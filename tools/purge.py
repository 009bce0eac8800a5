"""``make purge``: ends the VMs of ``make run`` and deletes their directory: ``python -m tools.purge STATE_DIR``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence

from tools.state_dir import DEFAULT, StateDir, StateDirError, say
from vmstackd.hypervisor import HypervisorOptions, open_hypervisor
from vmstackd.hypervisor.base import HypervisorError, VmMissing


async def end_vms(uri: str) -> list[str]:
    """Destroy every VM of a hypervisor; returns their names. Raises HypervisorError."""
    hypervisor = open_hypervisor(uri, HypervisorOptions(virt_type="qemu"))
    await hypervisor.open(lambda _: None)
    try:
        names = [vm.name for vm in await hypervisor.observe()]
        for name in names:
            with contextlib.suppress(VmMissing):
                await hypervisor.destroy(name)
        return names
    finally:
        await hypervisor.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Purge one directory; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.purge", description="Ends the VMs of make run and deletes its directory."
    )
    parser.add_argument("state_dir", nargs="?", default=DEFAULT, help=f"the directory (default: {DEFAULT})")
    given = parser.parse_args(arguments)
    try:
        state = StateDir(given.state_dir)
        state.open()
        names = asyncio.run(end_vms(state.uri)) if state.libvirt.exists() else []
        state.delete()
    except FileNotFoundError:
        say(f"There is no {given.state_dir}; nothing to do")
        return 0
    except StateDirError as error:
        say(str(error))
        return 1
    except (HypervisorError, OSError) as error:
        say(f"{given.state_dir} is not deleted: {error}")
        return 1
    say(f"Ended {len(names)} VM{'' if len(names) == 1 else 's'}" + (f": {', '.join(names)}" if names else ""))
    say(f"Deleted {state.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
