"""The protocol of the sockets, on byte strings: msgpack-RPC, for clients in any language.

A request is ``[0, msgid, method, params]``, its response ``[1, msgid, error, result]``, a notification
``[2, method, params]``. params is ``[]``, ``[fields]`` or ``[fields, options]``: the fields of the request
by name, and those of ``Options``. error is nil or a map of code, message, retryable and details; result is the
map of the reply's fields. Subscribers get the notifications ``status`` and ``event``.
"""

from __future__ import annotations

import re
from collections.abc import Container, Generator, Mapping, Sequence
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import msgpack  # type: ignore[import-untyped]  # it comes without types
import msgspec

from vmstackd.api import requests, session
from vmstackd.api.errors import ERRORS, Internal, InvalidRequest, VmstackError
from vmstackd.api.replies import StatusReply

MAX_REQUEST = 1 << 20
MAX_REPLY = 4 << 20
"""Bytes of a frame to the server, and of one to a client."""
MAX_DEPTH = 32
"""Arrays and maps within each other."""
MAX_VALUES = 1000
"""In a request, each key, value, array and map counted."""
MAX_ITEMS = 64
"""Of one array or map of a request."""
MAX_TIMEOUT = 3600.0
"""Seconds."""

READ_SIZE = 1 << 16
"""Bytes that a server hands to Inbox.add at most at once."""

_BUFFER_SIZE = 1 << 12
"""Of the library to begin with; it takes a megabyte if not told otherwise."""

_REQUEST, _RESPONSE, _NOTIFICATION = 0, 1, 2
_MAX_MSGID = (1 << 32) - 1

_S = TypeVar("_S", bound=msgspec.Struct)


