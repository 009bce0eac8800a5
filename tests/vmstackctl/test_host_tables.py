from __future__ import annotations

import re

import msgspec
import pytest
from rich.cells import cell_len

from tests.vmstackctl.cluster import figures, level, member, usual
from tests.vmstackctl.hosts import PIPE, drawn, host, terminal
from vmstackctl.host_tables import ClusterStatus, HostList, HostTable, ProgressTable
from vmstackctl.terminal import Look
from vmstackd.api.replies import DuplicateVm, HostProgress, HostReply, HostsReply, ProgressReply

BAR = re.compile(r"[━─]+ *")


def table(*hosts: HostReply, width: int = 80, room: int | None = None) -> list[str]:
    return drawn(HostTable(HostsReply(hosts=hosts), room=room), terminal(width)).splitlines()


def test_each_host_has_a_line_and_its_trouble_another() -> None:
    lines = table(*usual())
    assert lines[0].split() == ["NAME", "STATE", "CPUS", "MEMORY", "VMS", "LEVELS", "AGE"]
    assert [BAR.sub("", line).split() for line in lines[1:5]] == [
        ["server1", "up", "6/16", "3/64", "GiB", "3", "1:1", "4,", "2:1", "2", "0s"],
        ["server2", "cordoned", "3/16", "1/64", "GiB", "1", "1.5:1", "3", "0s"],
        ["server3", "unknown", "8/16", "2/64", "GiB", "2", "1:1", "8", "0s"],
        ["server4", "connecting", "-", "-", "-", "-"],
    ]
    assert lines[5:8] == [
        "! server2 is cordoned: new disks on Monday",
        "! server3 is unknown: silent for 12 s",
        "! server4 is connecting: not yet reached",
    ]
    # Only what may be used is counted as free.
    assert " ".join(lines[8:]) == (
        "4 hosts: 1 up, 1 cordoned, 1 unknown, 1 connecting; 6 VMs; up and free: 10 of 16 CPUs, 61 of 64 GiB"
    )


def test_levels_are_in_their_order_and_bars_in_a_column() -> None:
    lines = table(
        member("a", "up", "", level(3000, 1), level(1000, 12)), member("b", "up", "", level(1000, 3)), width=100
    )
    assert "1:1 12, 3:1 1" in lines[1]
    assert [line.index("━") for line in lines[1:3]] == [lines[1].index("━")] * 2
    assert [line.index("/16") for line in lines[1:3]] == [lines[1].index("/16")] * 2


def test_a_wide_table_has_the_addresses() -> None:
    assert "server1:8097" in table(*usual(), width=120)[1]
    assert "server1:8097" not in "".join(table(*usual(), width=119))
    assert "server1:8097" in drawn(HostTable(HostsReply(hosts=usual())), PIPE)


