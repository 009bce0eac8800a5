"""How many more VMs fit: what is asked for, what is found, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from core.demand import Lesson
from core.demand import Shape as Arrived
from core.model import HostState
from core.spare import TRIED
from tests.core.hosts import build, deploy, empty, filled
from tests.core.test_spare import host
from tests.vmstackctl.hosts import PIPE, drawn, terminal
from vmstackctl.capacity import USUAL_SIZES, Capacity, Shape, capacity, parse_shape
from vmstackctl.capacity_table import CapacityTable
from vmstackctl.lines import json_line
from vmstackctl.saved_inventory import SavedHost, SavedInventory
from vmstackd.api.replies import closed

GIB = 1024


def server(cpus: int = 32, memory_gib: int = 128) -> HostState:
    return empty(build(cores=cpus, smt=1, memory=memory_gib * GIB), critical_size=2)


def saved(name: str, figures: HostState, state: str = "up", *, known: bool = True) -> SavedHost:
    found = host(figures)
    vms = tuple(Arrived(*alike) for alike in found.vms or ()) if known else None
    return SavedHost(name=name, state=state, closed=closed(state), status=found.status, vms=vms)


def inventory(*hosts: SavedHost, arrived: Sequence[Arrived] = ()) -> SavedInventory:
    return SavedInventory(time=0.0, policy="worth", lesson=Lesson(tuple(arrived), 0, 0, None), hosts=hosts)


def shown(found: Capacity, width: int | None = None) -> str:
    return drawn(CapacityTable(found), PIPE if width is None else terminal(width))


def sizes(found: Capacity) -> list[tuple[int, int, int]]:
    return [(fits.vcpus, fits.memory_mib // GIB, fits.level) for fits in found.shapes]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("2:8G", Shape(2, 8 * GIB)),
        ("2:8", Shape(2, 8 * GIB)),
        (" 16:512M@1.5 ", Shape(16, 512, 1500)),
        ("4096:1T@3:1", Shape(4096, GIB * GIB, 3000)),
    ],
)
def test_shapes_are_read(text: str, shape: Shape) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no shape; write vCPUs:memory"),
        ("2", "is no shape"),
        ("2:", "is no shape"),
        (":8G", "is no shape"),
        ("2x8G", "is no shape"),
        ("-2:8G", "is no shape"),
        ("2.5:8G", "is no shape"),
        ("٣:8G", "is no shape"),
        ("2:8G@", "is no shape"),
        ("0:8G", "0 vCPUs: must be 1 to 4096"),
        ("4097:8G", "4097 vCPUs: must be 1 to 4096"),
        ("9" * 5000 + ":8G", "must be 1 to 4096"),
        ("2:0", "not a whole number of MiB"),
        ("2:0.3M", "not a whole number of MiB"),
        ("2:8X", "'8X' is not a size"),
        ("2:1025T", "1025T of memory: must be at most 1073741824M"),
        ("2:8G@0.5", "is not an oversubscription level"),
        ("2:8G@3@2", "is not an oversubscription level"),
        ("2:8G@\x1b[1m", "is not an oversubscription level"),
    ],
)
def test_what_is_no_shape_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as told:
        parse_shape(text)
    assert len(str(told.value)) < 200


def test_sizes_asked_for_most_often_at_the_levels_that_there_are() -> None:
    arrived = [Arrived(3000, 1, GIB, 5), Arrived(1000, 4, 4 * GIB, 7), Arrived(1500, 1, GIB, 3)]
    found = capacity(inventory(saved("a", filled(server(), "vm", 2, 2, 2000)), arrived=arrived))
    assert sizes(found) == [(1, 1, 2000), (4, 4, 2000)]
    assert found.sizes_from == "arrivals"
    many = [Arrived(1000, vcpus, GIB, 1) for vcpus in range(1, 20)]
    assert [size for size, _, _ in sizes(capacity(inventory(arrived=many), levels=[1000]))] == [*range(1, 9)]


def test_sizes_of_vms_where_nothing_was_asked_for() -> None:
    state = deploy(
        filled(
            server(),
            "vm",
            2,
            2,
            2000,
        ),
        "other",
        1,
        1500,
        3 * GIB,
    )
    found = capacity(inventory(saved("a", state)))
    assert (found.sizes_from, sizes(found)) == ("vms", [(2, 0, 1500), (2, 0, 2000), (1, 3, 1500), (1, 3, 2000)])


def test_usual_sizes_where_nothing_is_known() -> None:
    found = capacity(inventory(saved("a", server()), saved("b", server())))
    levels = (1000, 2000, 3000)
    assert (found.sizes_from, found.reserve) == ("usual", 1)
    assert sizes(found) == [(vcpus, mib // GIB, level) for vcpus, mib in USUAL_SIZES for level in levels]
    assert "Sizes: usual ones, for nothing is known" in shown(found)


def test_shapes_and_levels_that_are_given() -> None:
    both = inventory(saved("a", server()), saved("b", server()))
    shapes = [Shape(2, 8 * GIB, 3000), Shape(1, GIB), Shape(1, GIB), Shape(1, GIB, 2000)]
    found = capacity(both, shapes, [2000, 1500, 2000])
    assert (found.sizes_from, sizes(found)) == ("given", [(2, 8, 3000), (1, 1, 1500), (1, 1, 2000)])


def test_the_trade_is_told() -> None:
    """Four hosts of 32 CPUs and 128 GiB, one of them full."""
    full = filled(server(), "vm", 1, 32, 1000)
    found = capacity(inventory(saved("a", full), *(saved(name, server()) for name in "bcd")), [Shape(2, 8 * GIB)])
    assert "\n".join(line.rstrip() for line in shown(found).splitlines()) == (
        "SIZE           1:1  SHORT\n"
        "2 x 8 GiB  48 / 32  CPU\n"
        "\n"
        "How many more VMs fit now on 4 hosts / with any one host lost."
    )
    found = capacity(
        inventory(saved("a", full), *(saved(name, server(32, 256)) for name in "bcd")),
        [Shape(2, 8 * GIB), Shape(2, 32 * GIB), Shape(32, 256 * GIB)],
        [1000, 2000, 3000],
    )
    assert shown(found).splitlines()[1:] == [
        "2 x 8 GiB     48 / 32  96 / 64  96 / 64  CPU at 1:1 2:1, memory at 3:1",
        "2 x 32 GiB    24 / 16  24 / 16  24 / 16  memory",
        "32 x 256 GiB    3 / 2    3 / 2    3 / 2  CPU at 1:1, memory at 2:1 3:1",
        "",
        "How many more VMs fit now on 4 hosts / with any one host lost.",
        "",
        "What may still be sold with any one host lost, if of one size:",
        "  64 more of 2 x 8 GiB at 2:1 or 3:1, or 32 at 1:1",
        "  16 more of 2 x 32 GiB at any of these levels",
        "  2 more of 32 x 256 GiB at any of these levels",
    ]


def test_a_loss_that_is_not_covered_is_told_with_hosts_and_vms() -> None:
    crowded = [saved(f"server{number}", filled(server(), "vm", 32, 1, 1000)) for number in range(7)]
    found = capacity(inventory(*crowded), [Shape(1, GIB)])
    assert [(loss.hosts, loss.vms) for loss in found.uncovered] == [((f"server{n}",), 32) for n in range(7)]
    lines = shown(found).splitlines()
    assert "! not covered: with server0 lost, 32 VMs would be without a place" in lines
    assert lines[-1] == "! not covered: the loss of 2 other hosts; --output json has all"
    assert (found.shapes[0].after, found.shapes[0].worst) == (0, ("server0",))


def test_hosts_lost_together_are_named() -> None:
    hosts = [saved(f"server{number}", server(8 + number)) for number in range(9)]
    found = capacity(inventory(*hosts), [Shape(1, GIB, 1000)], reserve=2)
    assert found.tried == (("server7", "server8"),)
    assert "now on 9 hosts / with the 2 heaviest hosts lost: server7 and server8." in shown(found)
    found = capacity(inventory(*hosts), [Shape(1, GIB, 1000)], reserve=7)
    told = "the 7 heaviest hosts lost: server2, server3, server4, server5, server6 and 2 other hosts."
    assert told in shown(found)
    assert "with server8 lost." in shown(capacity(inventory(hosts[8]), [Shape(1, GIB)], reserve=3))
    nothing = shown(capacity(inventory(*hosts), [Shape(1, GIB, 1000)], reserve=0))
    assert "How many more VMs fit now on 9 hosts." in nothing
    assert " / " not in nothing


def test_of_many_hosts_it_is_said_which_were_tried() -> None:
    hosts = [saved(f"server{number}", server(8)) for number in range(TRIED + 1)]
    assert f"any one of the {TRIED} heaviest hosts lost" in shown(capacity(inventory(*hosts), [Shape(1, GIB)]))
    assert "any one host lost" in shown(capacity(inventory(*hosts[:2]), [Shape(1, GIB)]))


def test_hosts_that_are_closed_or_have_not_told_take_nothing() -> None:
    silent, unheard = (
        SavedHost(name=state, state=state, closed=closed(state), status=None, vms=None)
        for state in ("unknown", "connecting")
    )
    hosts = [saved("a", server()), saved("b", server()), saved("c", server(), "cordoned"), silent, unheard]
    found = capacity(inventory(*hosts), [Shape(1, GIB, 1000)])
    assert (found.hosts, found.open, found.closed) == (5, 2, {"cordoned": 1, "unknown": 2})
    assert (found.shapes[0].now, found.shapes[0].after) == (64, 32)
    assert shown(found).splitlines()[-1] == "! no new VMs on 3 hosts: 1 cordoned, 2 unknown"


def test_vms_that_are_not_known_are_said_to_be_guessed() -> None:
    found = capacity(
        inventory(saved("a", filled(server(), "vm", 2, 2, 2000), known=False), saved("b", server())), [Shape(1, GIB)]
    )
    assert found.presumed == ("a",)
    assert shown(found).splitlines()[-1].startswith("! which VMs are on a is not known: those of a level are taken as")


def test_one_host_alone_is_not_thought_lost() -> None:
    found = capacity(inventory(saved("a", server())), [Shape(1, GIB)])
    assert (found.reserve, found.shapes[0].after) == (0, None)
    assert capacity(inventory(), [Shape(1, GIB)]).shapes[0].now == 0


def test_names_cannot_write_on_the_terminal() -> None:
    hosts = [saved(f"{name}\x1b[2J", filled(server(), "vm", 32, 1, 1000), known=False) for name in "ab"]
    found = capacity(inventory(*hosts), [Shape(1, GIB)], reserve=2)
    assert "\x1b" not in shown(found)
    assert "\x1b" not in json_line(found)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_keeps_to_its_width(width: int) -> None:
    hosts = [saved(f"server{number}", server()) for number in range(3)]
    found = capacity(inventory(*hosts), [Shape(2, 8 * GIB), Shape(4, 16 * GIB)], [1000, 2000])
    assert max(len(line) for line in shown(found, width).splitlines()) <= width