class Malformed(Exception):
    """What the other side sent is not this protocol; nothing that follows can be understood."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """timeout: seconds after which the answer is DeadlineExceeded. request_id: for the logs."""

    timeout: Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT)] | None = None
    request_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")] | None = None


_NO_OPTIONS = Options()


class Call(msgspec.Struct, frozen=True):
    """A request as it came. Its content is not known to make sense."""

    msgid: int
    method: str
    params: list[Any]


METHODS: Mapping[str, type[session.Hello | session.Ping | session.Subscribe | requests.Request]] = {
    "hello": session.Hello,
    "ping": session.Ping,
    "subscribe": session.Subscribe,
    **{str(kind.__struct_config__.tag): kind for kind in get_args(requests.Request)},
}
"""What can be called, with what."""
OF_CONNECTION = frozenset((session.Hello, session.Ping, session.Subscribe))
"""Those that every program answers."""
METHOD_OF: Mapping[type[msgspec.Struct], str] = {kind: method for method, kind in METHODS.items()}


# Bytes to messages


def _refuse_extension(_code: int, _data: bytes) -> NoReturn:
    raise ValueError("extension types are not used")


def _unpacker(size: int, items: int) -> Any:  # noqa: ANN401  msgpack has no types
    return msgpack.Unpacker(
        read_size=_BUFFER_SIZE,
        max_buffer_size=size,
        max_str_len=size,
        max_bin_len=0,
        max_array_len=items,
        max_map_len=items,
        max_ext_len=0,
        ext_hook=_refuse_extension,
        strict_map_key=True,
        raw=False,
        unicode_errors="strict",
    )


_BROKEN = (ValueError, msgpack.UnpackException)


def _kinds() -> list[tuple[int, int, int] | None]:
    """By first byte of a value: bytes of its length that follow, further bytes, values that it holds.

    Where there is a length, it is to be added to the further bytes, or multiplied by the values if there are any.
    """
    kinds: list[tuple[int, int, int] | None] = [(0, 0, 0)] * 0x80
    kinds += [(0, 0, 2 * size) for size in range(16)]  # map
    kinds += [(0, 0, size) for size in range(16)]  # array
    kinds += [(0, size, 0) for size in range(32)]  # text
    kinds += [(0, 0, 0), None, (0, 0, 0), (0, 0, 0)]  # nil, never used, false, true
    kinds += [(1, 0, 0), (2, 0, 0), (4, 0, 0), (1, 1, 0), (2, 1, 0), (4, 1, 0)]  # bytes, extensions
    kinds += [(0, size, 0) for size in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)]  # numbers
    kinds += [(0, size + 1, 0) for size in (1, 2, 4, 8, 16)]  # extensions
    kinds += [(1, 0, 0), (2, 0, 0), (4, 0, 0)]  # text
    kinds += [(2, 0, 1), (4, 0, 1), (2, 0, 2), (4, 0, 2)]  # array, map
    return kinds + [(0, 0, 0)] * 0x20


_KINDS = _kinds()


class _Walk:
    """Looks for the end of a frame that comes in pieces, without building anything.

    The library would keep what it has built of it: a hundred bytes for one on the wire. And it takes
    notice of the length of a text only when all of it has come.
    """

    def __init__(self) -> None:
        self._at = 0
        self._missing = [1]  # values, of each array or map that has begun
        self._values = 0

    def complete(self, data: bytearray) -> bool:
        """Whether the frame has ended in data, which begins with it. Raises Malformed."""
        missing = self._missing
        while missing and self._at < len(data):
            kind = _KINDS[data[self._at]]
            if kind is None:
                raise Malformed("a byte that no value begins with")
            prefix, body, items = kind
            begin = self._at + 1 + prefix
            if prefix:
                if begin > len(data):
                    return False
                length = int.from_bytes(data[self._at + 1 : begin], "big")
                if items:
                    items *= length
                else:
                    body += length
            self._values += 1
            missing[-1] -= 1
            if items:
                missing.append(items)
            if begin + body + items > MAX_REQUEST:
                raise Malformed(f"a frame of more than {MAX_REQUEST} bytes")
            if len(missing) > MAX_DEPTH + 1:
                raise Malformed(f"more than {MAX_DEPTH} arrays and maps within each other")
            if self._values + items > MAX_VALUES:
                raise Malformed(f"more than {MAX_VALUES} values in a frame")
            while missing and not missing[-1]:
                missing.pop()
            self._at = begin + body
        return not missing and self._at <= len(data)


class Inbox:
    """What has come from a client and has not been taken yet.

    fault: why nothing more can be taken, once that is so. incomplete: whether what is kept is a frame that has begun.
    """

    __slots__ = ("_data", "_walk", "fault")

    def __init__(self) -> None:
        self._data = bytearray()
        self._walk: _Walk | None = None
        self.fault = ""

    def __len__(self) -> int:
        """Bytes kept."""
        return len(self._data)

    @property
    def incomplete(self) -> bool:
        return self._walk is not None

    def add(self, data: bytes | memoryview) -> None:
        """Keep at most READ_SIZE bytes more; take all messages before that, so that no more gathers."""
        self._data += data

    def messages(self) -> Generator[Any, None, None]:
        """Those that are complete, each to be understood with ``read_call``. Close it to leave the rest for later."""
        if not self._data or self.fault:
            return
        if self._walk is not None:
            if not self._look(self._walk):
                return
            self._walk = None
        # A new one each time: between two reads it would keep what it has built of an incomplete frame.
        unpacker = _unpacker(MAX_REQUEST + READ_SIZE, MAX_ITEMS)
        used = 0
        try:
            unpacker.feed(self._data)
            for message in unpacker:
                used = unpacker.tell()
                yield message
        except _BROKEN as error:
            self._stop(str(error) or "not msgpack")
        finally:
            del self._data[:used]
        if self._data:
            self._walk = _Walk()
            self._look(self._walk)

    def _look(self, walk: _Walk) -> bool:
        """Whether a frame is complete."""
        try:
            return walk.complete(self._data)
        except Malformed as error:
            self._stop(str(error))
            return False

    def _stop(self, fault: str) -> None:
        self.fault = fault
        self._data.clear()
        self._walk = None


class Replies:
    """Takes what a server sends. What it has begun to send is kept half built, unlike in Inbox: one server is
    trusted more than thousands of clients, and sends far larger frames.
    """

    __slots__ = ("_received", "_taken", "_unpacker")

    def __init__(self) -> None:
        # Only while a frame is incomplete: it is 50 KiB and more, and a program may have thousands of connections.
        self._unpacker: Any = None
        self._received = self._taken = 0

    def add(self, data: bytes | memoryview) -> list[Any]:
        """The messages that are now complete. Raises Malformed."""
        messages: list[Any] = []
        if self._unpacker is None:
            self._unpacker = _unpacker(MAX_REPLY, MAX_REPLY)
            self._received = self._taken = 0
        self._received += len(data)
        try:
            for begin in range(0, len(data), READ_SIZE):
                self._unpacker.feed(data[begin : begin + READ_SIZE])
                for message in self._unpacker:
                    messages.append(message)
                    self._taken = self._unpacker.tell()
        except _BROKEN as error:
            raise Malformed(str(error) or "not msgpack") from error
        if self._received == self._taken:
            self._unpacker = None
        elif self._received - self._taken > MAX_REPLY:
            raise Malformed(f"a frame of more than {MAX_REPLY} bytes")
        return messages


# Messages to values


def read_call(message: Any) -> Call:  # noqa: ANN401  whatever came
    """The request that a message is. Raises Malformed."""
    if type(message) is list and len(message) == 4:
        kind, msgid, method, params = message
        if (
            type(kind) is int
            and kind == _REQUEST
            and type(msgid) is int
            and 0 <= msgid <= _MAX_MSGID
            and type(method) is str
            and type(params) is list
        ):
            return Call(msgid, method, params)
    raise Malformed("a message that is no request: [0, msgid, method, params]")


def read_params(params: list[Any], kind: type[_S]) -> tuple[_S, Options]:
    """The content of a request. Raises InvalidRequest, or Malformed where it is beyond all limits."""
    try:
        return _content(params, kind)
    except InvalidRequest:
        check_size(params)
        raise


def _content(params: list[Any], kind: type[_S]) -> tuple[_S, Options]:
    if len(params) > 2:
        raise InvalidRequest("params: must be [], [fields] or [fields, options]", field="params")
    fields = params[0] if params else {}
    value = _typed(fields, kind, "fields")
    if "operation" in fields:  # to the types it is the name of the method
        raise _unknown_field("operation", kind)
    return value, _typed(params[1], Options, "options") if len(params) > 1 else _NO_OPTIONS


def unknown_method(call: Call, accepted: Container[type]) -> InvalidRequest:
    """Names the methods that there are. Raises Malformed as read_params does."""
    check_size(call.params)
    known = ", ".join(name for name, kind in METHODS.items() if kind in OF_CONNECTION or kind in accepted)
    return InvalidRequest(f"there is no method {call.method[:80]!r}, only {known}", field="method")


def check_size(params: list[Any]) -> None:
    """Raise Malformed unless the params keep to MAX_DEPTH and MAX_VALUES. Needed only for what fits no type."""
    level: list[Any] = [params]
    values = 0
    for _ in range(1, MAX_DEPTH):  # the message itself is the first
        values += sum(len(item) * (2 if type(item) is dict else 1) for item in level)
        level = [
            inner
            for item in level
            for inner in (item.values() if type(item) is dict else item)
            if type(inner) is list or type(inner) is dict
        ]
        if values > MAX_VALUES:
            raise Malformed(f"more than {MAX_VALUES} values in a frame")
        if not level:
            return
    raise Malformed(f"more than {MAX_DEPTH} arrays and maps within each other")


_PLACE = re.compile(r" - at `(?:key` in `)?\$\.?([^`\[.]*)[^`]*`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")


def _typed(value: Any, kind: type[_S], what: str) -> _S:  # noqa: ANN401  whatever came
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _named(str(error), kind, what) from None


def _named(text: str, kind: type[msgspec.Struct], what: str) -> InvalidRequest:
    """The library's complaint, with the field in front and in details."""
    if found := _UNKNOWN.match(text):
        return _unknown_field(found[1], kind)
    if found := _MISSING.match(text):
        return InvalidRequest(f"{found[1]}: missing", field=found[1])
    place = _PLACE.search(text)
    field = place[1] if place and place[1] else what
    text = (text[: place.start()] if place else text).replace("`", "").replace("null", "nil")
    text = text.replace("object", "map")
    return InvalidRequest(f"{field}: {text[0].lower()}{text[1:]}", field=field)


