from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core.topology import NO_CACHE
from tests.topology_source.helpers import Cache, Tree, own_caches, put, refusal
from vmstackd.topology_source import load_topology

SLIT = [[10, 12, 32, 32], [12, 10, 32, 32], [32, 32, 10, 12], [32, 32, 12, 10]]


def two_sockets() -> Tree:
    """2 sockets of 2 nodes of 2 L3 of 2 cores of 2 CPUs; numbered as on x86."""
    cpus = range(32)
    core = {cpu: (cpu % 16, cpu % 16 + 16) for cpu in cpus}
    l3 = {cpu: tuple(c for c in cpus if c % 16 // 2 == cpu % 16 // 2) for cpu in cpus}
    return Tree(
        package={cpu: cpu % 16 // 8 for cpu in cpus},
        core=core,
        caches={cpu: [*own_caches(core[cpu]), Cache(3, "Unified", l3[cpu])] for cpu in cpus},
        nodes={node: [cpu for cpu in cpus if cpu % 16 // 4 == node] for node in range(4)},
        distances=SLIT,
    )


def flat(count: int) -> Tree:
    """A guest: one socket, every CPU a core without any cache."""
    cpus = range(count)
    return Tree(
        package=dict.fromkeys(cpus, 0),
        core={cpu: (cpu,) for cpu in cpus},
        caches=dict.fromkeys(cpus, ()),
        nodes={0: cpus},
        distances=[[10]],
    )


def test_two_sockets_of_two_nodes(tmp_path: Path) -> None:
    host = load_topology(two_sockets().write(tmp_path))
    assert host.cpu_ids == tuple(range(32))
    assert host.host_cpus == 32
    assert host.memory_mib == 8192
    assert host.name == "host"
    assert host.cache_names == ("L1d", "L1i", "L2", "L3")
    assert host.nodes == (0, 1, 2, 3)
    assert host.node_distances == tuple(map(tuple, SLIT))
    assert [host.distance(0, cpu) for cpu in (16, 1, 17, 2, 4, 8, 12)] == [10, 40, 40, 50, 52, 72, 72]
    assert [cpu.package for cpu in host.cpus if cpu.id in {0, 4, 8, 12}] == [0, 0, 1, 1]


def test_cache_ids_may_be_missing(tmp_path: Path) -> None:
    tree = two_sockets()
    with_ids = load_topology(tree.write(tmp_path / "with"))
    tree.cache_ids = False
    assert load_topology(tree.write(tmp_path / "without")).cpus == with_ids.cpus


def test_one_socket_of_two_nodes_is_not_one_node(tmp_path: Path) -> None:
    tree = flat(2)
    tree.nodes, tree.distances = {0: [0], 1: [1]}, [[10, 12], [12, 10]]
    assert load_topology(tree.write(tmp_path)).distance(0, 1) == 12


def test_two_sockets_interleaved_to_one_node(tmp_path: Path) -> None:
    tree = flat(2)
    tree.package = {0: 0, 1: 1}
    host = load_topology(tree.write(tmp_path))
    assert host.distance(0, 1) == 10
    assert [cpu.package for cpu in host.cpus] == [0, 1]


def test_asymmetric_distances_are_rows_from(tmp_path: Path) -> None:
    tree = flat(2)
    tree.nodes, tree.distances = {0: [0], 1: [1]}, [[10, 20], [30, 10]]
    host = load_topology(tree.write(tmp_path))
    assert (host.distance(0, 1), host.distance(1, 0)) == (20, 30)


def test_nodes_with_holes_and_without_cpus(tmp_path: Path) -> None:
    tree = flat(2)
    tree.nodes, tree.distances = {0: [0], 3: [], 8: [1]}, [[10, 17, 32], [17, 10, 40], [32, 40, 10]]
    host = load_topology(tree.write(tmp_path))
    assert host.nodes == (0, 3, 8)
    assert host.distance(0, 1) == 32


def test_cpu_ids_with_holes_and_offline_cpus(tmp_path: Path) -> None:
    cpus = (0, 2, 130, 132)
    core = {0: (0, 130), 130: (0, 130), 2: (2, 132), 132: (2, 132)}
    tree = Tree(
        package=dict.fromkeys(cpus, 0),
        core=core,
        caches={cpu: [*own_caches(core[cpu]), Cache(3, "Unified", cpus)] for cpu in cpus},
        nodes={0: cpus},
        distances=[[10]],
        offline=(1, 3, 131),
    )
    host = load_topology(tree.write(tmp_path))
    assert host.cpu_ids == cpus
    assert host.host_cpus == 7
    assert (host.distance(0, 130), host.distance(0, 2)) == (10, 40)


def test_online_and_present_lists_may_be_missing(tmp_path: Path) -> None:
    tree = flat(3)
    tree.offline = (7,)
    spec = tree.write(tmp_path)
    cpus = tmp_path / "sys/devices/system/cpu"
    (cpus / "online").unlink()
    (cpus / "present").unlink()
    put(cpus / "cpu2/online", "1")
    host = load_topology(spec)
    assert host.cpu_ids == (0, 1, 2)
    assert host.host_cpus == 4


def test_cpufreq_is_not_needed_and_other_entries_are_not_cpus(tmp_path: Path) -> None:
    spec = flat(1).write(tmp_path)
    put(tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1")
    put(tmp_path / "sys/devices/system/cpu/cpuidle/current_driver", "none")
    assert load_topology(spec).cpu_ids == (0,)


def test_hybrid_cores_have_different_depths(tmp_path: Path) -> None:
    """CPUs 0-3: two P cores; 4-7: E cores with one L2; 8-9: low-power E cores with one L2, without L3."""
    core = {cpu: (cpu,) for cpu in range(4, 10)} | {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}
    l2 = {cpu: core[cpu] for cpu in range(4)} | dict.fromkeys(range(4, 8), (4, 5, 6, 7)) | {8: (8, 9), 9: (8, 9)}
    tree = Tree(
        package=dict.fromkeys(core, 0),
        core=core,
        caches={
            cpu: [
                *own_caches(core[cpu])[:2],
                Cache(2, "Unified", l2[cpu]),
                *([Cache(3, "Unified", tuple(range(8)))] if cpu < 8 else []),
            ]
            for cpu in core
        },
        nodes={0: range(10)},
        distances=[[10]],
    )
    host = load_topology(tree.write(tmp_path))
    assert host.cache_names == ("L1d", "L1i", "L2", "L3")
    assert host.cpus[9].caches == (9, 9, 8, NO_CACHE)
    assert [host.distance(0, cpu) for cpu in (1, 2, 4, 8)] == [10, 40, 40, 50]
    assert (host.distance(4, 7), host.distance(8, 9), host.distance(8, 4)) == (30, 30, 50)


def test_caches_are_aligned_by_name_not_by_index(tmp_path: Path) -> None:
    tree = flat(2)
    shared = Cache(2, "Unified", (0, 1))
    tree.caches = {0: [shared], 1: [Cache(1, "Data", (1,)), shared]}
    host = load_topology(tree.write(tmp_path))
    assert host.cache_names == ("L1d", "L2")
    assert [cpu.caches for cpu in host.cpus] == [(NO_CACHE, 0), (1, 0)]
    assert host.distance(0, 1) == 20


def test_guest_without_l3(tmp_path: Path) -> None:
    tree = flat(4)
    tree.core = {cpu: (cpu // 2 * 2, cpu // 2 * 2 + 1) for cpu in range(4)}
    tree.caches = {cpu: own_caches(tree.core[cpu]) for cpu in range(4)}
    host = load_topology(tree.write(tmp_path))
    assert host.cache_names == ("L1d", "L1i", "L2")
    assert (host.distance(0, 1), host.distance(1, 2)) == (10, 40)


def test_unified_first_level_and_more_than_nine_indices(tmp_path: Path) -> None:
    tree = flat(1)
    tree.caches = {0: [Cache(level, "Unified", (0,)) for level in range(12, 0, -1)]}
    assert load_topology(tree.write(tmp_path)).cache_names == tuple(f"L{level}" for level in range(1, 13))


def test_guest_without_any_cache(tmp_path: Path) -> None:
    host = load_topology(flat(4).write(tmp_path))
    assert host.cache_names == ()
    assert host.distance(0, 3) == 10


def test_cache_that_does_not_say_what_it_is_counts_as_absent(tmp_path: Path) -> None:
    tree = flat(1)
    tree.caches = {0: own_caches((0,))}
    spec = tree.write(tmp_path)
    caches = tmp_path / "sys/devices/system/cpu/cpu0/cache"
    (caches / "index0/type").unlink()
    (caches / "index1/level").unlink()
    put(caches / "index2/shared_cpu_list", "")
    assert load_topology(spec).cache_names == ()


def test_kernel_without_numa(tmp_path: Path) -> None:
    tree = flat(4)
    tree.nodes, tree.distances = {}, []
    host = load_topology(tree.write(tmp_path))
    assert (host.nodes, host.node_distances) == ((0,), ((10,),))
    assert {cpu.node for cpu in host.cpus} == {0}


def test_kernel_without_topology_and_package_unknown(tmp_path: Path) -> None:
    tree = flat(2)
    spec = tree.write(tmp_path)
    cpus = tmp_path / "sys/devices/system/cpu"
    (cpus / "cpu0/topology/physical_package_id").unlink()
    (cpus / "cpu0/topology/core_cpus_list").unlink()
    put(cpus / "cpu1/topology/physical_package_id", "-1")
    assert [(cpu.core, cpu.package) for cpu in load_topology(spec).cpus] == [(0, 0), (1, 0)]


def test_older_kernels_name_of_the_siblings(tmp_path: Path) -> None:
    spec = flat(2).write(tmp_path)
    for cpu in (0, 1):
        where = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        (where / "core_cpus_list").unlink()
        put(where / "thread_siblings_list", "0-1")
    assert [cpu.core for cpu in load_topology(spec).cpus] == [0, 0]


def test_node_of_a_cpu_from_its_own_directory(tmp_path: Path) -> None:
    tree = flat(2)
    tree.nodes, tree.distances = {0: [], 1: []}, [[10, 20], [20, 10]]
    spec = tree.write(tmp_path)
    for cpu, node in ((0, 1), (1, 0)):
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/node{node}").symlink_to(f"../../node/node{node}")
    assert [cpu.node for cpu in load_topology(spec).cpus] == [1, 0]


def test_only_node_without_a_list(tmp_path: Path) -> None:
    tree = flat(2)
    tree.nodes = {2: []}
    assert [cpu.node for cpu in load_topology(tree.write(tmp_path)).cpus] == [2, 2]


def test_name_is_the_processors(tmp_path: Path) -> None:
    spec = flat(1).write(tmp_path)
    put(tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC  7662\x07 64-Core\nstepping\t: 0")
    assert load_topology(spec).name == "AMD EPYC 7662 64-Core"


def test_this_machine() -> None:
    host = load_topology("sysfs")
    assert host.cpus == load_topology("sysfs:/").cpus == load_topology("sysfs:").cpus
    assert set(os.sched_getaffinity(0)) <= set(host.cpu_ids)
    assert host.host_cpus >= len(host.cpus)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host.memory_mib == pages // 2**20


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda top: put(top / "cpu/online", "0-"),
            "/cpu/online: '0-' is not a CPU id or a range such as 0-3",
        ),
        (
            lambda top: put(top / "cpu/online", "0-3"),
            "/cpu/online: CPU 2 is online, but there is no directory cpu2",
        ),
        (lambda top: put(top / "cpu/online", ""), ": cpus: there is no usable CPU"),
        (
            lambda top: put(top / "cpu/online", "0-9999"),
            "/cpu/online: CPU 9999 is above the highest id, 8191",
        ),
        (
            lambda top: (top / "cpu/online").write_bytes(b"\xff\xfe"),
            "/cpu/online: '\ufffd\ufffd' is not a CPU id or a range such as 0-3",
        ),
        (lambda top: put(top / "cpu/online", " " * 70000), "/cpu/online: is larger than 65536 bytes"),
        (
            lambda top: (top / "cpu/cpu8192").mkdir(),
            "/cpu/cpu8192: its number is above the highest one, 8191",
        ),
        (
            lambda top: put(top / "cpu/cpu1/topology/physical_package_id", "one"),
            "/cpu/cpu1/topology/physical_package_id: 'one' is not a whole number",
        ),
        (
            lambda top: (top / "cpu/cpu1/cache/index0/level/x").mkdir(parents=True),
            "/cpu/cpu1/cache/index0/level: cannot be read: Is a directory",
        ),
        (
            lambda top: put(top / "cpu/cpu1/cache/index2/level", "0"),
            "/cpu/cpu1/cache/index2/level: 0 is not a cache level",
        ),
        (
            lambda top: put(top / "cpu/cpu1/cache/index2/type", "Trace"),
            "/cpu/cpu1/cache/index2/type: 'Trace' is not one of Data, Instruction, Unified",
        ),
        (
            lambda top: put(top / "node/node0/distance", "10"),
            "/node/node0/distance: must be 2 distances, one per node",
        ),
        (
            lambda top: put(top / "node/node1/distance", "x 10"),
            "/node/node1/distance: must be 2 distances, one per node",
        ),
        (
            lambda top: (top / "node/node1/distance").unlink(),
            "/node/node1/distance: must be 2 distances, one per node",
        ),
        (
            lambda top: put(top / "node/node1/distance", "256 10"),
            ": node_distances: a distance is a number from 0 to 255",
        ),
        (
            lambda top: put(top / "node/node1/cpulist", "0-1"),
            "/node/node1/cpulist: CPU 0 is in node0 too",
        ),
        (lambda top: put(top / "node/node1/cpulist", ""), "/cpu/cpu1: CPU 1 is in no NUMA node"),
        (
            lambda top: (top / "../../../proc/meminfo").resolve().unlink(),
            "/proc/meminfo: cannot be read: No such file or directory",
        ),
        (
            lambda top: put((top / "../../../proc/meminfo").resolve(), "MemFree: 5 kB"),
            "/proc/meminfo: MemTotal: a line 'MemTotal: NUMBER kB' is missing",
        ),
        (
            lambda top: put((top / "../../../proc/meminfo").resolve(), "MemTotal: 1023 kB"),
            ": memory_mib: 0 MiB is not a host's memory",
        ),
    ],
)
def test_malformed(tmp_path: Path, spoil: Spoil, message: str) -> None:
    tree = flat(2)
    tree.nodes, tree.distances = {0: [0], 1: [1]}, [[10, 20], [20, 10]]
    tree.caches = {0: own_caches((0,)), 1: []}
    spec = tree.write(tmp_path)
    put(tmp_path / "sys/devices/system/cpu/cpu1/cache/index2/shared_cpu_list", "1")
    put(tmp_path / "sys/devices/system/cpu/cpu1/cache/index2/level", "2")
    put(tmp_path / "sys/devices/system/cpu/cpu1/cache/index2/type", "Unified")
    load_topology(spec)
    spoil(tmp_path / "sys/devices/system")
    text = str(refusal(spec))
    assert text.startswith(str(tmp_path))
    assert text.replace(f"{tmp_path}/sys/devices/system", "").replace(str(tmp_path), "") == message


@pytest.mark.parametrize("name", ["absent", "file"])
def test_root_that_is_no_tree(tmp_path: Path, name: str) -> None:
    put(tmp_path / "file", "")
    text = str(refusal(f"sysfs:{tmp_path / name}"))
    assert text == (
        f"{tmp_path / name}/sys/devices/system/cpu: is not a directory; "
        "sysfs:ROOT is a directory with sys/ and proc/ in it"
    )
