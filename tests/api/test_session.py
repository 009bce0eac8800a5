"""What belongs to a connection: it survives the wire, orders are understood whole or not at all, answers leniently."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from vmstackd.api import session
from vmstackd.api.session import Event

ASKED = (
    session.Hello(versions=(1, 2), client="test"),
    session.Ping(),
    session.Subscribe(names=True),
)
ANSWERED = (
    session.HelloReply(version=1, program="vmstackd", program_version="0.1.0", host="h1", role="reader", uuid="u"),
    session.Pong(),
    session.Subscribed(names=("a", "ü")),
    session.Identity(program="globald", host="h1", uuid="u"),
)
EVENTS: tuple[Event, ...] = (
    session.VmDeployed(time=1.5, name="a", level=2000, cpus=(0, 8), host="h1"),
    session.VmRemoved(time=1.5, name="a", released=(0, 8), host="h1"),
    session.VmRefused(time=1.5, name="a", operation="deploy", code="NoCapacity", reason="not enough cpu", host="h1"),
    session.VmAdopted(time=1.5, name="a", level=2000, cpus=(0,), host="h1"),
    session.VmGone(time=1.5, name="a", host="h1"),
    session.Degraded(time=1.5, problems=("the hypervisor is unreachable",), host="h1"),
    session.HostChanged(time=1.5, host="h1", state="unknown", reason="silent"),
    session.Missed(time=1.5, count=3),
)
CODECS = (msgspec.json, msgspec.msgpack)


def _name(value: object) -> str:
    return type(value).__name__


def test_there_is_a_sample_of_every_event() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize("value", [*ASKED, *ANSWERED], ids=_name)
def test_everything_survives_both_encodings(value: msgspec.Struct) -> None:
    for codec in CODECS:
        assert codec.decode(codec.encode(value), type=type(value)) == value


@pytest.mark.parametrize("event", EVENTS, ids=_name)
def test_an_event_says_which_one_it_is(event: Event) -> None:
    newer: dict[str, Any] = msgspec.to_builtins(event) | {"added_later": [1]}
    for codec in CODECS:
        assert codec.decode(codec.encode(event), type=Event) == event
        assert codec.decode(codec.encode(newer), type=Event) == event


@pytest.mark.parametrize("event", EVENTS, ids=_name)
def test_an_event_of_a_host_need_not_say_where(event: Event) -> None:
    """As hosts of the first version tell it; what a cluster tells of hosts always does."""
    plain = {key: value for key, value in msgspec.to_builtins(event).items() if key != "host"}
    if isinstance(event, session.HostChanged):
        with pytest.raises(msgspec.ValidationError, match="missing required field `host`"):
            msgspec.convert(plain, Event)
    else:
        assert getattr(msgspec.convert(plain, Event), "host", "") == ""


@pytest.mark.parametrize("value", ASKED, ids=_name)
def test_unknown_fields_of_what_is_asked_are_refused(value: msgspec.Struct) -> None:
    newer = msgspec.to_builtins(value) | {"force": True}
    for codec in CODECS:
        with pytest.raises(msgspec.ValidationError, match="unknown field `force`"):
            codec.decode(codec.encode(newer), type=type(value))


@pytest.mark.parametrize("value", ANSWERED, ids=_name)
def test_unknown_fields_of_what_is_answered_are_ignored(value: msgspec.Struct) -> None:
    newer = msgspec.to_builtins(value) | {"added_later": True}
    for codec in CODECS:
        assert codec.decode(codec.encode(newer), type=type(value)) == value


def test_a_subscriber_of_the_first_version_asks_for_no_names() -> None:
    assert msgspec.convert({}, session.Subscribe) == session.Subscribe(names=False)
    assert msgspec.convert({}, session.Subscribed) == session.Subscribed(names=())
