"""The daemon's life as a process: start, answer, refuse to start, end."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.cli.command import one_line
from tests.daemon.test_log import LINE
from tests.running import ROOT, SMALL_HOST, Daemon, run
from tests.transports.bad_requests import BAD
from tests.transports.test_http_socket import GARBAGE

SIM = ("--hypervisor", "sim:", "--topology", SMALL_HOST)
DEPLOY = "/deploy?name=web&cpu=2&mem=1.5&oc=1.5&qcow2=/images/web.qcow2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_starts_answers_and_ends_cleanly_at_a_signal(number: signal.Signals) -> None:
    with Daemon() as daemon:
        assert daemon.get("/").text == "Scheduler is working and waiting for instructions"
        assert daemon.get(DEPLOY).json == {"success": True, "reason": None}
        assert daemon.get("/listvm").json == ["web"]
        assert daemon.get("/nothing").status == 404
        assert daemon.stop(number) == 0
        lines = daemon.log.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), daemon.log
    assert [line.split(" ")[2] for line in lines] == ["starting", "ready", "deploy", "stopping"]
    assert "vms=1" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_the_start_ends_it_cleanly(number: signal.Signals) -> None:
    with Daemon(*SIM, wait=False) as daemon:
        daemon.wait_for(" starting ")
        assert daemon.stop(number) == 0
        assert daemon.log.splitlines()[-1].split(" ")[2] == "stopping"
        assert "Traceback" not in daemon.log


def test_signals_that_come_again_change_nothing() -> None:
    with Daemon() as daemon:
        for _ in range(5):
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log


def test_a_taken_port_is_a_failure_in_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(*SIM, "--http-port", str(port))
    assert (done.code, done.out) == (1, "")
    line = one_line(done.err)
    assert LINE.fullmatch(line)
    assert f" error http-failed address=127.0.0.1:{port} " in line
    assert "Address already in use" in line
    assert "--http-port" in line


@pytest.mark.parametrize("host", ["a" * 70, "nowhere.invalid", "203.0.113.1"])
def test_an_address_that_is_not_here_is_a_failure_in_one_line(host: str) -> None:
    done = run(*SIM, "--http-host", host, "--http-port", "0")
    assert done.code == 1
    assert f" error http-failed address={host}:0 reason=" in one_line(done.err)


def test_an_unreachable_hypervisor_ends_it_with_6_and_says_so() -> None:
    uri = "qemu+unix:///system?socket=/nonexistent"
    done = run("--hypervisor", uri, "--topology", SMALL_HOST, "--http-port", "0")
    assert done.code == 6
    *_, last = done.err.splitlines()
    assert LINE.fullmatch(last)
    assert f' error hypervisor-unreachable uri="{uri}" reason="' in last
    assert "/nonexistent" in last.partition("reason=")[2]
    assert "Traceback" not in done.err


def test_settings_come_from_all_sources_at_once(tmp_path: Path) -> None:
    config, env_file = tmp_path / "vmstackd.toml", tmp_path / ".env"
    config.write_text(f'hypervisor = "sim:"\ntopology = "{SMALL_HOST}"\ncritical_size = 3\n', encoding="utf-8")
    env_file.write_text("TOPO_EXCLUDE=0,1\nOVSB_CRITICAL_SIZE=2\nSCL_PORT=1\n", encoding="utf-8")
    flags = ("--config", str(config), "--env-file", str(env_file))
    with Daemon(*flags, environment={"VMSTACKD_RESERVED_MEMORY": "1024"}) as daemon:
        start = daemon.wait_for(r" starting (.*)")[1]
        assert "cpus=2-15 memory_mib=64512 policy=" in start
        assert start.endswith("critical_size=2")
        assert daemon.get("/status").json["mem"]["avail"] == 64512


def test_a_supplied_host_is_served_as_the_help_shows() -> None:
    file = ROOT / "topologies" / "EPYC-7662.json"
    with Daemon("--topology", str(file), "--hypervisor", "sim:") as daemon:
        assert daemon.get("/status").json == {
            "cpu": {"avail": 256, "subset": {}},
            "mem": {"avail": 1031752, "subset": {}},
        }


@pytest.mark.parametrize("debug", ["0", "1"])
def test_nothing_that_clients_send_brings_a_500_or_a_line_that_is_not_ours(debug: str) -> None:
    with Daemon(*SIM, "--debug", debug, "--critical-size", "0") as daemon:
        assert daemon.get(DEPLOY.replace("web", "here")).status == 200
        before = daemon.get("/status").body
        for data in [f"GET {bad.target} HTTP/1.0\r\n\r\n".encode() for bad in BAD] + list(GARBAGE.values()):
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as client:
                client.sendall(data)
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert re.match(rb"HTTP/1\.[01] [24]", answer), answer
        assert daemon.get("/status").body == before
        assert daemon.stop() == 0
        log = daemon.log
    assert not [line for line in log.splitlines() if not LINE.fullmatch(line)]
    assert not re.search(r"Z (error|warning) ", log)


def test_a_signal_ends_the_start_while_the_hypervisor_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        uri = f"qemu+unix:///system?socket={path}"
        with Daemon("--hypervisor", uri, "--topology", SMALL_HOST, wait=False) as daemon:
            daemon.wait_for(" starting ")
            assert daemon.stop() == 0
            assert "hypervisor-unreachable" not in daemon.log
