from __future__ import annotations

import pytest

from vmstackctl.options import EXIT_CODES
from vmstackctl.problems import exit_code, explain
from vmstackd.api.errors import ERRORS, InvalidRequest, NoCapacity, NotFound, Unavailable, VmstackError


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
def test_each_error_has_a_next_step_and_a_documented_exit_code(kind: type[VmstackError]) -> None:
    error = kind("what\033[2J happened; and so on" if kind is NoCapacity else "what\033[2J happened")
    assert "; " in explain(error)
    assert explain(error).startswith("what\\x1b[2J happened; ")
    assert exit_code(error) == kind.exit_code
    assert exit_code(error) in EXIT_CODES


def test_what_is_known_already_is_not_said_again() -> None:
    message = "not enough cpu: 64 more CPUs needed, 5 free; the largest VM that fits now has 5 vCPUs"
    assert explain(NoCapacity(message)) == message


def test_fields_are_called_as_on_the_command_line() -> None:
    error = InvalidRequest("memory_mib: must be small", field="memory_mib")
    assert explain(error).startswith("--memory: must be small; ")


def test_close_names_are_suggested() -> None:
    error = NotFound("'wbe1' does not exist on this host")
    known = ["db", "web1", "wb\033e1"]
    assert explain(error, "wbe1", known).endswith("; did you mean wb\\x1be1 or web1?")
    assert explain(error, "wbe1", ["db"]).endswith("; vmstackctl list shows the VMs of this host")


def test_the_vm_is_named_once() -> None:
    assert explain(Unavailable("not now"), "web1").startswith("web1: not now; ")
    assert explain(Unavailable("'web1' is starting"), "web1").startswith("'web1' is starting; ")


def test_a_socket_that_may_not_be_opened_is_a_denial() -> None:
    error = Unavailable("cannot reach /run/x.sock: not permitted")
    error.__cause__ = PermissionError()
    assert exit_code(error) == 5
    assert explain(error).startswith("cannot reach /run/x.sock: permission denied; reading is for group vmstack")
