from __future__ import annotations

from tests.soak.ledger import Ledger
from vmstackd.api import requests


def vm(name: str) -> requests.Deploy:
    return requests.Deploy(name=name, vcpus=1, memory_mib=1024, level=1000, image="/i")


def test_what_was_acknowledged_must_be_there_once_and_nothing_else() -> None:
    ledger = Ledger()
    lives = ledger.lives()
    for name, host in (("a", "h1"), ("b", "h2"), ("c", "h2")):
        ledger.deployed(vm(name), host, lives)
    assert ledger.differences([("a", "h1"), ("b", "h2"), ("c", "h2")]) == []
    assert ledger.differences([("a", "h1"), ("b", "h1"), ("c", "h2"), ("c", "h1"), ("d", "h1")]) == [
        "c is on h2, h1",
        "b was acknowledged on h2, and is not there",
        "d is on h1, and nobody was told so",
    ]
    ledger.removed("a")
    assert ledger.differences([("a", "h1"), ("b", "h2"), ("c", "h2")]) == ["a is on h1, and nobody was told so"]


def test_vms_die_with_their_daemon_and_only_they() -> None:
    ledger = Ledger()
    before = ledger.lives()
    for name, host in (("a", "h1"), ("b", "h2")):
        ledger.deployed(vm(name), host, before)
    ledger.died_all("h1")
    assert ledger.died == 1
    assert ledger.differences([("b", "h2")]) == []
    assert ledger.differences([("a", "h1"), ("b", "h2")]) == ["a is on h1, and nobody was told so"]
    ledger.deployed(vm("late"), "h1", before)  # answered after the end, asked for before it: which life was it?
    assert ledger.differences([("b", "h2")]) == ledger.differences([("b", "h2"), ("late", "h1")]) == []
    ledger.deployed(vm("next"), "h1", ledger.lives())
    assert ledger.differences([("b", "h2")]) == ["next was acknowledged on h1, and is not there"]


def test_a_vm_that_is_missing_is_wrong_unless_its_host_died_meanwhile() -> None:
    ledger = Ledger()
    before = ledger.lives()
    ledger.missing("a", "h1", before)
    assert ledger.wrong == ["a was acknowledged on h1, and is not there"]
    ledger.died_all("h1")
    ledger.missing("b", "h1", before)
    assert len(ledger.wrong) == 1


def test_one_caller_alone_removes_a_vm() -> None:
    ledger = Ledger()
    ledger.deployed(vm("a"), "h1", ledger.lives())
    assert ledger.take({"a", "gone"}) == "a"
    assert ledger.take({"a"}) is None
    ledger.ended("a")
    assert ledger.take({"a"}) == "a"
    ledger.unclear("a")
    assert ledger.differences([("a", "h1")]) == ledger.differences([]) == []
