"""Bad input over HTTP: a clear error that names the field, and nothing changed."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlencode

import pytest

from tests.transports.bad_requests import BAD, GOOD, Bad
from tests.transports.endpoint import VM, Endpoint, endpoint

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def _no_mistake_of_ours(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


async def _unchanged(host: Endpoint, bad: Bad, method: str) -> None:
    before = host.engine.status(), (await host.get("/status")).body, (await host.get("/listvm")).body
    path, _, query = bad.target.partition("?")
    if method == "GET":
        answer = await host.get(bad.target)
    else:
        answer = await host.send("POST", path, FORM, query.encode())
    assert (answer.status, answer.json["error"]) == (bad.status, bad.error), answer.text
    assert answer.json.get("field", "") == bad.field
    assert answer.json["success"] is False
    assert answer.json["reason"]
    if bad.field in GOOD:
        assert bad.field in answer.json["message"]
    assert answer.text.isprintable()
    assert len(answer.body) < 1000
    assert (host.engine.status(), (await host.get("/status")).body, (await host.get("/listvm")).body) == before


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.label)
def test_is_refused_by_name_and_changes_nothing(bad: Bad, method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with endpoint() as host:
            assert (await host.get(VM)).status == 200
            await _unchanged(host, bad, method)

    asyncio.run(check())
    assert _no_mistake_of_ours(caplog)


def test_the_parameters_that_the_bad_requests_vary_are_good() -> None:
    async def check() -> None:
        async with endpoint() as host:
            assert (await host.get(VM)).status == 200
            assert (await host.get("/deploy?" + urlencode(GOOD))).json == {"success": True, "reason": None}

    asyncio.run(check())


@pytest.mark.parametrize("name", ["a b", "ü", "a&b=c", "100%", "a+b", "a;b", "#1", "你好", "'; --", "a\\b", "n" * 128])
def test_unusual_names_are_taken_word_for_word(name: str) -> None:
    async def check() -> None:
        async with endpoint() as host:
            assert (await host.get("/deploy?" + urlencode(GOOD | {"name": name}))).status == 200
            assert (await host.get("/listvm")).json == [name]
            assert (await host.get("/remove?" + urlencode({"name": name}))).status == 200
            assert (await host.get("/listvm")).json == []

    asyncio.run(check())


def test_no_capacity_says_how_much_is_needed_how_much_is_free_and_what_would_fit() -> None:
    async def check() -> None:
        async with endpoint() as host:
            cpu = (await host.get("/deploy?" + urlencode(GOOD | {"cpu": "17"}))).json
            assert (cpu["resource"], cpu["needed"], cpu["free"], cpu["largest_vcpus"]) == ("cpu", 17, 16, 16)
            memory = (await host.get("/deploy?" + urlencode(GOOD | {"mem": "64.5"}))).json
            assert (memory["resource"], memory["needed"], memory["free"]) == ("memory", 66048, 65536)
            assert memory["largest_mib"] == 65536
            assert memory["message"].startswith("not enough memory: 66048 MiB needed, 65536 MiB free")

    asyncio.run(check())
