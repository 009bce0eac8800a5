"""The boxes themselves: real machines to the tests, and gone without a trace."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import LIBVIRTD, missing_qemu
from tests.running import ROOT
from tests.system.box import Box
from tests.system.keeper import EMPTY, SHOWN
from tests.system.lab import PATIENCE, Lab, children, missing

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}")]

missing_libvirt = missing_qemu() or ("" if shutil.which("virsh") and Path(LIBVIRTD).exists() else "no libvirtd")

BUS = ("busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

COUNTER = """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo started >>/var/lib/starts'
[Install]
WantedBy=multi-user.target
"""

POLKIT_RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.login1.reboot" && subject.user == "daemon") return polkit.Result.YES;
});
"""

DOMAIN = """<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>32</memory>
  <vcpu cpuset='0'>1</vcpu>
  <os><type>hvm</type></os>
</domain>
"""


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[Box, Box]]:
    with Box(lab, "one", address="10.77.0.2") as one, Box(lab, "two", address="10.77.0.3") as two:
        yield one, two


def python(*lines: str) -> list[str]:
    return ["/usr/bin/python3", "-c", "\n".join(lines)]


# --- a machine ------------------------------------------------------------------------------------------------------


def test_systemd_runs_and_nothing_has_failed(box: Box) -> None:
    assert box.run("systemctl", "is-system-running").stdout == "running\n"
    assert box.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert box.run("hostname").stdout == "box\n"


def test_nothing_of_this_machine_is_enabled_or_private(box: Box) -> None:
    listed = box.run("systemctl", "list-unit-files", "--state=enabled", "--no-legend").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["box.service"]
    for directory in ("/home", "/opt", "/srv"):
        assert not box.run("ls", "-A", directory).stdout
    assert {entry.name for entry in box.root.iterdir()} <= SHOWN | EMPTY.keys()


