"""Reads traces, row by row, in memory that does not grow. What they are made of: ``core.trace``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from core.cpuset import HIGHEST_CPU
from core.level import HIGHEST, LOWEST, LevelError, format_level, parse_level
from core.trace import COLUMNS, Sample, TracedLevel, TracedVm, printable_name

LARGEST_TIME = 10**10
"""Seconds."""
MOST_CPUS = HIGHEST_CPU + 1
LARGEST_MEMORY_MIB = 1 << 40
LARGEST_SHARE = 8.0
"""What is measured can be a little more than the whole, and counts as the whole; this much is no measurement."""

_NEEDED = ("tmp", "rec", "res", "val", "config", "vm_uuid", "vm_cmn", "sb_oc")
_PROTOTYPE_COLUMNS = COLUMNS[:-1]
_UNCHANGING = 7
"""Columns of COLUMNS between what is measured, ``val`` and ``delay``."""
_NONE = b"None"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_match_whole_number = re.compile(rb"([0-9]{1,15})(?:\.0{0,9})?").fullmatch
_match_number = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{0,30})?(?:[eE][-+]?[0-9]{1,3})?").fullmatch
_LONGEST_REMEMBERED = 1000
"""Bytes."""
_FEWEST_REMEMBERED = 1024


class TraceError(ValueError):
    """What is wrong with a trace. line: from 1, the column names. message: what was found and what was expected."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


