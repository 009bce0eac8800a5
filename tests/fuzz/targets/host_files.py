"""Files that name the hosts of a cluster."""

from __future__ import annotations

from pathlib import Path

from globald.sources import STATIC, SUFFIX, Entry, Folder, read_address, stem_of, together
from tests.fuzz.target import Target, scratch, words
from vmstackd.address import parse_address

_FOLDER = scratch()


def take(data: bytes) -> None:
    """A whole file."""
    file = _FOLDER / "hosts.toml"
    file.write_bytes(data)
    entries, problems = Folder(_FOLDER).read()
    assert bool(entries) != bool(problems)
    assert all(problem.startswith(str(file)) for problem in problems)
    assert len({entry.address for entry in entries}) == len(entries)
    for entry in entries[:3]:
        _can_be_used(entry)
    hosts, twice = together([entries[0].address] if entries else (), entries)
    assert len(hosts) == len(entries)
    assert len(twice) == min(1, len(entries))


def _can_be_used(entry: Entry) -> None:
    address = entry.address
    assert read_address(address) == address
    assert parse_address(address).kind == "tcp"
    folder = Folder(_FOLDER / "hosts.d")
    added = Path(folder.add(address, ""))
    try:
        assert added.name == stem_of(address) + SUFFIX
        assert folder.read() == ([Entry(address, str(added))], [])
    finally:
        folder.remove(Entry(address, str(added)))
    assert added.exists() is False
    assert entry.source != STATIC


_WORDS = """
address = "
addresses = ["
"]
10.0.0.5:8097
[fd00::5]:8097
tcp:
%eth0
http://
", "
fe80::1%1
unix:
\\u00e4
'''
[address]
1979-05-27T07:32:00Z
inf
"""
TARGET = Target(
    take,
    words=words(_WORDS),
    longest=1024,
    runs=60_000,
)
