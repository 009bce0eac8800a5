from __future__ import annotations

import pytest

from vmstackctl.options import EXIT_CODES
from vmstackctl.problems import exit_code, explain
from vmstackd.api.errors import (
    ERRORS,
    Denied,
    InvalidRequest,
    NoCapacity,
    NotFound,
    Unavailable,
    VmstackError,
)


@pytest.mark.parametrize("program", ["vmstackd", "globald"])
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
def test_each_error_has_a_next_step_and_a_documented_exit_code(kind: type[VmstackError], program: str) -> None:
    ends_well = kind is NoCapacity and program == "vmstackd"
    error = kind("what\033[2J happened; and so on" if ends_well else "what\033[2J happened")
    assert "; " in explain(error, program=program)
    assert explain(error, program=program).startswith("what\\x1b[2J happened; ")
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


def test_next_steps_are_for_the_program_that_was_asked() -> None:
    message = "cannot reach unix:/s: there is no such socket; is vmstackd running? systemctl status vmstackd"
    assert explain(Unavailable(message)) == message
    expected = "cannot reach unix:/s: there is no such socket; is globald running? systemctl status globald"
    assert explain(Unavailable(message), program="globald") == expected
    assert "VMs of the cluster" in explain(NotFound("'x' does not exist in this cluster"), program="globald")
    counts = "no host for it: 12 hosts: 9 no cpu, 2 no memory, 1 unknown"
    assert explain(NoCapacity(counts), program="globald") == f"{counts}; vmstackctl hosts shows what is free"


def test_what_a_host_is_called_is_no_reason_to_suggest_vms() -> None:
    error = NotFound("there is no host 'srv' in this cluster; vmstackctl hosts shows those that are")
    assert "did you mean" not in explain(error, "web1", ["web1", "web2"], program="globald")


def test_a_name_that_several_hosts_have_is_suggested_once() -> None:
    error = NotFound("'wbe1' does not exist in this cluster")
    assert explain(error, "wbe1", ["web1", "web1"]).endswith("; did you mean web1?")


def test_who_comes_with_a_certificate_is_told_of_roles() -> None:
    error = Denied("alice may read but not deploy")
    assert "vmstack-admin" in explain(error)
    assert "the role in our certificate" in explain(error, program="globald", certified=True)


def test_which_of_several_hosts_is_said_with_an_option() -> None:
    error = InvalidRequest("'web1' is on 2 hosts: server1, server4; say which with host", field="host")
    assert explain(error, program="globald").endswith("; say which with --host")
