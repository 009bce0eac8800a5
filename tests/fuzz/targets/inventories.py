"""Saved inventories of clusters, and choosing a host from them."""

from __future__ import annotations

from core.host_policy import HOST_POLICIES
from tests.fuzz.target import Target, check_told, scratch, words
from vmstackctl.inventory_file import InventoryError, load, save, to_inventory

_FOLDER = scratch()


def take(data: bytes) -> None:
    """A whole file."""
    file = _FOLDER / "inventory.json"
    file.write_bytes(data)
    try:
        saved = load(file)
    except InventoryError as error:
        check_told(error, file)
        return
    inventory = to_inventory(saved)
    inventory.totals()
    for policy in HOST_POLICIES.values():
        inventory.choose(policy, 1000, 1, 1)
        inventory.choose(policy, 64000, 4096, 1 << 30)
    again = _FOLDER / "again.json"
    save(again, saved)
    assert load(again) == saved


_WORDS = """
"format":"vmstack inventory 1"
"time":1.5
"policy":"worth"
"lesson":{
"shapes":[
"seen":1
"due":1
"market":null
"market":{
"hosts":[
"state":"up"
"closed":""
"status":null
"vms":[
"level":1000
"vcpus":1
"memory_mib":1
"count":1
"most_cpus":1
"most_mib":1
"cpu_use":1
"memory_use":1
"generation":1
"levels":[
"critical_sizes":[[1000,1]]
"state":"unknown"
1e308
"""
TARGET = Target(
    take,
    words=words(_WORDS),
)
