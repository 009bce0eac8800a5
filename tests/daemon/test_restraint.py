"""What anybody can cause does not fill the log."""

from __future__ import annotations

import asyncio

import pytest

from tests.transports.endpoint import endpoint
from vmstackd.daemon import restraint
from vmstackd.daemon.restraint import MOST, Restraint


def _events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_few_are_told_then_only_their_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restraint, "PERIOD_S", 0.05)

    async def run() -> None:
        some = Restraint()
        for _ in range(MOST + 3):
            some.tell("refused", why="no")
        assert _events(caplog) == ["refused"] * MOST
        await asyncio.sleep(0.2)
        assert _events(caplog) == ["refused"] * MOST + ["refusals-not-logged"]
        assert caplog.records[-1].__dict__["fields"]["count"] == 3
        some.tell("refused", why="no")
        assert _events(caplog)[-1] == "refused"
        await asyncio.sleep(0.2)
        assert _events(caplog)[-1] == "refused"

    with caplog.at_level("INFO"):
        asyncio.run(run())


@pytest.mark.parametrize("target", ["/deploy?name=a", "/remove?name=" + "x" * 300])
def test_a_flood_of_requests_that_make_no_sense_is_a_few_lines(caplog: pytest.LogCaptureFixture, target: str) -> None:
    async def run() -> None:
        async with endpoint() as http:
            for _ in range(3 * MOST):
                assert (await http.get(target)).status == 400

    with caplog.at_level("INFO"):
        asyncio.run(run())
    assert 0 < len([event for event in _events(caplog) if event in ("http-refused", "remove")]) < 3 * MOST
