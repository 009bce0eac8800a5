"""The command line of globald: what it accepts, how it says that it does not, and a life of the daemon."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest

from globald.__main__ import main
from globald.settings import TABLE
from tests.cli.command import one_line
from tests.running import SMALL_HOST, Daemon, Finished, clean_environment
from vmstackd.version import VERSION

APART = ("--config", os.devnull, "--hosts-dir", "none", "--socket", "none", "--tcp-host", "none", "--http-port", "0")
"""Keeps a daemon from what this machine has."""


def call(*flags: str, environment: dict[str, str] | None = None) -> Finished:
    """What ``python -m globald FLAGS`` would answer, were it a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    arguments = flags if "--config" in flags else ("--config", os.devnull, *flags)
    with (
        mock.patch.dict(os.environ, clean_environment(environment), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Finished(code=code, out=out.getvalue(), err=err.getvalue())


class Globald(Daemon):
    """The daemon as a process of its own."""

    def __init__(self, *flags: str, wait: bool = True) -> None:
        super().__init__(*flags, wait=wait)
        given = {flag.split("=")[0] for flag in flags}
        pairs = zip(APART[::2], APART[1::2], strict=True)
        apart = [word for flag, value in pairs if flag not in given for word in (flag, value)]
        self.command = [sys.executable, "-m", "globald", *apart, *flags]


def test_help_lists_every_setting_with_examples_and_exit_codes() -> None:
    done = call("-h")
    assert (done.code, done.err) == (0, "")
    flat = " ".join(done.out.split())
    for row in TABLE.rows:
        assert f"{row.flag} {row.metavar}" in flat
        assert "".join(row.help.split()) in "".join(flat.split())  # lines may end at a hyphen
    for flag in ("--list ADDRESSES", "--env-file FILE", "--config FILE", "--check-config", "--version"):
        assert flag in flat
    assert "exit codes: 0 done, 1 failed, 2 usage, 78 configuration" in done.out
    assert call("--version").out == f"globald {VERSION}\n"


def test_every_example_of_the_help_is_understood() -> None:
    text = call("-h").out.partition("examples:\n")[2].partition("\n\n")[0]
    examples = [re.split(r" {3,}", line.strip())[0].split()[1:] for line in text.splitlines()]
    assert len(examples) >= 3
    known = set(re.findall(r"--[a-z-]+", call("-h").out))
    for flags in examples:
        assert {flag for flag in flags if flag.startswith("--")} <= known


@pytest.mark.parametrize("flag", ["--hosts", "--list"])
def test_hosts_can_be_given_in_both_words(flag: str) -> None:
    done = call(f"{flag}=127.0.0.1,127.0.0.1:9", "--hosts-dir", "none", "--check-config")
    assert (done.code, done.err) == (0, "")
    assert one_line(done.out) == "globald: the configuration is usable: 2 hosts"
    assert "and those of /etc/vmstack/hosts.d" in call("--check-config").out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["extra"], "unrecognized arguments: extra"),
        (["--hosts"], "argument --hosts: expected one argument"),
        (["--list", "a", "--hosts", "b"], "--list and --hosts both name hosts; give one of them"),
        (["--bogus\nforged"], "unrecognized arguments: --bogus\\nforged"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(flags: list[str], told: str) -> None:
    done = call(*flags)
    assert (done.code, done.out) == (2, "")
    line = one_line(done.err)
    assert line.startswith("globald: ")
    assert told in line
    assert line.endswith("; globald -h shows what there is")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--list=http://127.0.0.1:8100"], "write 127.0.0.1:8097 instead of http://127.0.0.1:8100"),
        (["--list=127.0.0.1:8100,127.0.0.1:8101"], "8100 is a port for HTTP: write 8097 instead"),
        (["--hosts=10.0.0.5"], "plain TCP is refused there: set tls_ca, tls_certificate and tls_key"),
        (["--hosts=127.0.0.1", "--tls-ca=/ca.crt"], "tls_certificate, tls_key: missing; TLS needs tls_ca, "),
        (["--hosts-dir=hosts.d"], "--hosts-dir: 'hosts.d' is not allowed; it must be an absolute path"),
        (["--config=/no/such.toml"], "/no/such.toml"),
        (["--env-file=/no/such"], "/no/such"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line_and_exit_code_78(flags: list[str], told: str) -> None:
    for check in ([], ["--check-config"]):
        done = call(*flags, *check)
        assert (done.code, done.out) == (78, "")
        line = one_line(done.err)
        assert line.startswith("globald: ")
        assert told in line


def test_the_environment_names_settings(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SCG_NODE_URL_LIST=127.0.0.1\n")
    assert "1 hosts" in call("--env-file", str(env_file), "--check-config").out
    environment = {"GLOBALD_HOSTS": "127.0.0.1:1,127.0.0.1:2"}
    assert "2 hosts" in call("--env-file", str(env_file), "--check-config", environment=environment).out
    done = call("--check-config", environment={"GLOBALD_ATTEMPTS": "none"})
    assert (done.code, "environment variable GLOBALD_ATTEMPTS: " in done.err) == (78, True)


def test_a_life(tmp_path: Path) -> None:
    """One host, from the start of both to the end of globald: deployed over HTTP, metrics, a reload, SIGTERM."""
    config, hosts = tmp_path / "globald.toml", tmp_path / "hosts.d"
    config.write_text('attempts = 1\npolicy = "first-fit"\n')
    hosts.mkdir()
    host = Daemon("--hypervisor", "sim:", "--topology", SMALL_HOST, "--tcp-host", "127.0.0.1", "--tcp-port", "0")
    with host:
        tcp = host.wait_for(r" ready .* tcp=(\S+)")[1].removeprefix("tcp:")
        (hosts / "a.toml").write_text(f'address = "{tcp}"\n')
        with Globald("--config", str(config), "--hosts-dir", str(hosts)) as globald:
            globald.wait_for(r" learned hosts=1 vms=0")
            assert globald.get("/readyz").json == {"ready": True, "hosts": {"up": 1}}
            deployed = globald.get("/deploy?name=a%26b&cpu=2&mem=1&oc=2&qcow2=/images/x.qcow2")
            assert (deployed.status, deployed.json["success"]) == (200, True)
            assert host.get("/listvm").json == globald.get("/listvm").json == ["a&b"]
            assert globald.get("/remove?name=a%26b").json["success"] is True
            assert host.get("/listvm").json == []
            assert 'vmstack_hosts{state="up"} 1' in globald.get("/metrics").text
            config.write_text("attempts = 0\n")
            globald.process.send_signal(signal.SIGHUP)
            globald.wait_for(r"reload-failed .*attempts: 0 is not allowed")
            config.write_text('attempts = 5\nhosts = ["127.0.0.1:1"]\n')
            globald.process.send_signal(signal.SIGHUP)
            changed = globald.wait_for(r"reloaded changed=(\S+) needs_restart=(\S+)")
            assert (set(changed[1].split(",")), changed[2]) == ({"policy", "attempts"}, "hosts")
            (hosts / "a.toml").unlink()
            globald.wait_for(r"host-removed host=\S+ address=\S+ vms=0")
            assert globald.get("/status").json == {}
            assert globald.get("/readyz").json == {"ready": True, "hosts": {}}
            assert globald.stop() == 0
            assert re.search(r" stopping hosts=0 note=\"hosts and VMs run on\"\n\Z", globald.log)
            for line in globald.log.splitlines():
                assert re.match(r"20\d\d-\d\d-\d\dT[0-9:.]+Z (info|warning|error) [a-z-]+( |$)", line), line


def test_a_port_that_is_taken_is_one_line_in_the_log() -> None:
    with Globald() as first:
        second = Globald("--http-port", str(first.port), wait=False)
        with second:
            assert second.wait() == 1
            assert "http-failed" in second.log
