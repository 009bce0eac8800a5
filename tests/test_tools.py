from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import QEMU, missing_embedded, missing_qemu
from tests.running import ROOT, SMALL_HOST, Answer, Daemon, clean_environment
from tools import hello_image, purge, run, state_dir
from tools.state_dir import MARK, StateDir, StateDirError

needs_embedded = pytest.mark.skipif(bool(missing_embedded()), reason=f"qemu:///embed: {missing_embedded()}")

ANY_PORTS = ("--http-port", "0", "--tcp-port", "0", "--cluster-args=--http-port 0")
"""Unless later options say which."""
SIM = ("--hypervisor", "sim:", "--topology", SMALL_HOST)
"""Where real VMs would add nothing."""


class Runner(Daemon):
    """``make run`` without make."""

    patience = 120.0
    """The first start asks QEMU what it can do."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(*options)
        self.command = run_command(directory, *options)

    def wait_ready(self) -> None:
        super().wait_ready()
        self.wait_for(r"Ready\. Ctrl-C")

    @property
    def cluster_url(self) -> str:
        """Of globald's HTTP endpoint."""
        return self.wait_for(r"(?m)^globald +\S+ info ready http=(\S+)")[1]

    def get_from_cluster(self, path: str) -> Answer:
        host, self.url = self.url, self.cluster_url
        try:
            return self.get(path)
        finally:
            self.url = host

    def pid_of(self, program: str) -> int:
        """Of one of its two daemons."""
        for child in map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()):
            if program.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return child
        raise AssertionError(f"{program} does not run")


def run_command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tools.run", str(directory), *ANY_PORTS, *options]


def run_until_it_ends(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        run_command(directory, *options),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=Runner.patience,
        check=False,
    )


def purged(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.purge", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=Runner.patience,
        check=False,
    )


