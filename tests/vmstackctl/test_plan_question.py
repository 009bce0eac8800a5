"""Servers and policies as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.host_policy import HOST_POLICIES
from core.workload import ServerKind
from vmstackctl.plan.question import MOST_CPUS, MOST_SERVERS, parse_kind, parse_policies, told


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("32:128", ServerKind(32, 131072)),
        ("32:128G", ServerKind(32, 131072)),
        (" 64:1.5TiB ", ServerKind(64, 1572864)),
        ("1:512M", ServerKind(1, 512)),
        ("32:128x20", ServerKind(32, 131072, 20)),
        ("32:128GX1", ServerKind(32, 131072, 1)),
    ],
)
def test_servers_are_cpus_and_memory(text: str, kind: ServerKind) -> None:
    assert parse_kind(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        *("", "32", ":", "32:", ":128", "32:128:1", "32:128x", "x20", "32:128x0", "0:128", "32:0", "-1:128", "3.5:128"),
        *("32:128x-1", "32:12K", "32:128x20x20", "٣٢:128", "32:0.3M"),
        *(f"{MOST_CPUS + 1}:1", f"1:1x{MOST_SERVERS + 1}"),
    ],
)
def test_what_is_no_server_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|nearest"):
        parse_kind(text)


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{0,6}:[0-9]{0,3}[GMT]?(x[0-9]{0,8})?"))
def test_any_text_is_a_server_or_a_value_error(text: str) -> None:
    try:
        kind = parse_kind(text)
    except ValueError:
        return
    assert 1 <= kind.cpus <= MOST_CPUS
    assert kind.memory_mib >= 1
    assert kind.count is None or 1 <= kind.count <= MOST_SERVERS


def test_policies_are_named_once_each() -> None:
    assert parse_policies("worth") == ("worth",)
    assert parse_policies("first-fit, worth,first-fit") == ("first-fit", "worth")
    assert parse_policies("all") == tuple(HOST_POLICIES)


@pytest.mark.parametrize("text", ["", "worst", "worth,", "all,worth", "worth;all"])
def test_what_is_no_policy_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no policy; they are worth, progress, first-fit, or all"):
        parse_policies(text)


def test_kinds_in_words() -> None:
    assert told(ServerKind(32, 131072)) == "servers of 32 CPUs and 128 GiB"
    assert told(ServerKind(1, 512, 1)) == "1 server of 1 CPU and 512 MiB"
    assert told(ServerKind(2, 1536, 20)) == "20 servers of 2 CPUs and 1.5 GiB"
