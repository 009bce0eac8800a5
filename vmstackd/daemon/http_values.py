"""What users of the prototype type, as exact values: parameters, whole numbers, GB, levels.

Only here and in ``http`` are levels called ``oc`` and memory counted in GB (1 GB = 1024 MiB).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from core.level import HIGHEST, LOWEST, UNIT, LevelError, parse_level
from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest, NoCapacity, NotFound, VmstackError

MIB_PER_GB = 1024
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
    return int(Fraction(text) * MIB_PER_GB)


def level(field: str, text: str) -> int:
    """A level in thousandths. Raises InvalidRequest."""
    try:
        return parse_level(text)
    except LevelError as error:
        raise InvalidRequest(f"{field}: {error}", field=field) from error


def legacy_reason(error: VmstackError) -> str:
    """What the prototype's host said of it (SEMANTICS 6), where it had words for it."""
    if isinstance(error, NoCapacity):
        return "Not enough space on res " + ("mem" if error.details["resource"] == "memory" else "cpu")
    if isinstance(error, NotFound) and "does not exist" in error.message:
        return "does not exist"
    return error.message


class Parameter(msgspec.Struct, frozen=True):
    """field: of requests, that it gives. read: its value, from name and text; raises InvalidRequest.

    schema: the values that may make sense, as JSON Schema; about: for people.
    """

    field: str
    read: Callable[[str, str], Any]
    schema: Mapping[str, str | int | float]
    about: str


def _text(_: str, text: str) -> str:
    return text


PARAMETERS: Mapping[str, Parameter] = {
    "name": Parameter(
        "name",
        _text,
        {"type": "string", "minLength": 1, "maxLength": requests.MAX_KNOWN_NAME_BYTES},
        f"Of the VM. A new one has at most {requests.MAX_NAME_BYTES} bytes, only printable characters and no '/', and "
        "begins neither with '-' nor with '.' nor with a space.",
    ),
    "cpu": Parameter(
        "vcpus", whole, {"type": "integer", "minimum": 1, "maximum": requests.MAX_VCPUS}, "How many vCPUs it has."
    ),
    "mem": Parameter(
        "memory_mib",
        memory_mib,
        {"type": "number", "minimum": 1 / MIB_PER_GB, "maximum": requests.MAX_MEMORY_MIB // MIB_PER_GB},
        f"Its memory in GB of {MIB_PER_GB} MiB; a rest below one MiB is dropped.",
    ),
    "oc": Parameter(
        "level",
        level,
        {"type": "number", "minimum": LOWEST // UNIT, "maximum": HIGHEST // UNIT, "multipleOf": 1 / UNIT},
        "Its oversubscription level: vCPUs that may share one CPU.",
    ),
    "qcow2": Parameter(
        "image",
        _text,
        {"type": "string", "pattern": "^/", "maxLength": requests.MAX_PATH_BYTES},
        "Absolute path of its disk image, inside the folders that are allowed.",
    ),
}
"""Each by its name. The only place that says what parameters mean: ``openapi`` describes it."""
FIELD_NAMES: Mapping[str, str] = {parameter.field: name for name, parameter in PARAMETERS.items()}
"""What fields of requests are called here."""


def read(given: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a request that these parameters are. Raises InvalidRequest."""
    return {
        parameter.field: parameter.read(name, given[name]) for name, parameter in PARAMETERS.items() if name in given
    }
