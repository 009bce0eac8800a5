"""What a server reads from its clients: frames in pieces, calls, and their params."""

from __future__ import annotations

from typing import get_args

from tests.fuzz.target import Target, words
from tests.fuzz.targets.pieces import at_random_places
from vmstackd import wire
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest

_REQUESTS = get_args(requests.Request)


def _heard(pieces: list[bytes]) -> list[str]:
    """What a server makes of a connection, in words; Malformed ends it."""
    inbox, heard = wire.Inbox(), []
    for piece in pieces:
        inbox.add(piece)
        for message in inbox.messages():
            try:
                heard.append(_understood(wire.read_call(message)))
            except wire.Malformed:
                return [*heard, "malformed"]
        assert len(inbox) <= wire.MAX_REQUEST + wire.READ_SIZE
        if inbox.fault:
            return [*heard, "malformed"]
    return heard


def _understood(call: wire.Call) -> str:
    kind = wire.METHODS.get(call.method)
    try:
        if kind is None:
            raise wire.unknown_method(call, _REQUESTS)
        value, options = wire.read_params(call.params, kind)
        if isinstance(value, _REQUESTS):
            requests.check(value)
    except InvalidRequest as error:
        _is_told(call, error)
        return f"{call.msgid} {error.message!r}"
    _goes_round(call, value, options)
    return f"{call.msgid} {value!r} {options!r}"


def _is_told(call: wire.Call, error: InvalidRequest) -> None:
    (message,) = wire.Replies().add(wire.error_response(call.msgid, error))
    told = wire.read_reply(message)
    assert isinstance(told, wire.Response)
    assert isinstance(told.error, InvalidRequest)
    assert (told.msgid, told.error.message, told.error.details) == (call.msgid, error.message, error.details)


def _goes_round(call: wire.Call, value: object, options: wire.Options) -> None:
    inbox = wire.Inbox()
    inbox.add(wire.request(call.msgid, value, options))  # type: ignore[arg-type]  # one of METHODS
    (message,) = inbox.messages()
    again = wire.read_call(message)
    assert (again.msgid, again.method) == (call.msgid, call.method)
    assert wire.read_params(again.params, type(value)) == (value, options)  # type: ignore[type-var]


def take(data: bytes) -> None:
    """The first byte says how the rest is cut into pieces; however it is, the same is heard.

    But for the end: that a frame is malformed may be seen before it is complete, or only then.
    """
    if data:
        whole = _heard([data[1:]])
        pieces = _heard(list(at_random_places(data[1:], data[0])))
        assert whole in (pieces, [*pieces, "malformed"]) or pieces == [*whole, "malformed"], (pieces, whole)


_WORDS = """
name
vcpus
memory_mib
level
image
dry_run
host
versions
operation
timeout
request_id
names
usage
first
address
reason
"""
TARGET = Target(
    take,
    words=(*wire.METHODS, *words(_WORDS)),
)
