"""The description of HTTP: valid, of every path that there is, and from the tables that read the requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from globald.http import ClusterHttp
from tests.globald.hosts import SMALL, RealHost
from tests.globald.test_http import front
from tests.transports.endpoint import endpoint
from vmstackd.api.errors import ERRORS, InvalidRequest
from vmstackd.api.requests import MAX_MEMORY_MIB, Deploy, check
from vmstackd.daemon import http_values, openapi
from vmstackd.daemon.http import HttpTransport
from vmstackd.transports.http import HostHttp

TRANSPORTS = (HostHttp, ClusterHttp)


def described(transport: type[HttpTransport]) -> Any:  # noqa: ANN401  a document
    """What the daemon says of itself; nothing of it depends on what it has."""
    return openapi.description("a daemon", routes(transport))


def routes(transport: type[HttpTransport]) -> Any:  # noqa: ANN401  by path
    return object.__new__(transport).routes()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_is_valid(transport: type[HttpTransport]) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schemathesis.openapi.from_dict(described(transport)).validate()
    assert described(transport)["openapi"].startswith("3.1")


def test_what_is_no_description_is_not_valid() -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    broken = described(HostHttp)
    broken["paths"]["/status"]["get"]["responses"] = []
    with pytest.raises(Exception, match=r"responses|array|object"):
        schemathesis.openapi.from_dict(broken).validate()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_path_is_there_with_its_parameters(transport: type[HttpTransport]) -> None:
    document = described(transport)
    assert list(document["paths"]) == list(routes(transport))
    for path, route in routes(transport).items():
        get, post = (document["paths"][path][method] for method in ("get", "post"))
        assert [parameter["name"] for parameter in get.get("parameters", ())] == list(route.parameters)
        if route.parameters:
            (form,) = post["requestBody"]["content"].values()
            assert form["schema"]["required"] == list(route.parameters)
        assert get["summary"] == post["summary"] == route.about
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_error_but_mistakes_of_ours_is_there(transport: type[HttpTransport]) -> None:
    document = described(transport)
    expected = {kind.code for kind in ERRORS} - {"Internal"}
    assert set(document["components"]["schemas"]["Refused"]["properties"]["error"]["enum"]) == expected
    statuses = {str(kind.http_status) for kind in ERRORS} - {"500"}
    for path in document["paths"].values():
        assert set(path["get"]["responses"]) == {"200", "413"} | statuses


def test_both_daemons_serve_theirs() -> None:
    async def test() -> None:
        async with endpoint() as host:
            answer = await host.get("/openapi.json")
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
            assert answer.json["info"]["title"] == "vmstackd"
            assert answer.json["paths"] == described(HostHttp)["paths"]
            refused = await host.get("/openapi.json", {"Host": "elsewhere.example"})
            assert refused.status == 403
        async with front(RealHost("a", SMALL)) as cluster:
            assert (await cluster.get("/openapi.json")).json["paths"] == described(ClusterHttp)["paths"]

    asyncio.run(test())


GOOD = {"name": "a", "cpu": "1", "mem": "1", "oc": "1.5", "qcow2": "/a"}


@pytest.mark.parametrize(
    ("name", "highest", "lowest"),
    [("cpu", "maximum", "minimum"), ("mem", "maximum", "minimum"), ("oc", "maximum", "minimum")],
)
def test_bounds_are_those_that_are_enforced(name: str, highest: str, lowest: str) -> None:
    schema = http_values.PARAMETERS[name].schema
    for bound, beyond in ((schema[highest], 2), (schema[lowest], 0.5)):
        check(Deploy(**http_values.read(GOOD | {name: f"{bound}"})))
        with pytest.raises(InvalidRequest):
            check(Deploy(**http_values.read(GOOD | {name: f"{float(bound) * beyond:.12f}".rstrip("0").rstrip(".")})))
    assert http_values.PARAMETERS["mem"].schema["maximum"] == MAX_MEMORY_MIB // 1024