def _unknown_field(name: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    name, fields = name[:80], ", ".join(kind.__struct_fields__) or "none"
    what = METHOD_OF.get(kind, "options")
    return InvalidRequest(f"there is no field {name!r}; the fields of {what}: {fields}", field=name)


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str = ""
    details: dict[str, Any] = {}


_ERRORS = {kind.code: kind for kind in ERRORS}


class Response(msgspec.Struct, frozen=True):
    """An answer as it came. error: None if there is a result."""

    msgid: int
    error: VmstackError | None
    result: Any


def read_reply(message: Any) -> Response | session.Push | None:  # noqa: ANN401  whatever came
    """What a message from a server is; None if it is a notification newer than this program. Raises Malformed."""
    if type(message) is list and message and type(message[0]) is int:
        match message:
            case [1, int(msgid), error, result]:
                return Response(msgid, None if error is None else _read_error(error), result)
            case [2, "status", [fields]]:
                return read_result(fields, StatusReply)
            case [2, "event", [{"event": str(tag)} as fields]]:
                kind = _EVENTS.get(tag)
                return None if kind is None else read_result(fields, kind)
            case [2, str(method), [*_]] if method not in ("status", "event"):
                return None
    raise Malformed("a message that is neither a response nor a notification")


_EVENTS: Mapping[str, type[session.Event]] = {str(kind.__struct_config__.tag): kind for kind in get_args(session.Event)}


def read_result(result: Any, kind: type[_S]) -> _S:  # noqa: ANN401  whatever came
    """A reply. Raises Malformed."""
    try:
        return msgspec.convert(result, kind)
    except msgspec.ValidationError as error:
        raise Malformed(f"a {kind.__name__} that is none: {error}") from None


def _read_error(value: Any) -> VmstackError:  # noqa: ANN401  whatever came
    error = read_result(value, _Error)
    kind = _ERRORS.get(error.code)
    # A server that is newer than we are may know errors that we do not.
    read = Internal(f"{error.message} ({error.code})") if kind is None else kind(error.message)
    read.details = {key: value for key, value in error.details.items() if isinstance(value, str | int)}
    return read


# Values to bytes


# What an operating system calls a file or a VM may hold bytes that are no text.
_packer = msgpack.Packer(use_bin_type=True, unicode_errors="backslashreplace")


def _pack(message: Sequence[Any]) -> bytes:
    packed: bytes = _packer.pack(message)
    return packed


def request(msgid: int, content: msgspec.Struct, options: Options = _NO_OPTIONS) -> bytes:
    """The frame of a request."""
    fields = msgspec.to_builtins(content)
    fields.pop("operation", None)
    params = [fields]
    if options is not _NO_OPTIONS:
        params.append({key: value for key, value in msgspec.structs.asdict(options).items() if value is not None})
    return _pack((_REQUEST, msgid, METHOD_OF[type(content)], params))


def response(msgid: int, reply: msgspec.Struct) -> bytes:
    """The frame of an answer; of an error if it would be too large for one."""
    frame = _pack((_RESPONSE, msgid, None, msgspec.to_builtins(reply)))
    if len(frame) > MAX_REPLY:
        return error_response(
            msgid, Internal(f"the reply is too large: {len(frame)} bytes; an answer may have {MAX_REPLY}")
        )
    return frame


def error_response(msgid: int, error: VmstackError) -> bytes:
    """The frame of an answer that is an error."""
    content = {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "details": error.details,
    }
    return _pack((_RESPONSE, msgid, content, None))


def notification(push: session.Push) -> bytes:
    """The frame of what a subscriber is told."""
    method = "status" if isinstance(push, StatusReply) else "event"
    return _pack((_NOTIFICATION, method, (msgspec.to_builtins(push),)))
