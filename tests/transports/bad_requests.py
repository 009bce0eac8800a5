"""Requests that must be refused, with the status and the field that the answer names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import quote

import msgspec

GOOD = {"name": "new", "cpu": "1", "mem": "1", "oc": "2", "qcow2": "/images/new.qcow2"}
"""The parameters of a deploy that would succeed."""


class Bad(msgspec.Struct, frozen=True):
    """target: path and query, ready to be sent. field: "" where the answer names none."""

    label: str
    target: str
    field: str
    status: int = 400
    error: str = "InvalidRequest"


def _target(path: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Values are percent encoded by the caller."""
    return path + "?" + "&".join(f"{key}={value}" for key, value in pairs)


def _with(field: str, value: str) -> str:
    return _target("/deploy", (GOOD | {field: value}).items())


VALUES = {
    "cpu": [
        ("zero", "0"),
        ("negative", "-4"),
        ("fraction", "1.5"),
        ("exponent", "1e3"),
        ("plus sign", "%2B2"),
        ("space", "%202"),
        ("trailing newline", "2%0A"),
        ("wider than any host", "4097"),
        ("10^30", "1" + "0" * 30),
        ("a thousand digits", "9" * 1000),
        ("empty", ""),
        ("hexadecimal", "0x2"),
        ("underscore", "1_0"),
        ("arabic digit", quote("\u0662")),
        ("nan", "nan"),
    ],
    "mem": [
        ("zero", "0"),
        ("zero with decimals", "0.0000"),
        ("less than a MiB", "0.0001"),
        ("negative", "-1"),
        ("negative fraction", "-0.0001"),
        ("nan", "NaN"),
        ("inf", "inf"),
        ("exponent", "1e3"),
        ("empty", ""),
        ("a thousand decimals", "1." + "3" * 1000),
        ("a thousand digits", "7" * 1000),
        ("more than any host", "1048577"),
        ("comma", "1,5"),
        ("unit", "2GB"),
        ("fraction bar", "1/2"),
    ],
    "oc": [
        ("half", "0.5"),
        ("zero", "0"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("four decimals", "1.0001"),
        ("just above the highest", "64.001"),
        ("negative", "-1"),
        ("comma", "1,5"),
        ("exponent", "2e0"),
        ("empty", ""),
        ("space", "%202"),
    ],
    "name": [
        ("empty", ""),
        ("300 characters", "n" * 300),
        ("43 three-byte characters", quote("\u20ac" * 43)),
        ("parent folder", "..%2Fx"),
        ("slash", "a%2Fb"),
        ("dot", "."),
        ("option", "-rf"),
        ("leading space", "+a"),
        ("trailing space", "a%20"),
        ("null", "a%00b"),
        ("newline", "a%0Ab"),
        ("escape", "%1B[2J"),
        ("delete", "a%7F"),
        ("right-to-left override", quote("a\u202eb")),
        ("line separator", quote("a\u2028b")),
        ("invalid UTF-8", "a%FF"),
        ("cut UTF-8", "a%E2%82"),
        ("overlong UTF-8", "%C0%AF"),
        ("surrogate", "%ED%A0%80"),
        ("half an escape", "a%2"),
        ("no escape", "a%zz"),
    ],
    "qcow2": [
        ("relative", "image.qcow2"),
        ("empty", ""),
        ("newline", "/images/a%0Ab"),
        ("null", "/images/a%00"),
        ("invalid UTF-8", "/images/%FF"),
        ("5000 characters", "/" + "i" * 5000),
        ("URL", "http://example.org/a.qcow2"),
    ],
}


def _all() -> Iterator[Bad]:
    for field, values in VALUES.items():
        for label, value in values:
            yield Bad(f"{field} {label}", _with(field, value), field)
    for field in ("cpu", "mem", "oc"):
        for label, value in VALUES[field]:
            good = {key: GOOD[key] for key in ("cpu", "mem", "oc")}
            yield Bad(f"progress {field} {label}", _target("/progress", (good | {field: value}).items()), field)
    for field, good_value in GOOD.items():
        rest = [pair for pair in GOOD.items() if pair[0] != field]
        yield Bad(f"no {field}", _target("/deploy", rest), field)
        yield Bad(f"{field} twice", _target("/deploy", [*GOOD.items(), (field, good_value)]), field)
    yield Bad("no parameters", "/deploy", "name")
    yield Bad("unknown parameter", _target("/deploy", [*GOOD.items(), ("force", "1")]), "force")
    yield Bad("unknown parameter with a strange name", "/remove?%0Aname=here", "\nname")
    yield Bad("a name of a parameter that is not UTF-8", "/remove?%FF=here", "the name of a parameter")
    yield Bad("parameters of the other spelling", "/deploy?name=a&vcpus=2", "vcpus")
    yield Bad("remove nothing", "/remove", "name")
    yield Bad("remove the empty name", "/remove?name=", "name")
    yield Bad("remove without value", "/remove?name", "name")
    yield Bad("remove two", "/remove?name=here&name=here", "name")
    yield Bad("remove a long name", "/remove?name=" + "h" * 300, "name")
    yield Bad("remove all", "/remove?name=here&all=1", "all")
    yield Bad("progress without level", "/progress?cpu=1&mem=1", "oc")
    yield Bad("progress with a name", "/progress?cpu=1&mem=1&oc=1&name=x", "name")
    yield Bad("a hundred parameters", "/remove?" + "name=here&" * 100, "")
    yield Bad("a taken name", _with("name", "here"), "", 409, "AlreadyExists")
    yield Bad("wider than the host", _with("cpu", "17"), "", 409, "NoCapacity")
    yield Bad("more memory than the host", _with("mem", "65"), "", 409, "NoCapacity")
    yield Bad("progress wider than the host", "/progress?cpu=17&mem=1&oc=1", "", 409, "NoCapacity")
    yield Bad("remove a ghost", "/remove?name=ghost", "", 404, "NotFound")
    yield Bad("remove an almost equal name", "/remove?name=here%20", "", 404, "NotFound")
    yield Bad("unknown path", "/deploy/?name=here", "", 404, "NotFound")
    yield Bad("a path of dots", "/../../etc/passwd", "", 404, "NotFound")


BAD = tuple(_all())
