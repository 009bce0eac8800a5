from __future__ import annotations

import json

import msgspec
import pytest

from tests.vmstackctl.hosts import cpu, host, vm
from vmstackctl import lines
from vmstackctl.lines import Connected, Disconnected
from vmstackd.api.replies import Deployed, ListReply, ProgressReply, Removed
from vmstackd.api.session import (
    Degraded,
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


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
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
    assert lines.progress(ProgressReply(progress=-3.25)).startswith("-3.2 MiB per CPU")


def test_a_status_in_a_line() -> None:
    _, status = host((cpu(0, 0, "2.0"), cpu(1, 1, "held")), (2000,), degraded=(EVIL,))
    down = msgspec.structs.replace(status, hypervisor="down")
    assert lines.status(down) == (
        "1 VM, 0 of 2 CPUs free, 2 GiB of 4 GiB free, 2:1 4 vCPUs on 3 CPUs, 1 CPU held, hypervisor down, "
        "! a\\x1b[2J\\nb"
    )
