"""Requests: what is checked, what passes, and that they survive the wire."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmstackd.api import requests
from vmstackd.api.errors import InvalidRequest
from vmstackd.api.requests import (
    Cordon,
    Deploy,
    Describe,
    HostAdd,
    HostRemove,
    Progress,
    Remove,
    Request,
    Uncordon,
    check,
)

KINDS: tuple[type[Any], ...] = get_args(Request)
FIELDS = {"name", "vcpus", "memory_mib", "level", "image", "host", "reason", "address", "first"}
NUMBERS = st.integers() | st.integers(-5, 70_000) | st.sampled_from([10**30, -(10**30), 2**63, 64_000, 64_001])
TEXTS = st.text() | st.text(alphabet="a/. -\n\x00\ud800\u202eü", max_size=200) | st.just("/" + "x" * 5000)
ADDRESSES = TEXTS | st.from_regex(r"[a-z0-9.:%\[\]-]{0,20}:[0-9]{0,6}", fullmatch=True)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "first": NUMBERS,
    "name": TEXTS,
    "vcpus": NUMBERS,
    "memory_mib": NUMBERS,
    "level": NUMBERS,
    "image": TEXTS,
    "dry_run": st.booleans(),
    "host": st.just("") | TEXTS,
    "reason": TEXTS,
    "address": ADDRESSES,
}


def _any(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: VALUES[name] for name in kind.__struct_fields__})


DEPLOYS: st.SearchStrategy[Deploy] = _any(Deploy)
ANY: st.SearchStrategy[Request] = st.one_of([_any(kind) for kind in KINDS])
GOOD = Deploy(name="web-1", vcpus=2, memory_mib=2048, level=1500, image="/images/web.qcow2")
EXAMPLE = msgspec.structs.asdict(GOOD) | {"host": "h1", "reason": "new fans", "address": "h1:8097", "first": 2}
"""A value of every field that there is."""


def _refusal(request: Request) -> InvalidRequest | None:
    try:
        check(request)
    except InvalidRequest as error:
        return error
    return None


def test_every_request_is_for_a_host_or_a_cluster() -> None:
    assert set(KINDS) == set(get_args(requests.HostRequest)) | set(get_args(requests.ClusterRequest))
    assert set(get_args(requests.VmChange)) < set(get_args(requests.Change)) < set(KINDS)


@given(ANY)
@example(Deploy(name="\ud800", vcpus=1, memory_mib=1, level=1000, image="/\ud800"))
def test_check_raises_nothing_but_invalid_request_with_the_field(request: Request) -> None:
    refusal = _refusal(request)
    if refusal is not None:
        field = refusal.details["field"]
        assert field in FIELDS
        assert hasattr(request, str(field))
        assert refusal.message.startswith(f"{field}: ")
        assert refusal.message.isprintable()


@given(DEPLOYS)
def test_a_deploy_that_passes_is_within_every_bound(request: Deploy) -> None:
    if _refusal(request) is not None:
        return
    assert 1 <= len(request.name.encode()) <= requests.MAX_NAME_BYTES
    assert request.name.isprintable()
    assert "/" not in request.name
    assert request.name not in {".", ".."}
    assert request.name.strip() == request.name
    assert 1 <= request.vcpus <= requests.MAX_VCPUS
    assert 1 <= request.memory_mib <= requests.MAX_MEMORY_MIB
    assert 1000 <= request.level <= 64000
    assert request.image.startswith("/")
    assert request.image.isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": 1},
        {"vcpus": requests.MAX_VCPUS},
        {"memory_mib": 1},
        {"memory_mib": requests.MAX_MEMORY_MIB},
        {"level": 1000},
        {"level": 64000},
        {"name": "n" * 128},
        {"name": "a b"},
        {"name": "vm.example.org"},
        {"name": "_x"},
        {"name": "ü"},
        {"image": "/" + "i" * 4094},
        {"image": "/a b/ü.qcow2"},
    ],
)
def test_the_last_good_values_pass(change: dict[str, Any]) -> None:
    check(msgspec.structs.replace(GOOD, **change))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": requests.MAX_VCPUS + 1}, "vcpus"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"memory_mib": requests.MAX_MEMORY_MIB + 1}, "memory_mib"),
        ({"level": 999}, "level"),
        ({"level": 64001}, "level"),
        ({"name": "n" * 129}, "name"),
        ({"name": "ü" * 65}, "name"),
        ({"name": ""}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"image": ""}, "image"),
        ({"image": "a"}, "image"),
        ({"image": "/a\nb"}, "image"),
        ({"image": "/" + "i" * 4095}, "image"),
    ],
)
def test_the_first_bad_values_do_not(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check(msgspec.structs.replace(GOOD, **change))
    assert error.value.details == {"field": field}


ADD = HostAdd(address="h1:8097")


@pytest.mark.parametrize(
    "request_",
    [
        Cordon(),
        Cordon(reason="Lüfter, Reihe 3; see ticket #7"),
        Cordon(reason="r" * requests.MAX_TEXT_BYTES, host="h" * requests.MAX_TEXT_BYTES),
        Uncordon(),
        Uncordon(host="h1"),
        requests.Status(host="7d2c5c1e-94a1-4d3a-9d5f-0c5a8a7f8a11"),
        requests.Hosts(),
        requests.Demand(),
        HostAdd(address="10.0.0.5:1"),
        HostAdd(address="server-1.example.org:65535", name="n" * 64),
        HostAdd(address="[fd00::5]:8097", name="1.a_b-c"),
        HostAdd(address="[fe80::1%eth0]:8097"),
        HostRemove(host="[fd00::5]:8097"),
    ],
    ids=repr,
)
def test_the_last_good_requests_about_hosts_pass(request_: Request) -> None:
    check(request_)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Cordon(reason="a\nb"), "reason"),
        (Cordon(reason="\x1b[31m"), "reason"),
        (Cordon(reason="\ud800"), "reason"),
        (Cordon(reason="r" * (requests.MAX_TEXT_BYTES + 1)), "reason"),
        (Cordon(reason="ü" * 128), "reason"),
        (Cordon(host="a\nb"), "host"),
        *((kind(host="h\0"), "host") for kind in (Uncordon, requests.Status, requests.List, requests.Topology)),
        (Remove(name="a", host="h" * 256), "host"),
        (Describe(name="a", host="\n"), "host"),
        (Progress(vcpus=1, memory_mib=1, level=1000, host="\n"), "host"),
        (msgspec.structs.replace(GOOD, host="\r"), "host"),
        (HostRemove(host=""), "host"),
        (HostRemove(host="a\n"), "host"),
        *(
            (HostAdd(address=address), "address")
            for address in (
                "",
                "h1",
                "h1:",
                ":8097",
                "h1:0",
                "h1:65536",
                "h1:+1",
                "h1:٣",
                "h1:8097\n",
                "h 1:8097",
                "http://h1:8097",
                "fd00::5:8097",
                "[h1]:8097",
                "[fd00::5]",
                "h1:8097/",
                "a" * 254 + ":1",
                "x" * 5000,
            )
        ),
        *(
            (msgspec.structs.replace(ADD, name=name), "name")
            for name in ("-a", ".a", "_a", "a/b", "..", "a b", "ü", "a\n", "n" * 65)
        ),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_the_first_bad_requests_about_hosts_do_not(request_: Request, field: str) -> None:
    refusal = _refusal(request_)
    assert refusal is not None
    assert refusal.details == {"field": field}
    assert refusal.message.isprintable()
    assert len(refusal.message) < 300


@given(_any(HostAdd))
@example(HostAdd(address="[::1%lo]:1"))
def test_a_host_that_may_be_added_can_be_a_file_and_an_address(request: HostAdd) -> None:
    if _refusal(request) is not None:
        return
    host, _, port = request.address.rpartition(":")
    assert 1 <= int(port) <= 65535
    assert host.isascii()
    assert host.isprintable()
    assert "/" not in request.address + request.name
    assert request.name[:1] not in {".", "-"}
    assert len(request.name.encode()) <= 64


@pytest.mark.parametrize("name", ["..", "a/b", "-x", ".hidden", "a ", "\x1b"])
def test_a_vm_that_came_from_outside_can_be_removed_whatever_its_name(name: str) -> None:
    check(Remove(name=name))
    check(Describe(name=name))


@given(ANY)
def test_every_request_survives_both_encodings(request: Request) -> None:
    if any(isinstance(value, str) and not value.isascii() for value in msgspec.structs.astuple(request)):
        return  # lone surrogates are no text on any wire; other text is covered by the next test
    if any(isinstance(value, int) and not -(2**63) <= value < 2**64 for value in msgspec.structs.astuple(request)):
        return
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(request), type=Request) == request


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_both_encodings(text: str) -> None:
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(Describe(name=text)), type=Request) == Describe(name=text)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_unknown_fields_of_a_request_are_refused(kind: type[Any]) -> None:
    known = {field.name: EXAMPLE[field.name] for field in msgspec.structs.fields(kind)}
    whole = {"operation": kind.__struct_config__.tag} | known
    for codec in (msgspec.json, msgspec.msgpack):
        assert isinstance(codec.decode(codec.encode(whole), type=Request), kind)
        with pytest.raises(msgspec.ValidationError, match="unknown field `force`"):
            codec.decode(codec.encode(whole | {"force": True}), type=Request)


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": "2"},
        {"vcpus": 1.5},
        {"vcpus": True},
        {"vcpus": None},
        {"name": 1},
        {"dry_run": 1},
        {"level": "1.5"},
        {"host": None},
    ],
)
def test_values_of_another_type_are_refused(change: dict[str, Any]) -> None:
    whole = msgspec.to_builtins(GOOD) | change
    for codec in (msgspec.json, msgspec.msgpack):
        with pytest.raises(msgspec.ValidationError):
            codec.decode(codec.encode(whole), type=Request)


@pytest.mark.parametrize("text", ["{}", '{"operation": "destroy"}', "[]", '{"operation": "deploy"}', "null"])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Request)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_requests_cannot_be_changed(kind: type[Any]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields
    assert kind.__doc__