class _Unexpected(Exception):
    """A cell that cannot be read, before it is known where it is."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")


class _VmCpus(NamedTuple):
    """What a cpu row says of a VM at any time. key: the same in its mem rows."""

    key: str
    uuid: str
    name: str
    level: int
    vcpus: int


class _VmMemory(NamedTuple):
    """What a mem row says of a VM at any time."""

    key: str
    name: str
    memory_mib: int


class _Rows:
    """Rows that lack something, counted. line: of the first."""

    def __init__(self) -> None:
        self.count = 0
        self.line = 0

    def add(self, line: int) -> None:
        self.count += 1
        self.line = self.line or line


class TraceParser:
    """Rows of a trace in, samples out. line: of the row that was read last, from 1, the column names.

    What the rows of a VM say again and again is read once and remembered, of about as many VMs as there are at a time.
    """

    def __init__(self, header: bytes) -> None:
        """header: the column names, in any order, with unknown ones between. Raises TraceError."""
        self.line = 1
        self._columns = _columns(header)
        self._header = header.removeprefix(_BYTE_ORDER_MARK)
        # In the usual order, a row needs to be cut at few places.
        self._usual = self._columns in (COLUMNS, _PROTOTYPE_COLUMNS)
        self._delayed = "delay" in self._columns
        self._places = [self._columns.index(name) if name in self._columns else None for name in COLUMNS]
        self._vm_cpus: dict[bytes, _VmCpus] = {}
        self._vm_memory: dict[bytes, _VmMemory] = {}
        self._tmp = b""
        self._time = -1
        self._begins = 0
        self._host_cpu: tuple[int, float | None] | None = None
        self._host_memory: tuple[int, float | None] | None = None
        self._levels: dict[int, TracedLevel] = {}
        self._cpus: dict[str, tuple[_VmCpus, float | None, float | None, int]] = {}
        self._memory: dict[str, tuple[int, float | None, int]] = {}
        self._lacked = False
        self._was_headless = False
        self._without_memory = _Rows()
        self._without_cpus = _Rows()
        self._left_out = ""

    def read(self, rows: Iterable[bytes]) -> Iterator[Sample]:
        """The samples that these rows, the next ones, complete: a sample is complete when the next moment begins.

        rows: without line ends. To be used up before the next call. Raises TraceError.
        """
        usual, delayed, now = self._usual, self._delayed, self._tmp
        vm_cpus, vm_memory, cpus, memory = self._vm_cpus, self._vm_memory, self._cpus, self._memory
        row, delay, line = b"", _NONE, self.line
        try:
            for row in rows:
                line += 1
                if usual:
                    cells = row.split(b"\t", 4)
                    if len(cells) != 5:
                        raise _no_row(row)
                    tmp, record, resource, value, rest = cells
                    if delayed:
                        rest, _, delay = rest.rpartition(b"\t")
                else:
                    tmp, record, resource, value, rest, delay = self._in_usual_order(row)
                if tmp != now:
                    if row == self._header:  # of a file that was put behind another
                        continue
                    time = _not_before(self._time, tmp)
                    if time > self._time:
                        if self._begins:
                            self.line = line
                            yield self._complete()
                        self._time, self._begins = time, line
                    now = self._tmp = tmp
                if record == b"vm":
                    if resource == b"cpu":
                        vm = vm_cpus.get(rest)
                        if vm is None:
                            vm = self._learn_cpus(rest)
                        if vm.key in cpus:
                            raise _twice(f"cpu row of the VM {vm.name!r}", now)
                        cpus[vm.key] = (vm, _share(value), _seconds(delay), line)
                    elif resource == b"mem":
                        known = vm_memory.get(rest)
                        if known is None:
                            known = self._learn_memory(rest)
                        if known.key in memory:
                            raise _twice(f"mem row of the VM {known.name!r}", now)
                        memory[known.key] = (known.memory_mib, _share(value), line)
                    else:
                        raise _no_resource(resource)
                elif record == b"subset":
                    self._take_subset(resource, value, rest, delay)
                elif record == b"global":
                    self._take_host(resource, value, rest)
                else:
                    raise _no_record(record)
        except _Unexpected as wrong:
            raise TraceError(line, self._plainly_wrong(row) or str(wrong)) from None
        finally:
            self.line = line

    def end(self, cut_off: bool = False) -> Sample | None:
        """The last sample, None if there is none or if it is incomplete, as when the recording was killed.

        cut_off: rows are known to be missing at the end. Call once, then ``notes``.
        """
        if not self._begins:
            return None
        lacking = not self._cpus.keys() <= self._memory.keys()
        if cut_off:
            incomplete = lacking or self._host_memory is None
        else:  # a trace that tells less has told less of the moment before, too
            incomplete = (lacking and not self._lacked) or (self._is_headless() and not self._was_headless)
        if incomplete:
            self._left_out = (
                f"line {self._begins}: the sample that begins here, at {self._time} s, is incomplete and was left out"
            )
            return None
        return self._complete()

    def notes(self) -> list[str]:
        """What was tolerated, each once, for people."""
        notes: list[str] = []
        for rows, text in (
            (self._without_memory, "a VM has no mem row at this moment, so its memory is not known"),
            (self._without_cpus, "a VM has no cpu row at this moment, so it was left out"),
        ):
            if rows.count:
                notes.append(f"line {rows.line}: {text} (rows like this: {rows.count})")
        return [*notes, self._left_out] if self._left_out else notes

    def is_whole(self, row: bytes) -> bool:
        """Whether a row is not cut off, as far as can be seen: it ends with "None" or with all of a description."""
        cells = row.split(b"\t")
        if len(cells) != len(self._columns):
            return False
        return cells[-1] == _NONE or _is_object(cells[-1])

    def _in_usual_order(self, row: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
        """The cells that measure, and the others joined, as if the columns were COLUMNS."""
        cells = row.split(b"\t")
        if len(cells) != len(self._columns):
            raise _no_row(row)
        usual = [_NONE if place is None else cells[place] for place in self._places]
        return usual[0], usual[1], usual[2], usual[3], b"\t".join(usual[4:-1]), usual[-1]

    def _learn_cpus(self, rest: bytes) -> _VmCpus:
        config, _, uuid, name, level, *_ = _cells(rest)
        key, uuid_text, name_text = _identity(uuid, name)
        vm = _VmCpus(key, uuid_text, name_text, _level(level), _whole(config, "config", 1, MOST_CPUS, "vCPUs"))
        if len(rest) <= _LONGEST_REMEMBERED:
            self._vm_cpus[rest] = vm
        return vm

    def _learn_memory(self, rest: bytes) -> _VmMemory:
        config, _, uuid, name, *_ = _cells(rest)
        key, _, name_text = _identity(uuid, name)
        vm = _VmMemory(key, name_text, _whole(config, "config", 1, LARGEST_MEMORY_MIB, "MiB"))
        if len(rest) <= _LONGEST_REMEMBERED:
            self._vm_memory[rest] = vm
        return vm

    def _take_subset(self, resource: bytes, value: bytes, rest: bytes, delay: bytes) -> None:
        config, _, _, _, level_text, unused, description = _cells(rest)
        if resource == b"mem":
            _whole(config, "config", 0, LARGEST_MEMORY_MIB, "MiB")
            _share(value)
            return
        if resource != b"cpu":
            raise _no_resource(resource)
        level = _level(level_text)
        if level in self._levels:
            raise _twice(f"cpu row of the subset of level {format_level(level)}", self._tmp)
        self._levels[level] = TracedLevel(
            level=level,
            cpus=_whole(config, "config", 0, MOST_CPUS, "CPUs"),
            busy_cpus=_measured(value, "val", MOST_CPUS, "of busy CPUs"),
            unused=0 if unused == _NONE else _whole(unused, "sb_unused", 0, MOST_CPUS, "CPUs"),
            description=b"" if description == _NONE else description,
            delay_s=_seconds(delay),
        )

    def _take_host(self, resource: bytes, value: bytes, rest: bytes) -> None:
        config = _cells(rest)[0]
        if resource == b"cpu":
            if self._host_cpu is not None:
                raise _twice("global cpu row", self._tmp)
            self._host_cpu = (_whole(config, "config", 0, MOST_CPUS, "CPUs"), _share(value))
        elif resource == b"mem":
            if self._host_memory is not None:
                raise _twice("global mem row", self._tmp)
            self._host_memory = (_whole(config, "config", 0, LARGEST_MEMORY_MIB, "MiB"), _share(value))
        else:
            raise _no_resource(resource)

    def _is_headless(self) -> bool:
        """Whether what follows the rows of CPUs is missing."""
        return self._host_cpu is not None and self._host_memory is None

    def _complete(self) -> Sample:
        """What was read of the present moment; nothing is left of it."""
        memory, vms = self._memory, []
        self._lacked, self._was_headless = False, self._is_headless()
        for key, (vm, cpu, delay, line) in self._cpus.items():
            found = memory.pop(key, None)
            if found is None:
                self._without_memory.add(line)
                self._lacked = True
            mib, resident = (None, None) if found is None else found[:2]
            vms.append(TracedVm(vm.uuid, vm.name, vm.level, vm.vcpus, mib, cpu, resident, delay))
        for _, _, line in memory.values():
            self._without_cpus.add(line)
        cpus, cpu = self._host_cpu or (0, None)
        memory_mib, used = self._host_memory or (0, None)
        sample = Sample(
            time=self._time,
            cpus=cpus,
            memory_mib=memory_mib,
            cpu=cpu,
            memory=used,
            levels=tuple(self._levels.values()),
            vms=tuple(vms),
            line=self._begins,
        )
        most = _FEWEST_REMEMBERED + 4 * (len(vms) + len(memory))
        for remembered in (self._vm_cpus, self._vm_memory):
            if len(remembered) > most:
                remembered.clear()
        self._host_cpu = self._host_memory = None
        self._begins = 0
        self._levels.clear()
        self._cpus.clear()
        memory.clear()
        return sample

    def _plainly_wrong(self, row: bytes) -> str | None:
        """What is wrong with a row as a whole, which says more than what is wrong with a cell."""
        if not row:
            return "found a blank line, expected a row"
        if b"\0" in row:
            return "found NUL bytes, expected text"
        count, expected = row.count(b"\t") + 1, len(self._columns)
        return None if count == expected else f"found {count} columns, expected {expected} as in the first line"


def _columns(header: bytes) -> tuple[str, ...]:
    names = tuple(header.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace").split("\t"))
    if "tmp" not in names:
        found = _shown(header) if header else "a blank line"
        raise TraceError(
            1, f"found {found}, expected the column names of a trace, separated by tabs: {', '.join(COLUMNS)}"
        )
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TraceError(1, f"found the column {_shown(name.encode())} twice, expected each once")
        seen.add(name)
    missing = [name for name in _NEEDED if name not in seen]
    if missing:
        raise TraceError(1, f"found no column {', '.join(missing)}, expected at least {', '.join(_NEEDED)}")
    return names


def _cells(rest: bytes) -> list[bytes]:
    cells = rest.split(b"\t")
    if len(cells) != _UNCHANGING:
        raise _no_row(rest)
    return cells


def _identity(uuid: bytes, name: bytes) -> tuple[str, str, str]:
    """What tells a VM from others; its uuid or ""; its name, the uuid if it has none."""
    name_text = "" if name == _NONE else _decoded(name, "vm_cmn")
    if uuid not in {_NONE, b""}:
        uuid_text = _decoded(uuid, "vm_uuid")
        return uuid_text, printable_name(uuid_text), printable_name(name_text or uuid_text)
    if not name_text:
        raise _Unexpected("a VM with neither vm_uuid nor vm_cmn", "one of them")
    return "\t" + name_text, "", printable_name(name_text)


def _decoded(cell: bytes, column: str) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        raise _Unexpected(f"{column} {_shown(cell)}", "text in UTF-8") from None


def _not_before(now: int, tmp: bytes) -> int:
    time = _whole(tmp, "tmp", 0, LARGEST_TIME, "seconds")
    if time < now:
        raise _Unexpected(f"tmp {time} after {now}", "rows in the order of time")
    return time


def _level(cell: bytes) -> int:
    try:
        return parse_level(cell.decode(errors="replace"))
    except LevelError:
        expected = f"a level from {format_level(LOWEST)} to {format_level(HIGHEST)} with at most 3 decimals"
        raise _Unexpected(f"sb_oc {_shown(cell)}", expected) from None


def _whole(cell: bytes, column: str, lowest: int, highest: int, unit: str) -> int:
    """The prototype writes some whole numbers as 4096.0."""
    match = _match_whole_number(cell)
    if match is None or not lowest <= (number := int(match[1])) <= highest:
        raise _Unexpected(f"{column} {_shown(cell)}", f"whole {unit} from {lowest} to {highest}")
    return number


def _share(cell: bytes) -> float | None:
    share = _measured(cell, "val", LARGEST_SHARE, "from 0 to 1")
    return share if share is None or share <= 1.0 else 1.0


def _seconds(cell: bytes) -> float | None:
    return _measured(cell, "delay", LARGEST_TIME, "of seconds")


def _measured(cell: bytes, column: str, highest: float, what: str) -> float | None:
    if cell == _NONE:
        return None
    if _match_number(cell) is None or (number := float(cell)) > highest:
        raise _Unexpected(f"{column} {_shown(cell)}", f"a number {what}, or None")
    return number


def _is_object(cell: bytes) -> bool:
    try:
        msgspec.json.decode(cell, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return True


def _no_row(cells: bytes) -> _Unexpected:
    return _Unexpected(_shown(cells), "a row")


def _twice(what: str, tmp: bytes) -> _Unexpected:
    return _Unexpected(f"a second {what} at {tmp.decode()} s", "one for each moment")


def _no_record(record: bytes) -> _Unexpected:
    return _Unexpected(f"rec {_shown(record)}", "global, subset or vm")


def _no_resource(resource: bytes) -> _Unexpected:
    return _Unexpected(f"res {_shown(resource)}", "cpu or mem")


def _shown(cell: bytes) -> str:
    """A cell as an error shows it."""
    text = cell[:40].decode(errors="replace")
    return repr(text + "..." if len(cell) > 40 else text)
