"""What users of the prototype type, as exact values: parameters, whole numbers, GB, levels.

Only here and in ``http`` are levels called ``oc`` and memory counted in GB (1 GB = 1024 MiB).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import unquote_plus

from core.level import UNIT, LevelError, format_level, parse_level
from core.status import HostStatus
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest, NoCapacity, NotFound, VmstackError

MOST_PARAMETERS = 20
SHOWN = 40
"""Characters of a wrong value that are shown in the answer."""

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parameters(encoded: str, wanted: Sequence[str], example: str) -> Mapping[str, str]:
    """Each wanted parameter, given exactly once in a text such as ``name=a&cpu=2``. Raises InvalidRequest."""
    usage = f"usage: {example}"
    given: dict[str, str] = {}
    parts = [part for part in encoded.split("&") if part]
    if len(parts) > MOST_PARAMETERS:
        raise InvalidRequest(f"there are more than {MOST_PARAMETERS} parameters; {usage}")
    for part in parts:
        encoded_key, _, encoded_value = part.partition("=")
        key = _decode("the name of a parameter", encoded_key)
        if key not in wanted:
            raise InvalidRequest(f"{key[:SHOWN]!r} is not a parameter here; {usage}", field=key[:SHOWN])
        if key in given:
            raise InvalidRequest(f"{key}: is given twice; {usage}", field=key)
        given[key] = _decode(key, encoded_value)
    missing = [key for key in wanted if key not in given]
    if missing:
        raise InvalidRequest(f"missing: {', '.join(missing)}; {usage}", field=missing[0])
    return given


def _decode(what: str, text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise InvalidRequest(f"{what}: a percent sign that is not followed by two digits; write it as %25", field=what)
    try:
        return unquote_plus(text, encoding="utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what}: is not UTF-8", field=what) from error


def whole(field: str, text: str) -> int:
    """A whole number. Raises InvalidRequest."""
    if not re.fullmatch(r"-?[0-9]{1,40}", text):
        raise InvalidRequest(f"{field}: {text[:SHOWN]!r} is not a whole number", field=field)
    return int(text)


def memory_mib(field: str, text: str) -> int:
    """GB, perhaps with decimals, as MiB; a rest below one MiB is dropped. Raises InvalidRequest."""
    if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,18})?", text):
        raise InvalidRequest(f"{field}: {text[:SHOWN]!r} is not a number of GB, such as 2 or 0.5", field=field)
    return int(Fraction(text) * 1024)


def level(field: str, text: str) -> int:
    """A level in thousandths. Raises InvalidRequest."""
    try:
        return parse_level(text)
    except LevelError as error:
        raise InvalidRequest(f"{field}: {error}", field=field) from error


def legacy_status(host: HostStatus) -> dict[str, Any]:
    """The prototype's status of a host (SEMANTICS 7)."""
    memory: dict[str, Any] = {}
    if host.levels:
        memory["1"] = {
            "pcap": host.allocated_mib,
            "palloc": host.allocated_mib,
            "vavail": 0,
            "vpotential": host.free_mib,
        }
    return {
        "cpu": {
            "avail": host.free_cpus,
            "subset": {
                format_level(level.level): {
                    "pcap": level.cpus,
                    "palloc": level.vcpus,
                    "vavail": level.available_thousandths / UNIT,
                    "vpotential": level.potential_thousandths / UNIT,
                }
                for level in host.levels
            },
        },
        "mem": {"avail": host.free_mib, "subset": memory},
    }


def legacy_reason(error: VmstackError) -> str:
    """What the prototype's host said of it (SEMANTICS 6), where it had words for it."""
    if isinstance(error, NoCapacity):
        return "Not enough space on res " + ("mem" if error.details["resource"] == "memory" else "cpu")
    if isinstance(error, NotFound) and "does not exist" in error.message:
        return "does not exist"
    return error.message


def deploy(given: Mapping[str, str]) -> requests.Deploy:
    """The request that the parameters of /deploy are. Raises InvalidRequest."""
    return requests.Deploy(
        name=given["name"],
        vcpus=whole("cpu", given["cpu"]),
        memory_mib=memory_mib("mem", given["mem"]),
        level=level("oc", given["oc"]),
        image=given["qcow2"],
    )


def progress(given: Mapping[str, str]) -> requests.Progress:
    """The request that the parameters of /progress are. Raises InvalidRequest."""
    return requests.Progress(
        vcpus=whole("cpu", given["cpu"]),
        memory_mib=memory_mib("mem", given["mem"]),
        level=level("oc", given["oc"]),
    )
