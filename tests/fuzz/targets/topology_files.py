"""Topology files, ours and the prototype's."""

from __future__ import annotations

from tests.fuzz.target import Target, check_told, scratch, words
from tests.fuzz.targets.topology_check import check, only_small_hosts
from vmstackd.topology_source import SourceError
from vmstackd.topology_source.file import load_file

_FOLDER = scratch()


@only_small_hosts()
def take(data: bytes) -> None:
    """A whole file."""
    file = _FOLDER / "topology_fuzz.json"
    file.write_bytes(data)
    try:
        topology = load_file(str(file))
    except SourceError as error:
        check_told(error, file)
        return
    check(topology, _FOLDER / "again.json")


_WORDS = """
"vmstack_topology":1
"name":"x"
"memory_mib":1024
"cpus":"0-3"
"host_cpus":8
"excluded":"1"
"packages":{"0":"0-3"}
"nodes":{"0":{"cpus":"0-3","distances":[10]}}
"cores":["0,2","1,3"]
"caches":{"L2":"cores","L3":["0-3"]}
"cpuset":{
"memset":{"total":8,"allowed":8}
"host_count":4
"cpu_list":[
"cpu_id":0
"numa_node":0
"sib_smt":[]
"sib_cpu":[]
"cache_level":{"0":0}
"numa_distances":{"0":[10]}
\\u0061
"nodes"
"packages"
null
"""
TARGET = Target(
    take,
    words=words(_WORDS),
)
