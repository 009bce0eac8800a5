"""The doors of the daemon as a process: those it opens, those it is passed, and those that somebody else has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import one_line
from tests.daemon.test_log import LINE
from tests.running import PATIENCE, ROOT, SMALL_HOST, Daemon, clean_environment, command, run
from tests.transports.bus import running_bus

SIM = ("--hypervisor", "sim:", "--topology", SMALL_HOST)


def ctl(path: Path, *words: str) -> str:
    """What vmstackctl prints."""
    return at(f"unix:{path}", *words)


def at(address: str, *words: str) -> str:
    """What vmstackctl prints, from this address."""
    done = subprocess.run(
        [sys.executable, "-m", "vmstackctl", "--address", address, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout


def test_the_socket_is_there_while_the_daemon_is(tmp_path: Path) -> None:
    path = tmp_path / "vmstackd.sock"
    with Daemon(*SIM, "--socket", str(path)) as daemon:
        assert f" socket=unix:{path}\n" in daemon.log
        ctl(path, "deploy", "a", "--vcpus", "1", "--memory", "1", "--level", "1", "--image", "/i/a")
        assert ctl(path, "list", "--output", "name") == "a\n"
        assert daemon.get("/listvm").json == ["a"]
        assert daemon.stop() == 0
    assert not path.exists()


def test_a_second_daemon_on_the_socket_says_who_is_there_and_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "vmstackd.sock"
    with Daemon(*SIM, "--socket", str(path)) as daemon:
        done = run(*SIM, "--http-port", "0", "--socket", str(path))
        assert done.code == 1
        line = one_line(done.err)
        assert LINE.fullmatch(line)
        assert " error socket-failed " in line
        assert f"process {daemon.process.pid} (" in line
        assert ctl(path, "list", "--output", "name") == ""


def test_after_a_kill_the_socket_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "vmstackd.sock"
    with Daemon(*SIM, "--socket", str(path)) as daemon:
        daemon.stop(signal.SIGKILL)
    assert path.exists()
    with Daemon(*SIM, "--socket", str(path)):
        assert ctl(path, "list", "--output", "name") == ""


def test_a_socket_in_no_folder_is_a_failure_in_one_line(tmp_path: Path) -> None:
    done = run(*SIM, "--http-port", "0", "--socket", str(tmp_path / "absent" / "s"))
    assert done.code == 1
    assert "does not exist; make it: install -d" in one_line(done.err)


TCP = ("--tcp-host", "127.0.0.1", "--tcp-port")


def test_the_tcp_port_answers_as_the_socket_does() -> None:
    with Daemon(*SIM, *TCP, "0") as daemon:
        address = daemon.wait_for(r" ready .* tcp=(tcp:127\.0\.0\.1:[0-9]+)\n")[1]
        assert at(address, "list", "--output", "name") == ""
        assert daemon.stop() == 0


def test_a_taken_tcp_port_is_a_failure_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        done = run(*SIM, "--http-port", "0", *TCP, str(holder.getsockname()[1]))
    assert done.code == 1
    line = one_line(done.err)
    assert LINE.fullmatch(line)
    assert " error tcp-failed " in line
    assert "--tcp-port" in line


def test_a_bus_that_is_not_there_ends_the_start_with_6(tmp_path: Path) -> None:
    done = run(*SIM, "--http-port", "0", "--dbus", f"unix:path={tmp_path}/bus")
    assert done.code == 6
    last = done.err.splitlines()[-1]
    assert LINE.fullmatch(last)
    assert " error dbus-unreachable " in last
    assert "--dbus none" in last


def test_a_second_daemon_on_the_bus_says_who_is_there(tmp_path: Path) -> None:
    with running_bus(tmp_path) as bus, Daemon(*SIM, "--dbus", bus.address) as daemon:
        assert f' dbus="{bus.address}"\n' in daemon.log
        done = run(*SIM, "--http-port", "0", "--dbus", bus.address)
        assert done.code == 1
        last = done.err.splitlines()[-1]
        assert " error name-taken " in last
        assert f"process {daemon.process.pid} (" in last


def test_a_hangup_reads_the_settings_again(tmp_path: Path) -> None:
    config = tmp_path / "vmstackd.toml"
    config.write_text("critical_size = 6\n", encoding="utf-8")
    deploy = "/deploy?name={}&cpu=4&mem=1&oc=2&qcow2=/i/x"
    with Daemon(*SIM, "--config", str(config)) as daemon:
        assert daemon.get(deploy.format("a")).status == 200
        config.write_text("critical_size = 0\nworkers = 2\n", encoding="utf-8")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r" info reloaded changed=critical_size needs_restart=workers\n")
        assert daemon.get(deploy.format("b")).status == 200
        assert daemon.get("/status").json["cpu"]["subset"]["2.0"]["pcap"] == 4, "shared by both"
        config.write_text("critical_size = -1\n", encoding="utf-8")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r" error reload-failed .*critical_size: -1 is not allowed")
        config.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r" error reload-failed .*cannot be read")
        assert daemon.get("/status").json["cpu"]["subset"]["2.0"]["pcap"] == 4
        assert daemon.stop() == 0


def test_a_hangup_during_the_start_does_not_pass_for_the_end_of_it(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        silent.bind(str(path))
        silent.listen()
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        uri = f"qemu+unix:///system?socket={path}"
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Daemon("--hypervisor", uri, "--topology", SMALL_HOST, environment=environment, wait=False) as daemon:
            daemon.wait_for(" starting ")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for(" info reloaded ")
            assert daemon.stop() == 0
        told = b"".join(iter(lambda: _datagram(systemd), b""))
    assert b"STATUS=connecting to" in told
    assert b"READY=1" not in told
    assert b"RELOADING=1" not in told


def _datagram(receiver: socket.socket) -> bytes:
    """Empty if there is none."""
    try:
        return receiver.recv(65536)
    except BlockingIOError:
        return b""


PASS = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""As systemd does it: the variable names the process that the daemon becomes."""


