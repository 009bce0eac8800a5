from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.cpuset import parse_cpu_list
from tests.running import PATIENCE, ROOT, Finished
from tests.vmstackctl.command import IMAGE, Host, environment, every_command, run, words
from vmstackctl.commands import cli
from vmstackctl.options import EXIT_CODES
from vmstackd.version import VERSION

READING = ("status", "list", "topology")
LONG_EXAMPLES = ("  vmstackctl deploy", "  vmstackctl pki")


# What each command does


def test_a_vm_is_deployed_listed_described_and_removed(host: Host) -> None:
    deployed = re.fullmatch(r"web1: runs at level 2:1 on CPUs ([0-9,-]+)\n", host.deploy("web1", 4).out)
    assert deployed is not None
    assert len(parse_cpu_list(deployed[1])) == 4
    assert host.ctl("list").out.splitlines()[1].split()[:2] == ["web1", "2:1"]
    assert host.ctl("describe", "web1").out.startswith("web1\n  level   2:1, 4 CPUs\n")
    assert host.ctl("remove", "web1").out == f"web1: removed, freed CPUs {deployed[1]}\n"
    assert host.ctl("list", "--output", "name").out == ""


def test_a_dry_run_changes_nothing(host: Host) -> None:
    assert "would run" in host.deploy("web1", 4, "2", "--dry-run").out
    assert host.json("list") == {"vms": []}
    host.deploy("web1")
    assert "would be removed" in host.ctl("remove", "web1", "--dry-run").out
    assert [vm["name"] for vm in host.json("list")["vms"]] == ["web1"]


def test_sizes_and_levels_arrive_exactly(host: Host) -> None:
    arguments = ("--vcpus", "2", "--memory", "1.5G", "--level", "1.5:1", "--image", IMAGE)
    assert host.json("deploy", "web1", *arguments)["level"] == 1500
    vm = host.json("describe", "web1")
    assert (vm["vcpus"], vm["memory_mib"], vm["level"], vm["level_text"]) == (2, 1536, 1500, "1.5")
    assert vm["image"] == IMAGE


def test_the_path_of_an_image_is_that_of_where_we_are(host: Host) -> None:
    host.ctl(*["deploy", "web1", "--vcpus", "1", "--memory", "1", "--level", "1", "--image", "disk.qcow2"])
    assert host.json("describe", "web1")["image"] == str(ROOT / "disk.qcow2")


def test_status_draws_the_host(host: Host) -> None:
    host.deploy("web1", 4)
    out = host.ctl("status").out
    assert "16 CPUs, 64 GiB, 1 VM, hypervisor up" in out
    assert sum(line.count("2") for line in out.splitlines() if line.startswith("0-")) == 4
    assert re.search(r"^22  2:1 +4 ", out, re.MULTILINE)


def test_json_is_one_object_per_reply_and_line(host: Host) -> None:
    host.deploy("web1")
    host.deploy("web2")
    lines = host.ctl("describe", "web1", "web2", "--output", "json").out.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["web1", "web2"]
    assert host.json("status")["host"]["vms"] == 2
    assert len(host.json("topology")["cpus"]) == 16
    assert host.json("progress", "--vcpus", "1", "--memory", "1", "--level", "1").keys() == {"progress"}
    assert host.ctl("list", "--output", "json").out.count("\n") == 1


def test_names_are_one_per_line(host: Host) -> None:
    assert host.deploy("web1", 1, "1", "--output", "name").out == "web1\n"
    host.deploy("web2")
    assert host.ctl("list", "--output", "name").out == "web1\nweb2\n"
    assert host.ctl("describe", "web2", "web1", "--output", "name").out == "web2\nweb1\n"
    assert host.ctl("remove", "web1", "web2", "--output", "name").out == "web1\nweb2\n"


@pytest.mark.parametrize("command", ["status", "topology", "watch", "events"])
def test_where_there_is_no_name_none_is_printed(host: Host, command: str) -> None:
    done = host.ctl(command, "--output", "name")
    assert (done.code, done.out) == (2, "")
    assert "may be table or json" in done.err


