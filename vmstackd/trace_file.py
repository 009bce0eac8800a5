"""Trace files: whatever a recording left on a disk or sends through a pipe, read as samples in constant memory."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from core.trace import COLUMNS, Sample
from core.trace_parser import TraceError, TraceParser

LONGEST_LINE = 8 << 20
"""Bytes; descriptions of the prototype make lines of more than one MiB."""

_PIECE = 1 << 18
"""Bytes that are read or unpacked at once."""
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
"""What zlib wants to be told about data with the header of gzip."""
_TRACE = f"a trace: the names of columns, separated by tabs ({', '.join(COLUMNS)}), then rows"


class TraceFileError(Exception):
    """A file that cannot be read, or that is no trace: one line with its path, for people."""


class TraceFile:
    """A trace, to be iterated over once, in a ``with`` block. Both opening and iterating raise TraceFileError.

    position: bytes of the file read so far. size: bytes of the file, 0 if not known, as of a pipe. notes: for people,
    what was tolerated; complete at the end.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file, of text or packed with gzip. Waits for the writer of a pipe."""
        self.path = str(path)
        self.position = 0
        self.notes: list[str] = []
        self._binary = False
        self._cut_off = False
        self._rest = b""
        self._parser: TraceParser | None = None
        try:
            self._file = io.FileIO(self.path)
        except IsADirectoryError:
            raise TraceFileError(f"{path}: is a directory, expected the file of a trace") from None
        except OSError as error:
            raise self._unreadable(error) from error
        except ValueError as error:  # a NUL byte in the path
            raise TraceFileError(f"{self.path!r}: {error}") from error
        status = os.fstat(self._file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._samples = self._read()

    @property
    def rows(self) -> int:
        """Rows read so far, without the column names."""
        return 0 if self._parser is None else self._parser.line - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._samples.close()
        self._file.close()

    def __iter__(self) -> Iterator[Sample]:
        return self._samples

    def _read(self) -> Generator[Sample, None, None]:
        try:
            yield from self._parsed()
        except TraceError as error:
            if self._binary and self._parser is None:
                raise TraceFileError(f"{self.path}: is a binary file, expected {_TRACE}") from None
            raise TraceFileError(f"{self.path}: {error}") from error

    def _parsed(self) -> Generator[Sample, None, None]:
        for lines in self._whole_lines():
            if self._parser is None:
                self._parser = TraceParser(lines.pop(0))
            yield from self._parser.read(lines)
        rest = self._rest.removesuffix(b"\r")
        if self._parser is None:
            if not rest:
                raise TraceFileError(f"{self.path}: is empty, expected {_TRACE}")
            self._parser, rest = TraceParser(rest), b""
        if rest and not self._cut_off and self._parser.is_whole(rest):
            yield from self._parser.read([rest])
        elif rest or self._cut_off:
            self._cut_off = True
            self.notes.append(f"line {self._parser.line + 1}: the file was cut off here")
        last = self._parser.end(self._cut_off)
        if last is not None:
            yield last
        self.notes += self._parser.notes()

    def _whole_lines(self) -> Iterator[list[bytes]]:
        """Lines without their ends, some at a time, at least one. What comes after the last line end stays behind."""
        count, waiting = 0, bytearray()
        for piece in self._pieces():
            first, end = piece.find(b"\n"), piece.rfind(b"\n") + 1
            if len(waiting) + (first if end else len(piece)) > LONGEST_LINE:
                raise TraceError(count + 1, f"found more than {LONGEST_LINE} bytes without a line end, expected a row")
            if not end:
                waiting += piece
                continue
            waiting += piece[:end]
            lines = bytes(waiting).replace(b"\r\n", b"\n").split(b"\n")
            lines.pop()
            waiting = bytearray(piece[end:])
            count += len(lines)
            yield lines
        self._rest = bytes(waiting)

    def _pieces(self) -> Iterator[bytes]:
        """The text of the file, unpacked."""
        start = self._next()
        while len(start) < len(_GZIP) and (more := self._next()):  # a pipe gives what it has
            start += more
        pieces = self._unpacked(start) if start.startswith(_GZIP) else self._plain(start)
        for piece in pieces:
            self._binary = self._binary or (self._parser is None and b"\0" in piece)
            yield piece

    def _plain(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            yield piece
            piece = self._next()

    def _unpacked(self, packed: bytes) -> Iterator[bytes]:
        """Of one gzip stream after another. One that ends early is what a killed writer leaves."""
        stream = zlib.decompressobj(_GZIP_WINDOW)
        while packed:
            try:
                yield stream.decompress(packed, _PIECE)
            except zlib.error as error:
                line = 1 if self._parser is None else self._parser.line + 1
                raise TraceError(line, f"found damaged gzip data, expected them as gzip wrote them: {error}") from error
            packed = stream.unconsumed_tail
            if stream.eof:
                packed = stream.unused_data or self._next()
                if packed:
                    stream = zlib.decompressobj(_GZIP_WINDOW)
            elif not packed:
                packed = self._next()
        self._cut_off = not stream.eof

    def _next(self) -> bytes:
        try:
            data = self._file.read(_PIECE)
        except OSError as error:
            raise self._unreadable(error) from error
        self.position += len(data)
        return data

    def _unreadable(self, error: OSError) -> TraceFileError:
        return TraceFileError(f"{self.path}: cannot be read: {error.strerror}")
