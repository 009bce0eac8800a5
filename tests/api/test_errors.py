"""The error table, and what refusals of the core become."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.level import HIGHEST, LOWEST, format_level
from core.model import Refusal
from vmstackd.api import errors
from vmstackd.api.errors import ERRORS, VmstackError, refused

DESIGNED = {
    "InvalidRequest": 400,
    "Denied": 403,
    "NotFound": 404,
    "AlreadyExists": 409,
    "NoCapacity": 409,
    "HypervisorError": 502,
    "Unavailable": 503,
    "Cordoned": 503,
    "DeadlineExceeded": 504,
    "Internal": 500,
}
EXIT_CODES = {
    "Denied": 5,
    "NotFound": 3,
    "NoCapacity": 4,
    "Unavailable": 6,
    "Cordoned": 6,
    "DeadlineExceeded": 6,
    "InvalidRequest": 2,
}
"""The rest is 1: failed."""


def test_the_table_has_every_error_once_with_the_designed_status() -> None:
    assert {error.code: error.http_status for error in ERRORS} == DESIGNED
    assert len({error.code for error in ERRORS}) == len(ERRORS)


def test_every_error_class_of_the_module_is_in_the_table() -> None:
    assert set(ERRORS) == set(VmstackError.__subclasses__())
    assert all(not error.__subclasses__() for error in ERRORS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_each_row_has_all_columns(error: type[VmstackError]) -> None:
    assert error.code.isascii()
    assert error.code.isalpha()
    assert error.code[0].isupper()
    assert error.http_status in range(400, 600)
    assert error.exit_code == EXIT_CODES.get(error.code, 1)
    assert error.retryable is (error.code in {"Unavailable", "Cordoned", "DeadlineExceeded"})
    assert error.__doc__


def test_an_error_carries_its_message_and_details() -> None:
    error = errors.InvalidRequest("vcpus: no", field="vcpus")
    assert (str(error), error.message, error.details) == ("vcpus: no", "vcpus: no", {"field": "vcpus"})
    assert errors.NotFound("gone").details == {}


COUNTS = st.integers(0, 10**9)


@given(st.sampled_from(["cpu", "memory"]), st.integers(LOWEST, HIGHEST), COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_refusal_for_lack_of_room_says_all_its_numbers(
    resource: Literal["cpu", "memory"], level: int, needed: int, free: int, vcpus: int, mib: int
) -> None:
    error = refused(
        Refusal(resource=resource, level=level, needed=needed, free=free, largest_vcpus=vcpus, largest_mib=mib)
    )
    assert isinstance(error, errors.NoCapacity)
    assert error.details == {
        "resource": resource,
        "needed": needed,
        "free": free,
        "largest_vcpus": vcpus,
        "largest_mib": mib,
    }
    words = error.message.replace(",", " ").replace(";", " ").split()
    assert {str(number) for number in (needed, free, vcpus, mib)} <= set(words)
    assert format_level(level) in words
    assert error.message.startswith(f"not enough {resource}: ")


def test_a_refusal_for_a_taken_name_is_already_exists() -> None:
    error = refused(Refusal(resource="name", level=1000, needed=0, free=0, largest_vcpus=4, largest_mib=4))
    assert isinstance(error, errors.AlreadyExists)
    assert "name" in error.message
