"""The text of a workload, read whatever its format is: ``core.workload_table``, ``core.workload_properties``."""

from __future__ import annotations

from core.workload import Workload
from core.workload_cells import MOST_VMS, WorkloadTextError, shown
from core.workload_properties import are_properties, parse_properties
from core.workload_table import EXPECTED_COLUMNS, parse_table

LONGEST_LINE = 1 << 16
"""Characters."""
MOST_LINES = 2 * MOST_VMS
"""With comments."""
_BYTE_ORDER_MARK = "\ufeff"


def parse_workload(text: str) -> Workload:
    """A workload of at least one VM, however lines end. Raises WorkloadTextError."""
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count("\n") > MOST_LINES:
        raise WorkloadTextError(MOST_LINES + 1, "", f"found more than {MOST_LINES} lines, expected no more")
    has_nul = "\0" in text
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise WorkloadTextError(1, "", f"found nothing, expected the names of columns: {EXPECTED_COLUMNS}")
    for line, row in enumerate(lines, 1):
        if len(row) > LONGEST_LINE:
            raise WorkloadTextError(
                line, "", f"found {shown(row)} with {len(row)} characters, expected a line of at most {LONGEST_LINE}"
            )
        if has_nul and "\0" in row:
            raise WorkloadTextError(line, "", "found NUL characters, expected text")
    return parse_properties(lines) if are_properties(lines) else parse_table(lines)