def test_a_command_runs_as_a_service_of_its_user(box: Box) -> None:
    done = box.run("sh", "-c", 'id -un; cat; echo "$HOME" >&2; exit 3', user="daemon", stdin="text\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "daemon\ntext\n", "/usr/sbin\n")
    assert box.run("cat", "/proc/self/cgroup").stdout.splitlines()[-1].startswith("0::/system.slice/run-")
    with pytest.raises(AssertionError, match="status 3"):
        box.run("sh", "-c", "exit 3")


def test_a_command_that_takes_too_long_is_ended(box: Box) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        box.run("sleep", "987", timeout=1)
    deadline = time.monotonic() + PATIENCE
    while box.enter("pgrep", "--full", "sleep 987", check=False).returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert box.enter("pgrep", "--full", "sleep 987", check=False).returncode == 1


def test_nobody_in_a_box_may_set_the_clock_of_this_machine(box: Box) -> None:
    for run in (box.run, box.enter):
        done = run("date", "--set=@0", check=False)
        assert done.returncode == 1
        assert "Operation not permitted" in done.stderr


def test_files_are_written_copied_and_read_from_outside(box: Box, tmp_path: Path) -> None:
    box.write("/etc/vmstack/some.conf", "text\n", 0o640)
    assert box.run("stat", "--format=%a %U %s", "/etc/vmstack/some.conf").stdout == "640 root 5\n"
    (tmp_path / "file").write_text("copied\n")
    box.copy(tmp_path, "/opt/directory")
    box.copy(tmp_path / "file", "/opt/other")
    assert box.run("cat", "/opt/directory/file", "/opt/other").stdout == "copied\ncopied\n"
    box.run("sh", "-c", "echo from inside >/run/file")
    assert box.path("/run/file").read_text() == "from inside\n"
    assert not Path("/etc/vmstack/some.conf").exists()


def test_directories_of_this_machine_are_seen_where_they_are_bound(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    binds = {"/opt/source": ROOT, "/opt/venv": Path(sys.prefix)}
    with Box(lab, "bound", read_only=binds, writable={"/srv/a:b": tmp_path / "a:b"}) as box:
        box.run("touch", "/srv/a:b/file")
        assert (tmp_path / "a:b" / "file").exists()
        assert box.run("touch", "/opt/source/file", check=False).returncode == 1
        where = ["/opt/venv/bin/python", "-c", "import vmstackd; print(vmstackd.__file__)"]
        shown = box.run(*where, properties=["WorkingDirectory=/opt/source"])
        assert shown.stdout == "/opt/source/vmstackd/__init__.py\n"


# --- D-Bus, polkit, libvirt -----------------------------------------------------------------------------------------


def test_dbus_answers_inside_and_outside(box: Box) -> None:
    inside = box.run(*BUS, "GetId", user="nobody").stdout
    assert re.fullmatch(r's "[0-9a-f]{32}"\n', inside)
    address = f"--address=unix:path={box.path('/run/dbus/system_bus_socket')}"
    outside = subprocess.run([BUS[0], address, *BUS[1:], "GetId"], capture_output=True, text=True, check=True)
    assert outside.stdout == inside


def test_polkit_answers_by_its_rules(box: Box) -> None:
    def allowed(user: str) -> bool:
        check = ["sh", "-c", "pkcheck --action-id org.freedesktop.login1.reboot --process $$"]
        return box.run(*check, user=user, check=False).returncode == 0

    assert (allowed("root"), allowed("daemon"), allowed("nobody")) == (True, False, False)
    box.write("/etc/polkit-1/rules.d/10-test.rules", POLKIT_RULE)
    box.run("systemctl", "restart", "polkit")
    assert (allowed("root"), allowed("daemon"), allowed("nobody")) == (True, True, False)


@pytest.mark.skipif(bool(missing_libvirt), reason=f"libvirtd in a box: {missing_libvirt}")
def test_libvirtd_runs_a_guest_within_cgroups(box: Box) -> None:
    box.run("systemctl", "start", "libvirtd")
    box.run("virsh", "create", "/dev/stdin", stdin=DOMAIN)
    assert box.run("virsh", "list", "--name").stdout.split() == ["guest"]
    assert "cpu_time" in box.run("virsh", "cpu-stats", "guest", "--total").stdout
    assert "qemu-1-guest" in box.run("machinectl", "--no-legend").stdout
    box.run("virsh", "destroy", "guest")


# --- sandboxing -----------------------------------------------------------------------------------------------------


def test_address_families_are_restricted(box: Box) -> None:
    command = python("import socket", "socket.socket(socket.AF_INET)")
    box.run(*command)
    denied = box.run(*command, properties=["RestrictAddressFamilies=AF_UNIX"], check=False)
    assert "Address family not supported" in denied.stderr


def test_addresses_are_denied(box: Box) -> None:
    command = python("import socket", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))")
    box.run(*command)
    denied = box.run(*command, properties=["IPAddressDeny=any"], check=False)
    assert "Operation not permitted" in denied.stderr
    box.run(*command, properties=["IPAddressDeny=any", "IPAddressAllow=localhost"])


# --- life and death -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["crash", "stop", "reboot"])
def test_the_disk_outlives_the_end_and_what_is_enabled_starts_again(lab: Lab, end: str) -> None:
    with Box(lab, "mortal") as box:
        box.write("/etc/systemd/system/counter.service", COUNTER)
        box.run("systemctl", "enable", "--now", "counter")
        assert box.path("/var/lib/starts").read_text() == "started\n"
        first = box.run("cat", "/proc/sys/kernel/random/boot_id").stdout
        match end:
            case "crash":
                box.crash()
            case "stop":
                box.stop()
            case _:
                box.enter("systemctl", "reboot", check=False)
                box.wait()
        assert box.path("/var/lib/starts").read_text() == "started\n"
        assert "counter.service" in box.journal("--unit=counter")
        box.start()
        assert box.path("/var/lib/starts").read_text() == "started\n" * 2
        assert box.run("cat", "/proc/sys/kernel/random/boot_id").stdout != first
        assert len(box.journal("--list-boots", "--output=json").split("boot_id")) == 3


def test_a_box_that_does_not_boot_says_why(lab: Lab) -> None:
    box = Box(lab, "broken")
    box.write("/usr/lib/systemd/systemd", "#!/bin/sh\necho no machine today\nexit 1\n", 0o755)
    with pytest.raises(RuntimeError, match="no machine today"), box:
        pass
    assert "broken" not in lab.boxes


def test_two_boxes_share_nothing_but_the_network(pair: tuple[Box, Box]) -> None:
    one, two = pair
    one.write("/etc/only-here", "")
    one.run("systemd-run", "--unit=only-here", "sleep", "infinity")
    assert one.run("systemctl", "is-active", "only-here").stdout == "active\n"
    assert two.run("systemctl", "is-active", "only-here", check=False).stdout == "inactive\n"
    assert not two.path("/etc/only-here").exists()
    assert two.run("pgrep", "sleep", check=False).returncode == 1
    assert one.run("cat", "/etc/machine-id").stdout != two.run("cat", "/etc/machine-id").stdout
    listen = python(
        "import socket",
        "server = socket.create_server(('10.77.0.3', 80))",
        "open('/run/listens', 'w')",
        "server.accept()[0].sendall(b'hello')",
    )
    two.run("systemd-run", *listen)
    deadline = time.monotonic() + PATIENCE
    while not two.path("/run/listens").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    connect = python("import socket", "print(socket.create_connection(('10.77.0.3', 80)).recv(9))")
    assert one.run(*connect).stdout == "b'hello'\n"


def test_a_box_without_address_has_no_network(box: Box) -> None:
    assert re.findall(r'"ifname":"(\w+)"', box.run("ip", "-json", "link").stdout) == ["lo"]


# --- no trace -------------------------------------------------------------------------------------------------------

TWO_BOXES = """
from tests.system.box import Box
from tests.system.lab import Lab
with Lab() as lab, Box(lab, "one", address="10.77.0.2") as one, Box(lab, "two") as two:
    one.run("systemd-run", "sleep", "infinity")
    print(lab.cgroups["unified"].name, flush=True)
    input()  # ends at the latest with the test
"""


def descendants(pid: int) -> set[int]:
    found = set(children(pid))
    return found.union(*(descendants(child) for child in found))


def lives(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def cgroups(name: str) -> list[str]:
    """Cgroups of this name on this machine."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    places = [left.split()[4] for left, right in mounts if right.startswith("cgroup")]
    assert places
    # Others may come and go meanwhile, which makes find fail.
    return subprocess.run(["find", *places, "-name", name], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_test_process_leaves_nothing_behind(number: signal.Signals) -> None:
    mounts, links = Path("/proc/self/mountinfo").read_text(), sorted(Path("/sys/class/net").iterdir())
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", TWO_BOXES]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as tests:
        try:
            assert tests.stdout is not None
            name = tests.stdout.readline().strip()
            began = descendants(tests.pid)
            assert [Path(f"/proc/{pid}/comm").read_text() for pid in began].count("systemd\n") == 2
            assert cgroups(name)
            tests.send_signal(number)
            tests.wait(PATIENCE)
        finally:
            tests.kill()
    deadline = time.monotonic() + PATIENCE
    while ((left := set(filter(lives, began))) or cgroups(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert not cgroups(name)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert sorted(Path("/sys/class/net").iterdir()) == links
