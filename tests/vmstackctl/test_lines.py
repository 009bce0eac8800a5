from __future__ import annotations

import json

import msgspec
import pytest

from tests.vmstackctl.hosts import cpu, host, vm
from vmstackctl import lines
from vmstackctl.lines import Connected, Disconnected
from vmstackd.api.replies import (
    CheckReply,
    CordonReply,
    Deployed,
    DuplicateVm,
    Finding,
    HostListed,
    HostsReply,
    ListReply,
    ProgressReply,
    Removed,
)
from vmstackd.api.session import (
    Degraded,
    HostChanged,
    Missed,
    VmAdopted,
    VmDeployed,
    VmGone,
    VmRefused,
    VmRemoved,
)

EVIL = "a\033[2J\nb"
EVENTS: tuple[lines.Line, ...] = (
    VmDeployed(time=0, name=EVIL, level=2000, cpus=(3, 1, 2)),
    VmRemoved(time=0, name=EVIL, released=()),
    VmRefused(time=0, name=EVIL, operation=EVIL, code=EVIL, reason=EVIL),
    VmAdopted(time=0, name=EVIL, level=1500, cpus=(1,)),
    VmGone(time=0, name=EVIL),
    Degraded(time=0, problems=(EVIL, "b")),
    Degraded(time=0, problems=()),
    Missed(time=0, count=1),
    Disconnected(time=0, reason=EVIL),
    Connected(time=0, vms=2),
)
OF_A_CLUSTER: tuple[lines.Line, ...] = (
    VmDeployed(time=0, name="a", level=2000, cpus=(3, 1, 2), host=EVIL),
    VmRemoved(time=0, name="a", released=(1,), host=EVIL),
    VmRefused(time=0, name="a", operation="remove", code="Denied", reason="no", host=EVIL),
    VmAdopted(time=0, name="a", level=1500, cpus=(1,), host=EVIL),
    VmGone(time=0, name="a", host=EVIL),
    Degraded(time=0, problems=("p",), host=EVIL),
    Degraded(time=0, problems=(), host=EVIL),
    HostChanged(time=0, host=EVIL, state="unknown", reason=EVIL),
    HostChanged(time=0, host=EVIL, state="removed"),
    Disconnected(time=0, reason="r", program="globald"),
    Connected(time=0, vms=2, program="globald"),
)


@pytest.mark.parametrize("event", [*EVENTS, *OF_A_CLUSTER], ids=lambda event: type(event).__name__)
def test_each_event_is_a_line_whatever_the_names(event: lines.Line) -> None:
    assert lines.event(event).isprintable()
    text = lines.json_line(event)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["time"] == 0


def test_events_say_what_happened() -> None:
    said = [lines.event(event).split(" ", 1)[1] for event in EVENTS]
    assert said[0] == "deployed a\\x1b[2J\\nb: level 2:1 on CPUs 1-3"
    assert said[1] == "removed a\\x1b[2J\\nb: freed no CPUs"
    assert said[6] == "well: all is as it should be"
    assert said[7] == "missed: 1 event could not be delivered in time"
    assert said[9] == "connected: vmstackd is back with 2 VMs; events may have been missed"


def test_events_of_a_cluster_say_where() -> None:
    evil = "a\\x1b[2J\\nb"
    assert [lines.event(event).split(" ", 1)[1] for event in OF_A_CLUSTER] == [
        f"deployed a: level 2:1 on CPUs 1-3 of {evil}",
        f"removed a: freed CPUs 1 of {evil}",
        f"refused remove a on {evil}: Denied: no",
        f"adopted a: level 1.5:1 on CPUs 1 of {evil}",
        f"gone a from {evil}: ended without vmstackd",
        f"degraded {evil}: p",
        f"well {evil}: all is as it should be",
        f"host {evil} is unknown: {evil}",
        f"host {evil} is removed",
        "disconnected: r; what happens until globald is back is not told",
        "connected: globald is back with 2 VMs; events may have been missed",
    ]


def test_json_of_a_host_has_nothing_that_only_clusters_tell() -> None:
    done = Deployed(name="web1", level=1500, cpus=(8,))
    assert not json.loads(lines.json_line(done)).keys() & {"host", "score"}
    assert (
        json.loads(lines.json_line(msgspec.structs.replace(done, host="h", score=0.0))).items()
        >= {
            "host": "h",
            "score": 0.0,
        }.items()
    )
    assert json.loads(lines.json_line(ProgressReply(progress=1.0))) == {"progress": 1.0}
    assert json.loads(lines.json_line(HostsReply(hosts=()))) == {
        "hosts": [],
        "duplicates": [],
        "problems": [],
        "following": None,
    }
    assert json.loads(lines.json_line(EVENTS[-1])) == {"event": "connected", "time": 0, "vms": 2}