def qemus(directory: Path) -> list[int]:
    """Processes whose command line names this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"qemu-system" in words[0] and any(os.fsencode(directory) in word for word in words):
                found.append(int(entry.name))
    return found


@pytest.fixture
def state_path() -> Iterator[Path]:
    """Not yet there, and short enough for Unix sockets below it; purged at the end."""
    with tempfile.TemporaryDirectory(prefix="vmstack-") as parent:
        path = Path(parent, "s")
        yield path
        if path.exists():
            purged(path)


@pytest.mark.real
@needs_embedded
def test_run_leaves_the_vms_running_and_finds_them_again_and_purge_ends_them(state_path: Path) -> None:
    with Runner(state_path) as runner:
        call = f"curl '{runner.url}/deploy?name=hello&cpu=1&mem=0.125&oc=1.0&qcow2={state_path}/images/"
        runner.wait_for(re.escape(call))
        image = state_path / "images" / "hello.qcow2"
        deployed = runner.get(f"/deploy?name=a&cpu=1&mem=0.125&oc=1.5&qcow2={image}").json
        assert deployed == {"success": True, "reason": None}
        assert runner.get_from_cluster("/listvm").json == ["a"]
        assert stat.S_IMODE(state_path.stat().st_mode) == 0o700
        second = run_until_it_ends(state_path)
        assert (second.returncode, "is in use: vmstackd runs on it" in second.stderr) == (1, True)
        refused = purged(state_path)
        assert (refused.returncode, "is in use: vmstackd runs on it" in refused.stderr) == (1, True)
        assert runner.stop(signal.SIGINT) == 0
        assert f"its VMs keep running (1): make run STATE_DIR={state_path} manages them again" in runner.log
        assert "Traceback" not in runner.log
    assert len(qemus(state_path)) == 1
    with Runner(state_path) as runner:
        assert runner.get("/listvm").json == ["a"]
        assert runner.get("/remove?name=a").json == {"success": True, "reason": None}
        assert runner.get(f"/deploy?name=b&cpu=1&mem=0.125&oc=1.0&qcow2={image}").json == {
            "success": True,
            "reason": None,
        }
        assert runner.stop(signal.SIGTERM) == 0
    done = purged(state_path)
    assert (done.returncode, "Ended 1 VM: b" in done.stderr) == (0, True)
    assert not qemus(state_path)
    assert not state_path.exists()


def test_run_starts_globald_with_this_host_and_one_signal_ends_both(state_path: Path) -> None:
    with Runner(state_path, *SIM) as runner:
        runner.wait_for(f"curl {runner.cluster_url}/status\n")
        runner.wait_for(f"vmstackctl --address {state_path}/globald.sock hosts\n")
        image = state_path / "images" / "hello.qcow2"
        deployed = runner.get_from_cluster(f"/deploy?name=a&cpu=1&mem=1&oc=1.0&qcow2={image}").json
        assert deployed["success"] is True
        assert runner.get("/listvm").json == runner.get_from_cluster("/listvm").json == ["a"]
        asked = subprocess.run(
            [sys.executable, "-m", "vmstackctl", "--address", f"{state_path}/globald.sock", "list", "--output", "name"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=Runner.patience,
            check=True,
        )
        assert asked.stdout == "a\n"
        assert runner.stop(signal.SIGINT) == 0
        names = {line.split()[0] for line in runner.log.splitlines() if re.search(r"^\S+ +\d{4}-", line)}
        assert names == {"vmstackd", "globald"}
        # In this order: globald would miss a host that ends before it does.
        assert re.search(r"^globald .* stopping .*^vmstackd .* stopping ", runner.log, re.MULTILINE | re.DOTALL)
        assert "host-down" not in runner.log


@pytest.mark.parametrize(("killed", "other"), [("globald", "vmstackd"), ("vmstackd", "globald")])
def test_the_end_of_one_daemon_is_the_end_of_both(state_path: Path, killed: str, other: str) -> None:
    with Runner(state_path, *SIM) as runner:
        left = runner.pid_of(other)
        os.kill(runner.pid_of(killed), signal.SIGKILL)
        assert runner.wait() == 128 + signal.SIGKILL
        assert f"==> {killed} was killed (SIGKILL); {other} was ended with it\n" in runner.log
        assert ("any VMs of vmstackd keep running" in runner.log) == (killed == "vmstackd")
        assert not Path(f"/proc/{left}").exists()


def test_a_port_of_globald_that_is_in_use_is_named_and_where_to_choose_another(state_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        done = run_until_it_ends(state_path, *SIM, f"--cluster-args=--http-port {port}")
    assert done.returncode == 1
    assert re.search(rf"^globald .* error http-failed address=127\.0\.0\.1:{port} ", done.stderr, re.MULTILINE)
    assert "goes into CLUSTER_ARGS" in done.stderr
    assert "Ready." not in done.stderr


def test_a_port_of_vmstackd_that_is_in_use_is_named(state_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        done = run_until_it_ends(state_path, *SIM, "--tcp-port", str(port))
    assert done.returncode == 1
    assert re.search(rf"^vmstackd .* error tcp-failed address=127\.0\.0\.1:{port} ", done.stderr, re.MULTILINE)
    assert "vmstackd did not start; the line above says why" in done.stderr
    assert "globald " not in done.stderr


def test_without_a_tcp_port_there_is_a_host_and_no_cluster(state_path: Path) -> None:
    with Runner(state_path, *SIM, "--tcp-host", "none") as runner:
        assert "There is no cluster: vmstackd listens on no TCP port" in runner.log
        assert runner.get("/listvm").json == []
        assert runner.stop(signal.SIGINT) == 0


def test_options_of_globald_that_no_shell_would_read_are_refused(
    state_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(state_path), "--cluster-args", "--hosts 'a"]) == 2
    assert capsys.readouterr().err == "==> CLUSTER_ARGS: No closing quotation\n"
    assert not state_path.exists()


@pytest.mark.real
@pytest.mark.skipif(bool(missing_qemu()), reason=f"QEMU: {missing_qemu()}")
def test_the_image_says_hello_and_idles(tmp_path: Path) -> None:
    image, serial = tmp_path / "hello.qcow2", tmp_path / "serial"
    assert hello_image.main([str(image)]) == 0
    command = [QEMU, "-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none"]
    command += ["-serial", f"file:{serial}", "-drive", f"file={image},if=virtio,format=qcow2"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as guest:
        try:
            deadline = time.monotonic() + Runner.patience
            while not (serial.exists() and serial.read_bytes().endswith(b"\r\n")) and time.monotonic() < deadline:
                assert guest.poll() is None
                time.sleep(0.05)
            assert serial.read_text() == hello_image.HELLO + "\n"  # universal newlines
            before, begin = cpu_seconds(guest.pid), time.monotonic()
            time.sleep(1)
            assert cpu_seconds(guest.pid) - before < 0.5 * (time.monotonic() - begin)
        finally:
            guest.kill()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_boot_sector_is_512_bytes_and_refuses_what_does_not_fit() -> None:
    sector = hello_image.boot_sector("x" * 400)
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
    assert b"x" * 400 + b"\r\n\0" in sector
    with pytest.raises(ValueError, match="bytes too long"):
        hello_image.boot_sector("x" * 500)


def test_an_image_that_cannot_be_made_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hello_image.main([str(tmp_path / "absent" / "x.qcow2")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_state_directory_is_private_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in range(2):
        state = short(path)
        state.make()
        state.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert sorted(entry.name for entry in path.iterdir()) == [MARK, "images"]


def short(path: Path) -> StateDir:
    """A state directory whose path may be longer than Unix sockets allow: nothing is started in it."""
    state = StateDir("/short")
    state.path = path
    return state


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("relative", "absolute path"),
        ("/tmp/with space", "absolute path"),
        ("/tmp/a?b", "absolute path"),
        ("/tmp/a,b", "absolute path"),
        ("", "absolute path"),
        ("/" + "x" * 60, "too long for the Unix sockets"),
    ],
)
def test_paths_that_cannot_work_are_refused(path: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for program in (run.main, purge.main):
        assert program([path]) == 1
        assert message in capsys.readouterr().err


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for attempt in (short(tmp_path).make, short(tmp_path).open):
        with pytest.raises(StateDirError, match="not to you"):
            attempt()


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StateDirError, match="written by other users"):
        short(tmp_path).make()


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StateDirError, match="not a directory"):
        short(tmp_path / "link").make()


def test_a_directory_with_other_files_is_neither_used_nor_purged(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(StateDirError, match="not empty"):
        short(tmp_path).make()
    with pytest.raises(StateDirError, match="not made by make run"):
        short(tmp_path).open()
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious"]


def test_only_one_may_use_it(tmp_path: Path) -> None:
    first = short(tmp_path / "s")
    first.make()
    for attempt in (short(first.path).make, short(first.path).open):
        with pytest.raises(StateDirError, match="in use"):
            attempt()
    first.close()
    second = short(first.path)
    second.open()
    assert fcntl.fcntl(second.lock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    second.close()


def test_deleting_follows_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    state = short(tmp_path / "s")
    state.make()
    (state.path / "link").symlink_to(outside)
    (state.images / "link").symlink_to(outside)
    state.delete()
    state.close()
    assert not state.path.exists()
    assert (outside / "precious").exists()


def test_purging_what_is_not_there_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert purge.main(["/tmp/vmstack-never-made"]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_colours_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    state_dir.say("hello")
    assert capsys.readouterr().err == "==> hello\n"