@pytest.mark.parametrize("names", ["rpc:http", "rpc:http:other", "rpc:http:tcp"])
def test_passed_sockets_are_used_instead_of_own_ones(tmp_path: Path, names: str) -> None:
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX) as rpc, socket.create_server(("127.0.0.1", 0)) as http, socket.socket() as other:
        rpc.bind(str(path))
        rpc.listen()
        other.bind(("127.0.0.1", 0))
        other.listen()
        tcp = other.getsockname()[1] if "tcp" in names else None
        given = [rpc, http, other][: names.count(":") + 1]
        # Where systemd would put them: from descriptor 3 on.
        script = "".join(f"os.dup2({one.fileno()}, {100 + n});" for n, one in enumerate(given))
        script += "".join(f"os.dup2({100 + n}, {3 + n});" for n in range(len(given)))
        words = command(*SIM, "--http-port", "1", "--socket", "/nonexistent/s")[1:]
        with subprocess.Popen(
            [sys.executable, "-c", f"import os; {script}{PASS}", *words],
            cwd=ROOT,
            env=clean_environment({"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": names}),
            pass_fds=[one.fileno() for one in given],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if " ready " in line:
                    break
            try:
                address = f" tcp=tcp:127.0.0.1:{tcp}" if tcp else ""
                assert f"http=http://127.0.0.1:{http.getsockname()[1]} socket=unix:{path}{address}\n" in said
                assert ("socket-unknown" in said) == ("other" in names)
                if tcp:
                    assert at(f"127.0.0.1:{tcp}", "list", "--output", "name") == ""
                assert ctl(path, "list", "--output", "name") == ""
            finally:
                process.terminate()
            assert process.wait(PATIENCE) == 0
    assert path.exists(), "it is systemd's to remove"


def test_sockets_that_cannot_be_used_are_a_failure_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import os; {PASS}", *command(*SIM)[1:]],
        cwd=ROOT,
        env=clean_environment({"LISTEN_FDS": "1"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert " error sockets-unusable " in one_line(done.stderr)
    assert os.devnull not in done.stderr


@pytest.mark.parametrize("name", ["rpc", "http"])
def test_a_passed_socket_of_the_wrong_kind_is_a_failure_in_one_line(tmp_path: Path, name: str) -> None:
    with socket.socket(socket.AF_INET if name == "rpc" else socket.AF_UNIX) as given:
        given.bind(("127.0.0.1", 0) if name == "rpc" else str(tmp_path / "s"))
        given.listen()
        done = subprocess.run(
            [sys.executable, "-c", f"import os; os.dup2({given.fileno()}, 3); {PASS}", *command(*SIM)[1:]],
            cwd=ROOT,
            env=clean_environment({"LISTEN_FDS": "1", "LISTEN_FDNAMES": name}),
            pass_fds=[given.fileno()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert f' error sockets-unusable reason="the passed socket {name} is of the family AF_' in one_line(done.stderr)
