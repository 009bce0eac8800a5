"""What the command line accepts, and how it says that it does not."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from tests.cli.command import call, one_line
from tests.running import PATIENCE, ROOT, SMALL_HOST, command, run
from vmstackd import app
from vmstackd.daemon.table import Setting, SettingsError
from vmstackd.hypervisor.base import HypervisorUnreachable
from vmstackd.settings import TABLE, Settings
from vmstackd.version import VERSION

SIM = ("--hypervisor", "sim:", "--topology", SMALL_HOST)


def test_help_lists_every_setting_with_examples_and_exit_codes() -> None:
    done = run("-h")
    assert (done.code, done.err) == (0, "")
    flat = " ".join(done.out.split())
    for row in TABLE.rows:
        assert f"{row.flag} {row.metavar}" in flat
        assert " ".join(row.help.split()) in flat
    for flag in (
        "--load",
        "--output",
        "--relevel",
        "--env-file",
        "--config",
        "--check-config",
        "--dump-topology",
        "--version",
    ):
        assert flag in flat
    assert "examples:" in done.out
    assert "exit codes: 0 done, 1 failed, 2 usage, 6 hypervisor unreachable, 78 configuration" in done.out
    assert "VMSTACKD_CRITICAL_SIZE=6" in done.out


def test_every_example_of_the_help_is_a_command_line_that_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = call("-h").out.partition("examples:\n")[2].partition("\n\n")[0]
    examples = [re.split(r" {3,}| > ", line.strip())[0].split()[1:] for line in text.splitlines()]
    assert len(examples) >= 4
    for flags in examples:
        known = [flag for flag in flags if flag.startswith("--")]
        assert set(known) <= set(re.findall(r"--[a-z-]+", call("-h").out))
        if "--topology" in flags and "--load" not in flags:
            assert call(*flags, "--check-config").code == 0


def test_version() -> None:
    assert call("--version").out == f"vmstackd {VERSION}\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["extra"], "unrecognized arguments: extra"),
        (["--http-port"], "argument --http-port: expected one argument"),
        (["--http", "1"], "unrecognized arguments: --http 1"),
        (["--debug"], "argument --debug: expected one argument"),
        (
            ["--load", str(ROOT / "topologies" / "i7-1185G7.json"), "--topology", "sysfs"],
            "is no trace, so it names a topology",
        ),
        (["--load", str(ROOT / "topologies" / "i7-1185G7.json"), "--output", "json"], "are for replays"),
        (["--output", "json"], "--output and --relevel are for replays of traces; name one with --load FILE"),
        (["--relevel", "2.0=3.0"], "--output and --relevel are for replays of traces; name one with --load FILE"),
        (["--output", "xml"], "argument --output: invalid choice: 'xml'"),
        (["--bogus\nforged"], "unrecognized arguments: --bogus\\nforged"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(flags: list[str], told: str) -> None:
    done = call(*flags)
    assert (done.code, done.out) == (2, "")
    line = one_line(done.err)
    assert line.startswith("vmstackd: ")
    assert told in line
    assert line.endswith("; vmstackd -h shows what there is")


def test_the_exit_code_of_wrong_usage_reaches_the_shell() -> None:
    assert run("--bogus").code == 2
    assert run(*SIM, "--workers", "0").code == 78


def test_check_config_says_what_it_found() -> None:
    done = call(*SIM, "--check-config", "--exclude-cpus", "0-3", "--reserved-memory", "1024")
    assert (done.code, done.err) == (0, "")
    assert one_line(done.out) == "vmstackd: the configuration is usable: CPUs 4-15, 64512 MiB"


def test_check_config_finds_what_the_start_would_find() -> None:
    done = call(*SIM, "--check-config", "--tcp-host", "0.0.0.0")
    assert done.code == 78
    assert "plain TCP is refused beyond loopback" in one_line(done.err)
    files = ("--tls-ca", "/no/ca", "--tls-certificate", "/no/crt", "--tls-key", "/no/key")
    done = call(*SIM, "--check-config", *files)
    assert done.code == 78
    assert "tls_ca: /no/ca: cannot be read" in one_line(done.err)


def test_check_config_connects_to_nothing() -> None:
    flags = ("--hypervisor", "qemu+unix:///system?socket=/nonexistent", "--topology", SMALL_HOST)
    assert call(*flags, "--check-config").code == 0


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.key)
def test_a_bad_value_of_any_setting_ends_with_78_and_one_line(row: Setting, tmp_path: Path) -> None:
    bad = {
        "topology": "\n",
        "image_roots": "a",
        "http_names": "a b",
        "emulator": "qemu",
        "network": "x",
        "record": "a/",
    }.get(row.key, "?!")
    from_flag = call("--check-config", f"{row.flag}={bad}")
    from_environment = call("--check-config", environment={TABLE.variable(row): bad})
    config = tmp_path / "vmstackd.toml"
    config.write_text(f"{row.key} = {{ a = [] }}", encoding="utf-8")
    from_file = call("--check-config", "--config", str(config))
    assert {from_flag.code, from_environment.code, from_file.code} == {78}
    assert one_line(from_flag.err).startswith(f"vmstackd: {row.flag}: ")
    assert one_line(from_environment.err).startswith(f"vmstackd: environment variable {TABLE.variable(row)}: ")
    assert one_line(from_file.err).startswith(f"vmstackd: {config}: {row.key}: ")


def test_flags_win_over_the_environment() -> None:
    done = call(*SIM, "--check-config", "--exclude-cpus", "1", environment={"VMSTACKD_EXCLUDE_CPUS": "2-15"})
    assert "CPUs 0,2-15," in done.out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--hypervisor", "nonsense:"], "hypervisor 'nonsense:' is not known; allowed: qemu:///system"),
        (["--hypervisor", "sim:x"], "hypervisor 'sim:x' is not known"),
        (["--hypervisor", "xen:///"], "hypervisor 'xen:///' is not known"),
        (["--reserved-memory", "65536"], "reserved_memory: 65536 MiB leaves nothing of the host's 65536 MiB"),
        (["--exclude-cpus", "0-15"], "every CPU of the host is excluded"),
        (["--topology", "synthetic:cores=0"], "synthetic: cores: '0' is not a whole number"),
        (["--topology", "synthetic:sockets=99999"], "sockets"),
        (["--topology", "/nonexistent.json"], "/nonexistent.json: cannot be read: No such file or directory"),
        (["--topology", "/"], "/: cannot be read: Is a directory"),
        (["--topology", "sysfs:/nonexistent"], "/nonexistent"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml: cannot be read: No such file or directory"),
        (["--env-file", "/nonexistent"], "/nonexistent: cannot be read: No such file or directory"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_with_78_and_one_line(flags: list[str], told: str) -> None:
    done = call(*SIM, "--check-config", *flags)
    assert (done.code, done.out) == (78, "")
    line = one_line(done.err)
    assert line.startswith("vmstackd: ")
    assert told in line


def test_a_key_with_a_line_break_is_shown_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "vmstackd.toml"
    config.write_text('"workers\\nforged" = 1\n', encoding="utf-8")
    done = call("--check-config", "--config", str(config))
    assert done.code == 78
    assert f"{config}: workers\\nforged: there is no such setting" in one_line(done.err)


def test_output_that_cannot_be_written_is_a_failure_in_one_line() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            command("--dump-topology", "--topology", SMALL_HOST),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert one_line(done.stderr) == "vmstackd: cannot write: No space left on device"


def test_ctrl_c_while_the_topology_is_read_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "host_state", interrupted)
    done = call(*SIM, "--check-config")
    assert (done.code, done.out, done.err) == (130, "", "")


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 0, ""),
        (SettingsError("topology: no\nforged"), 78, "vmstackd: topology: no\\nforged\n"),
        (HypervisorUnreachable("libvirt-python is missing"), 6, "vmstackd: libvirt-python is missing\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_the_daemon_before_it_serves_has_its_exit_code(raised: BaseException, code: int, told: str) -> None:
    async def run_app(_settings: Settings, _read: object) -> int:
        raise raised

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with mock.patch.object(app, "run", run_app):
            done = call(*SIM)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert (done.code, done.out, done.err) == (code, "", told)
