"""``vmstackd --load=TRACE``: a recorded experiment decided anew, on paper: no hypervisor, no port, no waiting."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import msgspec

from core.level import LevelError, format_level, parse_level
from core.model import HostState
from core.policy import POLICIES
from core.replay import Replay
from core.trace import COLUMNS
from vmstackd.daemon.command_line import abandon_stdout, fail
from vmstackd.daemon.life import EXIT_DONE, EXIT_FAILED
from vmstackd.daemon.log import one_line
from vmstackd.replay_output import FORMS, Form, Setup
from vmstackd.replay_progress import NoBar, bar
from vmstackd.replay_record import DEFAULT, RecordError, ReplayRecord
from vmstackd.settings import TABLE, Settings
from vmstackd.trace_file import TraceFile, TraceFileError

_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LOOKED_AT = 4096
"""Bytes of a file that tell what it is."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PERIOD_S = 0.1
_MOST_KEPT = 1 << 16
"""Characters that wait to be written."""


class Order(msgspec.Struct, frozen=True):
    """What to do. output: of FORMS. relevel: as in ``core.replay.Replay``. record: where the recomputed trace goes."""

    trace: Path
    output: str
    relevel: Mapping[int, int]
    record: Path | None


def is_trace(path: Path) -> bool:
    """Whether a file is a recorded trace, not a topology. A pipe, which can be read only once, is. Raises OSError."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return True
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    first, _, _ = start.removeprefix(_BYTE_ORDER_MARK).partition(b"\n")
    names = first.decode(errors="replace").rstrip("\r").split("\t")
    return (
        path.name.lower().endswith((".csv", ".csv.gz"))
        or start.startswith(_GZIP)
        or not frozenset(COLUMNS).isdisjoint(names)
    )


def parse_relevel(text: str) -> dict[int, int]:
    """Read "2.0=3.0,1.5=2.0": levels recorded and levels to place at. Raises ValueError with what is allowed."""
    allowed = 'levels as "2.0=3.0,1.5=2.0": recorded at, to be placed at'
    levels: dict[int, int] = {}
    for part in text.split(","):
        recorded, equals, placed = part.partition("=")
        if not equals:
            raise ValueError(f"{part.strip()[:40]!r} is not understood; write {allowed}")
        try:
            level, new = parse_level(recorded.strip()), parse_level(placed.strip())
        except LevelError as error:
            raise ValueError(f"{error}; write {allowed}") from error
        if level in levels:
            raise ValueError(f"level {format_level(level)} is there twice; write {allowed}, each recorded one once")
        levels[level] = new
    return levels


def record_path(settings: Settings, record: str | None) -> Path | None:
    """Where the recomputed trace goes, None for nowhere. record: as typed, if it was.

    A ``record`` of the settings files is not followed: there, a daemon records the real host.
    """
    if record == "none":
        return None
    if record:
        return Path(record)
    return DEFAULT if settings.debug > 0 else None


def replay(settings: Settings, state: HostState, order: Order) -> int:
    """Replay a trace on an empty host; returns the exit code, which is 0 only if the whole file was read."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may have letters that it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_signals():
            _replay(settings, state, order)
    except (TraceFileError, RecordError) as error:
        return fail(TABLE, error, EXIT_FAILED)
    except _Ended as ended:
        abandon_stdout()
        return 128 + ended.number
    except BrokenPipeError:
        abandon_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        abandon_stdout()
        return fail(TABLE, f"cannot write: {error.strerror}", EXIT_FAILED)
    return EXIT_DONE


def _replay(settings: Settings, state: HostState, order: Order) -> None:
    form = FORMS[order.output](
        Setup(
            trace=one_line(str(order.trace)),
            topology=one_line(settings.topology),
            policy=settings.policy,
            critical_size=settings.critical_size,
            critical_sizes=settings.critical_sizes,
            relevel=order.relevel,
        )
    )
    replayed = Replay(state, POLICIES[settings.policy], order.relevel)
    with contextlib.ExitStack() as parts:
        trace = parts.enter_context(TraceFile(order.trace))
        record = None if order.record is None else parts.enter_context(ReplayRecord(order.record))
        shown = bar(trace.size)
        parts.callback(shown.erase)
        out = parts.enter_context(_Out(shown))
        _decide(trace, replayed, form, out, record)
        if record is not None:
            record.finish()
        out.flush()
        for note in trace.notes:
            sys.stderr.write(one_line(f"{TABLE.program}: {trace.path}: {note}") + "\n")
        out.write(form.end(replayed.summary()))
    sys.stderr.write(form.aside(replayed.summary()))


def _decide(trace: TraceFile, replayed: Replay, form: Form, out: _Out, record: ReplayRecord | None) -> None:
    out.write(form.begin())
    for sample in trace:
        out.write(form.moment(replayed.step(sample)))
        if record is not None:
            record.add(replayed.recomputed(sample))
        out.show(trace.position, trace.rows)


class _Out:
    """stdout, and the bar that makes room for it. What was written is out after the block, unless a signal ends it:
    then nothing is waited for.
    """

    def __init__(self, shown: NoBar) -> None:
        self._bar = shown
        self._kept: list[str] = []
        self._length = 0
        self._due = time.monotonic() + _PERIOD_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not _Ended:
            self.flush()

    def write(self, text: str) -> None:
        """Raises OSError."""
        if text:
            self._kept.append(text)
            self._length += len(text)
            if self._length > _MOST_KEPT:
                self.flush()

    def show(self, position: int, rows: int) -> None:
        """How far it is. Raises OSError."""
        now = time.monotonic()
        if now >= self._due:
            self.flush()
            self._bar.show(position, rows)
            self._due = now + _PERIOD_S

    def flush(self) -> None:
        """Raises OSError."""
        kept, self._kept, self._length = self._kept, [], 0
        self._bar.erase()
        sys.stdout.write("".join(kept))
        sys.stdout.flush()


class _Ended(BaseException):
    """A signal came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The first signal that ends a program raises _Ended, so that what is to be tidied up is."""

    def end(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(number)

    ours = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # such as with nohup
    before = {number: signal.signal(number, end) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
