"""What a kernel, or whoever captured a tree, says of a host."""

from __future__ import annotations

import shutil

from tests.fuzz.target import Target, check_told, scratch, words
from tests.fuzz.targets.topology_check import check, only_small_hosts
from vmstackd.topology_source import SourceError
from vmstackd.topology_source.sysfs import load_sysfs

_FOLDER = scratch()
_MOST_FILES = 60
_SHORT = {
    "c": "sys/devices/system/cpu/cpu",
    "C": "sys/devices/system/cpu/",
    "n": "sys/devices/system/node/node",
    "N": "sys/devices/system/node/",
    "p": "proc/",
}


@only_small_hosts()
def take(data: bytes) -> None:
    """Lines: a letter of _SHORT, the rest of a path, a space, and the content; a path that ends in / is a folder."""
    tree = _FOLDER / "tree"
    (tree / "sys/devices/system/cpu").mkdir(parents=True)
    try:
        for line in data.split(b"\n")[:_MOST_FILES]:
            _put(line)
        topology = load_sysfs(str(tree))
    except SourceError as error:
        check_told(error, tree)
        return
    finally:
        shutil.rmtree(tree)
    check(topology, _FOLDER / "again.json")


def _put(line: bytes) -> None:
    place, _, content = line.partition(b" ")
    path = _SHORT.get(chr(place[0]) if place else "", "") + place[1:].decode("ascii", "replace")
    if ".." in path or "\0" in path or not path.startswith(("sys/", "proc/")):
        return
    target = _FOLDER / "tree" / path
    try:
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.replace(b"\\n", b"\n") + b"\n")
    except OSError:
        pass  # a file where a folder should be, or too long a name


_WORDS = """
¶c0/topology/core_cpus_list 0-1
¶c0/topology/physical_package_id 0
¶c0/cache/index0/level 1
¶c0/cache/index0/type Data
¶c0/cache/index0/shared_cpu_list 0-1
¶Cpresent 0-3
¶Conline 0-1
¶n0/distance 10
¶n0/cpulist 0-1
¶pmeminfo MemTotal:  65536 kB
¶pcpuinfo model name : x
Unified
¶c1/
¶c0/online 0
¶c0/node0/
Instruction
thread_siblings_list
"""
TARGET = Target(
    take,
    words=words(_WORDS),
    longest=2048,
    runs=40_000,
)
