"""Settings of globald: what each row allows, from each source, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.host_policy import HOST_POLICIES
from globald.settings import TABLE, Settings, load_settings
from vmstackd.daemon.table import Setting, SettingsError

NO_FILE = Path("/dev/null")
ROWS = {row.key: row for row in TABLE.rows}

GOOD: dict[str, tuple[tuple[str, str, Any], ...]] = {
    "hosts": (
        ("127.0.0.1, 127.0.0.2:1", '["127.0.0.1", "127.0.0.2:1"]', ("127.0.0.1:8097", "127.0.0.2:1")),
        ("::1", '"::1"', ("[::1]:8097",)),
        ("server1,SERVER2:9", '"server1,SERVER2:9"', ("server1:8097", "server2:9")),
        (" , ", "[]", ()),
    ),
    "hosts_dir": (("none", '"none"', "none"), ("/a b/hosts.d", '"/a b/hosts.d"', "/a b/hosts.d")),
    "policy": (("first-fit", '"first-fit"', "first-fit"),),
    "attempts": (("1", "1", 1), ("100", '"100"', 100)),
    "patience": (("0.5", "0.5", 0.5), ("60", "60", 60.0)),
    "socket": (("none", '"none"', "none"), ("/run/other.sock", '"/run/other.sock"', "/run/other.sock")),
    "tcp_host": (("none", '"none"', "none"), ("::1", '"::1"', "::1")),
    "tcp_port": (("0", "0", 0), ("65535", "65535", 65535)),
    "tls_ca": (("/a/ca.crt", '"/a/ca.crt"', "/a/ca.crt"),),
    "tls_certificate": (("/a/b.crt", '"/a/b.crt"', "/a/b.crt"),),
    "tls_key": (("/a/b.key", '"/a/b.key"', "/a/b.key"),),
    "http_host": (("0.0.0.0", '"0.0.0.0"', "0.0.0.0"),),
    "http_port": (("0", "0", 0), ("8200", "8200", 8200)),
    "http_names": (("a,b.example.org", '["a", "b.example.org"]', ("a", "b.example.org")),),
    "debug": (("1", "1", 1),),
}

_PATH = (("a", "./a"), ("5", "[]", "true"))
_WHOLE = (("-1", "", "two", "1.5", "9" * 5000), ("1.5", "true", "[]", "-1"))
BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hosts": (
        ("http://127.0.0.1:8100", "127.0.0.1:8100", "a b", "a,a", "a,A:8097", "a:0", "/run/x.sock", "a\nb", "x" * 9999),
        ("5", "[5]", "[[]]", "true", '["a", "a:8097"]', '["a b"]', '[""]', "{}"),
    ),
    "hosts_dir": (("", "hosts.d", "./hosts.d"), _PATH[1]),
    "policy": (("", "best", "Progress"), ("1", "[]")),
    "attempts": (("0", "101", *_WHOLE[0]), _WHOLE[1]),
    "patience": (("0", "-1", "nan", "inf", "soon", ""), ("0.0", "nan", "inf", "true", '"soon"')),
    "socket": (("", "run/x.sock"), _PATH[1]),
    "tcp_host": (("", "a b", "tcp://a"), _PATH[1]),
    "tcp_port": (("65536", *_WHOLE[0]), _WHOLE[1]),
    "tls_ca": _PATH,
    "tls_certificate": _PATH,
    "tls_key": _PATH,
    "http_host": (("", "a b"), _PATH[1]),
    "http_port": (("65536", *_WHOLE[0]), _WHOLE[1]),
    "http_names": (("a b", "*"), ("5", "[5]", '["a b"]')),
    "debug": (("10", *_WHOLE[0]), _WHOLE[1]),
}


def _load(
    folder: Path, row: Setting, *, flag: str = "", variable: str = "", env_file: str = "", toml: str = ""
) -> Settings:
    config, env = folder / "globald.toml", folder / "env"
    config.write_text(f"{row.key} = {toml}\n" if toml else "", encoding="utf-8")
    env.write_text(f"{TABLE.variable(row)}={env_file}\n" if env_file else "", encoding="utf-8")
    return load_settings(
        {row.key: flag} if flag else {}, {TABLE.variable(row): variable} if variable else {}, env, config
    )


def _refusal(folder: Path, row: Setting, **given: str) -> str:
    with pytest.raises(SettingsError) as error:
        _load(folder, row, **given)
    return str(error.value)


def test_every_row_is_tested_and_has_a_field_and_a_meaning() -> None:
    assert GOOD.keys() == BAD.keys() == ROWS.keys() == set(Settings.__struct_fields__)
    assert all(row.help and row.metavar for row in TABLE.rows)


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_each_row_understands_what_is_good_from_each_source_and_the_stronger_one_wins(
    row: Setting, tmp_path: Path
) -> None:
    assert getattr(_load(tmp_path, row), row.key) == row.default
    for text, toml, value in GOOD[row.key]:
        for given_ in ({"flag": text}, {"variable": text}, {"env_file": text}, {"toml": toml}):
            if value == () and "env_file" in given_:
                continue
            assert getattr(_load(tmp_path, row, **given_), row.key) == value, given_
    first, last = GOOD[row.key][0], GOOD[row.key][-1]
    if first != last:
        for weak, strong in (("toml", "env_file"), ("env_file", "variable"), ("variable", "flag")):
            if not last[2]:
                continue
            given_ = {weak: first[1] if weak == "toml" else first[0], strong: last[0]}
            assert getattr(_load(tmp_path, row, **given_), row.key) == last[2], given_


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_a_bad_value_is_one_line_that_names_source_key_and_what_is_allowed(row: Setting, tmp_path: Path) -> None:
    texts, tomls = BAD[row.key]
    cases = [(f"{row.flag}: ", {"flag": text}) for text in texts if text]
    cases += [(f"environment variable {TABLE.variable(row)}: ", {"variable": text}) for text in texts if text]
    cases += [(f"{tmp_path / 'globald.toml'}: {row.key}: ", {"toml": toml}) for toml in tomls]
    for place, given_ in cases:
        message = _refusal(tmp_path, row, **given_)
        assert message.startswith(place), message
        assert " is not allowed; it must be " in message
        assert message.isprintable()
        assert len(message) < 600 + len(str(tmp_path))


@given(st.sampled_from(TABLE.rows), st.text() | st.text(alphabet="0123456789=,.-/:[]% ae\n"))
def test_no_text_makes_a_row_fail_in_any_other_way(row: Setting, text: str) -> None:
    try:
        row.read(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017  either way is fine, only silence is not


def test_the_keys_of_the_prototype_are_understood(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(
        "SCG_DELAY=15\nSCG_URL='127.0.0.1'\nSCG_PORT=8099\nSCG_NODE_URL_LIST=127.0.0.1:8097,localhost\n"
        "SCL_PORT=8100\nQEMU_URL=qemu:///system\nTOPO_EXCLUDE=\nOVSB_CRITICAL_SIZE=6\nINFLUXDB_ORG=changeme\n"
    )
    assert load_settings({}, {}, env_file, NO_FILE) == msgspec.structs.replace(
        load_settings({}, {}, None, NO_FILE), http_port=8099, hosts=("127.0.0.1:8097", "localhost:8097")
    )


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        ("127.0.0.1:8100", "8100 is a port for HTTP: write 8097 instead"),
        ("http://10.0.0.5:8100,http://10.0.0.6:8100", "write 10.0.0.5:8097 instead of http://10.0.0.5:8100"),
    ],
)
def test_a_list_of_the_prototype_is_answered_with_what_to_write_instead(
    value: str, instead: str, tmp_path: Path
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"SCG_NODE_URL_LIST={value}\n")
    with pytest.raises(SettingsError) as error:
        load_settings({}, {}, env_file, NO_FILE)
    assert str(error.value).startswith(f"{env_file}: line 1: SCG_NODE_URL_LIST: ")
    assert instead in str(error.value)


def test_a_setting_that_there_is_not_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "globald.toml"
    config.write_text("host = 'a'")
    with pytest.raises(SettingsError, match="host: there is no such setting; known are attempts, "):
        load_settings({}, {}, None, config)
    with pytest.raises(SettingsError, match="missing"):
        load_settings({}, {}, None, tmp_path / "missing.toml")


@pytest.mark.parametrize("address", ["10.0.0.5", "[fd00::5]:8097", "127.0.0.1,192.168.1.9:1"])
def test_hosts_beyond_this_machine_need_tls(address: str) -> None:
    with pytest.raises(SettingsError, match="is beyond this machine, and plain TCP is refused there"):
        load_settings({"hosts": address}, {}, None, NO_FILE)
    tls = {"tls_ca": "/a/ca.crt", "tls_certificate": "/a/a.crt", "tls_key": "/a/a.key"}
    assert load_settings({"hosts": address} | tls, {}, None, NO_FILE).hosts


def test_policies_are_the_registered_ones() -> None:
    for name in HOST_POLICIES:
        assert ROWS["policy"].read(name) == name
