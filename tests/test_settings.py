"""Settings of vmstackd: what each row allows, from each source, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy import POLICIES
from vmstackd.daemon.table import Setting, SettingsError
from vmstackd.settings import TABLE, Settings, load_settings

ROWS = {row.key: row for row in TABLE.rows}


class Good(msgspec.Struct, frozen=True):
    """One value: as text, as TOML, and as it is understood."""

    text: str
    toml: str
    value: Any


class Sample(msgspec.Struct, frozen=True):
    """good: two values that are not the default. bad, bad_toml: what must be refused."""

    good: tuple[Good, Good]
    bad: tuple[str, ...]
    bad_toml: tuple[str, ...]


def _text(first: str, second: str, *bad: str) -> Sample:
    return Sample((Good(first, f'"{first}"', first), Good(second, f'"{second}"', second)), bad, ("5", "true", "[]"))


def _whole(first: int, second: int, *bad: str) -> Sample:
    toml = ("1.5", "true", '"two"', "[]", "-1", "0x" + "f" * 500)
    return Sample(
        (Good(str(first), str(first), first), Good(str(second), f'"{second}"', second)),
        ("-1", "1.5", "two", "", "1e3", "1_000", "٣", "9" * 5000, *bad),
        toml,
    )


def _file() -> Sample:
    return _text("/etc/pki/vmstack.pem", "/a b/ü.pem", "vmstack.pem", "./a", "/")


SAMPLES = {
    "name": _text("h1", "rack-7_b.example.org", "a b", "a/b", "ü", "n" * 65),
    "state_dir": _text("none", "/srv/a b", "", "state", "./state", "/"),
    "hypervisor": _text("sim:", "test:///default", "", "qemu", "//system", "qemu:///a b"),
    "topology": _text("synthetic:cores=4", "/etc/host.json", ""),
    "exclude_cpus": Sample(
        (Good("0-1,64-65", '"0-1,64-65"', (0, 1, 64, 65)), Good("7", '"7"', (7,))),
        ("a", "1-0", "1,1", "-1", "0-99999999", "1.5", "0-1-2"),
        ("5", "[0, 1]", "true"),
    ),
    "reserved_memory": _whole(4096, 1, str((1 << 30) + 1)),
    "policy": Sample(
        (Good("reference", '"reference"', "reference"), Good("reference", '"reference"', "reference")),
        ("", "best", "Reference"),
        ("1", "[]", '["reference"]', "{}"),
    ),
    "critical_size": _whole(0, 3, "1000001"),
    "critical_sizes": Sample(
        (
            Good("2.0=4, 3 = 6", '{"2.0" = 4, 3 = 6}', {2000: 4, 3000: 6}),
            Good("1.5=0", '"1.5=0"', {1500: 0}),
        ),
        ("2.0", "2.0=x", "x=2", "0.5=2", "2.0=4,2=5", "2=-1", "=", "2=3=4"),
        ("5", "[]", "{2 = true}", "{x = 1}", '{"2.0" = 1, 2 = 1}'),
    ),
    "period": Sample(
        (Good("2.5", "2.5", 2.5), Good("60", "60", 60.0)),
        ("0", "-1", "nan", "inf", "1e3", "", "86401", "soon"),
        ("0.0", "nan", "inf", "true", '"soon"', "[]"),
    ),
    "delay": Sample(
        (Good("2.5", "2.5", 2.5), Good("0", "0", 0.0)),
        ("-1", "0.01", "00", "nan", "inf", "1e3", "", "86401", "never"),
        ("-0.5", "0.05", "nan", "inf", "true", "false", '"never"', "[]"),
    ),
    "record": _text("none", "a b/trace.csv", "results/", "/"),
    "record_size": _whole(1, 1 << 20, "0", str((1 << 20) + 1)),
    "record_files": _whole(1, 1000, "0", "1001"),
    "require_hypervisor": Sample(
        (Good("no", "false", False), Good("no", '"no"', False)), ("", "No", "false", "0"), ("0", "1", "[]", '"true"')
    ),
    "dbus": _text("none", "unix:path=/run/bus", "", "System", "/run/bus", "unix:path=/a b"),
    "socket": _text("none", "/run/other.sock", "", "run/x.sock", "unix:/run/x", "/"),
    "tcp_host": _text("none", "::1", "", "a b", "tcp://a", "a/b"),
    "tcp_port": _whole(0, 8197, "65536"),
    "tls_ca": _file(),
    "tls_certificate": _file(),
    "tls_key": _file(),
    "http_host": _text("0.0.0.0", "::1", "", "a b", "http://a"),
    "http_port": _whole(0, 8100, "65536"),
    "http_names": Sample(
        (Good("a,b.example.org", '["a", "b.example.org"]', ("a", "b.example.org")), Good("c", '"c"', ("c",))),
        ("a b", "a/b", "ü", "*"),
        ("5", "[5]", "[[]]", "true", '["a b"]'),
    ),
    "metrics_per_vm": Sample(
        (Good("yes", "true", True), Good("yes", '"yes"', True)), ("", "Yes", "true", "1"), ("0", "1", "[]", '"true"')
    ),
    "image_roots": Sample(
        (Good("/a,/b c", '["/a", "/b c"]', ("/a", "/b c")), Good("/", '"/"', ("/",))),
        ("a", "/a,b", "./a"),
        ("5", '["a"]', "[5]"),
    ),
    "machine": _text("pc", "pc-q35-6.2", "", "a b", "a,b"),
    "emulator": _text("/usr/bin/qemu-system-x86_64", "/opt/a b/qemu", "qemu"),
    "network": _text("bridge:br0", "network:default", "br0", "bridge:", "tap:0", "bridge:a b"),
    "virt_type": Sample(
        (Good("kvm", '"kvm"', "kvm"), Good("qemu", '"qemu"', "qemu")), ("", "KVM", "xen"), ("1", "[]", "{}")
    ),
    "workers": _whole(1, 64, "0", "65"),
    "debug": _whole(1, 9, "10"),
}

SOURCES = ("file", "env_file", "environment", "flag")
"""From the weakest to the strongest."""


def _load(folder: Path, row: Setting, given: dict[str, str]) -> Settings:
    """given: a text (in the file: TOML) by source."""
    config, env_file = folder / "vmstackd.toml", folder / "env"
    config.write_text(f"{row.key} = {given['file']}\n" if "file" in given else "", encoding="utf-8")
    env_file.write_text(f"{TABLE.variable(row)}={given['env_file']}\n" if "env_file" in given else "", encoding="utf-8")
    return load_settings(
        {row.key: given["flag"]} if "flag" in given else {},
        {TABLE.variable(row): given["environment"]} if "environment" in given else {},
        env_file,
        config,
    )


def _place(folder: Path, row: Setting, source: str) -> str:
    """How an error names a source and the key there."""
    return {
        "file": f"{folder / 'vmstackd.toml'}: {row.key}: ",
        "env_file": f"{folder / 'env'}: line 1: {TABLE.variable(row)}: ",
        "environment": f"environment variable {TABLE.variable(row)}: ",
        "flag": f"{row.flag}: ",
    }[source]


def test_every_row_has_a_sample_a_field_and_a_meaning() -> None:
    assert SAMPLES.keys() == ROWS.keys() == set(Settings.__struct_fields__)
    assert all(row.help and row.metavar for row in TABLE.rows)
    assert len({row.legacy for row in TABLE.rows if row.legacy}) == len([row for row in TABLE.rows if row.legacy])


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_without_any_source_the_default_holds_and_the_row_would_allow_it(row: Setting, tmp_path: Path) -> None:
    loaded = _load(tmp_path, row, {})
    assert getattr(loaded, row.key) == row.default
    if row.default not in ("", (), {}):
        assert row.read(row.shown_default) == row.default


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_each_source_beats_the_weaker_ones(row: Setting, source: str, tmp_path: Path) -> None:
    lost, won = SAMPLES[row.key].good
    weaker = SOURCES[: SOURCES.index(source)]
    given = {name: lost.toml if name == "file" else lost.text for name in weaker}
    loaded = _load(tmp_path, row, given | {source: won.toml if source == "file" else won.text})
    assert getattr(loaded, row.key) == won.value


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_each_row_understands_both_good_values_from_each_source(row: Setting, tmp_path: Path) -> None:
    for good in SAMPLES[row.key].good:
        for source in SOURCES:
            loaded = _load(tmp_path, row, {source: good.toml if source == "file" else good.text})
            assert getattr(loaded, row.key) == good.value


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_a_bad_value_is_one_line_that_names_source_key_and_what_is_allowed(row: Setting, tmp_path: Path) -> None:
    sample = SAMPLES[row.key]
    cases = [("file", text) for text in sample.bad_toml]
    cases += [(source, text) for source in SOURCES[1:] for text in sample.bad]
    cases += [("file", f'"{text}"') for text in sample.bad]
    for source, text in cases:
        with pytest.raises(SettingsError) as error:
            _load(tmp_path, row, {source: text})
        message = str(error.value)
        assert message.startswith(_place(tmp_path, row, source)), message
        assert " is not allowed; it must be " in message
        assert message.isprintable()
        assert len(message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_a_bad_value_counts_even_where_a_stronger_source_has_a_good_one(row: Setting, tmp_path: Path) -> None:
    sample = SAMPLES[row.key]
    with pytest.raises(SettingsError):
        _load(tmp_path, row, {"file": sample.bad_toml[0], "flag": sample.good[0].text})


@given(st.sampled_from(TABLE.rows), st.text() | st.text(alphabet="0123456789=,.-/: ae\n"))
def test_no_text_makes_a_row_fail_in_any_other_way(row: Setting, text: str) -> None:
    try:
        row.read(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017  either way is fine, only silence is not


PROTOTYPE = """\
# settings of both schedulers
SCG_DELAY=15
SCG_URL='127.0.0.1'
SCG_PORT=8099
SCG_NODE_URL_LIST=127.0.0.1:8100

