"""The recorded exchanges of the prototype, and what is answered where the prototype was wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.transports.endpoint import Endpoint, endpoint

RECORDING = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "http-examples.json"
HOST = "synthetic:sockets=2,numa=1,l3=16,cores=4,smt=2,memory=1031752,name=EPYC-7662"
IMAGE = "qcow2=/var/lib/libvirt/images/hello.qcow2"


class Corrected(msgspec.Struct, frozen=True):
    """What is answered instead, and where SEMANTICS says that the recorded answer is wrong.

    body: fields that must be in the answer.
    """

    status: int
    body: dict[str, Any]
    why: str


def _invalid(field: str, why: str) -> Corrected:
    return Corrected(400, {"success": False, "error": "InvalidRequest", "field": field}, why)


_USAGE = "section 10: a missing parameter should be a 400 with JSON, not a 200"
_PARSE = "section 10: a parameter that does not parse should be a 400 with JSON, not a 500"
_STATUS = "section 10: 200 whatever happens; status codes come from the error table"
_VALIDATION = "section 6, validation: vCPU >= 1, names are not empty"

CORRECTED = {
    f"GET /deploy?name=wide&cpu=300&mem=2&oc=1&{IMAGE}": Corrected(
        409,
        {"success": False, "reason": "Not enough space on res cpu", "error": "NoCapacity", "free": 253},
        _STATUS,
    ),
    f"GET /deploy?name=fat&cpu=1&mem=4096&oc=1&{IMAGE}": Corrected(
        409,
        {"success": False, "reason": "Not enough space on res mem", "error": "NoCapacity", "free": 1029192},
        _STATUS,
    ),
    "GET /deploy?name=x&cpu=2&mem=2&oc=2": _invalid("qcow2", _USAGE),
    "GET /remove": _invalid("name", _USAGE),
    "GET /progress?cpu=2": _invalid("mem", _USAGE),
    f"GET /deploy?name=x&cpu=two&mem=2&oc=2&{IMAGE}": _invalid("cpu", _PARSE),
    f"GET /deploy?name=x&cpu=1.5&mem=2&oc=2&{IMAGE}": _invalid("cpu", _PARSE),
    f"GET /deploy?name=example&cpu=2&mem=2&oc=2&{IMAGE}": Corrected(
        409, {"success": False, "error": "AlreadyExists"}, "section 6, identity: duplicates are refused with a reason"
    ),
    "GET /progress?cpu=0&mem=1&oc=1.5": _invalid("cpu", _VALIDATION),
    "GET /remove?name=example": Corrected(
        404, {"success": False, "reason": "does not exist", "error": "NotFound"}, _STATUS
    ),
    f"GET /deploy?name=&cpu=1&mem=1&oc=1&{IMAGE}": _invalid("name", _VALIDATION),
    "GET /nothing": Corrected(404, {"success": False, "error": "NotFound"}, "section 10: errors are JSON"),
    "POST /deploy?...": _invalid("...", "section 10: only GET was routed; POST works too"),
}
"""By request. Where a request was recorded twice, the second time."""

RIGHT_ONCE = {f"GET /deploy?name=example&cpu=2&mem=2&oc=2&{IMAGE}", "GET /remove?name=example"}
"""Requests that are right the first time and answered with an error the second."""


def _exchanges() -> list[dict[str, Any]]:
    if not RECORDING.is_file():
        return []
    return [exchange for exchange in json.loads(RECORDING.read_bytes()) if exchange["service"] == "local"]


def _same(expected: Any, got: Any) -> bool:  # noqa: ANN401  any JSON
    """Equal, numbers to nine digits."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and expected.keys() == got.keys() and all(_same(expected[k], got[k]) for k in got)
    if isinstance(expected, float):
        return isinstance(got, int | float) and got == pytest.approx(expected, rel=1e-9)
    return bool(expected == got)


async def _check(host: Endpoint, exchange: dict[str, Any], seen: set[str]) -> str:
    """What is wrong with the answer to one request; empty if nothing is."""
    request: str = exchange["request"]
    method, _, target = request.partition(" ")
    answer = await host.send(method, target)
    first = request not in seen
    seen.add(request)
    corrected = CORRECTED.get(request)
    if corrected is None or (first and request in RIGHT_ONCE):
        kind = exchange["content_type"].partition(";")[0]
        body = answer.text if kind == "text/html" else answer.json
        if answer.status == 200 and answer.headers["Content-Type"].startswith(kind) and _same(exchange["body"], body):
            return ""
        return f"{request}: recorded {exchange['body']}, answered {answer.status} {body}"
    wrong = {key: value for key, value in corrected.body.items() if answer.json.get(key) != value}
    if answer.status == corrected.status and answer.json["reason"] and not wrong:
        return ""
    return f"{request}: ({corrected.why}) {corrected} expected, answered {answer.status} {answer.text}"


@pytest.mark.skipif(not RECORDING.is_file(), reason="http-examples.json of the reference recordings is not here")
def test_each_recorded_exchange_is_answered_alike_or_corrected_as_semantics_says() -> None:
    exchanges = _exchanges()

    async def replay() -> list[str]:
        async with endpoint(topology=HOST) as host:
            seen: set[str] = set()
            return [await _check(host, exchange, seen) for exchange in exchanges]

    results = asyncio.run(replay())
    assert len(results) >= 20
    assert [wrong for wrong in results if wrong] == []


@pytest.mark.skipif(not RECORDING.is_file(), reason="http-examples.json of the reference recordings is not here")
def test_every_correction_belongs_to_a_recorded_exchange() -> None:
    assert {exchange["request"] for exchange in _exchanges()} >= CORRECTED.keys()