def test_no_hosts_are_said_to_be_none() -> None:
    assert table()[1:] == ["no hosts; vmstackctl host add ADDRESS adds one"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", ["n" * 255, "日本語" * 80, "\033[2J\r\x9b1m", "a b"])
def test_whatever_hosts_are_called_a_row_is_a_line(width: int, name: str) -> None:
    levels = [level(1000 * number, 1) for number in range(1, 17)]
    lines = table(member(name, "hypervisor-down", "", *levels), member("server1", "up", "", *levels), width=width)
    assert lines[0].startswith("NAME ")
    assert lines[2].startswith("server1 " if width >= 80 else "serv")
    assert max(cell_len(line) for line in lines) <= width
    assert "hypervisor-down" in lines[1]
    assert "16/16" in lines[1]
    assert "".join(lines).isprintable()


def test_a_pipe_gets_everything() -> None:
    levels = [level(1000 * number, 1) for number in range(1, 17)]
    text = drawn(HostTable(HostsReply(hosts=(member("n" * 255, "unknown", "r" * 1000, *levels),))), PIPE)
    assert "n" * 255 in text
    assert "16:1 1" in text
    assert "r" * 1000 in text


def test_three_hundred_hosts_are_three_hundred_lines() -> None:
    hosts = [member(f"server{number}", "up", "", level()) for number in range(300)]
    lines = table(*hosts)
    assert [line.split()[0] for line in lines[1:301]] == [one.name for one in hosts]
    assert lines[301].startswith("300 hosts: 300 up; 600 VMs;")


def test_where_room_is_short_trouble_is_shown_first() -> None:
    hosts = [member(f"server{n}", "unknown" if n == 250 else "up", "r" * 300 if n == 250 else "") for n in range(300)]
    lines = table(*hosts, room=10)
    assert [line.split()[0] for line in lines[1:9]] == ["server250", *(f"server{n}" for n in range(7))]
    assert lines[9].startswith("! server250 is unknown: rrr")
    assert lines[9].endswith("…")
    assert lines[10] == "... 292 more hosts: make the window taller"
    assert lines[11].startswith("300 hosts: 299 up, 1 unknown;")
    assert "more hosts" not in "".join(table(*hosts[:10], room=10))


def test_a_name_on_several_hosts_is_told_of_last() -> None:
    reply = HostsReply(hosts=usual(), duplicates=(DuplicateVm(name="web1", hosts=("server1", "server\x9b4")),))
    assert drawn(HostTable(reply), terminal(200)).splitlines()[-1] == (
        "! web1 is on server1 and server\\x9b4: vmstackctl remove web1 --host HOST removes one of them"
    )


def test_states_have_colours_and_silent_hosts_are_dim() -> None:
    text = drawn(HostTable(HostsReply(hosts=usual())), Look(width=80, colour=True))
    assert re.search(r"\033\[32mup +\033\[0m", text)
    assert re.search(r"\033\[33mcordoned +\033\[0m", text)
    assert re.search(r"\033\[31munknown +\033\[0m", text)
    assert re.search(r"\033\[2m8/16\033\[0m", text)
    assert "\033[2m6/16" not in text


def test_terminals_that_show_ascii_get_ascii() -> None:
    assert drawn(HostTable(HostsReply(hosts=usual())), Look(width=80, colour=False, encoding="ascii")).isascii()


def test_the_list_of_hosts_is_short() -> None:
    lines = drawn(
        HostList(
            HostsReply(hosts=(member("server1"), member("\033"))),
        ),
        terminal(80),
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "ADDRESS", "SOURCE"],
        ["server1", "server1:8097", "static"],
        ["\\x1b", "\\x1b:8097", "static"],
    ]


def test_a_cluster_at_a_glance_has_its_levels_and_each_trouble_once() -> None:
    _, status = host(())
    sums = msgspec.structs.replace(figures(level(2000, 6, 9, 3), level(1000, 12, 12, 3), cpus=48), held_cpus=2)
    duplicate = DuplicateVm(name="web1", hosts=("server1", "server3"))
    troubles = (
        "host server3 is unknown: silent for 12 s",
        "VM 'web1' is on several hosts: server1, server3",
        "x.toml: not\033 TOML",
    )
    whole = msgspec.structs.replace(status, host=sums, degraded=troubles)
    text = drawn(ClusterStatus(HostsReply(hosts=usual(), duplicates=(duplicate,)), whole), terminal(200))
    assert text.count("silent for 12 s") == 1
    assert text.count("web1 is on") + text.count("several hosts") == 1
    assert "\n! x.toml: not\\x1b TOML\n" in text
    assert [line.split() for line in text.splitlines()[-5:]] == [
        ["LEVEL", "CPUS", "VCPUS", "VMS", "VCPUS", "PER", "CPU", "FIT", "NOW"],
        ["1:1", "12", "12", "3", "1.00", "0"],
        ["2:1", "6", "9", "3", "1.50", "3"],
        ["free", "30"],
        ["held", "2"],
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_progress_has_the_best_host_first_and_why_others_are_none(width: int) -> None:
    hosts = (
        HostProgress(host="server1", progress=-3.25),
        HostProgress(host="server2", progress=None, reason="no cpu\033"),
        HostProgress(host="server3", progress=7.5),
        HostProgress(host="server4", progress=7.5),
        HostProgress(host="日本語" * 80, progress=None, reason="r" * 300),
    )
    lines = drawn(ProgressTable(ProgressReply(progress=7.5, host="server4", hosts=hosts)), terminal(width)).splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["HOST", "PROGRESS", "REASON"],
        ["*", "server4", "7.5"],
        ["server3", "7.5"],
        ["server1", "-3.2"],
        ["server2", "-", "no", "cpu\\x1b"],
    ]
    assert max(cell_len(line) for line in lines[:6]) <= width
    assert lines[6].startswith("* is the best host.")


def test_files_of_hosts_that_are_wrong_are_told_once() -> None:
    problem = "/etc/vmstack/hosts.d/\x9bbad.toml: not a TOML file"
    hosts = HostsReply(hosts=usual(), problems=(problem,))
    assert drawn(HostTable(hosts), terminal(200)).count("bad.toml: not a TOML file") == 1
    _, status = host(())
    troubled = msgspec.structs.replace(status, degraded=(problem,))
    text = drawn(ClusterStatus(hosts, troubled), terminal(200))
    assert text.count("bad.toml: not a TOML file") == 1
    assert "\x9b" not in text
