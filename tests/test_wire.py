"""The protocol on byte strings: what is understood, what is refused and how, what breaks a connection."""

from __future__ import annotations

import itertools
import struct
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]  # it comes without types
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.status import HostStatus, LevelStatus
from vmstackd import wire
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import ERRORS, Internal, InvalidRequest, NoCapacity, VmstackError

HOST_REQUESTS = frozenset(get_args(requests.HostRequest))
PROGRESS: dict[str, Any] = {"vcpus": 2, "memory_mib": 4096, "level": 1500}
STATUS = replies.StatusReply(
    host=HostStatus(
        cpus=16,
        free_cpus=14,
        held_cpus=0,
        memory_mib=65536,
        allocated_mib=4096,
        free_mib=61440,
        vms=1,
        generation=7,
        levels=(LevelStatus(2000, 2000, 2, 2, 1, 1, 2000, 28000),),
    ),
    hypervisor="up",
    unplaced=(replies.UnplacedVm("odd", "no room", (1, 2), 10),),
    stopped=("off",),
    degraded=(),
)


def _taken(*pieces: bytes) -> tuple[list[Any], wire.Inbox]:
    inbox = wire.Inbox()
    messages = []
    for piece in pieces:
        for begin in range(0, len(piece), wire.READ_SIZE):
            inbox.add(piece[begin : begin + wire.READ_SIZE])
            messages += list(inbox.messages())
    return messages, inbox


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


# Frames


def test_the_bytes_are_those_of_the_msgpack_rpc_specification() -> None:
    frame = wire.request(7, requests.Progress(**PROGRESS), wire.Options(timeout=1.5, request_id="r-1"))
    assert msgpack.unpackb(frame) == [
        0,
        7,
        "progress",
        [PROGRESS, {"timeout": 1.5, "request_id": "r-1"}],
    ]
    assert msgpack.unpackb(wire.request(8, requests.Hosts())) == [0, 8, "hosts", [{}]]
    assert msgpack.unpackb(wire.response(9, session.Pong())) == [1, 9, None, {}]
    assert msgpack.unpackb(wire.response(9, replies.CordonReply(cordoned=True, reason="disk"))) == [
        1,
        9,
        None,
        {"cordoned": True, "reason": "disk", "host": ""},
    ]
    assert msgpack.unpackb(wire.error_response(9, NoCapacity("full", needed=3))) == [
        1,
        9,
        {"code": "NoCapacity", "message": "full", "retryable": False, "details": {"needed": 3}},
        None,
    ]
    assert msgpack.unpackb(wire.notification(session.VmGone(time=1.0, name="x"))) == [
        2,
        "event",
        [{"event": "gone", "time": 1.0, "name": "x", "host": ""}],
    ]
    assert msgpack.unpackb(wire.notification(STATUS))[:2] == [2, "status"]


def test_nothing_is_kept_for_a_server_that_has_said_all() -> None:
    """There may be thousands of connections, and the library's decoder is large."""
    frame = wire.notification(session.VmGone(time=1.0, name="x" * 100_000))
    inbox = wire.Replies()
    for _ in range(3):
        assert inbox.add(frame[:70_000]) == []
        assert inbox._unpacker is not None
        assert len(inbox.add(frame[70_000:] + frame)) == 2
        assert inbox._unpacker is None


def test_every_operation_can_be_called_by_its_name() -> None:
    changes = {"deploy", "remove", "cordon", "uncordon", "check"}
    of_a_host = changes | {"progress", "status", "list", "describe", "topology"}
    of_a_cluster = {"hosts", "demand", "host_add", "host_remove"}
    assert set(wire.METHODS) == of_a_host | of_a_cluster | {"hello", "ping", "subscribe"}


@given(st.lists(st.integers(0, 200), max_size=12), st.integers(1, 6))
def test_frames_arrive_whole_however_they_are_cut(cuts: list[int], count: int) -> None:
    frames = [wire.request(n, requests.Progress(vcpus=n + 1, memory_mib=1, level=1000)) for n in range(count)]
    data = b"".join(frames)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    messages, inbox = _taken(*(data[a:b] for a, b in itertools.pairwise(edges)))
    assert [wire.read_call(message).msgid for message in messages] == list(range(count))
    assert (len(inbox), inbox.incomplete, inbox.fault) == (0, False, "")


