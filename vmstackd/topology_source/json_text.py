"""JSON files decoded into types, with errors that name the file, the line and the field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from vmstackd.topology_source.base import SourceError

T = TypeVar("T")

Where = tuple[str | int, ...]
"""Keys and positions that lead from the document to one of its values."""

_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_BYTE = re.compile(r" \(byte ([0-9]+)\)$")
_PATH = re.compile(r"(?: - at (?:`key` in )?`\$([^`]*)`)$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([0-9]+)\]")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")


class JsonText:
    """The text of one JSON document. path is only to show."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        try:
            self.text = data.decode()
        except UnicodeDecodeError as error:
            raise SourceError(path, "is not UTF-8", line=data.count(b"\n", 0, error.start) + 1) from error
        self._data = data

    def fields(self) -> dict[str, msgspec.Raw]:
        """The members of the document, which must be an object. Raises SourceError."""
        return self.decode(dict[str, msgspec.Raw])

    def decode(self, into: type[T], part: msgspec.Raw | None = None, where: Where = ()) -> T:
        """The document, or a part of it that is found at where, as a type. Raises SourceError.

        A part comes from a decoded document, so that it cannot be malformed JSON any more.
        """
        try:
            return msgspec.json.decode(self._data if part is None else part, type=into)
        except msgspec.ValidationError as error:
            self._refuse(into, str(error), where)
        except msgspec.DecodeError as error:
            self._malformed(str(error), error)
        except RecursionError as error:
            raise SourceError(self.path, "is nested too deeply", field=shown(where)) from error

    def error(self, where: Where, message: str) -> SourceError:
        """An error in the value at where, or, if there is none, in the nearest value around it."""
        line = 1
        for found, offset in self._values():
            if found == where[: len(found)]:
                line = self.text.count("\n", 0, offset) + 1
                if found == where:
                    break
        return SourceError(self.path, message, field=shown(where), line=line)

    def check_no_key_twice(self) -> None:
        """Raise SourceError if an object has two members of one name."""
        seen = set()
        for found, offset in self._values():
            if found in seen:
                line = self.text.count("\n", 0, offset) + 1
                raise SourceError(self.path, "is given twice", field=shown(found), line=line)
            seen.add(found)

    def _refuse(self, into: type[T], text: str, where: Where) -> NoReturn:
        path = _PATH.search(text)
        if path is not None:
            text = text[: path.start()]
            for step in _STEP.finditer(path[1].partition("[...]")[0]):
                where = (*where, step[1] if step[2] is None else int(step[2]))
        if missing := _MISSING.fullmatch(text):
            raise self.error((*where, missing[1]), "is missing")
        if unknown := _UNKNOWN.fullmatch(text):
            allowed = ", ".join(getattr(into, "__struct_fields__", ()))
            raise self.error((*where, unknown[1]), f"is not a field; allowed: {allowed}")
        raise self.error(where, text[:1].lower() + text[1:])

    def _malformed(self, text: str, error: Exception) -> NoReturn:
        byte = _BYTE.search(text)
        text = text[: byte.start()] if byte else text
        offset = int(byte[1]) if byte else len(self._data)
        raise SourceError(self.path, text, line=self._data.count(b"\n", 0, offset) + 1) from error

    def _values(self) -> Iterator[tuple[Where, int]]:
        """Every value of well-formed JSON, with its offset."""
        path: list[str | int] = []
        in_object: list[bool] = []
        at_key = False
        for match in _PIECE.finditer(self.text):
            piece = match[0]
            if piece in "}]":
                path.pop()
                in_object.pop()
            elif piece == ",":
                at_key = in_object[-1]
                if not at_key:
                    path[-1] = int(path[-1]) + 1
            elif piece == ":":
                at_key = False
            elif at_key:
                path[-1] = piece[1:-1]
            else:
                yield tuple(path), match.start()
                if piece in "{[":
                    at_key = piece == "{"
                    in_object.append(at_key)
                    path.append("" if at_key else 0)


def shown(where: Where) -> str:
    """A place as people write it: nodes.1.distances[0]."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{_plain(step)}" for step in where)
    return text.removeprefix(".")


def _plain(key: str) -> str:
    """A key of any length and content, fit for one line."""
    key = key if len(key) <= 40 else f"{key[:37]}..."
    return key if key.isprintable() else ascii(key)
