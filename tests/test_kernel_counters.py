from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.usage import NodeMemory
from vmstackd.kernel_counters import KernelError, kernel_counters

TICKS = os.sysconf("SC_CLK_TCK")
STAT = """cpu  7 7 7 7 7 7 7 7 7 7
cpu0 100 20 30 4000 500 6 7 80 90 10
cpu2 1 0 0 0 0 0 0 0 0 0
cpu130 0 0 0 9 9 0 0 9 9 9
intr 99 1 0 0
ctxt 5
cpu1000 from the future
"""
MEMINFO = """MemTotal:       2097152 kB
MemFree:          1024 kB
MemAvailable:   524288 kB
HugePages_Total:       0
"""
NODE = """Node {node} MemTotal:       1048576 kB
Node {node} MemFree:         204800 kB
Node {node} MemUsed:         843776 kB
Node {node} Active(file):     10240 kB
Node {node} Inactive(file):   20480 kB
Node {node} Inactive(anon):  999999 kB
Node {node} SReclaimable:      1024 kB
Node {node} HugePages_Free:      0
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "stat").write_text(STAT)
    (folder / "meminfo").write_text(MEMINFO)
    return folder


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """The folder of the NUMA nodes; two."""
    folder = tmp_path / "sys/devices/system/node"
    for name in ("node10", "node2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "meminfo").write_text(NODE.format(node=name[4:]))
    (folder / "nodes_online").write_text("2,10\n")
    (folder / "power").mkdir()
    return folder


def test_what_is_counted(proc: Path, nodes: Path, tmp_path: Path) -> None:
    before = time.monotonic()
    found = kernel_counters(proc, tmp_path / "sys")
    assert before <= found.at <= time.monotonic()
    # Not idle, not waiting for a disk, not stolen, and guests not twice; offline CPUs are not there.
    assert found.cpus == {0: pytest.approx(163 / TICKS), 2: pytest.approx(1 / TICKS), 130: 0}
    assert (found.memory_mib, found.used_mib) == (2048, 1536)
    assert found.nodes == (NodeMemory(2, 1024, 793), NodeMemory(10, 1024, 793))


def test_a_host_without_numa(proc: Path, tmp_path: Path) -> None:
    assert kernel_counters(proc, tmp_path / "none").nodes == ()


def test_a_node_without_memory(proc: Path, nodes: Path, tmp_path: Path) -> None:
    empty = "".join(f"Node 2 {name}: 0 kB\n" for name in ("MemTotal", "MemFree", "Active(file)", "Inactive(file)"))
    (nodes / "node2" / "meminfo").write_text(f"{empty}Node 2 SReclaimable: 0 kB\n")
    assert kernel_counters(proc, tmp_path / "sys").nodes[0] == NodeMemory(2, 0, 0)


def test_a_long_line_of_interrupts_is_passed_over(proc: Path, tmp_path: Path) -> None:
    (proc / "stat").write_text(STAT.replace("99 1", "99 " + "cpu0 " * 500_000))
    assert set(kernel_counters(proc, tmp_path).cpus) == {0, 2, 130}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stat is not understood: it has no CPUs"),
        ("cpu  1 2 3 4 5 6 7\nintr 0\n", "stat is not understood: it has no CPUs"),
        ("cpu0 1 2 3 4 5 6\n", "stat is not understood: list index"),
        ("cpu0 1 2 x 4 5 6 7\n", "stat is not understood: invalid literal.*'x'"),
        ("cpux 1 2 3 4 5 6 7\n", "stat is not understood: invalid literal.*'x'"),
        ("\n", "stat is not understood"),
    ],
)
def test_odd_cpus(proc: Path, tmp_path: Path, text: str, message: str) -> None:
    (proc / "stat").write_text(text)
    with pytest.raises(KernelError, match=message):
        kernel_counters(proc, tmp_path)


@given(st.binary(max_size=200))
def test_nonsense_is_told(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    """Or understood, and never anything else."""
    proc = tmp_path_factory.mktemp("proc", numbered=True)
    (proc / "stat").write_bytes(b"cpu0 1 2 3 4 5 6 7\n" + text)
    (proc / "meminfo").write_text(MEMINFO)
    with contextlib.suppress(KernelError):
        assert 0 in kernel_counters(proc, proc).cpus


def test_odd_memory(proc: Path, nodes: Path, tmp_path: Path) -> None:
    lines = MEMINFO.replace("MemAvailable", "MemAvailing")
    (proc / "meminfo").write_text(lines)
    with pytest.raises(KernelError, match=r"/proc/meminfo is not understood: it has no MemAvailable"):
        kernel_counters(proc, tmp_path / "sys")
    (proc / "meminfo").write_bytes(MEMINFO.encode() + b"\xff\n")
    (nodes / "node10" / "meminfo").write_text("")
    with pytest.raises(KernelError, match=r"/node10/meminfo is not understood: it has no MemTotal"):
        kernel_counters(proc, tmp_path / "sys")
    (nodes / "node10" / "meminfo").unlink()
    with pytest.raises(KernelError, match=r"/node10/meminfo cannot be read: No such file or directory"):
        kernel_counters(proc, tmp_path / "sys")


@pytest.mark.parametrize("name", ["stat", "meminfo"])
def test_a_file_that_cannot_be_read(proc: Path, tmp_path: Path, name: str) -> None:
    (proc / name).unlink()
    with pytest.raises(KernelError, match=f"/proc/{name} cannot be read: No such file or directory"):
        kernel_counters(proc, tmp_path)
    (proc / name).mkdir()
    with pytest.raises(KernelError, match=f"/proc/{name} cannot be read: Is a directory"):
        kernel_counters(proc, tmp_path)


def test_this_machine() -> None:
    """A CPU that works for a second is seen to."""
    cpu = min(os.sched_getaffinity(0))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        before, began = kernel_counters(), time.process_time()
        while time.process_time() - began < 1:
            pass
        after = kernel_counters()
    finally:
        os.sched_setaffinity(0, allowed)
    assert after.at > before.at
    assert 0.9 <= after.cpus[cpu] - before.cpus[cpu] <= (after.at - before.at) * 1.1 + 0.1
    assert allowed <= after.cpus.keys()
    assert 0 < after.used_mib < after.memory_mib
    assert all(0 <= node.used_mib <= node.memory_mib for node in after.nodes)