def test_what_is_left_over_is_kept_as_bytes() -> None:
    frame = wire.request(1, requests.Status())
    messages, inbox = _taken(frame + frame[:5])
    assert len(messages) == 1
    assert (len(inbox), inbox.incomplete) == (5, True)
    inbox.add(frame[5:])
    assert len(list(inbox.messages())) == 1
    assert (len(inbox), inbox.incomplete) == (0, False)


def test_messages_that_are_not_taken_stay() -> None:
    inbox = wire.Inbox()
    inbox.add(b"".join(wire.request(n, requests.Status()) for n in range(5)))
    messages = inbox.messages()
    assert next(messages)[1] == 0
    assert next(messages)[1] == 1
    messages.close()
    assert not inbox.incomplete
    assert [message[1] for message in inbox.messages()] == [2, 3, 4]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_raise_anything_else(data: bytes, size: int) -> None:
    messages, inbox = _taken(*(data[at : at + size] for at in range(0, len(data), size)))
    for message in messages:
        try:
            call = wire.read_call(message)
            wire.read_params(call.params, requests.Deploy)
        except (wire.Malformed, InvalidRequest):
            pass
    assert inbox.fault or len(inbox) <= len(data)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


@given(st.lists(_VALUES, min_size=1, max_size=4), st.data())
def test_the_end_of_a_frame_is_found_as_the_library_finds_it(values: list[Any], data: st.DataObject) -> None:
    packed = b"".join(msgpack.packb(value) for value in values)
    cut = data.draw(st.integers(0, len(packed)))
    messages, inbox = _taken(packed[:cut], packed[cut:])
    assert not inbox.fault
    assert msgpack.packb(messages) == msgpack.packb(values)  # NaN is not equal to itself


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=40), _VALUES)
def test_one_byte_at_a_time_is_as_good_as_all_at_once(path: list[tuple[bool, int]], leaf: object) -> None:
    value = leaf
    for is_map, size in path:
        value = {str(n): value if n == 0 else n for n in range(size)} if is_map else [value, *range(size - 1)]
    packed = msgpack.packb(value)
    messages, inbox = _taken(*(packed[at : at + 1] for at in range(len(packed))))
    assert inbox.fault if len(path) > wire.MAX_DEPTH else (inbox.fault or messages)


# What breaks a connection