SCL_DELAY=15
SCL_URL=127.0.0.1
SCL_PORT=8100
SCL_ACT_MONITORING=3600
SCL_ACT_LEARNING=300
SCL_ACT_LEEWAY=5
QEMU_URL=qemu:///system
QEMU_LOC="/usr/bin/qemu-system-x86_64"
QEMU_MACHINE = pc-q35-6.2
TOPO_EXCLUDE=
  export OVSB_CRITICAL_SIZE=6
INFLUXDB_URL=http://localhost:8086
INFLUXDB_TOKEN=changeme
INFLUXDB_ORG=changeme
INFLUXDB_BUCKET=changeme
"""


def test_the_env_file_that_the_prototype_ships_is_accepted(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(PROTOTYPE, encoding="utf-8")
    loaded = load_settings({}, {}, env_file, Path("/dev/null"))
    assert loaded == msgspec.structs.replace(
        load_settings({}, {}, None, Path("/dev/null")),
        http_port=8100,
        emulator="/usr/bin/qemu-system-x86_64",
        machine="pc-q35-6.2",
    )


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("OVSB_CRITICAL_SIZE=many", "line 1: OVSB_CRITICAL_SIZE: 'many' is not allowed; it must be a whole number"),
        ("\n\nSCL_PORT=", "line 3: SCL_PORT: '' is not allowed"),
        ("SCL_DELAY", "line 1: not of the form KEY=VALUE"),
        ("# fine\nSCL DELAY=1", "line 2: not of the form KEY=VALUE"),
        ("SCL_DELAYS=1", "line 1: SCL_DELAYS: there is no such setting"),
        ("VMSTACKD_CRITICAL=1", "line 1: VMSTACKD_CRITICAL: there is no such setting"),
        ("VMSTACKD_TCP_PORT=none", "line 1: VMSTACKD_TCP_PORT: 'none' is not allowed"),
        ("GLOBALD_TCP_PORT=1", "line 1: GLOBALD_TCP_PORT: there is no such setting"),
        ("VMSTACKD_WORKERS=0", "line 1: VMSTACKD_WORKERS: '0' is not allowed"),
    ],
)
def test_an_env_file_is_refused_by_line(lines: str, told: str, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(lines, encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        load_settings({}, {}, env_file, Path("/dev/null"))
    assert str(error.value).startswith(f"{env_file}: {told}")


def test_the_delay_of_the_prototype_is_ours(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SCL_DELAY=7\n", encoding="utf-8")
    assert load_settings({}, {}, env_file, Path("/dev/null")).delay == 7.0


@pytest.mark.parametrize(
    ("flags", "trace"),
    [
        ({}, ""),
        ({"debug": "1"}, "results/monitoring.csv"),
        ({"debug": "1", "record": "a.csv"}, "a.csv"),
        ({"debug": "1", "record": "none"}, ""),
        ({"debug": "1", "record": "./none"}, "./none"),
        ({"record": "/a/b.csv"}, "/a/b.csv"),
        ({"debug": "1", "delay": "0"}, "results/monitoring.csv"),
        ({"record": "none", "delay": "0"}, ""),
    ],
)
def test_which_trace_is_written(flags: dict[str, str], trace: str) -> None:
    assert load_settings(flags, {}, None, Path("/dev/null")).trace == trace


def test_recording_without_measuring_is_refused() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings({"record": "a.csv", "delay": "0"}, {}, None, Path("/dev/null"))
    assert str(error.value) == "record: with a delay of 0 nothing is measured; set delay, or record to none"


def test_other_variables_of_the_environment_are_none_of_our_business() -> None:
    assert load_settings({}, {"VMSTACKD_UNKNOWN": "1", "PATH": "/bin"}, None, Path("/dev/null")).workers == 4


def test_policies_are_the_registered_ones() -> None:
    for name in POLICIES:
        assert ROWS["policy"].read(name) == name