def test_progress_is_a_number_and_its_meaning(host: Host) -> None:
    done = host.ctl("progress", "--vcpus", "1", "--memory", "4G", "--level", "1")
    assert re.fullmatch(r"-?[0-9]+\.[0-9] MiB per CPU nearer to the hardware's; larger is better\n", done.out)


def test_topology_shows_caches(host: Host) -> None:
    lines = [line.split() for line in host.ctl("topology").out.splitlines()]
    assert ["SOCKET", "NODE", "L3", "CORES", "CPUS", "FREE", "LEVELS"] in lines
    assert sum(line[:2] == ["0", "0"] for line in lines) == 2


# Exit codes and what is said then


def failed(done: Finished, code: int, *said: str) -> None:
    """It failed with one line that says all this."""
    assert done.code == code
    assert re.fullmatch(r"vmstackctl: .+; .+\n", done.err), done.err
    for part in said:
        assert part in done.err


def test_what_does_not_fit_ends_with_4_and_the_numbers(host: Host) -> None:
    failed(host.deploy("big", 100, "1"), 4, "100 more CPUs needed, 16 free", "the largest VM that fits now has 16")


def test_a_taken_name_ends_with_1(host: Host) -> None:
    host.deploy("web1")
    failed(host.deploy("web1"), 1, "this name is on this host already", "vmstackctl list")


def test_an_unknown_vm_ends_with_3_and_close_names(host: Host) -> None:
    host.deploy("web1")
    failed(host.ctl("describe", "wbe1"), 3, "'wbe1' does not exist on this host; did you mean web1?")
    failed(host.ctl("remove", "zzz"), 3, "'zzz' does not exist", "vmstackctl list")


def test_remove_goes_on_after_a_failure_and_ends_with_the_first_ones_code(host: Host) -> None:
    host.deploy("web1")
    host.deploy("web2")
    done = host.ctl("remove", "web1", "nope", "x" * 300, "web2")
    assert done.code == 3
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["web1", "web2"]
    assert len(done.err.splitlines()) == 2
    assert "nope" in done.err
    assert host.json("list") == {"vms": []}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "missing command; commands are status, list"),
        ("frobnicate", "no such command 'frobnicate'; commands are status, list"),
        ("status --colour", "no such option"),
        ("status extra", "unexpected extra argument (extra)"),
        ("describe", "missing argument 'VM...'"),
        ("deploy web1 --memory 1 --level 1 --image /i", "missing option '--vcpus'"),
        ("deploy web1 --vcpus x --memory 1 --level 1 --image /i", "'x' is not a valid integer"),
        ("deploy web1 --vcpus 0 --memory 1 --level 1 --image /i", "--vcpus: must be a whole number from 1 to"),
        ("deploy web1 --vcpus 1 --memory 1K --level 1 --image /i", "write it as 512M"),
        ("deploy web1 --vcpus 1 --memory 1 --level 0.5 --image /i", "from 1.0 to 64.0"),
        ("deploy .web1 --vcpus 1 --memory 1 --level 1 --image /i", "NAME: only printable characters"),
        ("progress --vcpus 5000 --memory 1 --level 1", "--vcpus: must be"),
        ("list --output yaml", "'table', 'json', 'name'"),
        ("list --timeout 0", "not in the range"),
        ("list --timeout nan", "'nan' is not a number"),
        ("watch --interval nan", "'nan' is not a number"),
        ("list --socket=", "invalid value for '--socket': it is empty"),
        ("deploy web1 --vcpus 1 --memory 1 --level 1 --image=", "invalid value for '--image': it is empty"),
        ("list --address nowhere", "write it as /a/path, unix:/a/path, host:port"),
        ("list --address host:70000", "write it as /a/path"),
        ("list --host=", "invalid value for '--host': it is empty"),
        ("--cluster list --socket /s", "--cluster means unix:/run/vmstack/globald.sock; leave it out"),
        ("list --address 10.0.0.5:8097 --tls-ca /ca", "--tls-cert is missing (or VMSTACKCTL_TLS_CERT, or tls_cert in"),
        ("host", "missing command; commands are add, remove, list"),
        ("host frobnicate", "no such command 'frobnicate'; commands are add, remove, list"),
        ("host add server4", "ADDRESS: must be HOST:PORT"),
        ("host add server4:8097 --name a/b", "NAME: only letters"),
        ("completion tcsh", "'bash', 'zsh', 'fish'"),
    ],
)
def test_wrong_usage_ends_with_2_and_what_is_allowed(arguments: str, said: str) -> None:
    failed(run(*arguments.split()), 2, said)


