"""Inventories and explanations, drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len

from core.demand import Lesson, Market, Shape
from tests.vmstackctl.cluster import figures, level
from tests.vmstackctl.hosts import PIPE, drawn, terminal
from tests.vmstackctl.inventories import saved, saved_host
from vmstackctl.explaining import Candidate, Explanation
from vmstackctl.inventory_tables import POPULAR, ROWS, ExplanationTable, InventoryPicture
from vmstackctl.saved_inventory import SavedInventory
from vmstackctl.terminal import Look

WHERE = Path("/srv/cluster.json")


def shown(inventory: SavedInventory, look: Look = PIPE) -> list[str]:
    return drawn(InventoryPicture(inventory, WHERE), look).splitlines()


def candidate(name: str, score: float | None = None, why: str = "") -> Candidate:
    return Candidate(
        name=name,
        state="up",
        score=score,
        reason="" if score is not None else "cpu",
        why=why,
        needed_cpus=2,
        free_cpus=8,
        free_mib=4096,
    )


def explanation(*hosts: Candidate) -> Explanation:
    best = hosts[0].name if hosts and hosts[0].score is not None else None
    return Explanation(policy="worth", level=1500, vcpus=4, memory_mib=8192, chosen=best, hosts=hosts)


def table(found: Explanation, look: Look = PIPE, *, every: bool = False) -> list[str]:
    return drawn(ExplanationTable(found, every=every), look).splitlines()


def test_an_inventory_is_shown_as_its_hosts_were_and_with_what_was_learnt() -> None:
    shape = Shape(1500, 2, 512, 3)
    found = saved(
        saved_host("server1", figures(level()), vms=(Shape(2000, 3, 512, 2),), address="10.0.0.5:8097"),
        saved_host("server2", figures(), "cordoned", "new fans"),
        lesson=Lesson((shape, Shape(1000, 4, 4096, 9)), 12, 75, Market((shape,), 16.0, 65536.0, 16, 65536, 1.0, 0.25)),
    )
    lines = shown(found)
    assert [line.split()[:2] for line in lines[:3]] == [["NAME", "STATE"], ["server1", "up"], ["server2", "cordoned"]]
    assert "10.0.0.5:8097" in lines[1]
    assert lines[3:] == [
        "! server2 is cordoned: new fans",
        "2 hosts: 1 up, 1 cordoned; 2 VMs; up and free: 12 of 16 CPUs, 62 of 64 GiB",
        "the VMs of 1 host are not known one by one",
        "saved 1970-01-01 00:00:01 UTC",
        "",
        "policy worth, 12 VMs asked for",
        "CPU is scarcer: of memory, only 25 % as large a share was sold",
        "LEVEL  VCPUS   MEMORY  ASKED FOR   %",
        "  1:1      4    4 GiB          9  75",
        "1.5:1      2  512 MiB          3  25",
    ]


@pytest.mark.parametrize(
    ("uses", "text"),
    [
        ((1.0, 1.0), "CPU and memory are equally scarce"),
        ((0.5, 1.0), "memory is scarcer: of CPU, only 50 % as large a share was sold"),
    ],
)
def test_the_scarcer_resource_is_named(uses: tuple[float, float], text: str) -> None:
    market = Market((Shape(1000, 1, 1, 1),), 16.0, 65536.0, 16, 65536, *uses)
    assert text in shown(saved(saved_host("a", figures()), lesson=Lesson((), 1, 64, market)))


def test_where_nothing_was_asked_for_nothing_was_learnt() -> None:
    assert shown(saved(policy="first\x9bfit"))[-1] == "policy first\\x9bfit, 0 VMs asked for"


def test_of_many_shapes_the_most_frequent_are_shown() -> None:
    shapes = tuple(Shape(1000, 1, mib, mib) for mib in range(1, POPULAR + 4))
    lines = shown(saved(lesson=Lesson(shapes, 91, 100, None)))
    assert lines[-1] == "... 3 more shapes: --output json has them"
    assert [int(line.split()[-2]) for line in lines[-POPULAR - 1 : -1]] == list(range(POPULAR + 3, 3, -1))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_chosen_host_is_first_and_marked(width: int) -> None:
    found = explanation(
        candidate("server2", -0.125),
        candidate("server1\033", -0.25),
        candidate("日本語" * 80, None, "CPU: needs 2, 1 free, 1 short; " * 9),
        candidate("server3", None, "cordoned: new\nfans"),
    )
    lines = table(found, terminal(width))
    assert max(cell_len(line) for line in lines if not line.startswith(("4 vCPUs", "* is chosen"))) <= width
    text = "\n".join(lines)
    assert "4 vCPUs, 8 GiB, level 1.5:1, chosen by policy worth: 2 of 4" in text
    rows = [line.split() for line in lines if line.startswith(("*  ", "   s"))]
    assert rows[:2] == [
        ["*", "server2", "-0.125000", "2", "8", "4", "GiB"],
        ["server1\\x1b" if width >= 80 else "server1\\…", "-0.250000", "2", "8", "4", "GiB"],
    ]
    assert "cordoned: new\\nfans" in text
    assert text.count("*") == 2


def test_where_nobody_takes_it_there_is_no_mark() -> None:
    lines = table(explanation(candidate("a", None, "cordoned")))
    assert lines == [
        "4 vCPUs, 8 GiB, level 1.5:1, chosen by policy worth: 0 of 1 host would take it",
        "  HOST  WOULD NOT",
        "  a     cordoned",
    ]
    assert table(explanation()) == ["4 vCPUs, 8 GiB, level 1.5:1, chosen by policy worth: 0 of 0 hosts would take it"]


def test_of_many_hosts_the_first_of_each_sort_are_shown_unless_all_are_wanted() -> None:
    taking = [candidate(f"t{number}", -float(number)) for number in range(ROWS + 5)]
    refusing = [candidate(f"r{number}", None, "no") for number in range(ROWS + 1)]
    found = explanation(*taking, *refusing)
    names = [line.split()[-2] for line in table(found) if line.endswith("  no")]
    assert names == [f"r{number}" for number in range(ROWS)]
    text = "\n".join(table(found))
    assert "... 5 more hosts: --all shows them" in text
    assert "... 1 more host: --all shows them" in text
    whole = "\n".join(table(found, every=True))
    assert all(f" {host.name} " in whole for host in found.hosts)
    assert "more host" not in whole