MALFORMED = {
    "a text of 1 GiB": b"\xdb" + struct.pack(">I", 1 << 30),
    "bytes of 1 GiB": b"\xc6" + struct.pack(">I", 1 << 30),
    "an array of 1 GiB": b"\xdd" + struct.pack(">I", 1 << 30),
    "a map of 1 GiB": b"\xdf" + struct.pack(">I", 1 << 30),
    "an extension of 1 GiB": b"\xc9" + struct.pack(">I", 1 << 30) + b"\x05",
    "a text of 1 GiB inside": b"\x94\x00\x01\xdb" + struct.pack(">I", 1 << 30),
    "a text of 1 GiB behind a frame": b"\x94\x00\x01\xa1x\x90\xdb" + struct.pack(">I", 1 << 30),
    "the largest of all": b"\xdb\xff\xff\xff\xff",
    "arrays without end": b"\x91" * 1000,
    "maps without end": b"\x81\xa1a" * 1000,
    "a byte that is none": b"\xc1",
    "a byte that is none, inside": b"\x94\x00\xc1",
    "bytes": b"\x94\x00\x01\xa1x\x91\xc4\x01a",
    "an extension": b"\x94\x00\x01\xa1x\x91\xd4\x05\x00",
    "an empty extension": b"\x94\x00\x01\xa1x\x91\xc7\x00\x05",
    "a timestamp": b"\x94\x00\x01\xa1x\x91\xd6\xff\x00\x00\x00\x00",
    "text that is not UTF-8": b"\x94\x00\x01\xa2\xff\xff\x90",
    "a surrogate": b"\x94\x00\x01\xa3\xed\xa0\x80\x90",
    "half a surrogate pair": b"\x94\x00\x01\xa1x\x91\xa6\xed\xa0\xbd\xed\xb8\x80",
    "a number as a key": b"\x94\x00\x01\xa1x\x91\x81\x01\x01",
    "an array as a key": b"\x94\x00\x01\xa1x\x91\x81\x90\x01",
    "too large an array": msgpack.packb([0, 1, "status", [[0] * (wire.MAX_ITEMS + 1)]]),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_our_msgpack_stops_at_once(data: bytes) -> None:
    _, inbox = _taken(data)
    assert inbox.fault
    assert len(inbox) == 0
    inbox.add(wire.request(1, requests.Status()))
    assert list(inbox.messages()) == []


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_it_stops_as_well_when_it_comes_byte_by_byte(data: bytes) -> None:
    _, inbox = _taken(*(data[at : at + 1] for at in range(len(data))))
    assert inbox.fault


def test_frames_up_to_the_limit_are_taken_and_none_beyond() -> None:
    overhead = len(msgpack.packb([0, 1, "status", [{"x": "a" * (1 << 17)}]])) - (1 << 17)
    largest = msgpack.packb([0, 1, "status", [{"x": "a" * (wire.MAX_REQUEST - overhead)}]])
    assert len(largest) == wire.MAX_REQUEST
    messages, inbox = _taken(largest)
    assert len(messages) == 1
    assert not inbox.fault
    _, inbox = _taken(msgpack.packb([0, 1, "status", [{"x": "a" * (wire.MAX_REQUEST - overhead + 1)}]])[:100])
    assert "bytes" in inbox.fault


def test_many_values_in_a_large_frame_are_not_even_built() -> None:
    _, inbox = _taken(msgpack.packb([0, 1, "status", [[[0] * 60] * 60] * 20]))
    assert "values" in inbox.fault


MESSAGES: dict[str, Any] = {
    "nothing": [],
    "a number": 5,
    "a text": "status",
    "a map": {"method": "status"},
    "nil": None,
    "too short": [0, 1, "status"],
    "too long": [0, 1, "status", [], 5],
    "a response": [1, 1, None, {}],
    "a notification": [2, "status", []],
    "an unknown kind": [3, 1, "status", []],
    "a kind that is no number": [False, 1, "status", []],
    "a kind that is a float": [0.0, 1, "status", []],
    "a negative id": [0, -1, "status", []],
    "an id that is too large": [0, 1 << 32, "status", []],
    "an id that is no number": [0, "1", "status", []],
    "an id that is true": [0, True, "status", []],
    "a method that is no text": [0, 1, 5, []],
    "params that are a map": [0, 1, "status", {}],
    "params that are nil": [0, 1, "status", None],
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_message_that_is_no_request_is_malformed(message: object) -> None:
    with pytest.raises(wire.Malformed):
        wire.read_call(message)


@pytest.mark.parametrize("params", [[_nested(40)], [{"x": _nested(40)}], [{}, _nested(40)], [1, 2, _nested(40)]])
def test_depth_counts_wherever_it_is(params: list[Any]) -> None:
    with pytest.raises(wire.Malformed, match="within each other"):
        wire.read_params(params, requests.Status)
    with pytest.raises(wire.Malformed, match="within each other"):
        wire.unknown_method(wire.Call(1, "nonsense", params), HOST_REQUESTS)


def test_depth_up_to_the_limit_is_only_the_wrong_type() -> None:
    # The message and its params are two.
    with pytest.raises(InvalidRequest):
        wire.read_params([_nested(wire.MAX_DEPTH - 2)], requests.Status)
    with pytest.raises(wire.Malformed):
        wire.read_params([_nested(wire.MAX_DEPTH - 1)], requests.Status)


def test_very_many_values_are_malformed_even_if_they_are_flat() -> None:
    with pytest.raises(wire.Malformed, match="values"):
        wire.read_params([{"x": [[0] * 60] * 60}], requests.Status)


# What is answered with an error


@pytest.mark.parametrize(
    ("params", "field", "text"),
    [
        ([], "vcpus", "vcpus: missing"),
        ([{"vcpus": 1}], "memory_mib", "memory_mib: missing"),
        ([PROGRESS | {"cpus": 1}], "cpus", "no field 'cpus'; the fields of progress: vcpus, memory_mib, level"),
        ([PROGRESS | {"operation": "progress"}], "operation", "no field 'operation'"),
        ([PROGRESS | {"vcpus": "2"}], "vcpus", "vcpus: expected int, got str"),
        ([PROGRESS | {"vcpus": 2.0}], "vcpus", "expected int, got float"),
        ([PROGRESS | {"vcpus": True}], "vcpus", "expected int, got bool"),
        ([PROGRESS | {"vcpus": None}], "vcpus", "expected int, got nil"),
        ([PROGRESS | {"vcpus": b""}], "vcpus", "expected int, got bytes"),
        ([PROGRESS | {"level": [1]}], "level", "expected int, got array"),
        ([PROGRESS | {"level": {"a": 1}}], "level", "expected int, got map"),
        ([PROGRESS | {"x" * 1000: 1}], "x" * 80, "no field"),
        ([{b"": 1}], "fields", "fields: "),
        ([[1, 2, 3]], "fields", "fields: expected map, got array"),
        ([None], "fields", "fields: expected map, got nil"),
        ([PROGRESS, {"timeout": 0}], "timeout", "timeout: expected float > 0.0"),
        ([PROGRESS, {"timeout": -1.0}], "timeout", "timeout"),
        ([PROGRESS, {"timeout": float("nan")}], "timeout", "timeout"),
        ([PROGRESS, {"timeout": float("inf")}], "timeout", "timeout"),
        ([PROGRESS, {"timeout": 3601}], "timeout", "3600"),
        ([PROGRESS, {"timeout": "1"}], "timeout", "timeout"),
        ([PROGRESS, {"timeout": True}], "timeout", "timeout"),
        ([PROGRESS, {"request_id": ""}], "request_id", "request_id"),
        ([PROGRESS, {"request_id": "a b"}], "request_id", "request_id"),
        ([PROGRESS, {"request_id": "a\n"}], "request_id", "request_id"),
        ([PROGRESS, {"request_id": "a" * 65}], "request_id", "request_id"),
        ([PROGRESS, {"deadline": 5}], "deadline", "no field 'deadline'; the fields of options: timeout, request_id"),
        ([PROGRESS, 5], "options", "options: expected map, got int"),
        ([PROGRESS, {}, {}], "params", "params: must be"),
    ],
)
def test_wrong_content_is_named(params: list[Any], field: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.read_params(params, requests.Progress)
    assert caught.value.details == {"field": field}
    assert text in caught.value.message


def test_the_field_of_an_item_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.read_params([{"versions": [1, "2"]}], session.Hello)
    assert caught.value.details == {"field": "versions"}


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    error = wire.unknown_method(wire.Call(1, "destroy", []), HOST_REQUESTS)
    assert error.details == {"field": "method"}
    assert "'destroy'" in error.message
    there, absent = {"hello", "ping", "subscribe", "deploy", "topology"}, {"hosts", "demand", "host_add", "host_remove"}
    named = set(error.message.partition("only ")[2].split(", "))
    assert there <= named
    assert not absent & named


def test_options_may_be_left_out_or_nil() -> None:
    fillings: list[list[object]] = [[], [{}], [{"timeout": None, "request_id": None}]]
    for more in fillings:
        request, options = wire.read_params([PROGRESS, *more], requests.Progress)
        assert request == requests.Progress(**PROGRESS)
        assert options == wire.Options()
    _, options = wire.read_params([PROGRESS, {"timeout": 5, "request_id": "A.b_c-9"}], requests.Progress)
    assert options == wire.Options(timeout=5.0, request_id="A.b_c-9")


# There and back


REQUESTS = [
    requests.Deploy(name="ä 日本", vcpus=1, memory_mib=1, level=1000, image="/i", dry_run=True),
    requests.Remove(name="x"),
    requests.Progress(**PROGRESS),
    requests.Status(),
    requests.List(),
    requests.Describe(name="x"),
    requests.Topology(),
    session.Hello(versions=(1, 2), client="test"),
    session.Subscribe(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_requests_arrive_as_they_were_sent(request_: msgspec.Struct) -> None:
    (message,), _ = _taken(wire.request(5, request_))
    call = wire.read_call(message)
    assert wire.read_params(call.params, wire.METHODS[call.method]) == (request_, wire.Options())


REPLIES = [
    replies.Deployed(name="x", level=1000, cpus=(1, 2)),
    replies.Removed(name="x", released=()),
    replies.ProgressReply(progress=0.1),
    STATUS,
    replies.ListReply(vms=(replies.VmReply("x", 1, 2, 1000, (1,), (1,), "running", "/i"),)),
    replies.TopologyReply("t", 2, ("L1",), (0,), ((10,),), 5, (replies.CpuReply(0, 0, 0, 0, (1,), "free"),)),
    session.HelloReply(1, "vmstackd", "0", "host", "reader"),
]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_replies_arrive_as_they_were_sent(reply: msgspec.Struct) -> None:
    (message,) = wire.Replies().add(wire.response(5, reply))
    response = wire.read_reply(message)
    assert isinstance(response, wire.Response)
    assert response.error is None
    assert wire.read_result(response.result, type(reply)) == reply


def test_replies_may_have_fields_that_are_not_known() -> None:
    assert wire.read_result({"progress": 1.0, "more": [1]}, replies.ProgressReply).progress == 1.0
    with pytest.raises(wire.Malformed):
        wire.read_result({"progress": "1"}, replies.ProgressReply)


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_arrive_as_they_were_sent(kind: type[VmstackError]) -> None:
    error = kind("why")
    error.details = {"message": "odd", "self": 3, "code": 2}
    (message,) = wire.Replies().add(wire.error_response(5, error))
    response = wire.read_reply(message)
    assert isinstance(response, wire.Response)
    assert type(response.error) is kind
    assert response.error.message == "why"
    assert response.error.details == error.details


def test_an_error_that_is_not_known_keeps_its_text() -> None:
    error = {"code": "Tired", "message": "come back later", "retryable": True, "details": {"hours": 8, "odd": [1]}}
    response = wire.read_reply([1, 5, error, None])
    assert isinstance(response, wire.Response)
    assert type(response.error) is Internal
    assert response.error.message == "come back later (Tired)"
    assert response.error.details == {"hours": 8}


EVENTS: list[session.Event] = [
    session.VmDeployed(time=1.5, name="x", level=1000, cpus=(1,)),
    session.VmRemoved(time=1.5, name="x", released=(1,)),
    session.VmRefused(time=1.5, name="x", operation="deploy", code="NoCapacity", reason="full"),
    session.VmAdopted(time=1.5, name="x", level=1000, cpus=(1,)),
    session.VmGone(time=1.5, name="x"),
    session.Degraded(time=1.5, problems=("p",)),
    session.Missed(time=1.5, count=3),
]


@pytest.mark.parametrize("push", [STATUS, *EVENTS], ids=lambda push: type(push).__name__)
def test_what_is_pushed_arrives_as_it_was_sent(push: session.Push) -> None:
    (message,) = wire.Replies().add(wire.notification(push))
    assert wire.read_reply(message) == push


def test_what_a_newer_server_pushes_is_passed_over() -> None:
    assert wire.read_reply([2, "event", [{"event": "eclipse", "time": 1.0}]]) is None
    assert wire.read_reply([2, "weather", [1, 2]]) is None


@pytest.mark.parametrize(
    "message",
    [
        5,
        [],
        [0, 1, "status", []],
        [1, 1, None],
        [1, "1", None, {}],
        [1, 1, "error", None],
        [1, 1, {"message": "no code"}, None],
        [2, "status", []],
        [2, "status", [{}]],
        [2, "event", [5]],
        [2, "event", [{"time": 1.0}]],
        [2, "event", [{"event": "gone", "time": "now", "name": "x"}]],
        [True, 1, None, {}],
    ],
)
def test_what_no_server_sends_is_malformed(message: object) -> None:
    with pytest.raises(wire.Malformed):
        wire.read_reply(message)


def test_a_reply_that_is_too_large_becomes_an_error() -> None:
    frame = wire.response(5, replies.Removed(name="x" * (wire.MAX_REPLY + 1), released=()))
    assert len(frame) < 1000
    response = wire.read_reply(msgpack.unpackb(frame))
    assert isinstance(response, wire.Response)
    assert isinstance(response.error, Internal)
    assert "too large" in response.error.message


def test_a_client_takes_large_frames_in_pieces_and_none_beyond_the_limit() -> None:
    frame = wire.response(5, replies.Removed(name="x" * (wire.MAX_REPLY - 100), released=()))
    inbox = wire.Replies()
    found: list[Any] = []
    for at in range(0, len(frame), 200_000):
        found += inbox.add(frame[at : at + 200_000])
    assert len(found) == 1
    endless = b"\xdd\x00\x40\x00\x00" + b"\x00" * (wire.MAX_REPLY - 1)
    inbox.add(endless[:-100])
    with pytest.raises(wire.Malformed):
        inbox.add(endless[-100:])
    with pytest.raises(wire.Malformed):
        wire.Replies().add(b"\xdd" + struct.pack(">I", 1 << 30))
    with pytest.raises(wire.Malformed):
        wire.Replies().add(b"\xa2\xff\xff")


def test_text_that_is_none_is_sent_in_a_way_that_can_be_read() -> None:
    (message,) = wire.Replies().add(wire.response(5, replies.Removed(name="a\udcff", released=())))
    assert message[3]["name"] == "a\\udcff"
