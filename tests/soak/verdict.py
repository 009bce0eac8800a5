"""Whether a long run was flat: its last third compared with the middle one. The first one warms up.

How noise is told from growth. Memory: medians of many moments. Descriptors and threads: what nearly every moment has
at least, because connections come and go. Time: each third is cut into windows, and the best quarter of them counts:
work of others on the machine makes some windows bad, growth all of them. And by as much as a process that does nothing
but a fixed little work took longer in the last third, the daemons may take longer too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from benchmarks.table import aligned, median, percentile
from tests.soak.samples import Call, Moment, Process

THIRDS = 3
PULSE = "fixed work, for comparison"
"""The door of calls to a process that is not ours to judge."""
QUIET_PERCENT = 25
"""Of the windows, which count."""
FLOOR_PERCENT = 25
"""The lowest quarter of the moments is passed over: a client may have counted a connection that is not yet accepted,
and a daemon that was just started has not opened its recording, for 15 s of the 90 s that it lives.
"""


class Limits(msgspec.Struct, frozen=True):
    """Of the last third against the middle one. memory, time, log: quotients. threads: more of them in each process.

    log_bytes: of one kind of process, for each call. windows: of a third. log_slack (bytes), slack_ms: within which
    nobody asks for quotients.
    """

    memory: float = 1.02
    time: float = 1.5
    log: float = 1.2
    log_bytes: float = 600.0
    log_slack: float = 50.0
    threads: int = 2
    windows: int = 12
    slack_ms: float = 0.2


class Row(msgspec.Struct, frozen=True):
    """One figure. thirds: how it was in each. limit: of the last, as text; empty if it is only shown."""

    what: str
    thirds: tuple[str, ...]
    limit: str
    good: bool


class Run(msgspec.Struct, frozen=True):
    """What was seen in so many seconds. moments and calls: in order of time, all within them.

    unjudged: kinds of processes whose memory is only shown, because they were started again and again.
    """

    seconds: float
    moments: Sequence[Moment]
    calls: Sequence[Call]
    unjudged: frozenset[str] = frozenset()


def judge(run: Run, limits: Limits) -> list[Row]:
    """Every figure with its judgement. Raises ValueError if a third of the run was not looked at."""
    moments = _thirds(run.moments, run.seconds, lambda moment: moment.at)
    if not all(moments):
        raise ValueError("a third of the run was not looked at")
    calls = _thirds(run.calls, run.seconds, lambda call: call.at)
    rows = []
    for kind in sorted({process.kind for moment in run.moments for process in moment.processes}):
        rows += [
            _memory(kind, moments, limits, judged=kind not in run.unjudged),
            _least(kind, "descriptors of its own", moments, lambda one: one.descriptors - one.held, 0),
            _least(kind, "threads", moments, lambda one: one.threads, limits.threads),
            _log(kind, moments, calls, limits),
        ]
    for door in sorted({call.door for call in run.calls}, key=lambda door: (door == PULSE, door)):
        rows += [_latency(door, run.seconds, calls, percent, limits) for percent in (50, 99)]
    return rows


def table(rows: Iterable[Row]) -> str:
    """For people."""
    lines = [
        [row.what, *row.thirds, row.limit, "" if not row.limit else "ok" if row.good else "NOT OK"] for row in rows
    ]
    return aligned(["", "first third", "middle", "last", "limit", ""], lines)


_T = TypeVar("_T")


def _thirds(items: Iterable[_T], seconds: float, at: Callable[[_T], float]) -> list[list[_T]]:
    return _parts(items, THIRDS, 0.0, seconds, at)


def _parts(items: Iterable[_T], count: int, begin: float, end: float, at: Callable[[_T], float]) -> list[list[_T]]:
    """Of a span of time, equally long."""
    parts: list[list[_T]] = [[] for _ in range(count)]
    for item in items:
        parts[min(count - 1, int(count * (at(item) - begin) / (end - begin)))].append(item)
    return parts


def _of_kind(moment: Moment, kind: str) -> list[Process]:
    return [process for process in moment.processes if process.kind == kind]


def _memory(kind: str, moments: list[list[Moment]], limits: Limits, *, judged: bool) -> Row:
    """Of all processes of a kind together."""
    sums = [[sum(one.resident_kib for one in _of_kind(moment, kind)) for moment in third] for third in moments]
    middles = [median(third) for third in sums]
    return Row(
        what=f"{kind}: resident memory, MiB",
        thirds=tuple(f"{kib / 1024:.1f}" for kib in middles),
        limit=f"<= {middles[1] / 1024 * limits.memory:.1f}" if judged else "",
        good=not judged or middles[2] <= middles[1] * limits.memory,
    )


def _least(kind: str, what: str, moments: list[list[Moment]], count: Callable[[Process], int], more: int) -> Row:
    """Of each process, what it has at nearly every moment at least. more: by which it may have grown."""
    names = sorted({process.name for process in _of_kind(moments[-1][-1], kind)})
    least = [
        [
            percentile([count(one) for moment in third for one in moment.processes if one.name == name], FLOOR_PERCENT)
            for name in names
        ]
        for third in moments
    ]
    return Row(
        what=f"{kind}: {what}",
        thirds=tuple(f"{sum(third):.0f}" for third in least),
        limit="no more" if not more else f"{more} more each",
        good=all(last <= middle + more for middle, last in zip(least[1], least[2], strict=True)),
    )


def _log(kind: str, moments: list[list[Moment]], calls: list[list[Call]], limits: Limits) -> Row:
    """Of all processes of a kind, for each call that anybody made."""
    written = [sum(one.log_bytes for one in _of_kind(third[-1], kind)) for third in moments]
    begin = sum(one.log_bytes for one in _of_kind(moments[0][0], kind))
    each = [
        (after - before) / max(1, len([call for call in third if call.door != PULSE]))
        for before, after, third in zip((begin, *written), written, calls, strict=False)
    ]
    most = min(limits.log_bytes, max(limits.log_slack, each[1] * limits.log))
    return Row(
        what=f"{kind}: log, bytes for each call",
        thirds=tuple(f"{size:.0f}" for size in each),
        limit=f"<= {most:.0f}",
        good=each[2] <= most,
    )


def _latency(door: str, seconds: float, calls: list[list[Call]], percent: int, limits: Limits) -> Row:
    """See the module for how it is judged."""
    what = f"{door}: {'median' if percent == 50 else f'p{percent}'}, ms"
    timed = _when_quiet(calls, door, seconds, percent, limits.windows)
    if timed is None:
        return Row(what=what, thirds=("", "", ""), limit="calls in each third", good=False)
    shown = tuple(f"{1000 * third:.2f}" for third in timed)
    if door == PULSE:
        return Row(what=what, thirds=shown, limit="", good=True)
    pulse = _when_quiet(calls, PULSE, seconds, percent, limits.windows)
    slower = 1.0 if pulse is None else max(1.0, pulse[2] / pulse[1])
    most = max(timed[1] * limits.time, timed[1] + limits.slack_ms / 1000) * slower
    return Row(what=what, thirds=shown, limit=f"<= {1000 * most:.2f}", good=timed[2] <= most)


def _when_quiet(calls: list[list[Call]], door: str, seconds: float, percent: int, windows: int) -> list[float] | None:
    """This percentile in a quiet window of each third, in seconds; None if there were no calls in one of them."""
    length = seconds / THIRDS
    found = []
    for number, third in enumerate(calls):
        mine = [call for call in third if call.door == door]
        parts = _parts(mine, windows, number * length, (number + 1) * length, lambda call: call.at)
        each = [percentile([call.seconds for call in part], percent) for part in parts if part]
        if not each:
            return None
        found.append(percentile(each, QUIET_PERCENT))
    return found