def test_json_has_the_fields_of_the_reply_and_levels_as_text_too() -> None:
    reply = ListReply(vms=(vm("\x7f\x9b"),))
    text = lines.json_line(reply)
    assert text.isprintable()
    found = json.loads(text)
    assert found["vms"][0].pop("level_text") == "2.0"
    assert msgspec.convert(found, ListReply) == reply


def test_what_was_done_and_what_would_be() -> None:
    done = Deployed(name="web1", level=1500, cpus=(8, 136, 9))
    assert lines.deployed(done) == "web1: runs at level 1.5:1 on CPUs 8-9,136"
    would = msgspec.structs.replace(done, dry_run=True)
    assert lines.deployed(would) == "web1: would run at level 1.5:1 on CPUs 8-9,136 (dry run: nothing was changed)"
    gone = Removed(name="web1", released=(9, 8))
    assert lines.removed(gone) == "web1: removed, freed CPUs 8-9"
    assert lines.removed(msgspec.structs.replace(gone, released=(), dry_run=True)) == (
        "web1: would be removed and free no CPUs (dry run: nothing was changed)"
    )
    there = msgspec.structs.replace(done, host="server3", score=12.34)
    assert lines.deployed(there) == "web1: runs at level 1.5:1 on CPUs 8-9,136 of server3 (score 12.34)"
    assert lines.removed(msgspec.structs.replace(gone, host="server3")) == "web1: removed from server3, freed CPUs 8-9"
    assert lines.progress(ProgressReply(progress=-3.25)).startswith("-3.2 MiB per CPU")


def test_a_status_in_a_line() -> None:
    _, status = host((cpu(0, 0, "2.0"), cpu(1, 1, "held")), (2000,), degraded=(EVIL,))
    down = msgspec.structs.replace(status, hypervisor="down")
    assert lines.status(down) == (
        "1 VM, 0 of 2 CPUs free, 2 GiB of 4 GiB free, 2:1 4 vCPUs on 3 CPUs, 1 CPU held, hypervisor down, "
        "! a\\x1b[2J\\nb"
    )
    assert ", cordoned, hypervisor down" in lines.status(msgspec.structs.replace(down, cordoned=True))


def test_what_became_of_a_host() -> None:
    assert lines.cordoned(CordonReply(cordoned=True, reason="disks\n"), "here") == (
        "here: cordoned (disks\\n), gets no new VMs"
    )
    assert lines.cordoned(CordonReply(cordoned=False, reason="", host="there"), "here") == "there: gets new VMs again"
    added = HostListed(address="a:8097", name="/d/a.toml", listed=True)
    assert lines.listed(added) == "a:8097: part of the cluster (/d/a.toml); vmstackctl hosts shows when it is up"
    gone = [HostListed(address="a:8097", name="server1", listed=False, vms=vms) for vms in (0, 1, 2)]
    assert [lines.listed(reply) for reply in gone] == [
        "server1: no longer part of the cluster",
        "server1: no longer part of the cluster; its VM runs on",
        "server1: no longer part of the cluster; 2 VMs of it run on",
    ]


def test_what_a_check_has_found() -> None:
    nothing = CheckReply(findings=(), vms=3)
    assert lines.checked(nothing) == "3 VMs, all as decided"
    assert lines.checked(msgspec.structs.replace(nothing, hosts=2)) == "3 VMs on 2 hosts, all as decided"
    some = msgspec.structs.replace(nothing, hidden=1, busy=2)
    assert lines.checked(some) == (
        "3 VMs (2 of them being changed, not judged) "
        "(1 of them without a look at the threads, which are hidden from the daemon), all as decided"
    )
    found = (
        Finding(kind="unplaced", vm="a\nb", text="it fits nowhere", repaired=False),
        Finding(kind="held", vm="", text="CPUs 5 are held", repaired=True),
        Finding(kind="pinning", vm="web1", text="it may run on CPUs 7", repaired=True, host="server1"),
    )
    assert lines.checked(msgspec.structs.replace(nothing, findings=found, left_out=2)).splitlines() == [
        "a\\nb: unplaced: it fits nowhere",
        "held: CPUs 5 are held (repaired)",
        "server1: web1: pinning: it may run on CPUs 7 (repaired)",
        "... and 2 findings more; check again when these are done with",
        "3 VMs, 5 findings: 2 repaired, 1 not, 2 not shown",
    ]
    dry = msgspec.structs.replace(nothing, findings=found[:1], dry_run=True)
    assert lines.checked(dry).splitlines()[-1] == "3 VMs, 1 finding (dry run: nothing was changed)"


def test_a_name_on_several_hosts_comes_with_what_can_be_typed() -> None:
    assert lines.duplicate(DuplicateVm(name="a b", hosts=("server1", "server4"))) == (
        "a b is on server1 and server4: vmstackctl remove 'a b' --host HOST removes one of them"
    )


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1e300])
def test_a_time_that_is_none(seconds: float) -> None:
    assert lines.event(Connected(time=seconds, vms=1)).startswith("--:--:-- ")
