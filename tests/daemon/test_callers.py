"""With whom a caller shares the limits of one."""

from __future__ import annotations

import pytest

from vmstackd.daemon.callers import _Certified


def _of(address: str) -> _Certified:
    return _Certified(address)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10.0.0.5", "::ffff:10.0.0.5"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7"),
        ("fe80::1%eth0", "fe80::2%eth0"),
    ],
)
def test_the_same(one: str, other: str) -> None:
    assert _of(one).key == _of(other).key
    assert _of(one).limited


@pytest.mark.parametrize(
    ("one", "other"),
    [("10.0.0.5", "10.0.0.6"), ("::ffff:10.0.0.5", "::ffff:10.0.0.6"), ("2001:db8:1:2::1", "2001:db8:1:3::1")],
)
def test_others(one: str, other: str) -> None:
    assert _of(one).key != _of(other).key


def test_the_address_is_named_as_people_know_it() -> None:
    assert [_of(text).name for text in ("::ffff:10.0.0.5", "::1", "fe80::1%eth0")] == [
        "10.0.0.5",
        "::1",
        "fe80::1%eth0",
    ]