def test_wrong_usage_cannot_write_to_the_terminal_either() -> None:
    for arguments in (("\033[2J",), ("list", "--\x9b2J"), ("describe", "a\udcffb"), ("list", "--address", "\n")):
        done = run(*arguments)
        failed(done, 2)
        assert done.err.rstrip("\n").isprintable()


def test_a_daemon_that_is_not_there_ends_with_6(tmp_path: Path) -> None:
    failed(run("list", "--socket", str(tmp_path / "s")), 6, "is vmstackd running? systemctl status vmstackd")
    for command in ("watch", "events"):
        failed(run(command, "--socket", str(tmp_path / "s")), 6, "is vmstackd running?")


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[Path]:
    """A socket where connections are taken and nothing is answered."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield tmp_path / "s"


def test_a_daemon_that_does_not_answer_ends_with_6(mute: Path) -> None:
    failed(run("list", "--timeout", "0.2", "--socket", str(mute)), 6, "0.2 s")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not connect")
def test_a_socket_that_may_not_be_opened_ends_with_5(host: Host) -> None:
    host.socket.parent.chmod(0o755)
    done = subprocess.run(
        words("list", "--socket", str(host.socket)),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert "permission denied; reading is for group vmstack" in done.stderr


def test_ctrl_c_ends_with_130_and_nothing_else(mute: Path) -> None:
    with subprocess.Popen(
        words("list", "--socket", str(mute)), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until_connected(mute)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, err.strip()) == (130, "")


def wait_until_connected(path: Path) -> None:
    """Return when somebody waits to be accepted at the socket."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(str(path))]
        if len(lines) > 1:
            return
        time.sleep(0.02)
    raise AssertionError("nobody connects")


# Options


def test_options_for_all_commands_may_stand_before_or_after(host: Host) -> None:
    host.deploy("web1")
    where = str(host.socket)
    for arguments in (
        ("--socket", where, "--output", "name", "list"),
        ("list", "--socket", where, "--output", "name"),
        ("--address", f"unix:{where}", "list", "--output=name"),
        ("--output", "json", "list", "--address", where, "--output", "name"),
        ("--socket", "/nowhere", "list", "--socket", where, "--output", "name"),
    ):
        assert run(*arguments).out == "web1\n"


def test_the_address_comes_from_the_environment_unless_it_is_typed(host: Host) -> None:
    where = str(host.socket)
    assert run("list", "--output", "json", VMSTACKCTL_ADDRESS=where).code == 0
    assert run("--socket", where, "list", VMSTACKCTL_ADDRESS="/nowhere").code == 0
    assert run("list", "--address", where, VMSTACKCTL_ADDRESS="/nowhere").code == 0
    failed(run("list", VMSTACKCTL_ADDRESS="nowhere"), 2, "VMSTACKCTL_ADDRESS")


def test_the_version_is_told() -> None:
    assert run("--version").out == f"vmstackctl {VERSION}\n"


@pytest.mark.parametrize("command", ["", *(" ".join(path) for path, _ in every_command(cli))])
def test_help_begins_with_examples_that_name_the_command(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "Examples:"
    assert "vmstackctl" in lines[1]
    assert command in lines[1]
    assert max(len(line) for line in lines if not line.startswith(LONG_EXAMPLES)) <= 80


def test_all_exit_codes_are_in_the_help() -> None:
    out = run("-h").out
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", out, re.MULTILINE)
