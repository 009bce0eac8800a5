from __future__ import annotations

import pytest

from vmstackctl.values import (
    ago,
    busy,
    count,
    cpu_list,
    gib,
    memory,
    number,
    parse_address,
    parse_host,
    parse_memory,
    parse_name,
    parse_ratio,
    percent,
    printable,
    ratio,
)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("512M", 512),
        ("512MiB", 512),
        ("512mb", 512),
        ("2G", 2048),
        ("1.5G", 1536),
        ("0.5g", 512),
        ("2 GiB", 2048),
        ("2", 2048),
        ("0.25", 256),
        ("1T", 1 << 20),
        (" 8G ", 8192),
    ],
)
def test_memory_is_read_in_powers_of_1024(text: str, mib: int) -> None:
    assert parse_memory(text) == mib


@pytest.mark.parametrize("text", ["", "G", "2K", "-1G", "1,5G", "2GG", "0x10", "1e3", "inf", "٣G", "9" * 30])
def test_what_is_no_memory_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"512M, 1\.5G, 2T, or 2 for 2 GiB"):
        parse_memory(text)


@pytest.mark.parametrize(("text", "nearest"), [("0.3G", "307M"), ("1.5M", "2M"), ("0", "1M"), ("0.0001G", "1M")])
def test_memory_that_is_no_whole_number_of_mib_is_refused(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"nearest is {nearest}"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("text", "level"), [("2", 2000), ("1.5", 1500), ("2:1", 2000), ("1.5:1", 1500), ("1", 1000), (" 3.0 ", 3000)]
)
def test_levels_are_read(text: str, level: int) -> None:
    assert parse_ratio(text) == level


@pytest.mark.parametrize("text", ["", "0.5", "2:2", "65", "1.2345", "two", "1:2", "-1"])
def test_what_is_no_level_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"from 1\.0 to 64\.0 with at most 3 decimals, as 2, 1\.5 or 2:1"):
        parse_ratio(text)


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "/run/x.sock", "host:8097", "tcp:host:8097", "[::1]:8097"])
def test_addresses_are_taken_as_they_are(text: str) -> None:
    assert parse_address(text) == text


@pytest.mark.parametrize("text", ["", "x.sock", "unix:x.sock", "host", "host:", "host:0", "host:65536", "http://h:1"])
def test_what_is_no_address_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="unix:/a/path, host:port"):
        parse_address(text)


def test_a_host_that_is_named_has_a_name() -> None:
    assert parse_host("server1") == "server1"
    with pytest.raises(ValueError, match="it is empty"):
        parse_host("")


def test_a_name_that_is_not_utf8_is_refused() -> None:
    assert parse_name("wéb") == "wéb"
    with pytest.raises(ValueError, match="not UTF-8"):
        parse_name("w\udce9b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web1", "web1"),
        ("wéb 日", "wéb 日"),
        ("\033[2J", "\\x1b[2J"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f", "\\x7f"),
        ("\u202egnp", "\\u202egnp"),
        ("\udce9", "\\udce9"),
    ],
)
def test_nothing_reaches_a_terminal_but_what_can_be_seen(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_numbers_are_written_short() -> None:
    assert [number(value) for value in (0, 1500, 2000, -500, -1250, 1001)] == [
        "0",
        "1.5",
        "2",
        "-0.5",
        "-1.25",
        "1.001",
    ]
    assert [ratio(value) for value in (1000, 1500)] == ["1:1", "1.5:1"]
    sizes = [memory(mib) for mib in (0, 512, 1024, 1536, 8192, 1031752)]
    assert sizes == ["0 MiB", "512 MiB", "1 GiB", "1.5 GiB", "8 GiB", "1007.6 GiB"]
    assert cpu_list((8, 136, 9, 137)) == "8-9,136-137"
    assert [count(amount, "VM") for amount in (0, 1, 2)] == ["0 VMs", "1 VM", "2 VMs"]
    assert [gib(mib) for mib in (0, 512, 1024, 1536, 262144)] == ["0", "0.5", "1", "1.5", "256"]
    spans = (-1, 0.9, 59, 60, 3599, 3600, 86400, 864000)
    assert [ago(seconds) for seconds in spans] == ["0s", "0s", "59s", "1m", "59m", "1h", "1d", "10d"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0"), (0.0004, "0.0"), (0.0005001, "0.1"), (0.0994, "9.9"), (0.09996, "10"), (0.126, "13"), (1, "100")],
)
def test_percents_have_as_many_digits_as_say_something(share: float, text: str) -> None:
    assert percent(share) == text


def test_busy_cpus_have_one_decimal() -> None:
    assert [busy(cpus) for cpus in (0.0, 3.44, 128.0, None)] == ["0.0", "3.4", "128.0", "-"]
