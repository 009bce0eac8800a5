"""What a client reads from a server: frames in pieces, answers, errors, and what subscribers are told."""

from __future__ import annotations

from typing import get_args

import msgspec

from tests.fuzz.target import Target, words
from tests.fuzz.targets.pieces import at_random_places
from vmstackd import wire
from vmstackd.api import replies, session
from vmstackd.api.errors import ERRORS

_KINDS: tuple[type[msgspec.Struct], ...] = (
    session.HelloReply,
    session.Pong,
    session.Subscribed,
    *get_args(replies.Reply),
)


def take(data: bytes) -> None:
    """The first byte says how the rest is cut into pieces. Raises nothing for what is Malformed."""
    if not data:
        return
    inbox = wire.Replies()
    try:
        for piece in at_random_places(data[1:], data[0]):
            for message in inbox.add(piece):
                _read(message)
    except wire.Malformed:
        pass


def _read(message: object) -> None:
    found = wire.read_reply(message)
    if found is None:
        return
    if not isinstance(found, wire.Response):
        assert wire.notification(found) == wire.notification(_again(wire.notification(found)))
        return
    if found.error is not None:
        assert type(found.error) in ERRORS
        wire.error_response(0, found.error)
    for kind in _KINDS:
        try:
            reply = wire.read_result(found.result, kind)
        except wire.Malformed:
            continue
        frame = wire.response(1, reply)
        (again,) = wire.Replies().add(frame)
        response = wire.read_reply(again)
        assert isinstance(response, wire.Response)
        assert wire.response(1, wire.read_result(response.result, kind)) == frame


def _again(frame: bytes) -> session.Push:
    (message,) = wire.Replies().add(frame)
    found = wire.read_reply(message)
    assert found is not None
    assert not isinstance(found, wire.Response)
    return found


_FIELDS = dict.fromkeys(field for kind in (*_KINDS, *get_args(session.Event)) for field in kind.__struct_fields__)
_WORDS = """
status
event
code
message
details
deployed
removed
gone
adopted
missed
"""
TARGET = Target(
    take,
    words=(
        *tuple({field for kind in (*_KINDS, *get_args(session.Event)) for field in kind.__struct_fields__}),
        *words(_WORDS),
    ),
)
